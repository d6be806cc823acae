"""Build image paths from other fields (`--image-pattern`): `val2014/COCO_{image_id:012d}.jpg`."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import is_missing, shown
from ixtune.errors import UsageError

_RECORDS_TRIED = 20
_FOLDERS_TRIED = 50
# field names that datasets use for the name or the number of an image
_KEYS = ("image_id", "imageId", "image_name", "imgname", "image_local_name", "img_id", "file_name", "image", "img")
_ENDINGS = ("", ".jpg", ".png", ".jpeg")
_NUMBERED = (
    "{%s:012d}.jpg",
    "COCO_train2014_{%s:012d}.jpg",
    "COCO_val2014_{%s:012d}.jpg",
    "COCO_test2015_{%s:012d}.jpg",
)


def check_pattern(pattern: str) -> str:
    """Return a pattern that names at least one field.

    Raises:
        UsageError: It names no field, or something other than fields.
    """
    try:
        if _parts(pattern):
            return pattern
        wrong = "it names no field"
    except ValueError as error:
        wrong = str(error)
    raise UsageError(
        f"--image-pattern {pattern}: {wrong}", hint="write a path with fields in braces, e.g. images/{image_id}.jpg"
    )


def filled(pattern: str, fields: Mapping[str, Any]) -> str:
    """Return the path of a record's image; "" if a field that it needs is empty, as in a record without an image.

    Args:
        pattern: Path with fields in braces, each with an optional format: {image_id:012d}.
        fields: Fields of the record; those in the pattern are kept, because others may read them too.

    Raises:
        RecordError: A field holds neither text nor number, or does not fit its format.
    """
    path = []
    for text, name, form in _parts(pattern):
        path.append(text)
        if name is None:
            continue
        value = fields.get(name)
        if is_missing(value) or value == "":
            return ""
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise RecordError(
                Reason.BAD_FIELD,
                f"--image-pattern needs `{name}`, which is {shown(value)}",
                hint="use a pattern of fields that hold a text or a number",
            )
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            path.append(format(int(value) if form.endswith("d") else value, form))
        except ValueError as error:
            raise RecordError(
                Reason.BAD_FIELD,
                f"`{name}` is {shown(value)}, which does not fit {{{name}:{form}}}",
                hint="correct the format in --image-pattern",
            ) from error
    return "".join(path)


def guessed_pattern(records: Sequence[Mapping[str, Any]], root: Path | None, names: Sequence[str]) -> str | None:
    """Return the pattern that gives an existing file for each of the first records, None if there is none.

    Args:
        records: The first records.
        root: The image root; it and its direct subfolders are searched.
        names: Fields to try before the usual ones.
    """
    if root is None or not records:
        return None
    folders = ["", *(f"{path.name}/" for path in islice(sorted(root.glob("*/")), _FOLDERS_TRIED))]
    for key in dict.fromkeys((*names, *_KEYS)):
        tried = [one for one in records if not is_missing(one.get(key)) and one.get(key) != ""][:_RECORDS_TRIED]
        if not tried or not all(isinstance(one[key], str | int) and not isinstance(one[key], bool) for one in tried):
            continue
        numbered = _NUMBERED if all(str(one[key]).isascii() and str(one[key]).isdigit() for one in tried) else ()
        for folder in folders:
            for end in (*(f"{{{key}}}{ending}" for ending in _ENDINGS), *(form % key for form in numbered)):
                if all(_is_there(root, filled(folder + end, one)) for one in tried):
                    return folder + end
    return None


def fields_in(pattern: str) -> list[str]:
    """Return the fields that a pattern names."""
    return [name for _, name, _ in _parts(pattern) if name is not None]


def _is_there(root: Path, path: str) -> bool:
    try:
        return os.path.isfile(os.path.join(root, path))
    except ValueError:  # a null character
        return False


@lru_cache(maxsize=16)
def _parts(pattern: str) -> tuple[tuple[str, str | None, str], ...]:
    """Return (text, field, format) of each piece; only plain field names are allowed, so that no attribute is read."""
    parts = []
    for text, name, form, conversion in string.Formatter().parse(pattern):
        if name is not None and (not name or conversion or any(mark in name for mark in ".[]") or "{" in (form or "")):
            raise ValueError(f"{{{name}}} is not a plain field name")
        parts.append((text, name, form or ""))
    if not any(name is not None for _, name, _ in parts):
        return ()
    return tuple(parts)
