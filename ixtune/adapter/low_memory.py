"""LoRA with small activations: PEFT's mathematics on PEFT's own parameters.

PEFT's branch keeps, for each target, the input in the dtype of its master weights, the mask of the dropout, the dropped
input, and copies of its weights in the dtype of the computation. Here several targets share one input, which is
recomputed where that costs only a pass over memory; the mask takes one bit per element; and weights are cast when
they are used.

Shape letters: N rows, D in features, R out features.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd import Function

from ixtune.adapter.dora import Dora
from ixtune.adapter.dropout import draw, drop
from ixtune.adapter.fused_linear import fused_linear
from ixtune.model.low_memory import Maker, maker
from ixtune.model.plora import PLoRA


def lean_lora(model: PeftModel) -> int:
    """Replace the products of every LoRA branch; parameters, their names and the saved files do not change.

    Call this after the adapter is attached and before the optimizer is created. Variants other than our own DoRA use
    their products differently: they keep PEFT's products, but without casting their input under autocast.

    Returns:
        Number of branches replaced.
    """
    replaced = 0
    for module, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), nn.Linear):
            continue
        layer.cast_input_dtype_enabled = _UnlessAutocast()  # type: ignore[assignment]
        for name in layer.lora_A:
            dropout = layer.lora_dropout[name]
            if not isinstance(layer.lora_variant.get(name), Dora | None):
                continue
            rate = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
            layer.lora_A[name] = LeanLinear(cast(nn.Linear, layer.lora_A[name]), rate)
            layer.lora_B[name] = LeanLinear(cast(nn.Linear, layer.lora_B[name]), 0.0)
            layer.lora_dropout[name] = nn.Identity()
            replaced += 1
        parent, _, leaf = module.rpartition(".")
        plora = getattr(model.get_submodule(parent), f"{leaf}_plora", None)
        if isinstance(plora, PLoRA):  # a decoder linear; the projector has none
            plora.fused = fused_linear
    return replaced


class _UnlessAutocast:
    """Flag that makes PEFT cast an input to the dtype of the master weights, which copies it to fp32.

    Under autocast the product casts it back at once. PEFT checks for autocast only on GPUs, and only for some layers.
    """

    def __bool__(self) -> bool:
        return not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"))


class LeanLinear(nn.Linear):
    """Linear without bias, with dropout on its input."""

    def __init__(self, plain: nn.Linear, dropout: float) -> None:
        """Reuse the parameter of a linear."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight = plain.weight
        self.register_parameter("bias", None)
        self.dropout = dropout
        self.train(plain.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., D] -> [.., R], in the dtype of autocast, or of the input."""
        rate = self.dropout if self.training else 0.0
        out: torch.Tensor = _Product.apply(x, self.weight, rate, maker(x))  # type: ignore[no-untyped-call]
        return out

    def extra_repr(self) -> str:
        """Return torch's description of a linear, with the dropout."""
        return f"{super().extra_repr()}, dropout={self.dropout}"


class _Product(Function):
    """Keep the input or a function that recomputes it, the mask as bits, and the weight itself without a copy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_RD: torch.Tensor, dropout: float, make: Maker | None) -> torch.Tensor:
        kind = x.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.make, ctx.dropout = make, dropout
        bits = draw(x, dropout) if dropout else None
        ctx.save_for_backward(None if make else x, weight_RD, bits)
        with torch.autocast(kind, enabled=False):
            dropped_ND = _rows(x, ctx.dtype)
            if bits is not None:
                dropped_ND = drop(dropped_ND, bits)
            out_NR = dropped_ND @ weight_RD.to(ctx.dtype).t()
        if dropout:
            out_NR.mul_(1 / (1 - dropout))  # scales the few columns after the product, not the many before it
        return out_NR.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight_RD, bits = ctx.saved_tensors
        gradient_NR = _rows(gradients[0], ctx.dtype)
        if bits is not None:
            gradient_NR = gradient_NR * (1 / (1 - ctx.dropout))
        to_x, to_weight_RD = None, None
        with torch.autocast(gradient_NR.device.type, enabled=False):
            if ctx.needs_input_grad[1]:
                dropped_ND = _rows(ctx.make() if ctx.make else x, ctx.dtype)
                if bits is not None:
                    dropped_ND = drop(dropped_ND, bits)
                to_weight_RD = (gradient_NR.t() @ dropped_ND).to(weight_RD.dtype)
            if ctx.needs_input_grad[0]:
                to_x = gradient_NR @ weight_RD.to(ctx.dtype)
                if bits is not None:
                    to_x = drop(to_x, bits)
                to_x = to_x.view(*gradients[0].shape[:-1], -1)
        return to_x, to_weight_RD, None, None


def _rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)
