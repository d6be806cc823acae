"""Test `ixtune plan` on the embedded base and on a folder that contains only the released config.json."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from in_process import call
from main_job import RECIPE, ixtune, write_records
from small_base import RELEASED_CONFIG

RECEIPTS = Path(__file__).resolve().parents[2] / "recipes" / "receipts.yaml"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the recipe and the prepared set of a few images for the embedded base."""
    folder = tmp_path_factory.mktemp("plan")
    data = write_records(folder / "raw", 4)
    made = ixtune("prepare", data, "--out", folder / "prepared", "--hd-num", "1", "--base", "nano")
    assert made.returncode == 0, made.stderr
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(data=folder / "prepared", output=folder / "run"), encoding="utf-8")
    return path, folder / "prepared"


def test_a_run_on_the_embedded_base_is_planned_without_writing_anything(job: tuple[Path, Path]):
    recipe, _ = job
    done = ixtune("plan", recipe)
    assert done.returncode == 0, done.stderr
    assert "verdict  fits" in done.stdout
    assert "data     4 records" in done.stdout
    assert not (recipe.parent / "run").exists()


def test_a_shipped_recipe_is_planned_on_a_mix_without_data_or_base():
    words = ["plan", RECEIPTS, "--mix", "receipts", "--gpu-gib", "22"]
    done = ixtune(*words)
    assert done.returncode == 0, done.stderr
    assert "mix      receipts: 1,000 made-up records" in done.stdout
    shown = [f"#   {line}" for line in done.stdout.splitlines() if line.startswith(("packs", "verdict"))]
    assert len(shown) == 2
    assert set(shown) <= set(RECEIPTS.read_text(encoding="utf-8").splitlines())
    changed = ixtune(*words, "training.pack_tokens=4096", "--set", "adapter.rank=8")
    assert "packs    " in changed.stdout
    assert "of up to 4,096 tokens" in changed.stdout
    assert "trained  lora 18.9 M" in changed.stdout


def test_an_unknown_mix_is_a_usage_error():
    done = ixtune("plan", RECEIPTS, "--mix", "film")
    assert done.returncode == 2
    assert "choose one of documents, charts" in done.stderr
    near = call("plan", RECEIPTS, "--mix", "reciepts")
    assert (near.returncode, "did you mean receipts?" in near.stderr) == (2, True)


def test_the_released_base_needs_only_its_config(job: tuple[Path, Path], tmp_path: Path):
    recipe, _ = job
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(RELEASED_CONFIG))
    done = ixtune("plan", recipe, f"base={base}", "training.compute_dtype=bf16", "--gpu-gib", "24", "--json")
    assert done.returncode == 0, done.stderr
    by_folder = json.loads(done.stdout)
    assert by_folder["fits"] is True
    assert 6 * 2**30 < by_folder["memory_bytes"]["weights"] < 7 * 2**30
    by_name = ixtune(
        "plan", recipe, "base=internlm/internlm-xcomposer2-4khd-7b", "training.compute_dtype=bf16",
        "--gpu-gib", "24", "--json",
    )  # fmt: skip
    assert json.loads(by_name.stdout) == by_folder


def test_a_run_that_does_not_fit_exits_with_1_and_advice(job: tuple[Path, Path]):
    recipe, _ = job
    done = ixtune(
        "plan", recipe, "base=internlm/internlm-xcomposer2-4khd-7b", "adapter.quantize=none", "--gpu-gib", "24"
    )
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout
    assert "adapter.quantize=nf4" in done.stdout


def test_data_for_another_tokenizer_are_refused(job: tuple[Path, Path], tmp_path: Path):
    recipe, _ = job
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(RELEASED_CONFIG))
    (base / "tokenizer.model").write_bytes(b"another")
    done = ixtune("plan", recipe, f"base={base}")
    assert done.returncode == 1
    assert "prepared for another tokenizer" in done.stderr


def test_a_base_without_a_config_is_refused(job: tuple[Path, Path], tmp_path: Path):
    recipe, _ = job
    done = ixtune("plan", recipe, f"base={tmp_path}")
    assert done.returncode == 1
    assert "missing config.json" in done.stderr


def test_a_broken_config_is_refused_with_its_path(job: tuple[Path, Path], tmp_path: Path):
    recipe, _ = job
    (tmp_path / "config.json").write_text("[1]")
    done = ixtune("plan", recipe, f"base={tmp_path}")
    assert done.returncode == 1
    assert "config.json cannot be read" in done.stderr
    assert str(tmp_path / "config.json") in done.stderr


@pytest.mark.bench
def test_a_plan_takes_less_than_two_seconds(job: tuple[Path, Path]):
    recipe, _ = job
    for _ in range(4):  # the machine may be busy with something else
        began = time.monotonic()
        ixtune("plan", recipe)
        if (took := time.monotonic() - began) < 2:
            break
    assert took < 2
