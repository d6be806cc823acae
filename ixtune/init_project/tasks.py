"""Tasks that `ixtune init` knows, with the settings that depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ixtune.errors import UsageError, choice
from ixtune.family import UNSUPPORTED


@dataclass(frozen=True, slots=True)
class Task:
    """Settings that depend on the task.

    Attributes:
        summary: Short description.
        hd_num: Maximum number of 336x336 crops per image; of larger crops, as many as cover the same pixels.
        pack_tokens: Tokens per micro-batch on a card with 24 GB.
        small_pack_tokens: Tokens per micro-batch on a smaller card: the longest usual record.
        epochs: Passes over the data.
        scores: Scores of answers to validation records, the main one first.
    """

    summary: str
    hd_num: int
    pack_tokens: int
    small_pack_tokens: int
    epochs: int = 1
    scores: tuple[str, ...] = ("exact_match",)


TASKS: Mapping[str, Task] = {
    "documents": Task("questions about scanned pages", 25, 10240, 4096, scores=("anls", "exact_match")),
    "charts": Task("values read from plots", 16, 8192, 4096, 2, ("relaxed_accuracy", "exact_match")),
    "receipts": Task("all fields of a form as JSON", 16, 8192, 4096, 3, ("token_f1", "exact_match")),
    "screenshots": Task("questions about screens", 25, 11264, 4096, scores=("anls", "exact_match")),
    "multi-image": Task("several images in one conversation", 9, 8192, 8192),
}
"""Tasks by the name of the mix that they are planned on."""


def task_named(name: str) -> Task:
    """Return the task with this name.

    Raises:
        UsageError: There is none.
    """
    if name in UNSUPPORTED:
        raise UsageError(UNSUPPORTED[name], where=name, hint=f"choose one of {', '.join(TASKS)}")
    if name not in TASKS:
        raise UsageError("unknown task", where=name, hint=choice(name, TASKS))
    return TASKS[name]
