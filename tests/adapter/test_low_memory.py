"""Compare low-memory LoRA with PEFT's own: values, gradients, names, and dropout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gpu import needs_gpu
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from small_pack import TARGETS, gradients, small_adapter, small_pack, take_step
from torch import nn

from ixtune.adapter import dora
from ixtune.adapter.dropout import draw, drop
from ixtune.adapter.low_memory import LeanLinear, lean_lora

RECORDS: Any = [(9, []), (6, [(1, 1)]), (14, [])]


def both(**settings: Any) -> tuple[PeftModel, PeftModel]:
    plain = small_adapter(**settings)
    own = copy.deepcopy(plain)
    return plain, own


def result(model: PeftModel, autocast: bool = False) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = take_step(model, small_pack(RECORDS))
    return {"loss": loss, **gradients(model)}


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"target_modules": ["wqkv", "w2"]}])
def test_loss_and_gradients_match_peft(settings: dict[str, Any]) -> None:
    plain, own = both(**settings)
    assert lean_lora(own) == 2 * len(settings.get("target_modules", TARGETS))
    wanted, found = result(plain), result(own)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= 2e-6 * float(value.norm()), name


def test_under_autocast_results_are_as_close_to_fp32_as_pefts() -> None:
    plain, own = both()
    for model in (plain, own):
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.get_base_layer().bfloat16()
    lean_lora(own)
    exact, wanted, found = result(small_adapter()), result(plain, autocast=True), result(own, autocast=True)

    def error(values: dict[str, torch.Tensor]) -> float:
        return max(float((values[name] - value).norm() / value.norm()) for name, value in exact.items())

    assert all(found[name].dtype == torch.float32 for name in found)
    assert error(found) < 1.2 * error(wanted) < 0.1


def test_parameters_names_and_modes_are_unchanged() -> None:
    plain, own = both(dropout=0.1)
    before = {name: p.data_ptr() for name, p in own.named_parameters()}
    trained = [name for name, p in plain.named_parameters() if p.requires_grad]
    lean_lora(own)
    assert {name: p.data_ptr() for name, p in own.named_parameters()} == before
    assert [name for name, p in own.named_parameters() if p.requires_grad] == trained
    assert own.state_dict().keys() == plain.state_dict().keys()
    products = [module for module in own.modules() if isinstance(module, LeanLinear)]
    assert all(module.training for module in products)
    own.eval()
    assert not any(module.training for module in products)
    with torch.no_grad():
        pack = small_pack(RECORDS)
        answers = [model.eval()(**pack, use_cache=False).loss for model in (plain, own)]
    assert float(answers[0]) == pytest.approx(float(answers[1]), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 13])
def test_forward_and_backward_use_the_same_dropout_mask(dtype: torch.dtype, width: int) -> None:
    """Recover the mask of the forward pass from its output, and compare both gradients with it."""
    torch.manual_seed(0)
    layer = LeanLinear(nn.Linear(width, width, bias=False), 0.4)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))  # so that the output shows the mask
    x = (torch.rand(3, 7, width) + 0.5).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = layer(x)
    stay = out.detach() != 0
    assert 0.3 < float(stay.float().mean()) < 0.9
    weights = torch.randn(out.shape).to(out.dtype)
    out.backward(weights)
    reference = x.detach().float().requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    ((reference * stay / 0.6) @ weight.t()).backward(weights.float())
    for found, wanted in ((x.grad, reference.grad), (layer.weight.grad, weight.grad)):
        assert float((found - wanted).norm()) <= (1e-6 if dtype == torch.float32 else 1e-2) * float(wanted.norm())


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_the_dropout_rate_is_met_and_every_draw_differs(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 1000)
    bits = [draw(x, rate) for _ in range(2)]
    assert bits[0].nbytes == x.numel() // 8
    for one in bits:
        stays = drop(x, one)
        assert float(stays.mean()) == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / x.numel()) ** 0.5)
        # neither rows nor columns share their fate
        assert float(stays.mean(0).std()) == pytest.approx((rate * (1 - rate) / 400) ** 0.5, rel=0.1)
        assert float(stays.mean(1).std()) == pytest.approx((rate * (1 - rate) / 1000) ** 0.5, rel=0.15)
    both_stay = (drop(x, bits[0]) * drop(x, bits[1])).mean()
    assert float(both_stay) == pytest.approx((1 - rate) ** 2, abs=3e-3)
    torch.manual_seed(0)
    assert torch.equal(draw(x, rate), bits[0])


@needs_gpu
def test_gpu_and_cpu_read_dropout_bits_alike() -> None:
    x = torch.randn(5, 13)
    bits = draw(x.cuda(), 0.3)
    assert torch.equal(drop(x.cuda(), bits).cpu(), drop(x, bits.cpu()))


def test_model_dropout_matches_peft_on_average() -> None:
    """Compare means over many draws: the draws differ, the distribution is the same."""
    plain, own = both(dropout=0.5)
    lean_lora(own)
    layer = "base_model.model.model.layers.0.feed_forward.w2"
    x = torch.randn(1, 4, 128)

    def mean(model: PeftModel) -> torch.Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            return torch.stack([model.get_submodule(layer)(x) for _ in range(3000)]).mean(0)

    with torch.no_grad():
        certain = plain.eval().get_submodule(layer)(x)
        spread = float((certain - plain.get_submodule(layer).get_base_layer()(x)).norm())
    plain.train()
    assert float((mean(own) - certain).norm()) < 0.05 * spread
    assert float((mean(plain) - certain).norm()) < 0.05 * spread


def test_low_memory_lora_covers_our_dora_and_skips_other_variants() -> None:
    plain, own = both(dropout=0.2, use_dora=True)
    assert isinstance(next(iter(_variants(plain))), DoraLinearVariant)
    assert lean_lora(plain) == 0
    dora.install(own)
    assert lean_lora(own) == 10


def _variants(model: PeftModel) -> list[Any]:
    return [v for m in model.modules() if isinstance(m, LoraLayer) for v in m.lora_variant.values()]
