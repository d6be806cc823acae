"""Compare the fused GPU kernels with the blockwise CPU code: the same functions, compiled on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu import NEEDS_GPU, needs_gpu

from ixtune.model import fused, low_memory

DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
EPS = 1e-5


def made(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def learned(way: Callable[..., Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return outputs and gradients of a low-memory function on the CPU."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    outputs = way(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [made(*out.shape, seed=7 + at, dtype=out.dtype) for at, out in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]


def close(found: list[torch.Tensor], wanted: list[torch.Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        difference = (one.cpu() - other).detach().float().norm()
        assert float(difference) <= (1e-6 if dtype == torch.float32 else 6e-3) * float(other.detach().float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_rms_norm_matches_the_cpu(device: str, dtype: torch.dtype) -> None:
    x, weight = made(9, 16, dtype=dtype), made(16, seed=1, dtype=dtype)
    out, to_x = learned(lambda x: low_memory.rms_norm(x, weight, EPS), [x])
    there, factor = x.to(device), weight.to(device)
    found, scale = fused.norm(there, factor, EPS)
    gradient = made(9, 16, seed=7, dtype=dtype).to(device)
    close([found, fused.norm_again(there, scale, factor)], [out, out], dtype)
    close([fused.norm_backward(there, scale, factor, gradient)], [to_x], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_the_gate_matches_the_cpu(device: str, dtype: torch.dtype) -> None:
    gate, up = made(9, 16, dtype=dtype), made(9, 16, seed=1, dtype=dtype)
    wanted = learned(low_memory.gated, [gate, up])
    gradient = made(9, 16, seed=7, dtype=dtype).to(device)
    there = gate.to(device), up.to(device)
    close([fused.gate(*there), *fused.gate_backward(gradient, *there)], wanted, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("groups", [1, 4])
def test_heads_match_the_cpu(device: str, dtype: torch.dtype, groups: int) -> None:
    width, kv_heads, length = 8, 2, 5
    qkv = made(1, length, kv_heads * (groups + 2) * width, dtype=dtype)
    half = made(1, 1, length, width // 2, seed=3)
    angles = tuple(torch.cat((turn, turn), dim=-1).to(dtype) for turn in (half.cos(), half.sin()))
    *parts, to_qkv = learned(lambda qkv: low_memory.heads(qkv, angles, width, groups), [qkv])
    cos, sin = (turn[:, 0, :, None, None, : width // 2].to(device) for turn in angles)
    found = fused.heads(qkv.to(device).view(1, length, kv_heads, groups + 2, width), cos, sin, groups)
    close([part.reshape(1, length, -1, width).transpose(1, 2) for part in found], parts, dtype)
    gradients = [made(*part.shape, seed=7 + at, dtype=dtype).to(device) for at, part in enumerate(parts)]
    by_group = [gradient.transpose(1, 2).unflatten(2, (kv_heads, -1)) for gradient in gradients]
    close([fused.heads_backward(*by_group, cos, sin).view(1, length, -1)], [to_qkv], dtype)


def test_heads_keep_the_dtype_of_their_input() -> None:
    qkv, half = made(1, 3, 1, 4, 8, dtype=torch.bfloat16), made(1, 3, 1, 1, 4)
    assert {part.dtype for part in fused.heads(qkv, half.cos(), half.sin(), 2)} == {torch.bfloat16}


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_bits_are_drawn_and_read_as_on_the_cpu(device: str) -> None:
    from ixtune.adapter import dropout

    powers = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
    torch.manual_seed(0)
    bits = fused.draw(powers, 5000, 0.25)
    ones = dropout.drop(torch.ones(40_000), bits.cpu())
    assert float(ones.mean()) == pytest.approx(0.75, abs=0.01)
    torch.manual_seed(0)
    assert torch.equal(fused.draw(powers, 5000, 0.25), bits)
    x, to = made(13, 7), made(13, 7, seed=1)
    few = bits[:12]  # a mask may end inside a byte
    dropped = dropout.drop(x, few.cpu())
    assert torch.equal(fused.drop(x.to(device).view(-1), few, powers).cpu().view(13, 7), dropped)
    sums = to.to(device).view(-1).clone()
    fused.drop_added(sums, x.to(device).view(-1), few, powers)
    assert torch.equal(sums.cpu().view(13, 7), to + dropped)


def test_without_a_compiler_functions_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_has_triton", lambda: True)
    assert fused.can_compile()
    monkeypatch.setenv(fused.OFF, "0")
    assert not fused.can_compile()
    monkeypatch.delenv(fused.OFF)
    monkeypatch.setattr(fused, "_off", ["one of them failed"])
    assert not fused.can_compile()


@needs_gpu
def test_one_gpu_compilation_serves_all_lengths() -> None:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=False, recompile_limit=3):
        for length in (40, 41, 56, 80, 96):
            x = made(length, 16).cuda()
            close([fused.gate(x, x)], [torch.nn.functional.silu(x.cpu()) * x.cpu()], torch.bfloat16)
