"""Parts of a layer as autograd functions that save little for the backward pass.

A function keeps its inputs, in their own dtype, and nothing that can be computed from them in a pass over memory. The
outputs of some can be recomputed by functions that need them in their own backward pass: see `maker`.

On a GPU each of them is a kernel or two in training, see `ixtune.model.fused`; on a CPU it works in blocks that stay in
the caches.

Shape letters: B batch, L length, N = B * L, D hidden, F intermediate, H query heads, K key/value heads, G = H / K,
d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import Function

from ixtune.model import fused

# On a CPU, fp32 copies of this many numbers stay in the caches: 2.0 times as fast as copying everything.
_BLOCK = 1 << 18

Maker = Callable[[], torch.Tensor]


def maker(made: torch.Tensor) -> Maker | None:
    """Return a function that recomputes a tensor in the backward pass; None if the tensor has to be saved.

    It holds the graph's node and none of its tensors, so that a checkpointed layer stays empty. It can be called until
    the node's own backward pass is over, which comes after that of everything computed from `made`.
    """
    node: Any = made.grad_fn
    function = getattr(node, "_forward_cls", None)
    return torch.no_grad()(lambda: function.again(node)) if function in (_Norm, _Gate) else None


def _kept(node: Any) -> tuple[torch.Tensor, ...]:
    """Return a node's saved tensors, unpacking them only once because a checkpoint hands them out once."""
    if not hasattr(node, "unpacked"):
        node.unpacked = node.saved_tensors
    unpacked: tuple[torch.Tensor, ...] = node.unpacked
    return unpacked


def _blocks(x_ND: torch.Tensor) -> Iterator[slice]:
    """Yield blocks of rows to process: all rows on a GPU, where a launch costs more than a copy."""
    count, width = x_ND.shape
    step = max(1, _BLOCK // width) if x_ND.device.type == "cpu" else max(1, count)
    return (slice(start, start + step) for start in range(0, count, step))


class _Norm(Function):
    """RMS norm that saves the input and one fp32 number per row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[0] and x.is_cuda:
            out_ND, scale_N1 = fused.norm(x_ND, weight_D, eps)
            ctx.save_for_backward(x, scale_N1, weight_D)
            out: torch.Tensor = out_ND.view_as(x)
            return out
        scale_N1 = torch.empty(len(x_ND), 1, dtype=torch.float32, device=x.device)
        for rows in _blocks(x_ND):
            scale_N1[rows] = torch.rsqrt(x_ND[rows].float().square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, scale_N1, weight_D)
        return _scaled(x, scale_N1, weight_D)

    @staticmethod
    def again(node: Any) -> torch.Tensor:
        """Recompute the output, bit for bit if both calls are compiled or neither is."""
        x, scale_N1, weight_D = _kept(node)
        if x.is_cuda:
            again_ND: torch.Tensor = fused.norm_again(x.reshape(-1, x.shape[-1]), scale_N1, weight_D)
            return again_ND.view_as(x)
        return _scaled(x, scale_N1, weight_D)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale_N1, weight_D = _kept(ctx)
        del ctx.unpacked
        x_ND, gradient_ND = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, x.shape[-1])
        if x.is_cuda and fused.can_compile() and not ctx.needs_input_grad[1]:
            return fused.norm_backward(x_ND, scale_N1, weight_D, gradient_ND).view_as(x), None, None
        to_x_ND = torch.empty_like(x_ND)
        to_weight_D = torch.zeros_like(weight_D, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in _blocks(x_ND):
            scale, gradient = scale_N1[rows], gradient_ND[rows].float()
            normed = x_ND[rows].float() * scale
            if to_weight_D is not None:
                to_weight_D += (gradient * normed.to(x.dtype)).sum(0)
            gradient = gradient * weight_D
            to_x_ND[rows] = (gradient - normed * (gradient * normed).mean(-1, keepdim=True)) * scale
        return to_x_ND.view_as(x), None if to_weight_D is None else to_weight_D.to(weight_D.dtype), None


def _scaled(x: torch.Tensor, scale_N1: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    x_ND = x.reshape(-1, x.shape[-1])
    out_ND = torch.empty_like(x_ND, dtype=torch.result_type(x, weight_D))
    for rows in _blocks(x_ND):
        # rounded to the input's dtype before it is weighted, as the reference does
        torch.mul((x_ND[rows].float() * scale_N1[rows]).to(x.dtype), weight_D, out=out_ND[rows])
    return out_ND.view_as(x)


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the root-mean-square norm of the last axis, computed in fp32, cast, then weighted (MODEL.md 5)."""
    out: torch.Tensor = _Norm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]
    return out


class _Gate(Function):
    """Gate that saves its two inputs, and neither the activation nor the product."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up) if any(ctx.needs_input_grad) else torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def again(node: Any) -> torch.Tensor:
        """Recompute the output, bit for bit."""
        return _gated(*_kept(node))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gate, up = _kept(ctx)
        del ctx.unpacked
        if gate.is_cuda and fused.can_compile():  # without compilation it would take seven times the memory
            return fused.gate_backward(gradients[0], gate, up)
        to_up = torch.nn.functional.silu(gate).mul_(gradients[0])
        to_gate = gradients[0] * up
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return to_gate, to_up


def _gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if gate.is_cuda:
        out: torch.Tensor = fused.gate(gate, up)
        return out
    return torch.nn.functional.silu(gate).mul_(up)


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up`, the middle of SwiGLU; both [.., F]."""
    out: torch.Tensor = _Gate.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _Heads(Function):
    """Split the fused projection into heads, saving only the angles, which all layers share."""

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, width: int, groups: int) -> Any:
        batch, length, _ = qkv.shape
        cos, sin = (angles[:, 0, :, None, None, : width // 2] for angles in (cos, sin))
        ctx.save_for_backward(cos, sin)
        qkv_BLKgd = qkv.view(batch, length, -1, groups + 2, width)
        if ctx.needs_input_grad[0] and qkv.is_cuda:
            parts = fused.heads(qkv_BLKgd, cos, sin, groups)
            return tuple(part.view(batch, length, -1, width).transpose(1, 2) for part in parts)
        query = qkv.new_empty(batch, length, qkv_BLKgd.shape[2], groups, width)
        key = qkv.new_empty(batch, length, qkv_BLKgd.shape[2], 1, width)
        _turn(qkv_BLKgd[..., :groups, :], cos, sin, query)
        _turn(qkv_BLKgd[..., groups : groups + 1, :], cos, sin, key)
        value = qkv_BLKgd[..., groups + 1, :].contiguous()
        return tuple(part.view(batch, length, -1, width).transpose(1, 2) for part in (query, key, value))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        cos, sin = ctx.saved_tensors
        batch, kv_heads, length, width = gradients[1].shape
        groups = gradients[0].shape[1] // kv_heads
        by_group = [gradient.transpose(1, 2).unflatten(2, (kv_heads, -1)) for gradient in gradients]
        if by_group[0].is_cuda:
            return fused.heads_backward(*by_group, cos, sin).view(batch, length, -1), None, None, None, None
        to_qkv = gradients[0].new_empty(batch, length, kv_heads, groups + 2, width)
        _turn(by_group[0], cos, -sin, to_qkv[..., :groups, :])
        _turn(by_group[1], cos, -sin, to_qkv[..., groups : groups + 1, :])
        to_qkv[..., groups + 1 :, :] = by_group[2]
        return to_qkv.view(batch, length, -1), None, None, None, None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """Rotate halves (the NeoX convention) into `out`; cos and sin are of one half."""
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first)
    out_first -= second * sin
    torch.mul(second, cos, out=out_second)
    out_second += first * sin


def heads(
    qkv: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], width: int, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rotated queries and keys, and values, from the fused projection.

    Args:
        qkv: [B, L, K * (G + 2) * d], laid out per key/value head: its G query heads, then its key, then its value.
        angles: cosines and sines [B, 1, L, d] of which both halves of the last axis are equal.
        width: d.
        groups: G.

    Returns:
        [B, H, L, d], [B, K, L, d] and [B, K, L, d], each laid out in memory as [B, L, heads, d], which is how the
        varlen kernel takes it.
    """
    query, key, value = _Heads.apply(qkv, *angles, width, groups)  # type: ignore[no-untyped-call]
    return query, key, value
