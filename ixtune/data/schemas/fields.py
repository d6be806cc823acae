"""Check single values for all readers: texts, numbers, ids; and format a wrong value for a message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.sources.entry import Entry
from ixtune.layout import MAX_HD_NUM

_SHOWN_CHARACTERS = 60
_SHOWN_FIELDS = 6
_SHOWN_BITS = 64

LOSS_KEYS = ("loss", "train", "weight", "loss_scale", "learn", "trainable", "train_on_turn")
"""Keys with which ms-swift, axolotl and OpenAI mark the answers to train on."""
SYSTEM_NAMES = ("system_prompt", "system_message", "system_instruction", "sys_prompt")
"""Names of the system prompt that are taken for `system` where there is one of them only."""
_WEIGHTS = ("sample_weight", "sampling_weight", "loss_weight", "example_weight", "instance_weight", "record_weight")
# without these, the answers of a record would be invented
OTHER_MEDIA = ("video", "videos", "audio", "audios")
"""Fields of films and sounds."""
_UNUSABLE = frozenset((*OTHER_MEDIA, *LOSS_KEYS, "tools", "label"))


def shown(value: Any) -> str:
    """Return a value in a few words, however large or deep it is."""
    if value is None:
        return "null"
    if isinstance(value, str):
        if not value:
            return "an empty text"
        return json.dumps(value if len(value) <= _SHOWN_CHARACTERS else f"{value[: _SHOWN_CHARACTERS - 3]}...")
    if isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= _SHOWN_BITS else "a very long number"
    if isinstance(value, bytes | bytearray):
        return f"{len(value):,} bytes"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, Mapping):
        return f"an object with the fields {listed(value)}" if value else "an empty object"
    return f"a value of the type {type(value).__name__}"


def listed(names: Any) -> str:
    """Return names in a few words."""
    shortened = [shown(name)[1:-1] if isinstance(name, str) else shown(name) for name in names]
    more = len(shortened) - _SHOWN_FIELDS
    return ", ".join(shortened[:_SHOWN_FIELDS]) + (f" and {more} more" if more > 0 else "")


def is_missing(value: Any) -> bool:
    """Return whether a value means none: null, or the NaN that tables write for an empty cell."""
    return value is None or (isinstance(value, float) and value != value)


def is_empty(value: Any) -> bool:
    """Return whether a field or cell is empty, in any of the forms that JSON and tables use."""
    return is_missing(value) or (isinstance(value, str) and not value.strip()) or value in ([], (), {})


def require_text(text: str, where: str) -> None:
    """Raise unless a text can be tokenized, stored and used as a file name.

    Args:
        text: Any text.
        where: Name in messages.

    Raises:
        RecordError: It holds a null character, or half of a surrogate pair (JSON can spell that; no file name,
            tokenizer or table can hold it).
    """
    if "\0" in text:
        raise RecordError(
            Reason.NULL_CHARACTER,
            f"{where} holds a null character at character {text.index(chr(0)) + 1}",
            hint="remove it; if there are many, write or copy the source again",
        )
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(
            Reason.INVALID_UNICODE,
            f"{where} holds half of a surrogate pair at character {error.start + 1}",
            hint="write the source again in UTF-8, without cutting emoji in two",
        ) from error


def id_of(value: Any) -> str | None:
    """Return a record's id as text; None if the value is not an id."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() <= _SHOWN_BITS else None
    return value if isinstance(value, str) and value else None


def record_id(fields: Mapping[str, Any], entry: Entry, *, needed: bool = False) -> str:
    """Return the id of a record, or a name from its place where no id is required.

    Raises:
        RecordError: The `id` is invalid, or missing although it is required.
    """
    value = fields.get("id")
    if value is None and not needed:
        return place_name(entry)
    name = id_of(value)
    if name is None:
        raise RecordError(
            Reason.BAD_ID,
            "there is no `id`" if value is None else f"`id` is {shown(value)}",
            hint="give every record its own id, a text or a whole number",
        )
    require_text(name, "`id`")
    return name


def place_name(entry: Entry) -> str:
    """Return a name for a record without an id: line-17, row-17, record-17 of a JSON list, or the key of a member."""
    if entry.place.unit == "member":
        return str(entry.place.at)
    if entry.place.unit == "line" and entry.line is not None:
        return f"line-{entry.place.at}"
    # rows are numbered per file, and a JSON list may be in one line
    return f"{'row' if entry.place.unit == 'row' else 'record'}-{entry.number}"


def record_hd_num(fields: Mapping[str, Any]) -> int | None:
    """Return the `hd_num` of a record, None if it has none.

    Raises:
        RecordError: The value is not a whole number from 1 to `MAX_HD_NUM`.
    """
    value = fields.get("hd_num")
    if is_missing(value):
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_HD_NUM:
        raise RecordError(
            Reason.BAD_FIELD,
            f"`hd_num` is {shown(value)}",
            hint=f"write a whole number from 1 to {MAX_HD_NUM}, or leave it out",
        )
    return value


def record_system(fields: Mapping[str, Any]) -> str | None:
    """Return the `system` of a record, None if it has none or an empty one.

    Raises:
        RecordError: It is not text.
    """
    value = fields.get("system")
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise RecordError(Reason.BAD_FIELD, f"`system` is {shown(value)}", hint="write the system prompt as a text")
    return value if value.strip() else None


def refuse_unusable(fields: Mapping[str, Any]) -> None:
    """Raise for fields that would change the training in unsupported ways.

    Args:
        fields: Fields of the record.

    Raises:
        RecordError: It contains video or audio, offers tools, is marked as a bad example (KTO's `label: false`), or
            has its own weight.
    """
    refuse_weights(fields)
    for name in fields:
        if ("loss" in name or "mask" in name) and _masks_turns(name, fields[name]):
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"`{name}` of the record is {shown(fields[name])}, and it is not read",
                hint="mark each answer to exclude from training with `train`: false in its turn",
            )
    if _UNUSABLE.isdisjoint(fields):
        return
    for name in OTHER_MEDIA:
        if name in fields and not is_missing(fields[name]) and fields[name] not in ("", [], ()):
            raise RecordError(
                Reason.BAD_FIELD,
                f"the record has `{name}`",
                hint="remove such records: the model sees images only",
            )
    if fields.get("tools") not in (None, "", [], "[]", {}):
        raise RecordError(
            Reason.FIELD_NOT_USED, "the record has `tools`", hint="remove such records: tools cannot be trained here"
        )
    for name in LOSS_KEYS:
        if name in fields and not is_missing(fields[name]) and fields[name] not in (True, 1):
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"`{name}` of the record is {shown(fields[name])}",
                hint="mask single turns, remove records that should not be trained on, or weight whole sources",
            )
    if fields.get("label") is False:
        raise RecordError(
            Reason.FIELD_NOT_USED,
            "`label` is false, which marks a bad answer",
            hint="remove such records: every accepted record is trained on",
        )


def refuse_weights(fields: Mapping[str, Any]) -> None:
    """Raise if a record has a weight of its own under a name that says so.

    Raises:
        RecordError: It has.
    """
    for name in _WEIGHTS:
        if name in fields and not is_missing(fields[name]) and fields[name] not in (1, "", "1"):
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"`{name}` of the record is {shown(fields[name])}",
                hint="weight whole sources instead, and remove the field",
            )


def _masks_turns(name: str, value: Any) -> bool:
    """Return whether a field masks or weighs the turns of a record, such as `loss_mask` or `train_mask`: [0, 1]."""
    words = name.lower().split("_")
    if name in LOSS_KEYS or is_missing(value) or value in ([], "", True):
        return False
    numbers = isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value)
    return ("mask" in words and numbers) or ("loss" in words and (numbers or isinstance(value, bool)))
