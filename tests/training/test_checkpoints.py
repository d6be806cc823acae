"""Test which checkpoints are kept and which are complete, and the log lines that belong to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import call

from ixtune.errors import IxtuneError, UsageError
from ixtune.training.monitoring.metrics import JsonLines
from ixtune.training.state import checkpoints, cleaning
from ixtune.training.state.progress import Progress


def _save(run: Path, *steps: int) -> None:
    for step in steps:
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_text(str(step))
        checkpoints.seal(folder)


def _steps(run: Path) -> list[int]:
    return [checkpoints.step_of(folder) for folder in checkpoints.listing(run)]


def test_the_newest_checkpoints_and_the_best_one_are_kept(tmp_path: Path) -> None:
    _save(tmp_path, 2, 4, 6, 8, 10)
    checkpoints.rotate(tmp_path, keep=2, best_step=4)
    assert _steps(tmp_path) == [4, 8, 10]
    checkpoints.rotate(tmp_path, keep=2, best_step=10)
    assert _steps(tmp_path) == [8, 10]


def test_half_deleted_checkpoints_are_removed_by_the_next_rotation(tmp_path: Path) -> None:
    _save(tmp_path, 2, 4)
    (tmp_path / "checkpoint-2").rename(tmp_path / ".checkpoint-2.deleted")
    assert _steps(tmp_path) == [4]
    checkpoints.rotate(tmp_path, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda folder: (folder / "weights").write_text("other"), "weights does not match its checksum"),
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / checkpoints.SUMS).unlink(), "no readable checksums.json"),
        (lambda folder: (folder / checkpoints.SUMS).write_text("{"), "no readable checksums.json"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_reported(tmp_path: Path, harm, found: str) -> None:
    _save(tmp_path, 2, 4)
    harm(tmp_path / "checkpoint-4")
    whole, damaged = checkpoints.newest_whole(tmp_path)
    assert whole == tmp_path / "checkpoint-2"
    assert damaged == [(tmp_path / "checkpoint-4", found)]
    checkpoints.set_aside(tmp_path / "checkpoint-4")
    assert _steps(tmp_path) == [2]


def test_a_folder_with_a_run_is_refused_for_a_new_one(tmp_path: Path) -> None:
    checkpoints.require_empty(tmp_path)
    _save(tmp_path, 2)
    with pytest.raises(IxtuneError, match="there is a run in this folder already") as refused:
        checkpoints.require_empty(tmp_path)
    assert "resume=auto" in refused.value.hint


def test_log_lines_of_repeated_steps_and_truncated_lines_are_dropped(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        lines.append({"step": step})
    with lines.path.open("a") as file:
        file.write('{"step": 2, "lo')
    lines.rewind(2)
    assert [json.loads(line) for line in lines.path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]
    lines.rewind(0)
    assert lines.path.read_text() == ""


def test_progress_is_restored_from_a_checkpoint(tmp_path: Path) -> None:
    progress = Progress(tokens=7, seconds=1.5, best_loss=0.25, best_step=3, reproducible=False)
    progress.best_scores = {"anls": 0.5}
    progress.save(tmp_path)
    restored = Progress()
    restored.restore(tmp_path)
    assert restored == progress


def test_progress_of_a_checkpoint_without_scores_is_read(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"tokens": 7, "best_loss": 0.25, "best_step": 3}')
    restored = Progress()
    restored.restore(tmp_path)
    assert restored == Progress(tokens=7, best_loss=0.25, best_step=3)


def _run_with(tmp_path: Path, *steps: int, adapter: bool) -> Path:
    run = tmp_path / "run"
    _save(run, *steps)
    for name in ("recipe.yaml", "inputs.json", "metrics.jsonl"):
        (run / name).write_text("{}")
    if adapter:
        (run / "adapter").mkdir()
    return run


@pytest.mark.parametrize(
    ("adapter", "last_too", "kept"),
    [
        (False, False, ["checkpoint-2", "checkpoint-8"]),  # the best one and the newest whole one
        (True, False, ["adapter", "checkpoint-8"]),
        (True, True, ["adapter"]),
    ],
    ids=["unfinished", "finished", "finished, all"],
)
def test_clean_lists_and_removes_unneeded_files(tmp_path: Path, adapter: bool, last_too: bool, kept: list[str]) -> None:
    run = _run_with(tmp_path, 2, 4, 6, 8, 10, adapter=adapter)
    checkpoints.mark_best(run / "checkpoint-2", "loss", 1.0, {})
    (run / "checkpoint-10" / "weights").write_text("other")
    (run / ".checkpoint-4.damaged").mkdir()
    (run / ".checkpoint-12.partial-aaaaaaaa-bbbbbbbb").mkdir()
    before = sorted(run.iterdir())
    found = cleaning.unneeded(run, last_too=last_too)
    assert sorted(run.iterdir()) == before
    cleaning.remove(found)
    files = ["best.json", "inputs.json", "metrics.jsonl", "recipe.yaml"]
    assert sorted(path.name for path in run.iterdir()) == sorted([*files, *kept])
    assert cleaning.unneeded(run, last_too=last_too) == []


def test_clean_refuses_a_folder_without_a_run_and_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is not a run folder"):
        cleaning.unneeded(tmp_path)
    with pytest.raises(UsageError, match="the run is not finished"):
        cleaning.unneeded(_run_with(tmp_path, 2, adapter=False), last_too=True)


def test_clean_only_lists_files_unless_yes_is_given(tmp_path: Path) -> None:
    run = _run_with(tmp_path, 2, 4, adapter=True)
    listed = call("clean", run)
    assert f"{run / 'checkpoint-2'}  (the run is finished)" in listed.stdout
    assert "total    0.0 MiB; nothing was removed" in listed.stdout
    assert (run / "checkpoint-2").exists()
    assert "removed" in call("clean", run, "--yes").stdout
    assert not (run / "checkpoint-2").exists()
