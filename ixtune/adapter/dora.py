"""Compute DoRA (arXiv 2402.09353) on PEFT's own parameters without keeping 16-bit weights.

With dropout PEFT multiplies by the dequantized weight a second time and keeps it for the backward pass: for a 7B in
NF4 that is the whole model in 16
bits. Its norms come from an identity matrix of the layer's width, and in the dtype of the
activations. Here dropout acts in front of LoRA's A only, as it does without DoRA, and norms are fp32, in row blocks.

Shape letters: O out features, I in features, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant

from ixtune.model.nf4 import dequantized

_BLOCK_NUMBERS = 1 << 22  # number of weights copied to fp32 at a time


def install(model: PeftModel, *, fresh: bool = False) -> None:
    """Give every DoRA layer this forward pass; layers without DoRA stay as they are.

    Args:
        model: the wrapped model.
        fresh: set the magnitudes to the norms, so that a new adapter changes nothing, bit for bit.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        for name in layer.lora_variant:
            layer.lora_variant[name] = Dora()
            if fresh:
                layer.lora_magnitude_vector[name].weight.data = row_norms(layer, name)


@torch.no_grad()
def row_norms(layer: Any, name: str) -> torch.Tensor:
    """Return the norm of every row of W + scale * B @ A: fp32 [O]."""
    weight_OI = dequantized(layer.get_base_layer())
    a_RI, b_OR = layer.lora_A[name].weight.float(), layer.lora_B[name].weight.float()
    step = max(1, _BLOCK_NUMBERS // weight_OI.shape[1])
    with torch.autocast(weight_OI.device.type, enabled=False):
        norms = [
            torch.addmm(rows.float(), b_OR[start : start + step], a_RI, alpha=layer.scaling[name]).norm(dim=1)
            for start, rows in zip(range(0, len(weight_OI), step), weight_OI.split(step), strict=True)
        ]
    return torch.cat(norms)


class Dora(DoraLinearVariant):
    """Compute one layer: (magnitude / norm) * (W x + scale * B A dropout(x)), the norm taken as a constant."""

    def __init__(self) -> None:
        self._norms: tuple[tuple[int, int], torch.Tensor] | None = None

    def forward(  # type: ignore[override]  # PEFT calls it on the object, but declares it static
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Return the layer's output in the dtype of `result`, the frozen layer's output."""
        lora_a, lora_b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        update = lora_b(lora_a(module.lora_dropout[active_adapter](x))) * module.scaling[active_adapter]
        bias = module.get_base_layer().bias
        product = (result if bias is None else result - bias) + update
        magnitude = module.lora_magnitude_vector[active_adapter].weight
        scaled = (magnitude / self._of(module, active_adapter) * product).to(result.dtype)
        output: torch.Tensor = scaled if bias is None else scaled + bias
        return output

    def _of(self, module: Any, name: str) -> torch.Tensor:
        """Return the row norms; in evaluation mode they are computed once, not for every token."""
        if torch.is_grad_enabled() or module.training:
            self._norms = None  # an optimizer on a GPU may write past the versions below
            return row_norms(module, name)
        versions = (module.lora_A[name].weight._version, module.lora_B[name].weight._version)
        if self._norms is None or self._norms[0] != versions:
            self._norms = versions, row_norms(module, name)
        return self._norms[1]
