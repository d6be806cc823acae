"""Fused product of a frozen decoder linear: W x, PLoRA at image rows, and LoRA.

Computed separately, each of the three writes a matrix of the layer's full width that is then scaled and added, and
each adds a gradient to the input. Here the matrix products accumulate both branches into one output and one gradient,
and image rows are contiguous slices, neither gathered nor scattered.

Shape letters: N rows, D in features, O out features, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.autograd import Function

from ixtune.adapter.dropout import draw, drop, drop_added
from ixtune.model.low_memory import Maker, maker
from ixtune.model.nf4 import dequantized
from ixtune.model.plora import PLoRA

Spans = tuple[slice, ...]


def fused_linear(layer: Any, plora: PLoRA, x: torch.Tensor, spans: Spans) -> torch.Tensor | None:
    """Return the layer's product, [.., D] -> [.., O]; None if PEFT has to compute it.

    PEFT has to compute it when no gradients are needed (bitsandbytes has its own kernel for a single row), when more or
    other than one adapter with low-memory plain LoRA is active, and when a part of the base is trained.

    Args:
        layer: The linear, in PEFT's wrapper unless the adapter was removed.
        plora: its PLoRA branch.
        x: the input.
        spans: the rows of x that the PLoRA branch is applied to.
    """
    if not isinstance(layer, LoraLayer):  # the adapter was removed
        return None
    names = layer.active_adapters
    if not torch.is_grad_enabled() or layer.disable_adapters or layer.merged or len(names) != 1:
        return None
    (name,) = names
    base = layer.get_base_layer()
    if name not in layer.lora_A or layer.lora_variant.get(name) is not None or base.bias is not None:
        return None
    if base.weight.requires_grad or plora.A.weight.requires_grad or plora.B.weight.requires_grad:
        return None
    a, b = layer.lora_A[name], layer.lora_B[name]
    if not hasattr(a, "dropout"):  # another adapter, made by PEFT
        return None
    dropout = a.dropout if a.training else 0.0
    whole: torch.Tensor = _Joined.apply(
        x, a.weight, b.weight, base, plora, spans, dropout, layer.scaling[name], maker(x)
    )
    return whole


class _Joined(Function):
    """Keep the input or a function that recomputes it, the mask as bits, and A's product; no copy of a weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a_RD: torch.Tensor,
        b_OR: torch.Tensor,
        base: Any,
        plora: PLoRA,
        spans: Spans,
        dropout: float,
        scale: float,
        make: Maker | None,
    ) -> torch.Tensor:
        kind = x.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.base, ctx.plora, ctx.spans = base, plora, spans
        ctx.make, ctx.dropout, ctx.scale = make, dropout, scale
        bits = draw(x, dropout) if dropout else None
        with torch.autocast(kind, enabled=False):
            x_ND = _rows(x, ctx.dtype)
            out_NO = x_ND @ dequantized(base).to(ctx.dtype).t()
            inner, outer = plora.A.weight.to(ctx.dtype), plora.B.weight.to(ctx.dtype)
            for span in spans:
                out_NO[span].addmm_(x_ND[span] @ inner.t(), outer.t(), alpha=plora.scale)
            inside_NR = (x_ND if bits is None else drop(x_ND, bits)) @ a_RD.to(ctx.dtype).t()
            if dropout:
                inside_NR.mul_(1 / (1 - dropout))  # scales the few columns after the product, not the many before it
            out_NO.addmm_(inside_NR, b_OR.to(ctx.dtype).t(), alpha=scale)
        ctx.save_for_backward(None if make else x, a_RD, b_OR, bits, inside_NR)
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, a_RD, b_OR, bits, inside_NR = ctx.saved_tensors
        shape = gradients[0].shape
        to_x_ND, to_a_RD = None, None
        with torch.autocast(gradients[0].device.type, enabled=False):
            gradient_NO = _rows(gradients[0], ctx.dtype)
            to_b_OR = (gradient_NO.t() @ inside_NR).to(b_OR.dtype).mul_(ctx.scale)
            inner_NR = (gradient_NO @ b_OR.to(ctx.dtype)).mul_(ctx.scale / (1 - ctx.dropout))
            if ctx.needs_input_grad[1]:
                x_ND = _rows(ctx.make() if ctx.make else x, ctx.dtype)
                to_a_RD = (inner_NR.t() @ (x_ND if bits is None else drop(x_ND, bits))).to(a_RD.dtype)
                del x_ND, x
            if ctx.needs_input_grad[0]:
                to_x_ND = gradient_NO @ dequantized(ctx.base).to(ctx.dtype)
                inner, outer = ctx.plora.A.weight.to(ctx.dtype), ctx.plora.B.weight.to(ctx.dtype)
                for span in ctx.spans:
                    to_x_ND[span].addmm_(gradient_NO[span] @ outer, inner, alpha=ctx.plora.scale)
                if bits is None:
                    to_x_ND.addmm_(inner_NR, a_RD.to(ctx.dtype))
                else:
                    drop_added(to_x_ND, inner_NR @ a_RD.to(ctx.dtype), bits)
                to_x_ND = to_x_ND.view(*shape[:-1], -1)
        return to_x_ND, to_a_RD, to_b_OR, None, None, None, None, None, None


def _rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)
