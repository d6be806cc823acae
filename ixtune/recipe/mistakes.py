"""Messages for all mistakes of a recipe, each with the key it is about."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ixtune.recipe.yaml_text import KeyPath

CONTRADICTION = "contradiction"
"""Type of an error that carries a list of `Contradiction` as `found` in its context."""

_STAND_INS = {"base": "nano", "output": "run", "data": {"train": "set"}}


class Contradiction(NamedTuple):
    """Contradiction between keys.

    Attributes:
        keys: `section.key` of all that take part; the first is the one to look at.
        wrong: What is wrong with the first, to be read after its name.
    """

    keys: tuple[str, ...]
    wrong: str

    @property
    def text(self) -> str:
        """Return the message."""
        return f"{self.keys[0]} {self.wrong}"


def describe(error: ValidationError, tree: Mapping[str, Any], recipe: type[BaseModel]) -> list[tuple[KeyPath, str]]:
    """Return every mistake as (key path, one line).

    pydantic looks for contradictions only if every single value is valid. Here the wrong values are left out, and the
    others are still compared.

    Args:
        error: What pydantic found in `tree`.
        tree: The recipe as plain values.
        recipe: Its class.
    """
    known = dict(fields(recipe))
    details = error.errors()
    # report a misspelled key once, not also as missing
    meant = {_nearest(_path(one), known) or "" for one in details if one["type"] == "extra_forbidden"}
    mistakes = [
        (_path(one), one_line(one, known))
        for one in details
        if one["type"] != CONTRADICTION and not (one["type"] == "missing" and _is_meant(_path(one), meant))
    ]
    found = _found(details)
    if mistakes:
        wrong = [_path(one) for one in details]
        found = [
            one
            for one in _found(_without(tree, wrong, recipe))
            if not any(_meet(tuple(key.split(".")), path) for key in one.keys for path in wrong)
        ]
    return mistakes + [(tuple(one.keys[0].split(".")), one.text) for one in found]


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key of a recipe as `section.key`, with its help text."""
    for key, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield prefix + key, (kind.__doc__ or "").strip()
            yield from fields(kind, f"{prefix}{key}.")
        else:
            yield prefix + key, field.description or ""


def _is_meant(missing: KeyPath, meant: Iterable[str]) -> bool:
    """Return whether a missing key, or one in the missing section, was written under another name."""
    name = ".".join(map(str, missing))
    return any(one == name or one.startswith(f"{name}.") for one in meant)


def _path(details: ErrorDetails) -> KeyPath:
    return details["loc"]


def _found(details: list[ErrorDetails]) -> list[Contradiction]:
    return [found for one in details if one["type"] == CONTRADICTION for found in one["ctx"]["found"]]


def _without(tree: Mapping[str, Any], wrong: list[KeyPath], recipe: type[BaseModel]) -> list[ErrorDetails]:
    """Return the errors of a recipe without its wrong values."""
    rest = copy.deepcopy(dict(tree))
    for keys in wrong:
        # of a list no single value can be missing, and the path of a value of several types has more parts after it
        inside: Any = rest
        for key in keys[:2]:
            if not isinstance(inside, dict):
                break
            if key == keys[:2][-1] or not isinstance(inside.get(key), dict):
                inside.pop(key, None)
                break
            inside = inside[key]
    for key, value in _STAND_INS.items():
        rest.setdefault(key, value)
    if isinstance(rest["data"], dict):
        rest["data"].setdefault("train", "set")
    try:
        recipe.model_validate(rest)
    except ValidationError as error:
        return error.errors()
    return []


def _meet(one: KeyPath, other: KeyPath) -> bool:
    """Return whether one path is a prefix of the other."""
    return all(a == b for a, b in zip(one, other, strict=False))


# messages in the terms of a recipe; the others are pydantic's own
_MESSAGES = {
    "bool_type": "should be true or false",
    "finite_number": "should be a finite number",
    "float_type": "should be a number",
    "int_type": "should be a whole number",
    "model_type": "should be a section: keys below it, indented (or leave it out for its defaults)",
    "path_type": "should be a path",
    "string_type": "should be a text",
    "tuple_type": "should be a list",
}


def one_line(details: ErrorDetails, known: Mapping[str, str]) -> str:
    """Format one of pydantic's errors as one line.

    Args:
        details: Details of the error.
        known: Every key, with its help text.
    """
    keys = details["loc"]
    name = ".".join(map(str, keys))
    if details["type"] == "extra_forbidden":
        nearest = _nearest(keys, known)
        return f"unknown key {name}" + (f"; did you mean {nearest}?" if nearest else "")
    if details["type"] == "missing":
        return f"{name} is missing: {known[name]}"
    message = _MESSAGES.get(details["type"]) or details["msg"].removeprefix("Value error, ")
    message = message.replace("Input should", "should")
    return f"{name} {message}, found {_shorten(repr(details['input']))}"


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _nearest(keys: KeyPath, known: Mapping[str, str]) -> str | None:
    """Return the key most likely meant: the same name elsewhere, these initials, or a similar spelling."""
    section, name = ".".join(map(str, keys[:-1])), str(keys[-1]).lower()
    parts = {dotted: dotted.rpartition(".") for dotted in known}
    of_that_name = [dotted for dotted, (_, _, key) in parts.items() if key == name]
    of_that_name += [
        dotted for dotted, (_, _, key) in parts.items() if name == "".join(word[0] for word in key.split("_"))
    ]
    beside = {key: dotted for dotted, (parent, _, key) in parts.items() if parent == section}
    anywhere = {key: dotted for dotted, (_, _, key) in parts.items()}
    for candidates in (beside, anywhere):
        if of_that_name:
            break
        of_that_name = [candidates[key] for key in difflib.get_close_matches(name, candidates, n=1)]
    return of_that_name[0] if of_that_name else None
