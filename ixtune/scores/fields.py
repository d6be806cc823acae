"""Scores of key-value extraction, for answers in JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ixtune.scores.case import Case, Part

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


def field_accuracy(case: Case) -> Part:
    """Return the number of the reference's fields that the answer has with equal value, and of all its fields.

    A field is a path of keys with a value; items of a list share their path, in any order, as in Donut's evaluation
    (Kim et al., ECCV 2022). Values are compared as text without outer white space, numbers as numbers. Unlike in
    Donut's, an empty value is a field too, since "nothing there" must be read as well. An answer that is not JSON has
    no field. The best of several references counts.
    """
    found = _fields(case.answer)
    parts = [(float((found & wanted).total()), float(wanted.total())) for wanted in map(_wanted, case.references)]
    return max(parts, key=lambda part: part[0] / part[1])


def field_f1(case: Case) -> Part:
    """Return numerator and denominator of the micro-averaged F1 of fields: superfluous fields count against it."""
    found = _fields(case.answer)
    parts = [
        (2.0 * (found & wanted).total(), float(found.total() + wanted.total()))
        for wanted in map(_wanted, case.references)
    ]
    return max(parts, key=lambda part: part[0] / part[1])


def _wanted(reference: str) -> Counter[tuple[str, str]]:
    """Return the fields of a reference.

    Raises:
        ValueError: It is not a JSON object or list, or it is empty.
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
    """Return a value as text; 3, 3.0 and "3.00" are equal."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = " ".join(str(value).split())
    try:
        return repr(float(text))
    except ValueError:
        return text
