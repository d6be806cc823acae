"""What of a layer is bound by memory, as one kernel each on a GPU: written plainly here, compiled at the first use.

Eager, every operation of these reads and writes all numbers once; `torch.compile` makes one pass of each function and
does not round between the operations of one. Where it cannot (no Triton, no C compiler, or IXTUNE_COMPILE=0) all of
them run as they are written: slower, rounded as the reference does, and with other draws of dropout.

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
    """The function, compiled for a GPU when it is first called with a tensor that is there."""
    kernel = functools.cache(lambda: torch.compile(function))

    @functools.wraps(function)
    def call(x: torch.Tensor, *args: Any) -> Any:
        if not x.is_cuda or not can_compile():
            return function(x, *args)
        try:
            return kernel()(x, *args)
        except torch._dynamo.exc.TorchDynamoException as error:
            _off.append(str(error))  # for all: a value made again must be rounded as it was the first time
            warnings.warn(
                f"{function.__name__} could not be compiled; nothing is, which is slower: {str(error).splitlines()[0]}",
                stacklevel=2,
            )
            return function(x, *args)

    return call


def can_compile() -> bool:
    """Whether kernels are compiled here."""
    return not _off and os.environ.get(OFF, "1") != "0" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@compiled
def norm(x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed rows, and what each was multiplied by, in fp32 [N, 1]."""
    scale_N1 = torch.rsqrt(x_ND.float().square().mean(-1, keepdim=True) + eps)
    return (x_ND.float() * scale_N1).to(x_ND.dtype) * weight_D, scale_N1


@compiled
def norm_again(x_ND: torch.Tensor, scale_N1: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    """The normed rows from what was kept."""
    return (x_ND.float() * scale_N1).to(x_ND.dtype) * weight_D


@compiled
def norm_backward(
    x_ND: torch.Tensor, scale_N1: torch.Tensor, weight_D: torch.Tensor, gradient_ND: torch.Tensor
) -> torch.Tensor:
    """The gradient to the rows."""
    normed, gradient = x_ND.float() * scale_N1, gradient_ND.float() * weight_D
    return ((gradient - normed * (gradient * normed).mean(-1, keepdim=True)) * scale_N1).to(x_ND.dtype)


@compiled
def gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`."""
    return torch.nn.functional.silu(gate) * up


@compiled
def gate_backward(gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients to both."""
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
    """Queries and keys, rotated, and values; each laid out as [B, L, K, .., d]."""
    query = _turned(qkv_BLKgd[..., :groups, :], cos, sin)
    key = _turned(qkv_BLKgd[..., groups : groups + 1, :], cos, sin)
    return query, key, qkv_BLKgd[..., groups + 1 :, :].contiguous()


@compiled
def heads_backward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """The gradient to the fused projection, from those to its parts."""
    return torch.cat((_turned(query, cos, -sin), _turned(key, cos, -sin), value), dim=-2)


@compiled
def draw(powers_8: torch.Tensor, count: int, dropout: float) -> torch.Tensor:
    """Random bytes [count] each of whose bits is 0 with a probability of `dropout`."""
    stay = torch.rand(count, 8, device=powers_8.device) >= dropout
    return (stay.to(torch.uint8) * powers_8).sum(-1, dtype=torch.uint8)


def _stays(bits: torch.Tensor, powers_8: torch.Tensor, count: int) -> torch.Tensor:
    return (bits[:, None] & powers_8).view(-1)[:count] != 0


@compiled
def drop(x_T: torch.Tensor, bits: torch.Tensor, powers_8: torch.Tensor) -> torch.Tensor:
    """A copy of x with zeros where a bit, the highest of a byte first, is 0."""
    return torch.where(_stays(bits, powers_8, len(x_T)), x_T, 0)


@compiled
def drop_added(to_T: torch.Tensor, x_T: torch.Tensor, bits: torch.Tensor, powers_8: torch.Tensor) -> None:
    """Add `drop` of x to another vector, in place."""
    to_T += torch.where(_stays(bits, powers_8, len(x_T)), x_T, 0)
