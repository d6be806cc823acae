"""The base that a QLoRA is merged into is the one it was trained on, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file

from ixtune.adapter.nf4 import is_decoder_linear, nf4_round_trip
from ixtune.model.checkpoint import to_original_name
from ixtune.model.loading import load_base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_round_trip_of_a_stored_weight_is_what_training_computes_with(small: Path, dtype: torch.dtype) -> None:
    stored = load_file(small / "model.safetensors")
    model, _ = load_base(small, quantize=True, dtype=dtype)
    quantised = {
        to_original_name(f"{name}.weight"): module.weight
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    }
    assert set(quantised) == {name for name in stored if is_decoder_linear(name)}
    for name, weight in quantised.items():
        trained_on = dequantize_4bit(weight.data, weight.quant_state)
        merged_into = nf4_round_trip(stored[name].to(dtype))
        assert trained_on.dtype == merged_into.dtype == dtype
        assert torch.equal(trained_on, merged_into), name
        assert not torch.equal(trained_on, stored[name].to(dtype))
