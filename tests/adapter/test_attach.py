"""What is trainable once an adapter is on, and in which type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ixtune.adapter import attach
from ixtune.errors import IxtuneError
from ixtune.model.loading import load_base
from ixtune.recipe import AdapterSection


def _wrapped(small: Path, **changes: object) -> torch.nn.Module:
    model, _ = load_base(small, quantize=True, dtype=torch.bfloat16)
    return attach.attach(model, AdapterSection(rank=4, alpha=4, **changes))


def test_only_lora_and_the_projector_are_trainable_and_in_fp32(small: Path) -> None:
    model = _wrapped(small)
    names = [name for name, _ in attach.trainable(model)]
    assert len(names) == 2 * 5 * 2 + 4
    assert {p.dtype for _, p in attach.trainable(model)} == {torch.float32}
    assert not any("plora" in name or "vit" in name for name in names)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16, torch.uint8}


def test_targets_and_a_frozen_projector_are_obeyed(small: Path) -> None:
    model = _wrapped(small, targets=("wqkv", "w2"), projector="frozen")
    assert [(part.name, part.tensors) for part in attach.table(model)] == [("LoRA wqkv", 4), ("LoRA w2", 4)]


def test_the_table_counts_every_parameter(small: Path) -> None:
    model = _wrapped(small)
    parts = attach.table(model)
    assert [part.name for part in parts][-1] == "projector"
    assert sum(part.parameters for part in parts) == sum(p.numel() for _, p in attach.trainable(model))


def test_a_stranger_among_the_trainable_is_named(small: Path) -> None:
    model = _wrapped(small)
    model.base_model.model.separators.glb.requires_grad_(True)
    with pytest.raises(IxtuneError, match=r"separators\.glb"):
        attach.check(model, AdapterSection(rank=4, alpha=4))


def test_a_bf16_master_is_refused_because_it_would_not_move(small: Path) -> None:
    model = _wrapped(small)
    for _, parameter in attach.trainable(model):
        parameter.data = parameter.data.bfloat16()
    with pytest.raises(IxtuneError, match=r"torch\.bfloat16"):
        attach.check(model, AdapterSection(rank=4, alpha=4))
    attach.restore_fp32(model)
    attach.check(model, AdapterSection(rank=4, alpha=4))


def test_a_fresh_adapter_changes_nothing(small: Path) -> None:
    ids = torch.tensor([[1, 5, 6, 7]])
    model, _ = load_base(small, quantize=True, dtype=torch.float32)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        after = attach.attach(model, AdapterSection(rank=4, alpha=4)).eval()(input_ids=ids).logits
    assert torch.equal(before, after)


def test_the_separators_live_in_a_module_that_peft_really_saves(small: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    model, _ = load_base(small, quantize=False, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["wo"], modules_to_save=["separators"]))
    wrapped.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {"base_model.model.separators.glb", "base_model.model.separators.sub"} <= set(saved)
