"""Extensions of a run: where each began, and the learning rate across it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ixtune.files import atomic_write_json

FILE = "extensions.json"
Multiplier = Callable[[int], float]
"""Steps taken so far -> share of the highest learning rate."""


class Extension(NamedTuple):
    """Extension of a run.

    Attributes:
        step: The last step taken before it.
        steps_before: Optimizer steps that the run had until then.
        steps_after: Optimizer steps that it has since.
    """

    step: int
    steps_before: int
    steps_after: int


def read(run: Path) -> tuple[Extension, ...]:
    """Return the extensions of a run, oldest first."""
    path = run / FILE
    if not path.is_file():
        return ()
    return tuple(Extension(**one) for one in json.loads(path.read_text(encoding="utf-8")))


def write(run: Path, extensions: Sequence[Extension]) -> None:
    """Write the extensions of a run."""
    atomic_write_json(run / FILE, as_json(extensions))


def as_json(extensions: Sequence[Extension]) -> list[dict[str, Any]]:
    """Return extensions as plain values."""
    return [one._asdict() for one in extensions]


def added(extensions: Sequence[Extension], one: Extension) -> tuple[Extension, ...]:
    """Return the extensions with one more; the same one again, after a kill before its first step, counts once."""
    return (*(other for other in extensions if other.step != one.step), one)


def schedule(multipliers: Sequence[Multiplier], extensions: Sequence[Extension], warmup_ratio: float) -> Multiplier:
    """Return the learning-rate multiplier of an extended run.

    From an extension on, the schedule is that of a run which had the new number of steps from the start. The learning
    rate changes to it linearly, from its current value, within the `warmup_ratio` of the new steps.

    Args:
        multipliers: The schedule for the number of steps at first, and after each extension.
        extensions: The extensions, oldest first.
        warmup_ratio: The share of steps in which a learning rate rises.
    """

    def at(step: int) -> float:
        value = multipliers[0](step)
        for number, one in enumerate(extensions, start=1):
            if step < one.step:
                break
            before = schedule(multipliers[:number], extensions[: number - 1], warmup_ratio)(one.step)
            ramp = max(1, math.ceil(warmup_ratio * (one.steps_after - one.step)))
            share = min(1.0, (step - one.step + 1) / ramp)
            value = before + (multipliers[number](step) - before) * share
        return value

    return at
