"""Learning curves of a run: every figure of metrics.jsonl that changes over the steps, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ixtune.report import verdict
from ixtune.report.run_reader import Run
from ixtune.scores import SCORES

Series = list[tuple[int, float]]
"""(step, value) in the order of the steps."""

_NOT_CURVES = {
    "step", "epoch", "tokens", "computed_tokens", "supervised_tokens", "seconds", "mfu", "tokens_per_s",
    "computed_tokens_per_s", "memory_gib",
}  # fmt: skip
_TITLES = {
    "loss": "Training loss",
    "validation_loss": "Validation loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
}
_SCORES = {f"validation_{name}": name for name in SCORES}
_FIRST = ("loss", "validation_loss", *_SCORES, "learning_rate", "grad_norm")


def curves(run: Run) -> dict[str, Series]:
    """Return every curve of a run: the losses, then scores on the validation set, then the rest."""
    found: dict[str, Series] = {}
    for line in run.lines:
        if "event" in line:
            continue
        for name, value in _numbers(line):
            found.setdefault(name, []).append((line["step"], value))
    order = sorted(found, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    return {name: sorted(found[name]) for name in order}


def extensions(run: Run) -> list[dict[str, int]]:
    """Return the extensions of a run: the step of each, and the number of optimizer steps before and after it."""
    keys = ("step", "steps_before", "steps_after")
    return [{key: line[key] for key in keys} for line in run.lines if line.get("event") == "extended"]


def title(name: str) -> str:
    """Return the title of a curve."""
    if name in _SCORES:
        words = verdict.title(_SCORES[name])
        return f"{words[0].upper()}{words[1:]} on validation"
    return _TITLES.get(name) or name.replace("_", " ").capitalize()


def _numbers(line: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in line.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{key} ")
        elif key not in _NOT_CURVES and type(value) in (int, float) and math.isfinite(value):
            found.append((prefix + key, float(value)))
    return found
