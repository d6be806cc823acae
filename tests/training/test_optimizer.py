"""Test learning rate and decay of every trained tensor, and that every optimizer steps, saves and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import KINDS, section
from small_base import small_model
from transformers import TrainingArguments

from ixtune.adapter import attach
from ixtune.recipe.recipe import Recipe
from ixtune.training.step import optimizer

RATES = {
    "learning_rate": 1e-4,
    "projector_learning_rate": 2e-5,
    "weight_decay": 0.1,
}


def _recipe(kind: str, **training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "base": "small",
            "data": {"train": "prepared"},
            "adapter": section(kind),
            "training": {**RATES, **training} if section(kind).projector != "frozen" else training,
            "output": "run",
        }
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_tensor_is_in_exactly_one_group(kind: str) -> None:
    model = attach.attach(small_model(), section(kind))
    groups = optimizer.parameter_groups(model, _recipe(kind, lora_plus_ratio=16.0))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for _, parameter in attach.trainable(model))
    assert groups[0]["part"] == ("lora" if section(kind).targets else "projector")
    of_lora = 1e-4 if section(kind).projector != "frozen" else 5e-5
    assert groups[0]["lr"] == (of_lora if section(kind).targets else RATES["projector_learning_rate"])


def test_each_part_has_its_learning_rate_and_lora_plus_scales_every_b() -> None:
    kind = "dora with everything"
    model = attach.attach(small_model(), section(kind))
    recipe = _recipe(kind, separators_learning_rate=3e-5, lora_plus_ratio=16.0)
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.parameter_groups(model, recipe)
        for parameter in group["params"]
    }
    expected = {
        ("lora", "A"): (1e-4, 0.1),
        ("lora", "B"): (16 * 1e-4, 0.1),
        ("lora", "magnitude"): (1e-4, 0.0),
        ("projector", "A"): (2e-5, 0.1),
        ("projector", "B"): (16 * 2e-5, 0.1),
        ("projector", "magnitude"): (2e-5, 0.0),
        ("separators", "whole"): (3e-5, 0.0),
    }
    seen = set()
    for tensor, parameter in attach.trained(model):
        seen.add((tensor.part, tensor.role))
        assert rates[id(parameter)] == pytest.approx(expected[tensor.part, tensor.role])
    assert seen == set(expected)


def test_projector_weights_decay_and_biases_do_not() -> None:
    model = attach.attach(small_model(), section("plain"))
    groups = [g for g in optimizer.parameter_groups(model, _recipe("plain")) if g["part"] == "projector"]
    assert sorted((g["lr"], g["weight_decay"], {p.ndim for p in g["params"]}.pop()) for g in groups) == [
        (2e-5, 0.0, 1),
        (2e-5, 0.1, 2),
    ]


def test_the_table_shows_every_part_with_its_settings_and_rates() -> None:
    kind = "rslora with everything"
    model = attach.attach(small_model(), section(kind, dropout=0.05))
    recipe = _recipe(kind, separators_learning_rate=3e-5, lora_plus_ratio=16.0)
    lines = [" ".join(line.split()) for line in optimizer.table_lines(model, recipe)]
    assert lines[0] == "part tensors parameters dtype rank alpha dropout learning rate"
    assert "rsLoRA wqkv 4 1,536 float32 4 8 0.05 0.0001, B 0.0016" in lines
    assert "rsLoRA w1 4 2,304 float32 6 8 0.2 0.0001, B 0.0016" in lines
    assert "rsLoRA projector 4 640 float32 2 3 0.05 2e-05, B 0.00032" in lines
    assert "separators 2 256 float32 3e-05" in lines
    total = sum(parameter.numel() for _, parameter in attach.trainable(model))
    assert lines[-1] == f"all {total:,}"


def _step(made: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(3)
    for group in made.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    made.step()


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_every_optimizer_steps_and_resumes_from_its_saved_state(name: str, tmp_path: Path) -> None:
    """Paged optimizers are not really tested on a CPU, where all states are in main memory (TRAPS.md 5)."""
    recipe = _recipe("plain", optimizer=name)
    args = TrainingArguments(
        output_dir=str(tmp_path), optim=optimizer.OPTIMIZERS[name], use_cpu=True, report_to="none", adam_beta2=0.9
    )
    models = [attach.attach(small_model(), section("plain")) for _ in range(2)]
    first, second = (optimizer.create(model, recipe, args) for model in models)
    assert {group["betas"] for group in first.param_groups} == {(0.9, 0.9)}
    before = [parameter.detach().clone() for _, parameter in attach.trainable(models[0])]
    for _ in range(2):
        _step(first)
    for (_, parameter), old in zip(attach.trainable(models[0]), before, strict=True):
        assert not torch.equal(parameter, old)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for made in (first, second):
        _step(made)
    for (_, one), (_, other) in zip(attach.trainable(models[0]), attach.trainable(models[1]), strict=True):
        assert torch.equal(one, other)
    in_8_bits = {
        state.dtype for values in first.state.values() for state in values.values() if isinstance(state, torch.Tensor)
    }
    assert (torch.uint8 in in_8_bits) == ("8bit" in name)
