"""Test that a merged model gives the answers of base and adapter, and that a wrong one is detected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapters import section, stir
from records import write_image
from safetensors.torch import load_file, save_file

from ixtune.adapter import attach, bundle
from ixtune.base import resolve
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.errors import IxtuneError
from ixtune.evaluation.questions import Asked
from ixtune.evaluation.verify_merge import questions_for, verify_merge
from ixtune.merging.merge import merge
from ixtune.model.loading import load_base
from ixtune.recipe import recipe as recipes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an adapter of the nano base in fp32, and three questions."""
    root = tmp_path_factory.mktemp("verify")
    base = resolve("nano")
    (root / "recipe.yaml").write_text(f"base: nano\ndata:\n  train: x\noutput: {root}\n", encoding="utf-8")
    recipe = recipes.load(root / "recipe.yaml", ("training.compute_dtype=fp32", "adapter.quantize=none"))
    torch.manual_seed(0)  # of LoRA's A: rounding to bf16 turns an answer where the two likeliest tokens are near
    model = attach.attach(load_base(base, quantize=False, dtype=torch.float32)[0], section("plain"))
    stir(model, 0.02)
    record = {
        "base": "nano",
        "base_identity": base_identity(open_checkpoint(base)),
        "quantize": "none",
        "recipe": recipe.model_dump(mode="json"),
        "hd_num": 1,
    }
    bundle.save(model, root / "adapter", record)
    write_image(root / "a.png", 60, 40)
    lines = [{"question": "How many?", "image": "a.png"}, {"question": "Which number?"}, {"question": "Say it."}]
    (root / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    merge(root / "adapter", base, root / "merged")
    return root


@pytest.fixture
def asked(folder: Path) -> Asked:
    return questions_for(folder / "adapter", resolve("nano"), folder / "asked.jsonl", 2)


def test_the_merged_model_passes_and_its_merge_base_is_closer(folder: Path, asked: Asked) -> None:
    told: list[int] = []
    found = verify_merge(
        folder / "adapter", "nano", folder / "merged", asked, onto=("bf16", "nf4"), progress=told.append
    )
    stored, nf4 = found.sides
    assert (found.questions, found.passed, found.closer) == (2, True, "bf16")
    assert stored.same_answers == 2
    assert 0 < stored.mean_logit_difference < stored.max_logit_difference
    assert stored.mean_logit_difference < 0.1 * min(nf4.mean_logit_difference, stored.adapter_effect)
    assert len(told) == 2 * 3
    report = json.loads((folder / "merged" / "merge_report.json").read_text())
    assert report["answers"]["sides"][0]["same_answers"] == 2
    assert report["changed"] > 0


def test_a_merged_model_that_lost_its_adapter_fails(folder: Path, asked: Asked, tmp_path: Path) -> None:
    merge(folder / "adapter", resolve("nano"), tmp_path / "merged")
    for shard in (tmp_path / "merged").glob("*.safetensors"):
        tensors = load_file(shard)
        noise = torch.Generator().manual_seed(0)
        for name, tensor in tensors.items():
            if name.endswith("wqkv.weight"):
                tensors[name] = tensor + (torch.randn(tensor.shape, generator=noise) * 0.5).to(tensor.dtype)
        save_file(tensors, shard, {"format": "pt"})
    found = verify_merge(folder / "adapter", "nano", tmp_path / "merged", asked, onto=("bf16",))
    assert not found.passed
    assert found.closer is None
    assert found.sides[0].mean_logit_difference > found.sides[0].adapter_effect


def test_an_invalid_question_is_reported_before_the_merge(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text('{"question": "What?", "image": "none.png"}\n')
    with pytest.raises(IxtuneError, match="1 lines cannot be asked"):
        questions_for(folder / "adapter", resolve("nano"), tmp_path / "asked.jsonl", 2)
