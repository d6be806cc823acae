"""Find and remove files of a run folder that are no longer needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ixtune.errors import UsageError
from ixtune.training.state import checkpoints, disk, resume
from ixtune.training.state.lock import only_run_in


@dataclass(frozen=True, slots=True)
class Unneeded:
    """File or folder that can be removed.

    Attributes:
        path: Where it is.
        bytes: Its size.
        why: Why it is not needed.
    """

    path: Path
    bytes: int
    why: str


def unneeded(run: Path, *, last_too: bool = False) -> list[Unneeded]:
    """Return the files and folders of a run that are no longer needed, the largest first.

    These are files that killed processes left half written or half deleted, damaged checkpoints, and all checkpoints
    but the newest complete one, which is needed to resume or extend the
    run. An unfinished run keeps its best one on the validation set too.

    Args:
        run: The run folder; no process may be training in it.
        last_too: Include the newest checkpoint of a finished run, which can then no longer be extended.

    Raises:
        UsageError: This is not a run folder, or `last_too` is set for an unfinished run.
        IxtuneError: A process is training in it.
    """
    if not resume.is_begun(run):
        raise UsageError("this is not a run folder", where=str(run), hint="pass the folder that `ixtune train` wrote")
    finished = resume.is_finished(run)
    if last_too and not finished:
        raise UsageError(
            "the run is not finished, and its newest checkpoint is needed to resume it",
            where=str(run),
            hint="leave out --all, or delete the folder if the run is not wanted",
        )
    with only_run_in(run):
        found = [_entry(path, "left by a process that was killed") for path in run.glob(".*.partial-*")]
        found += [_entry(path, "half deleted by a process that was killed") for path in run.glob(".*.deleted")]
        found += [_entry(path, "damaged") for path in run.glob(".*.damaged")]
        newest, damaged = checkpoints.newest_whole(run)
        broken = {path for path, _ in damaged}
        best = None if finished else _best(run)
        for path in checkpoints.listing(run):
            if path in broken:
                found.append(_entry(path, "damaged"))
            elif path == newest:
                if last_too:
                    found.append(_entry(path, "the run is finished; only resume=extend needs it"))
            elif path.name != best:
                found.append(_entry(path, "the run is finished" if finished else "older than the newest complete one"))
    return sorted(found, key=lambda one: -one.bytes)


def remove(entries: Sequence[Unneeded]) -> None:
    """Delete files and folders; a checkpoint is renamed first, so that none is seen half deleted."""
    for entry in entries:
        path = entry.path
        if path.name.startswith(checkpoints.PREFIX):
            path = path.rename(path.with_name(f".{path.name}.deleted"))
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _entry(path: Path, why: str) -> Unneeded:
    return Unneeded(path, disk.size_of(path) if path.is_dir() else path.stat().st_size, why)


def _best(run: Path) -> str | None:
    try:
        return str(json.loads((run / checkpoints.BEST).read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, KeyError):
        return None
