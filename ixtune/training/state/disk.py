"""Check the disk space for the checkpoints that a run will write."""

from __future__ import annotations

import errno
import math
import os
import shutil
from pathlib import Path

from ixtune.errors import IxtuneError
from ixtune.files import readable_size
from ixtune.planning.plan import Plan
from ixtune.training.state import checkpoints

_WEIGHT = 4  # bytes of a trained number: fp32
# AdamW's two moments in fp32; in 8 bits with one fp32 scale for each block of 256
_OPTIMIZER = {"adamw": 8.0, "paged_adamw": 8.0, "adamw_8bit": 2 + 2 * 4 / 256, "paged_adamw_8bit": 2 + 2 * 4 / 256}
_LOG_LINE = 420  # bytes that a logged step adds to trainer_state.json
_SMALL_FILES = 2**18  # configuration, random states, progress, checksums, and the heads of the tensors


class DiskFullError(IxtuneError):
    """Not enough disk space for a checkpoint."""

    def __init__(self, folder: Path, needed_bytes: int, what: str) -> None:
        free = free_bytes(folder)
        super().__init__(
            f"no space left on the disk: {what} {readable_size(needed_bytes)}, {readable_size(free)} free",
            where=str(folder),
            hint=f"free at least {readable_size(max(needed_bytes - free, 0))}, lower training.keep_checkpoints, "
            "or choose another disk: output=FOLDER",
        )


def checkpoint_bytes(plan: Plan) -> int:
    """Return about how large one checkpoint of a run is: weights, optimizer state, log, small files."""
    training = plan.recipe.training
    trained = sum(plan.trained.values())
    lines = math.ceil(plan.steps / training.log_every)
    return round(trained * (_WEIGHT + _OPTIMIZER[training.optimizer])) + lines * _LOG_LINE + _SMALL_FILES


def require_space(plan: Plan, run: Path) -> str:
    """Return a line about the disk space that the checkpoints of a run will take.

    A checkpoint is written before the oldest one is deleted, and the best one on the validation set is kept in
    addition. Existing checkpoints take no new space.

    Raises:
        DiskFullError: The disk has less free space.
    """
    training = plan.recipe.training
    one, adapter = checkpoint_bytes(plan), _WEIGHT * sum(plan.trained.values())
    validated = plan.recipe.data.validation is not None
    saved = {plan.steps, *range(training.save_every, plan.steps, training.save_every)}
    if validated:  # each measurement may be the best so far, which is saved
        every = training.evaluate_every or training.save_every
        saved.update(range(every, plan.steps, every))
    held = len(checkpoints.listing(run))  # a stop saves other steps, too
    count = min(training.keep_checkpoints + 1 + validated, held + len(saved))
    needed = max(count * one - used_bytes(run), 0) + adapter
    free = free_bytes(run)
    sizes = f"{readable_size(one)} and the adapter of {readable_size(adapter)}"
    what = f"{count} checkpoint{'s' * (count > 1)} of {sizes} need"
    if free < needed:
        raise DiskFullError(run, needed, what)
    return f"disk     {what} {readable_size(needed)}; {readable_size(free)} free in {run}"


def used_bytes(run: Path) -> int:
    """Return the size of all checkpoints in a run folder."""
    return sum(size_of(folder) for folder in checkpoints.listing(run))


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_bytes(folder: Path) -> int:
    """Return the bytes that may still be written to the disk of a folder, which need not exist yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def is_full(error: BaseException) -> bool:
    """Return whether a failed write failed because the disk, or the user's share of it, is full.

    torch and safetensors raise their own types; torch's zip writer does not even repeat the system's message.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = str(error)
    signs = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "inline_container", "PytorchStreamWriter failed")
    return any(sign in words for sign in signs)
