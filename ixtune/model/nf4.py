"""Quantize the decoder linears to NF4, and check that exactly those were quantized.

transformers quantizes every plain `nn.Linear` not named in a skip list, including PLoRA, vision tower, projector and
head (TRAPS.md 1). Here each decoder linear is replaced by name, and counted after loading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationMethod

from ixtune.errors import IxtuneError
from ixtune.model.configuration import DECODER_LINEARS, IXC2Config
from ixtune.model.notices import without_kernels_notice


@dataclass(frozen=True, slots=True)
class Quantized:
    """Counts of a quantization: linears in NF4, all decoder linears, and parameters in NF4."""

    linears: int
    expected: int
    parameters: int

    def __str__(self) -> str:
        """Describe the counts, e.g. `160 of 160 decoder linears in NF4 (6.979 B parameters)`."""
        return f"{self.linears} of {self.expected} decoder linears in NF4 ({self.parameters / 1e9:.3f} B parameters)"


def is_decoder_linear(module_name: str) -> bool:
    """Return whether a module is one of the five linears of a decoder layer; PLoRA and LoRA parts are not."""
    return module_name.startswith("model.layers.") and module_name.rsplit(".", 1)[-1] in DECODER_LINEARS


def put_in_place(model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Replace each decoder linear with an empty 4-bit layer: NF4 with double quantization.

    Args:
        model: the network on the meta device.
        compute_dtype: dtype of the dequantized product.
    """
    with without_kernels_notice():
        from bitsandbytes.nn import Linear4bit

    for name, module in list(model.named_modules()):
        if is_decoder_linear(name):
            linear = cast(nn.Linear, module)
            layer = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=False,
                compute_dtype=compute_dtype,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            model.set_submodule(name, layer)
    # What transformers sets on a model that it quantizes itself: PEFT, TRL and the trainer read it.
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES  # type: ignore[assignment]


def is_quantized(module: nn.Module) -> bool:
    """Return whether a module is a 4-bit layer."""
    from bitsandbytes.nn import Linear4bit

    return isinstance(module, Linear4bit)


def quantized(weight: torch.Tensor, device: torch.device | str) -> nn.Parameter:
    """Return a weight [out, in] in NF4 with double quantization, quantized on the device."""
    from bitsandbytes.nn import Params4bit

    plain = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
    return cast(nn.Parameter, plain.to(device))  # type: ignore[misc]  # its stubs bind self too narrowly


def dequantized(layer: nn.Module) -> torch.Tensor:
    """Return the weight [out, in] that a linear computes with; a dequantized copy if it is in 4 bits."""
    if not is_quantized(layer):
        return cast(nn.Linear, layer).weight
    from bitsandbytes.functional import dequantize_4bit

    weight = cast(Any, layer.weight)
    return dequantize_4bit(weight.data, weight.quant_state)


def settle(model: nn.Module, config: IXC2Config) -> Quantized:
    """Check which linears are quantized, and keep bitsandbytes from repacking weights without autograd's knowledge.

    On CPUs with AVX512-BF16 an evaluation repacks a 4-bit weight in place, after which gradients to the layer's
    input are zero for good (TRAPS.md 3); only the attribute of each instance prevents it.

    Raises:
        IxtuneError: not exactly the decoder linears are in NF4.
    """
    from bitsandbytes.nn import Linear4bit

    found = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    for module in found.values():
        module.support_avx512bf16_for_cpu = False
    expected = config.num_hidden_layers * len(DECODER_LINEARS)
    strangers = [name for name in found if not is_decoder_linear(name)]
    report = Quantized(
        linears=len(found) - len(strangers),
        expected=expected,
        parameters=config.num_hidden_layers
        * sum(out * into for out, into in (config.linear_shape(name) for name in DECODER_LINEARS)),
    )
    if strangers or report.linears != expected:
        raise IxtuneError(
            f"quantization touched the wrong layers: {report.linears} of {expected} decoder linears, "
            f"and {len(strangers)} others",
            where=", ".join(strangers[:3]) or "decoder",
            hint="this is a bug in ixtune with these versions of transformers and bitsandbytes: please report it",
        )
    return report
