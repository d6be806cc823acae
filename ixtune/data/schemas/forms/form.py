"""Form: the record format of a tool, and the checks that all forms share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.image_values import image_at
from ixtune.data.sources.source import Reading, Schema

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """The record format of a tool.

    Attributes:
        name: Name in messages.
        is_in: Whether a record is of this form.
        rewrite: Function that converts the fields of a record to those of a schema.
        schema: The schema; None if it is detected from the rewritten fields.
    """

    name: str
    is_in: Callable[[Mapping[str, Any]], bool]
    rewrite: Callable[[Fields, Reading], Fields]
    schema: Schema | None = Schema.COLUMNS


def require_no_image(fields: Mapping[str, Any], hint: str) -> None:
    """Raise if one of some fields holds or names an image, which would become text or be lost.

    Raises:
        RecordError: `IMAGE_NOT_USED`.
    """
    for name, value in fields.items():
        if place := image_at(value, name, None, addresses=False, names=False):
            raise RecordError(
                Reason.IMAGE_NOT_USED, f"`{place}` contains or names an image, but is not used", hint=hint
            )


def as_json(value: Any) -> str:
    """Return an answer as JSON with its key order kept; a text stays unchanged."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def in_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return turns, messages or a text with all their texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        kept = ("content", "value", "text")
        return {name: in_texts(one, change) if name in kept else one for name, one in value.items()}
    return [in_texts(one, change) for one in value] if isinstance(value, list | tuple) else value
