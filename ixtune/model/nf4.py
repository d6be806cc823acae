"""NF4 of exactly the decoder linears, and proof that it was exactly those.

transformers swaps every plain `nn.Linear` that is not named in a skip list. What must stay 16-bit (PLoRA, vision
tower, projector, head) is therefore listed module by module (TRAPS.md 1), and counted after loading.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from ixtune.errors import IxtuneError
from ixtune.model.configuration import DECODER_LINEARS, IXC2Config


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was quantised: linears in NF4, linears there are, and the parameters in NF4."""

    linears: int
    expected: int
    parameters: int

    def __str__(self) -> str:
        """Such as `160 of 160 decoder linears in NF4 (6.979 B parameters)`."""
        return f"{self.linears} of {self.expected} decoder linears in NF4 ({self.parameters / 1e9:.3f} B parameters)"


def is_decoder_linear(module_name: str) -> bool:
    """Whether this is one of the five linears of a decoder layer (of which PLoRA and LoRA parts are none)."""
    return module_name.startswith("model.layers.") and module_name.rsplit(".", 1)[-1] in DECODER_LINEARS


def quantization_config(meta_model: nn.Module, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation for the decoder linears only.

    Args:
        meta_model: the same network on the meta device, to name every other linear.
        compute_dtype: what the dequantised product is computed in.
    """
    kept = [
        name
        for name, module in meta_model.named_modules()
        if isinstance(module, nn.Linear) and not is_decoder_linear(name)
    ]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=kept,
    )


def settle(model: nn.Module, config: IXC2Config) -> Quantized:
    """Check what was quantised, and keep bitsandbytes from repacking weights behind autograd's back.

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
            f"quantisation touched the wrong layers: {report.linears} of {expected} decoder linears, "
            f"and {len(strangers)} others",
            where=", ".join(strangers[:3]) or "decoder",
            mend="this is a fault of ixtune with these versions of transformers and bitsandbytes: please report it",
        )
    return report
