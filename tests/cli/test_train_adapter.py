"""Train every kind of adapter from the command line: its parts change, nothing else does, and it answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from main_job import write_recipe, write_records
from text_run import losses, prepare_texts, run, text_recipe

from ixtune.base import resolve
from ixtune.cli import main
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Source

EVERYTHING = (
    "adapter.variant=rslora",
    "adapter.per_target={w1: {rank: 2, dropout: 0.2}, w2: {alpha: 2.0, dropout: 0.0}, projector: {rank: 3}}",
    "adapter.projector=lora",
    "adapter.separators=true",
    "training.lora_plus_ratio=4",
    "training.projector_learning_rate=5.0e-4",
    "training.separators_learning_rate=2.0e-4",
    "training.compute_dtype=bf16",
)
DORA = (
    "adapter.variant=dora",
    "adapter.targets=[wqkv, w3]",
    "adapter.separators=true",
    "training.optimizer=adamw_8bit",
    "training.neftune_alpha=5",
    "training.gradient_checkpointing=true",
    "training.compute_dtype=bf16",
)
NOT_QUANTISED = (
    "adapter.quantize=none",
    "adapter.targets=[wo]",
    "adapter.projector=frozen",
    "training.optimizer=paged_adamw_8bit",
    "training.compute_dtype=bf16",
)
PROJECTOR_ONLY = ("adapter.targets=[]", "training.compute_dtype=bf16", "training.gradient_checkpointing=true")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set of four records with an image each, two per pack."""
    folder = tmp_path_factory.mktemp("pictures")
    source = Source(path=str(write_records(folder / "raw", 4)))
    prepare([source], folder / "prepared", base=resolve("nano"), options=PrepareOptions(hd_num=1))
    return folder / "prepared"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Capture the model of a run, and copies of its parameters before the first step."""
    from ixtune.adapter import attach

    caught: dict[str, Any] = {}

    def spy(*arguments: Any) -> Any:
        caught["model"] = wrapped(*arguments)
        caught["before"] = {name: p.detach().clone() for name, p in caught["model"].named_parameters()}
        return caught["model"]

    wrapped = attach.attach
    monkeypatch.setattr(attach, "attach", spy)
    return caught


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            EVERYTHING,
            [
                "20 of 20 decoder linears in NF4",
                "rsLoRA wqkv 8 9,216 float32 4 8 0.05 0.001, B 0.004",
                "rsLoRA w1 8 5,632 float32 2 8 0.2 0.001, B 0.004",
                "rsLoRA w2 8 11,264 float32 4 2 0 0.001, B 0.004",
                "separators 2 1,024 float32 0.0002",
                "rsLoRA projector 4 3,264 float32 3 8 0.05 0.0005, B 0.002",
                "all 47,808",
            ],
        ),
        (DORA, ["20 of 20 decoder linears in NF4", "DoRA wqkv 12", "DoRA w3 12", "projector 4", "separators 2"]),
        (NOT_QUANTISED, ["decoder linears not quantized", "LoRA wo 8"]),
        (PROJECTOR_ONLY, ["20 of 20 decoder linears in NF4", "projector 4 135,552 float32 0.001", "all 135,552"]),
    ],
    ids=["rslora", "dora", "not quantized", "projector only"],
)
def test_trained_parts_change_and_all_others_stay_bit_for_bit_equal(
    changes: tuple[str, ...], told: list[str], data: Path, tmp_path: Path, seen: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    assert main(["train", str(recipe), "training.max_steps=3", *changes]) == 0
    shown = capfd.readouterr()
    said = " ".join(shown.out.split())
    assert [line for line in told if line not in said] == []
    assert shown.err == ""

    moved = {name for name, p in seen["model"].named_parameters() if not torch.equal(p, seen["before"][name])}
    trained = {name for name, p in seen["model"].named_parameters() if p.requires_grad}
    assert moved == trained
    in_fp32 = {name for name, p in seen["model"].named_parameters() if p.dtype == torch.float32}
    assert in_fp32 == trained

    report = tmp_path / "report.json"
    assert main(["evaluate", str(data), "--adapter", str(tmp_path / "run"), "--no-controls", "--limit", "2",
                 "--max-new-tokens", "2", "--out", str(report)]) == 0  # fmt: skip
    base, adapter = json.loads(report.read_text(encoding="utf-8"))["results"]
    assert adapter["loss"] < base["loss"]


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw"])
def test_dora_with_noise_and_dropout_resumes_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    """Magnitudes, 8-bit optimizer states and the noise generator are all in a checkpoint."""
    changes = (
        "adapter.variant=dora", "adapter.targets=[wqkv, w1]", "adapter.per_target={w1: {rank: 3, dropout: 0.3}}",
        "training.neftune_alpha=5", "training.lora_plus_ratio=8", f"training.optimizer={optimizer}",
    )  # fmt: skip
    recipe = text_recipe(tmp_path, prepare_texts(tmp_path / "texts"), *changes)
    run(recipe)
    straight = tmp_path / "run" / "adapter"
    weights = (straight / "adapter_model.safetensors").read_bytes()
    assert b"lora_magnitude_vector" in weights
    shutil.rmtree(straight)
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    _, said = run(recipe, must_resume=True)
    assert "checkpoint-4" in said
    assert (straight / "adapter_model.safetensors").read_bytes() == weights


def test_a_text_pack_changes_nothing_if_only_the_projector_trains(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, prepare_texts(tmp_path / "texts"), "adapter.targets=[]")
    outcome, _ = run(recipe)
    assert outcome.steps == 6
    assert {norm for _, _, norm in losses(tmp_path / "run")} == {0.0}


def test_neftune_noise_changes_the_loss_of_a_run(tmp_path: Path) -> None:
    texts = prepare_texts(tmp_path / "texts")
    for alpha in ("null", "5"):
        changes = ("training.max_steps=1", "adapter.dropout=0", f"training.neftune_alpha={alpha}")
        run(text_recipe(tmp_path / alpha, texts, *changes))
    assert losses(tmp_path / "null" / "run") != losses(tmp_path / "5" / "run")
