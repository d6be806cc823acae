"""metrics.jsonl: one line of JSON for every measurement and every event of a run."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ixtune import platforms
from ixtune.files import atomic_write_text
from ixtune.training.state.progress import Progress

FILE = "metrics.jsonl"
VALIDATION = "validation_"
"""Prefix of a measurement on the validation set in metrics.jsonl."""
TRACKED = "eval_"
"""Prefix of the same measurement for the trackers."""
MEASURED = (
    "tokens_per_s",
    "computed_tokens_per_s",
    "tokens",
    "computed_tokens",
    "supervised_tokens",
    "mfu",
    "memory_gib",
    "seconds",
)
"""Keys that `Meter.measure` adds to a line; without mfu if the GPU's peak is unknown."""


class JsonLines:
    """Append lines to a file, each flushed to the disk before the next step begins.

    A checkpoint is thus never newer than the lines before it, even when the power fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps, which a resumed run repeats, and a line that a crash cut off."""
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            atomic_write_text(self.path, "".join(line + "\n" for line in kept))

    def drop(self, key: str, step: int) -> None:
        """Drop the lines of one step that have this key: they are about to be written again."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) != step or key not in json.loads(line)]
            atomic_write_text(self.path, "".join(line + "\n" for line in kept))

    def append(self, line: dict[str, Any]) -> None:
        """Write one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Meter:
    """Measure throughput, memory and MFU between two lines."""

    def __init__(self, progress: Progress, flops_per_s: float | None = None) -> None:
        """`flops_per_s` is the peak rate of the card; None if unknown."""
        self.progress, self.flops_per_s = progress, flops_per_s
        self.start()

    def start(self) -> None:
        """Start measuring; earlier time, such as loading, does not count."""
        self._since = self._updated = time.monotonic()
        self._idle_s = 0.0
        self._before = self._counts()

    def _counts(self) -> tuple[int, int, float]:
        return self.progress.tokens, self.progress.computed_tokens, self.progress.flops

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Exclude the time of validation, generation and saving from the throughput."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._idle_s += time.monotonic() - began

    def update_seconds(self) -> None:
        """Add the time since the last call to `progress.seconds`."""
        now = time.monotonic()
        self.progress.seconds += now - self._updated
        self._updated = now

    def measure(self) -> dict[str, Any]:
        """Return the throughput since the last call, and the totals."""
        self.update_seconds()
        spent = max(self._updated - self._since - self._idle_s, 1e-9)
        tokens, computed, flops = (now - before for now, before in zip(self._counts(), self._before, strict=True))
        self._since, self._idle_s = self._updated, 0.0
        self._before = self._counts()
        found = {
            "tokens_per_s": round(tokens / spent, 1),
            "computed_tokens_per_s": round(computed / spent, 1),
            "tokens": self.progress.tokens,
            "computed_tokens": self.progress.computed_tokens,
            "supervised_tokens": self.progress.supervised_tokens,
            "memory_gib": round(peak_memory_bytes() / 2**30, 3),
            "seconds": round(self.progress.seconds, 3),
        }
        if self.flops_per_s:
            found["mfu"] = round(flops / spent / self.flops_per_s, 4)
        return found


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: on the GPU, or in main memory without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return platforms.peak_memory_bytes()


def reset_peak_memory() -> None:
    """Let `peak_memory_bytes` start again from what is in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        platforms.reset_peak_memory()


def last_loss(path: Path) -> float | None:
    """Return the last training loss of a metrics.jsonl: the mean over the steps since the line before."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses = [float(line["loss"]) for line in lines if "loss" in line]
    return losses[-1] if losses else None


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a line cut by a crash: not kept
