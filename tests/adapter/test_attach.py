"""Test which parts are trainable with an adapter, their dtype, and that gradients reach them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import KINDS, PER_TARGET, image_batch, section, stir, text_batch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from ixtune.adapter import attach
from ixtune.checkpoint.sizes import Trained
from ixtune.errors import IxtuneError
from ixtune.model.loading import load_base


def _wrapped(small: Path, kind: str = "plain", quantize: bool = True, **changes: Any) -> PeftModel:
    model, _ = load_base(small, quantize=quantize, dtype=torch.bfloat16)
    return attach.attach(model, section(kind, **changes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantize", [True, False])
def test_trained_weights_are_fp32_and_frozen_ones_keep_their_dtype(small: Path, kind: str, quantize: bool) -> None:
    """Also after TRL's cast to bf16, which `attach` undoes; frozen weights are not upcast (TRAPS.md 2, 10b)."""
    model = _wrapped(small, kind, quantize)
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    for _, parameter in attach.trainable(model):
        parameter.data = parameter.data.bfloat16()
    attach.restore_fp32(model)
    assert {p.dtype for _, p in attach.trainable(model)} == {torch.float32}
    assert {p.dtype for p in frozen.values()} == ({torch.bfloat16, torch.uint8} if quantize else {torch.bfloat16})
    in_nf4 = [name for name, p in frozen.items() if p.dtype == torch.uint8]
    assert len(in_nf4) == (10 if quantize else 0)
    assert not any("plora" in name or "vit" in name for name, _ in attach.trainable(model))


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameter_table_agrees_with_the_plan(small: Path, kind: str) -> None:
    model = _wrapped(small, kind)
    rows = attach.table(model)
    assert sum(row.parameters for row in rows) == sum(p.numel() for _, p in attach.trainable(model))
    by_part: dict[str, int] = {}
    for row in rows:
        by_part[row.part] = by_part.get(row.part, 0) + row.parameters
    planned = Trained.of(section(kind)).parameters(model.get_base_model().config.sizes)
    planned |= {"lora": planned["lora"] + planned.pop("magnitudes")} if "magnitudes" in planned else {}
    assert by_part == planned


def test_targets_and_a_frozen_projector_are_respected(small: Path) -> None:
    rows = attach.table(_wrapped(small, targets=("wqkv", "w2"), projector="frozen"))
    assert [(row.name, row.tensors) for row in rows] == [("LoRA wqkv", 4), ("LoRA w2", 4)]


def test_each_target_has_its_own_rank_alpha_and_dropout(small: Path) -> None:
    model = _wrapped(small, "rslora with everything", dropout=0.1)
    shown = {row.name: (row.rank, row.alpha, row.dropout) for row in attach.table(model)}
    assert shown == {
        "rsLoRA wqkv": (4, 8, 0.1),
        "rsLoRA wo": (4, 8, 0.1),
        "rsLoRA w1": (PER_TARGET["w1"]["rank"], 8, 0.2),
        "rsLoRA w2": (4, 8, 0.1),
        "rsLoRA w3": (4, 2, 0.0),
        "rsLoRA projector": (2, 3, 0.1),
        "separators": (None, None, None),
    }
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert len(layers) == 2 * 5 + 2
    for name, layer in layers.items():
        place = "projector" if "vision_proj" in name else name.rpartition(".")[2]
        rank, alpha, dropout = shown[f"rsLoRA {place}"]
        assert layer.lora_A["default"].weight.shape[0] == layer.lora_B["default"].weight.shape[1] == rank
        assert layer.scaling["default"] == pytest.approx(alpha / math.sqrt(rank))
        assert getattr(layer.lora_dropout["default"], "p", 0.0) == dropout


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantize", [True, False])
def test_a_new_adapter_does_not_change_the_logits(small: Path, kind: str, quantize: bool) -> None:
    model, _ = load_base(small, quantize=quantize, dtype=torch.float32)
    with torch.no_grad():
        before = model(**image_batch()).logits
        after = attach.attach(model, section(kind)).eval()(**image_batch()).logits
    assert torch.equal(before, after)


def _gradients(model: PeftModel, batch: dict[str, Any]) -> dict[str, float]:
    model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    return {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in attach.trainable(model)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_tensor_gets_a_gradient_from_an_image(small: Path, kind: str) -> None:
    """Use bf16 without autocast, which would hide a layer that gets the wrong dtype."""
    model = _wrapped(small, kind)
    stir(model)
    assert [name for name, norm in _gradients(model.train(), image_batch()).items() if norm == 0] == []


def test_with_checkpointing_gradients_reach_lora_below_frozen_embeddings(small: Path) -> None:
    """Use a text record: the embeddings are frozen, so no layer input requires a gradient by itself."""
    model = _wrapped(small, projector="frozen").train()
    stir(model)
    expected = _gradients(model, text_batch())
    model.zero_grad()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    assert min(expected.values()) > 0
    assert _gradients(model, text_batch()) == expected


def test_separators_get_the_gradient_of_the_copy_the_layout_reads(small: Path) -> None:
    model = _wrapped(small, "separators through a frozen projector")
    with torch.no_grad():
        before = model(**image_batch()).logits
        for name, parameter in attach.trainable(model):
            if "separators" in name:
                parameter += 1
        after = model(**image_batch()).logits
        with model.disable_adapter():
            off = model(**image_batch()).logits
    assert not torch.equal(before, after)
    assert torch.equal(before, off)


def test_an_unexpected_trainable_parameter_is_named(small: Path) -> None:
    model = _wrapped(small)
    model.base_model.model.separators.glb.requires_grad_(True)
    with pytest.raises(IxtuneError, match=r"separators\.glb"):
        attach.check(model, section("plain"))


@pytest.mark.parametrize(
    ("frozen", "kind"),
    [
        ("layers.1.attention.wqkv.lora_magnitude_vector", "dora"),
        ("vision_proj.2.lora_B", "rslora with everything"),
        ("separators.modules_to_save.default.sub", "rslora with everything"),
        ("layers.0.attention.wo.lora_A", "plain"),
    ],
)
def test_an_adapter_part_that_is_frozen_is_named(small: Path, frozen: str, kind: str) -> None:
    model = _wrapped(small, kind)
    (parameter,) = [p for name, p in attach.trainable(model) if frozen in name]
    parameter.requires_grad_(False)
    with pytest.raises(IxtuneError) as caught:
        attach.check(model, section(kind))
    assert frozen in str(caught.value)


def test_an_adapter_from_another_recipe_is_refused(small: Path) -> None:
    model = _wrapped(small)
    with pytest.raises(IxtuneError, match="16 other or non-fp32 tensors, 2 of the adapter's 10 missing"):
        attach.check(model, section("dora", targets=("wqkv",), per_target={}))


def test_a_bf16_trained_weight_is_refused_because_it_would_not_move(small: Path) -> None:
    model = _wrapped(small)
    for _, parameter in attach.trainable(model):
        parameter.data = parameter.data.bfloat16()
    with pytest.raises(IxtuneError, match=r"torch\.bfloat16"):
        attach.check(model, section("plain"))
    attach.restore_fp32(model)
    attach.check(model, section("plain"))
