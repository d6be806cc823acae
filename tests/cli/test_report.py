"""Test `ixtune report` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_process import call
from main_job import ixtune, prepare, write_recipe
from report_files import write_evaluation, write_run

from ixtune.errors import IxtuneError


def test_report_prints_the_verdict_and_writes_three_files(tmp_path: Path):
    run = write_run(tmp_path / "run")
    file = write_evaluation(tmp_path / "evaluation.json")
    done = ixtune("report", run, "--evaluation", file, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert "adapter is better than base: exact match +0.625" in done.stdout
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json", "report.md"]


def test_several_runs_require_out_and_each_must_be_a_run_folder(tmp_path: Path):
    run = write_run(tmp_path / "run")
    several = ixtune("report", run, run)
    assert (several.returncode, "pass --out DIR" in several.stderr) == (2, True)
    (tmp_path / "empty").mkdir()
    none = ixtune("report", tmp_path / "empty")
    assert (none.returncode, "this is not a run folder" in none.stderr) == (2, True)


def test_training_with_a_validation_set_ends_with_a_report(tmp_path: Path):
    data = prepare(tmp_path, 4)
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    done = ixtune("train", recipe, "training.max_steps=1", f"data.validation={data}")
    assert done.returncode == 0, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("warning: data.validation is one of the sets in data.train")
    assert "done     1 step;" in done.stdout
    assert {"evaluation.json", "report.html", "report.json", "report.md"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    told, found = (
        json.loads((tmp_path / "run" / f"{name}.json").read_text(encoding="utf-8")) for name in ("report", "evaluation")
    )
    names = ["base", "adapter", "adapter, images swapped", "majority answer"]
    assert [result["name"] for result in found["results"]] == names
    assert [result["name"] for result in told["evaluations"][0]["results"]] == names
    assert told["missing"] == []
    for name in ("report.md", "report.html"):
        assert "adapter was trained on this set" in (tmp_path / "run" / name).read_text(encoding="utf-8")


def test_a_failing_report_is_a_warning_and_the_run_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ixtune.evaluation import evaluate

    def fail(*_: Any) -> None:
        raise IxtuneError("the evaluation fails", hint="as this test asks for")

    monkeypatch.setattr(evaluate, "evaluate", fail)
    data = prepare(tmp_path, 2)
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    done = call("train", recipe, "training.max_steps=1", f"data.validation={data}")
    assert done.returncode == 0, done.stderr
    assert "the evaluation fails" in done.stderr
    assert "ixtune evaluate" in done.stderr
    assert "scores are not shown" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "run" / "adapter" / "ixtune.json").is_file()
