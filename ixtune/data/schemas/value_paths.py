"""Parse and follow the mapping syntax: paths into structs, lists and JSON text.

    answer=ground_truth.gt_parse     a field of a struct, or of an object that a text spells as JSON
    question=query.en                the same
    answer=answers[].answer          a field of every element of a list
    image=pages[0].file              an element by its number, from 0

A column whose full name equals the path takes precedence, so names with dots need no quotes.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

Step = str | int | None
"""A field, an element by its number, or None for every element."""

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d*)\]")
_NUMBERED = re.compile(r"\[\d+\]")
_LITERAL_CHARACTERS = 1 << 20


@lru_cache(maxsize=1024)
def steps_of(path: str) -> tuple[Step, ...]:
    """Parse `name.name[].name`; a text that is not a path is one step, the name itself."""
    steps: list[Step] = []
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None or (at == 0 and match[1] is None):
            return (path,)
        steps.append(match[1] if match[1] is not None else int(match[2]) if match[2] else None)
        at = match.end()
    return tuple(steps) or (path,)


def take(fields: dict[str, Any], path: str) -> Any:
    """Return the value at a path and remove it from the fields, or None if there is none; its siblings stay.

    Args:
        fields: Fields of a record; modified, but not the values in it.
        path: A name, or a path.
    """
    if path in fields:
        return fields.pop(path)
    name, *steps = steps_of(path)
    if not steps or name not in fields:
        return None
    value, rest = _split(fields[str(name)], steps)
    fields[str(name)] = rest
    return value


def look_up(fields: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path, None if there is none."""
    return take(dict(fields), path)


def first_name(path: str, names: Any) -> str:
    """Return the field in which a path begins: the path itself if a field is called that."""
    return path if path in names else str(steps_of(path)[0])


def path_of(place: str) -> str:
    """Return the path of all elements for a place in one of them: `pages[].scan` for `pages[0].scan`."""
    return _NUMBERED.sub("[]", place).removesuffix("[]")


def object_in_text(text: str) -> Any:
    """Return the object or list that a text spells as JSON; None if it spells none."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def list_in_text(text: str) -> list[Any] | None:
    """Return the list that a text spells, as JSON or as Python prints it; None if it spells none."""
    value = literal_in_text(text) if text.lstrip()[:1] == "[" else None
    return value if isinstance(value, list) else None


def literal_in_text(text: str) -> list[Any] | dict[Any, Any] | None:
    """Return the list or object that a text spells, as JSON or as Python prints it; None if it spells none."""
    bare = text.strip()
    if (bare[:1], bare[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    value = object_in_text(bare)
    if value is None and len(bare) <= _LITERAL_CHARACTERS:
        try:
            value = ast.literal_eval(bare)  # constants only: no name is looked up and nothing is called
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    return value if isinstance(value, list | dict) else None


def rows_of_struct(value: Mapping[str, Any]) -> Any:
    """Return a struct of equally long lists as a list of structs, as `datasets` means it; other values unchanged."""
    columns = list(value.values())
    if columns and all(isinstance(one, list) and len(one) == len(columns[0]) for one in columns):
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    return value


def _split(value: Any, steps: list[Step]) -> tuple[Any, Any]:
    """Return (value at the steps, the rest of the value)."""
    if not steps:
        return value, None
    if isinstance(value, str) and (read := object_in_text(value)) is not None:
        value = read
    step, *further = steps
    if step is None and isinstance(value, list | tuple):
        parts = [_split(one, further) for one in value]
        return [found for found, _ in parts if found is not None], [rest for _, rest in parts]
    if isinstance(step, int) and isinstance(value, list | tuple) and step < len(value):
        found, rest = _split(value[step], further)
        return found, [*value[:step], rest, *value[step + 1 :]]
    if isinstance(step, str) and isinstance(value, Mapping) and step in value:
        found, rest = _split(value[step], further)
        return found, {name: one for name, one in value.items() if name != step} | (
            {} if rest is None else {step: rest}
        )
    return None, value
