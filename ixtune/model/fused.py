"""Memory-bound parts of a layer as one kernel each on a GPU: plain functions, compiled at the first call.

In eager mode every operation reads and writes all numbers once; `torch.compile` makes one pass of each function and
does not round between its operations. If it cannot (no Triton, no C compiler, or IXTUNE_COMPILE=0), all functions run
uncompiled: slower, rounded as in the reference, and with other dropout masks.

Shape letters as in `ixtune.model.low_memory`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

OFF = "IXTUNE_COMPILE"


_off: list[str] = []


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it is compiled when first called with a tensor on a GPU."""
    kernel = functools.cache(lambda: torch.compile(function))

    @functools.wraps(function)
    def call(x: torch.Tensor, *args: Any) -> Any:
        if not x.is_cuda or not can_compile():
            return function(x, *args)
        try:
            return kernel()(x, *args)
        except torch._dynamo.exc.TorchDynamoException as error:
            _off.append(str(error))  # for all functions: a recomputed value must be rounded as it was the first time
            warnings.warn(
                f"{function.__name__} could not be compiled; all run uncompiled, slower: {str(error).splitlines()[0]}",
                stacklevel=2,
            )
            return function(x, *args)

    return call


def can_compile() -> bool:
    """Return whether kernels can be compiled on this machine."""
    return not _off and os.environ.get(OFF, "1") != "0" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@compiled
def norm(x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normed rows and the factor of each row in fp32 [N, 1]."""
    scale_N1 = torch.rsqrt(x_ND.float().square().mean(-1, keepdim=True) + eps)
    return (x_ND.float() * scale_N1).to(x_ND.dtype) * weight_D, scale_N1


@compiled
def norm_again(x_ND: torch.Tensor, scale_N1: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    """Recompute the normed rows from saved factors."""
    return (x_ND.float() * scale_N1).to(x_ND.dtype) * weight_D


@compiled
def norm_backward(
    x_ND: torch.Tensor, scale_N1: torch.Tensor, weight_D: torch.Tensor, gradient_ND: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of the rows."""
    normed, gradient = x_ND.float() * scale_N1, gradient_ND.float() * weight_D
    return ((gradient - normed * (gradient * normed).mean(-1, keepdim=True)) * scale_N1).to(x_ND.dtype)


@compiled
def gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up`."""
    return torch.nn.functional.silu(gate) * up


@compiled
def gate_backward(gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of gate and up."""
    wide, slope = gate.float(), gradient.float()
    sigmoid = torch.sigmoid(wide)
    silu = wide * sigmoid
    to_gate = slope * up.float() * (sigmoid + silu * (1 - sigmoid))
    return to_gate.to(gate.dtype), (slope * silu).to(up.dtype)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


@compiled
def heads(
    qkv_BLKgd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rotated queries and keys, and values, each laid out as [B, L, K, .., d]."""
    query = _turned(qkv_BLKgd[..., :groups, :], cos, sin)
    key = _turned(qkv_BLKgd[..., groups : groups + 1, :], cos, sin)
    return query, key, qkv_BLKgd[..., groups + 1 :, :].contiguous()


@compiled
def heads_backward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of the fused projection from the gradients of its parts."""
    return torch.cat((_turned(query, cos, -sin), _turned(key, cos, -sin), value), dim=-2)


@compiled
def draw(powers_8: torch.Tensor, count: int, dropout: float) -> torch.Tensor:
    """Return random bytes [count] whose bits are 0 with probability `dropout`."""
    stay = torch.rand(count, 8, device=powers_8.device) >= dropout
    return (stay.to(torch.uint8) * powers_8).sum(-1, dtype=torch.uint8)


def _stays(bits: torch.Tensor, powers_8: torch.Tensor, count: int) -> torch.Tensor:
    return (bits[:, None] & powers_8).view(-1)[:count] != 0


@compiled
def drop(x_T: torch.Tensor, bits: torch.Tensor, powers_8: torch.Tensor) -> torch.Tensor:
    """Return a copy of x with zeros where a bit is 0, the highest bit of a byte first."""
    return torch.where(_stays(bits, powers_8, len(x_T)), x_T, 0)


@compiled
def drop_added(to_T: torch.Tensor, x_T: torch.Tensor, bits: torch.Tensor, powers_8: torch.Tensor) -> None:
    """Add `drop` of x to another vector in place."""
    to_T += torch.where(_stays(bits, powers_8, len(x_T)), x_T, 0)
