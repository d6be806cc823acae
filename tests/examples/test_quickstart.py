"""Test that every cell of the quickstart notebook runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_every_cell_runs_and_prints_plain_progress_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the cells in one namespace, as a kernel does, in a folder with the repository's examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "saved with outputs"
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, {cell['id']}", "exec"), names)
    said = capsys.readouterr().out
    assert "records accepted, 0 rejected" in said
    assert "step     1/" in said
    assert "\x1b" not in said, "escape codes of a live view"
    assert "ANLS of adapter" in said
    run = tmp_path / "runs" / "quickstart"
    assert (run / "report" / "report.html").is_file()
    assert names["outcome"].adapter == Path("runs/quickstart/run/adapter")
