"""Test all commands on a small random InternLM-XComposer-2.5, and that its files are not mixed with those of 4KHD."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from in_process import call
from main_job import write_records
from original_base import write_original_base
from safetensors.torch import load_file
from two_five_base import write_two_five_base

from ixtune.family import TWO_FIVE
from ixtune.planning.record_shapes import RecordShapes

RECIPE = """
base: {base}
data:
  train: {data}
adapter: {{rank: 4, alpha: 8, quantize: none}}
training:
  max_steps: 2
  pack_tokens: 1800
  compute_dtype: fp32
  log_every: 1
  save_every: 1
output: {output}
"""


def well(*arguments: str | Path) -> str:
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str | Path) -> str:
    done = call(*arguments)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base in the original format: crop size and PLoRA ranks are found only in the weights."""
    return write_two_five_base(tmp_path_factory.mktemp("two-five") / "ixc2-4khd")  # a name says nothing


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set of five records, one of them without a placeholder for its image."""
    source = write_records(tmp_path_factory.mktemp("numbers"), 5)
    records = json.loads(source.read_text())
    records[0]["conversations"][0]["value"] = "Which number?"
    source.write_text(json.dumps(records), encoding="utf-8")
    return source


@pytest.fixture(scope="module")
def prepared(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "set"
    well("prepare", data, "--out", out, "--hd-num", "1", "--base", base)
    return out


@pytest.fixture(scope="module")
def run(base: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=base, data=prepared, output=folder / "run"), encoding="utf-8")
    assert "fits" in well("plan", recipe, "--gpu-gib", "24")
    well("train", recipe)
    whole = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(folder / "run" / "adapter")
    shutil.rmtree(folder / "run" / "checkpoint-2")
    well("train", recipe, "--resume")
    again = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    return folder / "run"


def test_the_plan_notes_records_longer_than_the_model_was_trained_on(run: Path, monkeypatch: pytest.MonkeyPatch):
    long = RecordShapes([30_000], [3_000], [()])
    monkeypatch.setattr(RecordShapes, "of", lambda train: long)
    planned = well("plan", run.parent / "recipe.yaml", "training.pack_tokens=32000")
    assert "longest record has 30,000 tokens; InternLM-XComposer-2.5 was trained on at most 24,576" in planned


def test_set_and_adapter_record_the_model_and_the_layout_rule(prepared: Path, run: Path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert {"model": "2.5", "layout_rule": "fine-tuning"}.items() <= manifest["options"].items()
    assert manifest["statistics"]["notes"] == {"image_first": 1}
    assert manifest["tokens"]["image"] == 5 * TWO_FIVE.tokens(1, 1) == 5 * 841
    record = json.loads((run / "adapter" / "ixtune.json").read_text())
    assert (record["model"], record["layout_rule"], record["hd_num"]) == ("2.5", "fine-tuning", 1)


def test_an_image_without_a_placeholder_comes_first(prepared: Path):
    from ixtune.data.prepared.store import load

    rows = load(prepared).dataset
    assert [row["picture_slots"][0] > 0 for row in rows] == [False, True, True, True, True]


def test_a_base_is_described_verified_and_converted(base: Path, tmp_path: Path):
    shown = json.loads(well("base", "info", base, "--json"))
    assert shown["form"] == f"a model of the same form in other sizes ({TWO_FIVE.title})"
    assert (shown["vision"]["side"], shown["plora_ranks"]) == (560, {"wqkv": 8, "others": 8})
    well("base", "verify", base)
    torn = tmp_path / "bin"
    shutil.copytree(base, torn)
    torch.save(load_file(torn / "model.safetensors"), torn / "pytorch_model.bin")
    (torn / "model.safetensors").unlink()
    well("base", "convert", torn, "--out", tmp_path / "converted")
    assert json.loads(well("base", "info", tmp_path / "converted", "--json"))["identity"] == shown["identity"]


def test_the_adapter_is_evaluated_and_answers_questions(
    run: Path, prepared: Path, data: Path, base: Path, monkeypatch, tmp_path
):
    well("evaluate", prepared, "--adapter", run, "--max-new-tokens", "2", "--out", tmp_path / "evaluation.json")
    well("predict", "--from", prepared, "--adapter", run, "--max-new-tokens", "2", "--out", tmp_path / "answers.jsonl")
    images = ["--image", data.parent / "0.png", "--image", data.parent / "1.png"]
    well("predict", "Same?", *images, "--base", base, "--max-new-tokens", "2", "--template", "original")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/image {data.parent / '0.png'}\nWhich number?\n/quit\n"))
    assert "1x1 crops, 841 tokens" in well("chat", "--adapter", run, "--max-new-tokens", "2")


@pytest.mark.parametrize("profile", ["peft-original", "transformers", "original", "lmdeploy-0.13", "nf4"])
def test_every_profile_is_exported_and_passes_its_checks(run: Path, profile: str, tmp_path: Path):
    well("export", run, "--profile", profile, "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "export_report.json").read_text())
    assert all(check["passed"] for check in report["checks"])
    if profile == "lmdeploy-0.13":
        assert any("hd_num 24" in line for line in report["warnings"])
    told = any("by the rule 'inference'" in line for line in report["warnings"])
    assert told == (profile not in ("transformers", "nf4"))  # whose code is ixtune's
    if profile in ("transformers", "nf4"):
        from transformers import AutoConfig, AutoProcessor

        assert AutoConfig.from_pretrained(tmp_path / "out").sizes.member == TWO_FIVE
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        assert processor.image_processor.member == TWO_FIVE


def test_a_merged_model_records_its_origin_and_answers(run: Path, data: Path, tmp_path: Path):
    well("merge", run, "--out", tmp_path / "merged")
    record = json.loads((tmp_path / "merged" / "ixtune.json").read_text())
    assert (record["model"], record["layout_rule"]) == ("2.5", "fine-tuning")
    well("predict", "Which?", "--image", data.parent / "0.png", "--base", tmp_path / "merged", "--max-new-tokens", "2")


def test_sets_and_adapters_of_the_other_model_are_refused(
    run: Path, prepared: Path, data: Path, base: Path, tmp_path: Path
):
    other = write_original_base(tmp_path / "other")
    hint = "hint: prepare it again with --base set to the base in use"
    found = refused("train", run.parent / "recipe.yaml", f"base={other}", f"output={tmp_path / 'run'}")
    assert "the set is for InternLM-XComposer-2.5, the base is InternLM-XComposer2-4KHD" in found
    assert hint in found
    well("prepare", data, "--out", tmp_path / "set", "--hd-num", "1", "--base", other)
    found = refused("plan", run.parent / "recipe.yaml", f"data.train={tmp_path / 'set'}")
    assert "the set is for InternLM-XComposer2-4KHD, the base is InternLM-XComposer-2.5" in found
    crossed = "the adapter is for InternLM-XComposer-2.5, the base is InternLM-XComposer2-4KHD"
    shown = ["Which?", "--image", data.parent / "0.png"]
    assert crossed in refused("predict", *shown, "--adapter", run, "--base", other, "--force")
    assert crossed in refused("merge", run, "--base", other, "--out", tmp_path / "merged", "--force")
    well("prepare", data, "--out", tmp_path / "chat", "--hd-num", "1", "--base", base, "--layout-rule", "inference")
    found = refused("plan", run.parent / "recipe.yaml", f"data.train=[{prepared}, {tmp_path / 'chat'}]")
    assert "--layout-rule" in found


def test_other_modes_of_the_original_are_refused_in_one_sentence(data: Path, tmp_path: Path):
    found = refused("init", "--data", data, "--gpu-gib", "24", "--task", "video", "--out", tmp_path / "mine")
    assert "videos are not supported" in found


def test_init_for_2_5_uses_its_base_and_as_many_pixels(data: Path, tmp_path: Path):
    shown = well(
        "init", "--data", data, "--gpu-gib", "24", "--task", "documents", "--out", tmp_path / "mine", "--model", "2.5"
    )
    assert "--hd-num 9" in shown
    assert f"--base {TWO_FIVE.hub_id}" in shown
    assert f"base: {TWO_FIVE.hub_id}" in (tmp_path / "mine" / "recipe.yaml").read_text()
