"""Test NF4 under PLoRA (TRAPS.md 1 to 4)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from small_base import RELEASED_CONFIG

from ixtune.errors import IxtuneError
from ixtune.model import nf4
from ixtune.model.configuration import IXC2Config
from ixtune.model.loading import empty, load_base


def test_exactly_the_decoder_linears_are_quantized_to_nf4(small: Path) -> None:
    model, report = load_base(small, quantize=True, dtype=torch.float32)
    quantized = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    expected = {
        f"model.layers.{layer}.{part}.{linear}"
        for layer in range(model.config.num_hidden_layers)
        for part, linears in (("attention", ("wqkv", "wo")), ("feed_forward", ("w1", "w2", "w3")))
        for linear in linears
    }
    assert quantized == expected
    assert report is not None
    assert (report.linears, report.expected) == (10, 10)
    others = {name: p.dtype for name, p in model.named_parameters() if name.removesuffix(".weight") not in expected}
    assert set(others.values()) == {torch.float32}


def test_double_quantization_is_on_and_weights_stay_close_to_the_base(small: Path) -> None:
    plain, _ = load_base(small, quantize=False, dtype=torch.float32)
    quantized, _ = load_base(small, quantize=True, dtype=torch.float32)
    for name, module in quantized.named_modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            assert state.quant_type == "nf4"
            assert state.nested
            weight = plain.get_submodule(name).weight
            error = (dequantize_4bit(module.weight.data, state).float() - weight).norm() / weight.norm()
            assert 0.01 < float(error) < 0.15


def test_all_160_decoder_linears_of_the_7b_are_in_nf4() -> None:
    config = IXC2Config.from_dict(RELEASED_CONFIG)
    report = nf4.settle(empty(config, quantize=True, dtype=torch.bfloat16), config)
    assert str(report) == "160 of 160 decoder linears in NF4 (6.979 B parameters)"


def test_an_unexpected_nf4_layer_is_refused_by_name(small: Path) -> None:
    model, _ = load_base(small, quantize=True, dtype=torch.float32)
    model.model.layers[0].attention.wqkv_plora.A = Linear4bit(8, 8)
    with pytest.raises(
        IxtuneError, match=r"10 of 10 decoder linears, and 1 others \(model.layers.0.attention.wqkv_plora.A\)"
    ):
        nf4.settle(model, model.config)


def test_evaluation_does_not_stop_gradients_through_a_4_bit_layer(small: Path) -> None:
    model, _ = load_base(small, quantize=True, dtype=torch.bfloat16)
    layer = model.model.layers[0].feed_forward.w1
    weight = layer.weight.data.clone()

    def gradient() -> torch.Tensor:
        x = torch.ones(4, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
        model.train()
        layer(x).float().square().sum().backward()
        return x.grad

    before = gradient()
    model.eval()
    with torch.no_grad():
        layer(torch.ones(4, layer.in_features, dtype=torch.bfloat16))
    assert torch.equal(layer.weight.data, weight), "the weight was repacked in place"
    assert float(before.abs().max()) > 0
    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_nf4_equals_bitsandbytes(small: Path, dtype: torch.dtype) -> None:
    """Compare codes, scales and nested scales bit for bit."""
    plain, _ = load_base(small, quantize=False, dtype=dtype)
    streamed, _ = load_base(small, quantize=True, dtype=dtype)
    compared = 0
    for name, module in streamed.named_modules():
        if isinstance(module, Linear4bit):
            weight = plain.get_submodule(name).weight
            own = Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
            own.weight = Params4bit(weight.detach().clone(), requires_grad=False, quant_type="nf4", module=own)
            expected, found = own.to("cpu").state_dict(), module.state_dict()
            assert {"weight.absmax", "weight.nested_absmax", "weight.quant_map", "weight"} <= set(expected)
            assert set(found) == set(expected)
            assert all(torch.equal(found[key], expected[key]) for key in expected), name
            assert module.weight.quant_state.dtype == dtype
            compared += 1
    assert compared == 10
