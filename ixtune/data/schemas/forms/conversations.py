"""Conversations that other tools spell in their own way: TRL, MiniCPM-V, ms-swift's grounding data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import is_missing, shown
from ixtune.data.schemas.forms.form import Fields, Form, as_json, in_texts
from ixtune.data.schemas.value_paths import object_in_text
from ixtune.data.sources.source import Reading, Schema

# TRL: {"prompt": [messages], "completion": [messages]}


def _is_prompt_completion(record: Mapping[str, Any]) -> bool:
    return all(
        isinstance(part := record.get(name), list) and part and isinstance(part[0], Mapping) and "role" in part[0]
        for name in ("prompt", "completion")
    )


def _from_prompt_completion(fields: Fields, reading: Reading) -> Fields:
    del reading
    prompt, completion = fields.pop("prompt", None), fields.pop("completion", None)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise RecordError(
            Reason.BAD_CONVERSATIONS,
            f"`prompt` is {shown(prompt)}, `completion` {shown(completion)}",
            hint='write lists of messages, [{"role": ..., "content": ...}]',
        )
    return {**fields, "messages": [*prompt, *completion]}


# MiniCPM-V: {"image": {"<image_00>": path, ...}, "conversations": [...]}


def _is_minicpm(record: Mapping[str, Any]) -> bool:
    image = record.get("image")
    return isinstance(image, Mapping) and bool(image) and all(str(key).startswith("<") for key in image)


def _from_minicpm(fields: Fields, reading: Reading) -> Fields:
    del reading
    if not _is_minicpm(fields):
        return fields
    images = {name: value for name, value in fields["image"].items() if not is_missing(value)}
    marks = re.compile("|".join(re.escape(name) for name in sorted(images, key=len, reverse=True)))
    order: list[str] = []

    def found(match: re.Match[str]) -> str:
        order.append(match.group())
        return "<image>"

    for name in ("conversations", "messages"):
        if name in fields and images:
            fields[name] = in_texts(fields[name], lambda text: marks.sub(found, text))
    if order and (missing := [name for name in images if name not in order]):
        raise RecordError(
            Reason.TOO_FEW_PLACEHOLDERS,
            f"{missing[0]} of `image` does not occur in the conversation",
            hint="write each placeholder of `image` where its image belongs",
        )
    return {**fields, "image": [images[name] for name in order or images]}


# ms-swift: <ref-object> and <bbox> in the texts refer to entries of `objects`

_GROUNDED = ("messages", "conversations", "query", "response")
_OBJECT_MARK = re.compile(r"<ref-object>|<bbox>")
_REFS, _BOXES = "ref", "bbox"
# pixels of the image, or fractions of its width and height; both are written as they are
_BOX_TYPES = ("real", "norm1")


def _is_swift_grounding(record: Mapping[str, Any]) -> bool:
    value = record.get("objects")
    value = object_in_text(value) if isinstance(value, str) else value
    in_conversation = any(name in record for name in _GROUNDED)
    return in_conversation and isinstance(value, Mapping) and (_BOXES in value or _REFS in value)


def _from_swift_grounding(fields: Fields, reading: Reading) -> Fields:
    del reading
    if not _is_swift_grounding(fields):
        return fields
    objects = fields.pop("objects")
    objects = object_in_text(objects) if isinstance(objects, str) else objects
    refs, boxes = list(objects.get(_REFS) or ()), list(objects.get(_BOXES) or ())
    _require_known_objects(objects, len(boxes), fields)
    left = {"<ref-object>": iter(refs), "<bbox>": iter(boxes)}

    def filled(match: re.Match[str]) -> str:
        one = next(left[match.group()], None)
        if one is None:
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"there are more {match.group()} in the texts than entries in `objects`",
                hint="write one entry in `objects` for each mark in the texts",
            )
        return as_json(one)

    for name in _GROUNDED:
        if name in fields:
            fields[name] = in_texts(fields[name], lambda text: _OBJECT_MARK.sub(filled, text))
    if any(next(rest, None) is not None for rest in left.values()):
        raise RecordError(
            Reason.FIELD_NOT_USED,
            "`objects` has more entries than there are <ref-object> and <bbox> in the texts",
            hint="write a mark for each entry, or remove the entries without one",
        )
    return fields


def _require_known_objects(objects: Mapping[str, Any], boxes: int, fields: Fields) -> None:
    """Raise for entries of `objects` that say something about the boxes that the texts would not show.

    Raises:
        RecordError: The boxes are of an unknown type, belong to images that are not there, or have more fields.
    """
    kind = objects.get("bbox_type")
    if not is_missing(kind) and kind not in _BOX_TYPES:
        raise RecordError(
            Reason.FIELD_NOT_USED,
            f"`objects.bbox_type` is {shown(kind)}",
            hint=f"write the boxes in one of {', '.join(_BOX_TYPES)}; training uses the numbers in the file",
        )
    given = objects.get("image_id")
    if not is_missing(given) and given not in ([], 0):
        images = next((fields[name] for name in ("images", "image") if fields.get(name)), None)
        count = len(images) if isinstance(images, list | tuple) else int(images is not None)
        numbers = list(given) if isinstance(given, list | tuple) else [given]
        if len(numbers) != boxes or not all(type(one) is int and 0 <= one < count for one in numbers):
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"`objects.image_id` is {shown(given)}, with {boxes} boxes and {count} images",
                hint="write the number of its image, counted from 0, for each box",
            )
    known = (_REFS, _BOXES, "bbox_type", "image_id")
    if more := [name for name, value in objects.items() if name not in known and not is_missing(value) and value != []]:
        raise RecordError(
            Reason.FIELD_NOT_USED,
            f"`objects.{more[0]}` is not used",
            hint="write its content into the texts, and remove it",
        )


PROMPT_COMPLETION = Form("TRL prompts and completions", _is_prompt_completion, _from_prompt_completion, Schema.OPENAI)
MINICPM = Form("MiniCPM-V images by placeholder", _is_minicpm, _from_minicpm, None)
SWIFT_GROUNDING = Form(
    "ms-swift grounding, boxes written as `objects` has them", _is_swift_grounding, _from_swift_grounding, None
)
