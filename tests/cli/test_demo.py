"""Test a short `make demo`: every step runs, and it fails if nothing was learned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from main_job import environment

ROOT = Path(__file__).parents[2]


def test_the_demo_runs_every_step_and_fails_if_hardly_trained(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "examples/demo/run.py", "--out", str(tmp_path / "demo"),
            "--train-sheets", "3", "--test-sheets", "6", "training.max_steps=1", "training.learning_rate=1e-9",
            "training.projector_learning_rate=1e-9",
        ],
        cwd=ROOT, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stdout
    assert "merged = adapter on 100.0% of the answers" in done.stdout
    report = json.loads((tmp_path / "demo" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["records"] == 12
    assert [one["name"] for one in report["models"]] == ["base", "adapter", "merged"]
    page = (tmp_path / "demo" / "report" / "report.html").read_text(encoding="utf-8")
    assert "adapter, images swapped" in page
