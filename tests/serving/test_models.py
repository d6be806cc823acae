"""Test that all models share one base in memory, and that the plan counts it once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from served import load_models, save_adapter

from ixtune.base import resolve
from ixtune.errors import UsageError
from ixtune.evaluation.contenders import contenders
from ixtune.model.loading import load_base
from ixtune.serving.engine.job import Limits
from ixtune.serving.engine.memory_plan import bytes_per_token, plan_of
from ixtune.serving.engine.models import Models, sharing_copy


def tensors(network: Any) -> dict[int, torch.Tensor]:
    return {id(one): one for one in (*network.parameters(), *network.buffers())}


def test_adapters_share_the_tensors_of_the_base_and_the_plan_counts_them_once(tmp_path: Path) -> None:
    models = load_models(tmp_path)
    base = tensors(models.base_model)
    for name in ("plain", "rslora"):
        network = models.network(name)
        assert base.keys() <= tensors(network).keys()
        assert network is not models.base_model
    weights = sum(one.nbytes for one in base.values())
    limits = Limits(running_tokens=1000)
    plan = plan_of(models, limits)
    assert weights < plan.weights < 1.2 * weights
    config = models.base_model.config
    key_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert plan.running == 1000 * bytes_per_token(config, torch.float32) == 1000 * 4 * key_values
    assert not plan.on_gpu
    plan.require_room()
    with pytest.raises(UsageError, match="of the GPU are free") as refused:
        dataclasses.replace(plan, on_gpu=True, free=2**20).require_room()
    assert "--cache-gib" in refused.value.hint


def test_a_copy_shares_the_scales_of_nf4_too() -> None:
    model, _ = load_base(resolve("nano"), quantize=True, dtype=torch.float32)
    copied = sharing_copy(model)
    states = [[one.quant_state for one in net.parameters() if hasattr(one, "quant_state")] for net in (model, copied)]
    assert states[0]
    assert all(one is other for one, other in zip(*states, strict=True))
    assert tensors(model).keys() == tensors(copied).keys()


def test_adapters_trained_differently_are_refused(tmp_path: Path) -> None:
    first = save_adapter(tmp_path / "first", "plain", 0.02)
    second = save_adapter(tmp_path / "second", "plain", 0.02)
    record = second / "ixtune.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"quantize": "nf4"}))
    with pytest.raises(UsageError, match="different quantize"):
        Models(contenders(None, [str(first), str(second)], []), None)
    with pytest.raises(UsageError, match="2 bases"):
        Models(contenders(None, [], ["one=a", "two=b"]), None)
