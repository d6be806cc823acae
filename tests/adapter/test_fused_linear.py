"""Compare the fused product of a linear, its PLoRA and its LoRA with the three separate ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from small_base import small_model
from small_pack import gradients, small_adapter, small_pack, take_step

from ixtune.adapter.dropout import draw, drop, drop_added
from ixtune.adapter.fused_linear import fused_linear
from ixtune.adapter.low_memory import lean_lora
from ixtune.model import nf4
from ixtune.model.decoder import _linear
from ixtune.model.plora import ImageRows, PLoRA, apply

RECORDS: Any = [(9, []), (6, [(1, 1)]), (14, []), (5, [(1, 2), (1, 1)])]


def lora_layers(model: PeftModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def ploras(model: PeftModel) -> list[PLoRA]:
    return [module for module in model.modules() if isinstance(module, PLoRA)]


def both(**settings: Any) -> tuple[PeftModel, PeftModel]:
    """Return two low-memory adapters; the first one computes the products separately."""
    joined = small_adapter(**settings)
    lean_lora(joined)
    apart = copy.deepcopy(joined)
    for plora in ploras(apart):
        plora.fused = None
    return apart, joined


def result(model: PeftModel, autocast: bool = False, **changes: Any) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = take_step(model, {**small_pack(RECORDS), **changes})
    return {"loss": loss, **gradients(model)}


@pytest.mark.parametrize(
    "settings",
    [{}, {"dropout": 0.3}, {"use_rslora": True, "dropout": 0.1}, {"target_modules": ["wqkv", "w2"], "dropout": 0.1}],
    ids=["plain", "dropout", "rslora", "two targets"],
)
def test_values_and_gradients_match_the_separate_products(settings: dict[str, Any]) -> None:
    apart, joined = both(**settings)
    wanted, found = result(apart), result(joined)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= 3e-6 * float(value.norm()), name


def test_results_match_under_autocast_with_16_bit_weights() -> None:
    apart, joined = both(dropout=0.1)
    exact = result(both(dropout=0.1)[0])
    for model in (apart, joined):
        for layer in lora_layers(model):
            layer.get_base_layer().bfloat16()
    wanted, found = result(apart, autocast=True), result(joined, autocast=True)

    def error(values: dict[str, torch.Tensor]) -> float:
        return max(float((values[name] - value).norm() / value.norm()) for name, value in exact.items())

    assert all(found[name].dtype == torch.float32 for name in found)
    assert error(found) < 1.1 * error(wanted) < 0.2


def test_results_match_bit_for_bit_with_checkpointed_layers() -> None:
    _, joined = both(dropout=0.3)
    again = copy.deepcopy(joined)
    from ixtune.planning.memory_options import MemoryOptions
    from ixtune.planning.memory_options import apply as set_memory_options

    layers = again.get_base_model().config.num_hidden_layers
    set_memory_options(again.get_base_model(), MemoryOptions(layers, 8, False))
    wanted, found = result(joined), result(again)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_text_only_packs_skip_one_gradient_and_match_elsewhere() -> None:
    apart, joined = both(modules_to_save=None)
    packs = small_pack([(9, []), (14, [])])
    for model in (apart, joined):
        model.zero_grad()
        take_step(model, packs)
    wanted, found = gradients(apart), gradients(joined)
    assert all(torch.allclose(found[name], value, rtol=1e-4, atol=1e-7) for name, value in wanted.items())
    assert any("lora_A" in name for name in found)


@pytest.mark.parametrize("change", ["disabled", "merged", "dora", "two adapters", "trained base", "no gradients"])
def test_cases_that_peft_must_compute_are_left_to_peft(change: str) -> None:
    model = small_adapter(modules_to_save=None, use_dora=change == "dora")
    lean_lora(model)
    layer = lora_layers(model)[0]
    _, plora = _linear(small_model().config, "wqkv")
    x = torch.randn(1, 5, plora.A.in_features)
    plora.requires_grad_(change == "trained base")
    if change == "disabled":
        model.base_model.disable_adapter_layers()
    elif change == "merged":
        model.merge_adapter()
    elif change == "two adapters":
        model.add_adapter("second", model.peft_config["default"])
        model.base_model.set_adapter(["default", "second"])
    with torch.set_grad_enabled(change != "no gradients"):
        assert fused_linear(layer, plora, x, ()) is None
        plora.fused = fused_linear
        rows = ImageRows.of(torch.tensor([1, 2]))
        out = apply(layer, plora, x, rows)
        wanted = layer(x).clone()
        wanted[0, 1:3] += plora(x[0, 1:3])
        assert torch.allclose(out, wanted, atol=1e-6)


def test_the_fused_product_is_used_in_training() -> None:
    _, joined = both()
    plora = ploras(joined)[0]
    calls = []
    own = plora.fused
    assert own is not None
    plora.fused = lambda *args: calls.append(own(*args)) or calls[-1]
    result(joined)
    assert len(calls) == 1
    assert calls[0] is not None


def test_no_float_copy_of_nf4_weights_is_kept() -> None:
    model = small_model()
    linear, plora = model.model.layers[0].feed_forward.w1, model.model.layers[0].feed_forward.w1_plora
    nf4.put_in_place(model, torch.float32)
    layer = model.model.layers[0].feed_forward.w1
    layer.weight = nf4.quantized(linear.weight.data, "cpu")
    from peft import LoraConfig, get_peft_model

    holder = torch.nn.ModuleDict({"w1": layer})
    wrapped = get_peft_model(holder, LoraConfig(r=2, target_modules=["w1"]))
    lean_lora(wrapped)
    inside = wrapped.base_model.model["w1"]
    x = torch.randn(1, 6, linear.in_features, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = fused_linear(inside, plora.requires_grad_(False), x, (slice(1, 3),))
    assert sum(tensor.numel() for tensor in kept) < linear.weight.numel()
    wanted = x.detach() @ nf4.dequantized(layer).t()
    wanted[0, 1:3] += plora(x.detach()[0, 1:3])
    assert torch.allclose(out, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_with_dropout_is_added_in_place(dtype: torch.dtype) -> None:
    x, to = torch.randn(13, 7).to(dtype), torch.randn(13, 7).to(dtype)
    bits = draw(x, 0.4)
    wanted = to + drop(x, bits)
    drop_added(to, x.clone(), bits)
    assert torch.equal(to, wanted)
