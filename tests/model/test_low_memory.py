"""Compare low-memory functions with plain ones: values, gradients, and saved tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from ixtune.model import low_memory
from ixtune.model.plora import ImageRows, PLoRA, apply

EPS = 1e-5
Tensors = list[torch.Tensor]
Way = Callable[..., torch.Tensor]


def norm_plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x32 = x.float()
    return weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def norm_lean(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return low_memory.rms_norm(x, weight, EPS)


def gated_plain(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return silu(gate) * up


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def heads_plain(
    qkv: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], width: int, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, length, _ = qkv.shape
    by_group = qkv.view(batch, length, -1, groups + 2, width)
    query = by_group[..., :groups, :].reshape(batch, length, -1, width).transpose(1, 2)
    key, value = by_group[..., groups, :].transpose(1, 2), by_group[..., groups + 1, :].transpose(1, 2)
    return rotate(query, *angles), rotate(key, *angles), value


def made(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_()


def learned(way: Way, inputs: Tensors) -> tuple[torch.Tensor, Tensors]:
    """Return the output, and the gradients of a weighted sum of it."""
    out = way(*inputs)
    weights = made(*out.shape, dtype=out.dtype, seed=9).detach()
    return out.detach(), list(torch.autograd.grad(out, [i for i in inputs if i.requires_grad], weights))


def kept(way: Callable[[], object]) -> dict[int, int]:
    """Return the bytes, by address, of the tensors that a forward pass saves for the backward pass."""
    alive: Tensors = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = way()
    del result
    return {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}


def close(found: Tensors, wanted: Tensors, dtype: torch.dtype) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).double().norm()) <= (1e-6 if dtype == torch.float32 else 6e-3) * float(
            other.double().norm()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("block", [1 << 18, 100])
def test_rms_norm_matches_the_plain_one(
    dtype: torch.dtype, trained: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row blocks, also a smaller last one, change nothing; a trained weight gets its gradient."""
    monkeypatch.setattr(low_memory, "_BLOCK", block)
    inputs = [made(2, 9, 24, dtype=dtype), made(24, dtype=dtype, seed=1).requires_grad_(trained)]
    (out, found), (wanted, gradients) = learned(norm_lean, inputs), learned(norm_plain, inputs)
    assert torch.equal(out, wanted)
    assert len(found) == 1 + trained
    close(found, gradients, dtype)


def test_rms_norm_with_an_fp32_weight_returns_fp32() -> None:
    inputs = [made(3, 16, dtype=torch.bfloat16), made(16, seed=1)]
    (out, found), (wanted, gradients) = learned(norm_lean, inputs), learned(norm_plain, inputs)
    assert torch.equal(out, wanted)
    close(found, gradients, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_matches_the_plain_one(dtype: torch.dtype) -> None:
    inputs = [made(2, 9, 24, dtype=dtype), made(2, 9, 24, dtype=dtype, seed=1)]
    (out, found), (wanted, gradients) = learned(low_memory.gated, inputs), learned(gated_plain, inputs)
    assert torch.equal(out, wanted)
    close(found, gradients, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_heads_match_the_plain_ones(dtype: torch.dtype, part: int) -> None:
    width, groups, kv_heads = 8, 3, 2
    angles = made(2, 1, 5, width // 2, seed=1).detach()
    both = torch.cat((angles, angles), dim=-1)
    turn = (both.cos().to(dtype), both.sin().to(dtype))
    inputs = [made(2, 5, kv_heads * (groups + 2) * width, dtype=dtype)]
    out, found = learned(lambda qkv: low_memory.heads(qkv, turn, width, groups)[part], inputs)
    wanted, gradients = learned(lambda qkv: heads_plain(qkv, turn, width, groups)[part], inputs)
    assert torch.equal(out, wanted)
    close(found, gradients, dtype)


def test_only_inputs_and_one_number_per_row_are_kept() -> None:
    x, weight, up = made(2, 9, 24), made(24, seed=1), made(2, 9, 24, seed=2)
    rows = 2 * 9
    assert sorted(kept(lambda: norm_lean(x, weight)).values()) == sorted([x.nbytes, weight.nbytes, rows * 4])
    assert sorted(kept(lambda: low_memory.gated(x, up)).values()) == [x.nbytes, up.nbytes]
    cos, sin = made(1, 1, 5, 8).detach(), made(1, 1, 5, 8, seed=1).detach()
    alive = kept(lambda: low_memory.heads(made(1, 5, 2 * 5 * 8), (cos, sin), 8, 3))
    assert alive == {cos.data_ptr(): cos.nbytes, sin.data_ptr(): sin.nbytes}


@pytest.mark.parametrize("way", [norm_lean, low_memory.gated])
def test_an_output_can_be_recomputed_bit_for_bit(way: Way) -> None:
    inputs = [made(7, 24, dtype=torch.bfloat16), made(*((24,) if way is norm_lean else (7, 24)), dtype=torch.bfloat16)]
    out = way(*inputs)
    make = low_memory.maker(out)
    assert make is not None
    assert torch.equal(make(), out)
    assert torch.equal(make(), out)
    assert low_memory.maker(out + 1) is None
    assert low_memory.maker(inputs[0]) is None


def test_a_checkpoint_around_a_recomputed_output_keeps_only_its_input() -> None:
    """The node is unpacked twice, by the user of the output and by its own backward; a checkpoint allows it once."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.make = low_memory.maker(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * ctx.make() * gradient

    def layer(x: torch.Tensor) -> torch.Tensor:
        return Square.apply(norm_lean(x, weight)) + Square.apply(low_memory.gated(x, up))

    x, weight, up = made(6, 16), made(16, seed=1), made(6, 16, seed=2)
    wanted = torch.autograd.grad(layer(x).sum(), (x, weight, up))
    found = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), (x, weight, up))
    assert all(map(torch.equal, found, wanted))
    assert set(kept(lambda: checkpoint(layer, x, use_reentrant=False))) == {x.data_ptr()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plora_is_added_at_image_rows_and_keeps_no_row(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, plora = torch.nn.Linear(16, 24, bias=False).to(dtype), PLoRA(16, 24, 4, 2.0).to(dtype)
    for module in (linear, plora):
        module.requires_grad_(False)
    rows = torch.tensor([0, 3, 4, 11])
    images = ImageRows.of(rows)
    assert images is not None
    assert images.spans == (slice(0, 1), slice(3, 5), slice(11, 12))
    x = made(2, 6, 16, dtype=dtype)

    def plain(x: torch.Tensor) -> torch.Tensor:
        branch = torch.zeros(12, 24, dtype=dtype).index_copy(0, rows, plora(x.view(12, 16)[rows]))
        return linear(x) + branch.view(2, 6, 24)

    out, found = learned(lambda x: apply(linear, plora, x, images), [x])
    wanted, gradients = learned(plain, [x])
    close([out, *found], [wanted, *gradients], dtype)
    weights = {p.data_ptr() for module in (linear, plora) for p in module.parameters()}
    assert set(kept(lambda: apply(linear, plora, x, images))) <= weights | {rows.data_ptr()}
    plora.requires_grad_(True)
    apply(linear, plora, x, images).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in plora.parameters())
