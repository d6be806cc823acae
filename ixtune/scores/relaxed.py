"""ChartQA's score."""

from __future__ import annotations

import math

from ixtune.scores.case import Case, Part

_TOLERANCE = 0.05


def relaxed_accuracy(case: Case) -> Part:
    """Return 1 for a number within 5 % of a reference, or a text equal apart from case (Masry et al. 2022, sec. 5.1).

    As in the field's common implementation, `12 %` is 0.12, a reference of 0 is compared as a string, and thousands
    separators and currency signs are not removed.
    """
    return float(any(_correct(case.answer.strip(), reference.strip()) for reference in case.references)), 1.0


def _correct(answer: str, reference: str) -> bool:
    found, wanted = _number(answer), _number(reference)
    if found is not None and wanted:
        return abs(found - wanted) / abs(wanted) <= _TOLERANCE
    return answer.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        number = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
