"""Scores of key-value extraction: answers that are JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ixtune.scores.case import Case, Part

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


def field_accuracy(case: Case) -> Part:
    """Fields of the reference that the answer has with the same value, over fields of the reference, summed over all.

    A field is a path of keys with a value at its end; items of a list share their path, whatever their order, as in
    Donut's evaluation (Kim et al., ECCV 2022). Values are compared as text without outer white space, numbers as
    numbers; unlike Donut's, an empty value is a field too, for "nothing there" is something to be read. An answer
    that is no JSON has no field. Of several references the best counts.
    """
    found = _fields(case.answer)
    parts = [(float((found & wanted).total()), float(wanted.total())) for wanted in map(_wanted, case.references)]
    return max(parts, key=lambda part: part[0] / part[1])


def field_f1(case: Case) -> Part:
    """F1 of the same fields over all answers (micro average): fields that are not in the reference cost too."""
    found = _fields(case.answer)
    parts = [
        (2.0 * (found & wanted).total(), float(found.total() + wanted.total()))
        for wanted in map(_wanted, case.references)
    ]
    return max(parts, key=lambda part: part[0] / part[1])


def _wanted(reference: str) -> Counter[tuple[str, str]]:
    """The fields of a reference.

    Raises:
        ValueError: it is no JSON object or list, or an empty one.
    """
    fields = _fields(reference)
    if not fields:
        raise ValueError(f"the reference holds no fields: {reference[:60]!r}")
    return fields


def _fields(text: str) -> Counter[tuple[str, str]]:
    fenced = _FENCE.search(text)
    try:
        content = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return Counter()
    return Counter(_leaves(content, "")) if isinstance(content, dict | list) else Counter()


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, _plain(value)


def _plain(value: Any) -> str:
    """A value as text; 3, 3.0 and "3.00" are the same."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = " ".join(str(value).split())
    try:
        return repr(float(text))
    except ValueError:
        return text
