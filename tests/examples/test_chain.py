"""A chain of adapters on real data: base, A on photographs, B from A on charts; all three in one report."""

from __future__ import annotations

import json
from pathlib import Path

import measuring
import pytest
from in_process import call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

DATA = Path(__file__).parents[2] / "examples" / "data"
RECIPE = """
base: nano
data:
  train: {data}/train
  validation: {data}/validation
adapter:
  rank: 8
  alpha: 16
{start}
training:
  epochs: {epochs}
  pack_tokens: 6000
  gradient_accumulation: 1
  learning_rate: 1.0e-3
  compute_dtype: fp32
  log_every: 1
  save_every: 1000
output: {output}
"""
SOURCES = {
    "photos": ("photos-csv/questions.csv", "--image-root", str(DATA / "photos-csv" / "photos")),
    "charts": ("charts-messages/messages.jsonl",),
}
HOW = ("--hd-num", "4", "--base", "nano", "--val-fraction", "0.25")
EPOCHS = 12


def run(*words: str | Path) -> str:
    done = call(*words)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_a_chain_of_adapters_learns_new_data_and_one_report_compares_all(tmp_path: Path) -> None:
    for name, (source, *options) in SOURCES.items():
        out = tmp_path / name
        run("prepare", DATA / source, *options, "--out", out, *HOW)
    starts = {"a": ("photos", ""), "b": ("charts", f"  start_from: {tmp_path / 'a'}")}
    for name, (data, start) in starts.items():
        recipe = tmp_path / f"{name}.yaml"
        text = RECIPE.format(data=tmp_path / data, start=start, epochs=EPOCHS, output=tmp_path / name)
        recipe.write_text(text, encoding="utf-8")
        said = run("train", recipe, "--no-report")
    assert f"start    from {tmp_path / 'a'}" in said, said
    record = json.loads((tmp_path / "b" / "adapter" / "ixtune.json").read_text(encoding="utf-8"))
    assert [one["adapter"] for one in record["ancestors"]] == [str(tmp_path / "a")]

    losses: dict[str, dict[str, float]] = {}
    for name in SOURCES:
        found = tmp_path / f"{name}.json"
        models = ("--adapter", f"A={tmp_path / 'a'}", "--adapter", f"B={tmp_path / 'b'}")
        run("evaluate", tmp_path / name / "validation", *models, "--score", "anls", "--out", found)
        content = json.loads(found.read_text(encoding="utf-8"))
        losses[name] = {one["name"]: one["loss"] for one in content["results"] if one["loss"] is not None}
        assert list(losses[name])[:3] == ["base", "A", "B"]
    out = tmp_path / "report"
    run("report", tmp_path / "a", tmp_path / "b", "--evaluation", tmp_path / "charts.json", "--out", out)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in report for name in ("base", "A", "B")), report
    figures = {f"{data}_{name}": loss for data, of_one in losses.items() for name, loss in of_one.items()}
    measuring.record("chain", {"epochs": float(EPOCHS), **{key: figures[key] for key in sorted(figures)}})
    assert losses["photos"]["A"] < losses["photos"]["base"]
    assert losses["charts"]["B"] < losses["charts"]["A"]
    assert losses["charts"]["B"] < losses["charts"]["base"]
