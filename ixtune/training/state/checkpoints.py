"""Write checkpoints atomically: temporary sibling, checksums, fsync, rename, then rotation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_json, sha256_file

SUMS = "checksums.json"
PREFIX = "checkpoint-"
BEST = "best.json"


def seal(folder: Path) -> None:
    """Write the checksums of all files of a checkpoint into it."""
    sums = {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """Return a message about the damage of a checkpoint, or None."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {SUMS}"
    for name, digest in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_file(path) != digest:
            return f"{name} does not match its checksum"
    return None


def step_of(folder: Path) -> int:
    """Return the optimizer step of a checkpoint folder."""
    return int(folder.name.removeprefix(PREFIX))


def listing(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first, without temporary folders."""
    found = [p for p in run.glob(f"{PREFIX}*") if p.is_dir() and p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def newest_whole(run: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest checkpoint whose checksums hold, and newer damaged ones with their problem."""
    damaged: list[tuple[Path, str]] = []
    for folder in reversed(listing(run)):
        problem = damage(folder)
        if problem is None:
            return folder, damaged
        damaged.append((folder, problem))
    return None, damaged


def rotate(run: Path, keep: int, best_step: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and that of the best step.

    Each is renamed away first, so that none is seen half deleted.
    """
    for left in run.glob(f".{PREFIX}*.deleted"):  # left by a process that was killed while it deleted
        shutil.rmtree(left)
    for folder in listing(run)[:-keep]:
        if step_of(folder) != best_step:
            doomed = folder.with_name(f".{folder.name}.deleted")
            os.replace(folder, doomed)
            shutil.rmtree(doomed)


def mark_best(checkpoint: Path, by: str, loss: float | None, scores: Mapping[str, float]) -> None:
    """Write best.json: which checkpoint is the best on the validation set, by which measurement, with its values."""
    content = {
        "step": step_of(checkpoint),
        "best_by": by,
        "validation_loss": loss,
        "validation_scores": dict(scores),
        "checkpoint": checkpoint.name,
    }
    atomic_write_json(checkpoint.parent / BEST, content)


def set_aside(folder: Path) -> None:
    """Move a damaged checkpoint out of the way, so that its step can be saved again."""
    aside = folder.with_name(f".{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)


def require_empty(run: Path) -> None:
    """Refuse a run folder that already holds a checkpoint or an adapter; a run that reached neither may start again.

    Raises:
        IxtuneError: The folder holds one.
    """
    if (run / "adapter").exists() or listing(run):
        raise IxtuneError(
            "there is a run in this folder already",
            where=str(run),
            hint="continue it with --resume or resume=auto, or choose another folder: output=NAME",
        )
