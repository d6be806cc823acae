"""Read an entry of a container into a record, in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ixtune.data.containers.json_text import decoded
from ixtune.data.record import Record
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.remote_files import below
from ixtune.data.schemas import conversation, messages
from ixtune.data.schemas.columns import columns_draft
from ixtune.data.schemas.fields import id_of, is_empty, is_missing, shown
from ixtune.data.schemas.forms import FORMS
from ixtune.data.schemas.image_pattern import filled
from ixtune.data.schemas.unused_fields import require_no_image_lost
from ixtune.data.schemas.value_paths import first_name, look_up, take
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading, Schema

_SHAPES = {
    Schema.IXC: '{"id": ..., "image": [...], "conversations": [...]}',
    Schema.LLAVA: '{"id": ..., "image": ..., "conversations": [...]}',
    Schema.SHAREGPT: '{"images": [...], "conversations": [...]}',
    Schema.OPENAI: '{"messages": [...]}',
    Schema.COLUMNS: '{"image": ..., "question": ..., "answer": ...}',
}


def record_of(entry: Entry, reading: Reading) -> Record:
    """Read the record of an entry.

    Args:
        entry: Entry from a container.
        reading: Settings for reading it.

    Raises:
        RecordError: The entry could not be read, something in it is absent or wrong, or an image in it would be lost.
    """
    value, fault = decoded(entry)
    if fault is not None:
        raise RecordError(fault.reason, fault.found, hint=fault.hint)
    if not isinstance(value, Mapping):
        raise RecordError(Reason.NOT_A_RECORD, f"the entry is {shown(value)}", hint=f"write {_SHAPES[reading.schema]}")
    if reading.remote_root is not None:
        value = below(value, reading.remote_root)
    fields = dict(value)  # readers remove the fields that they use
    if reading.form is not None:
        fields = FORMS[reading.form].rewrite(fields, reading)
    if reading.schema is Schema.COLUMNS:
        draft = columns_draft(fields, entry, reading)
    else:
        if reading.columns:
            rename_fields(fields, reading)
        if reading.image_pattern is not None:
            fields["image"] = filled(reading.image_pattern, fields)
        if reading.schema is Schema.OPENAI:
            draft = messages.messages_draft(fields, entry, reading)
        else:
            draft = conversation.conversation_draft(fields, entry, reading)
    record = draft.record(entry, reading)
    if not record.images and "." in record.id:
        fields["id"] = record.id  # it may be the only field that names an image
    if fields:
        require_no_image_lost(fields, value, record, reading)
    if not record.images and _is_image_field_empty(value, reading):
        record = replace(record, notes=(*record.notes, "no_image"))
    return record


def _is_image_field_empty(value: Mapping[str, Any], reading: Reading) -> bool:
    """Return whether an entry has a field for its image, but nothing in it: not the same as a record without one."""
    theirs = dict(reading.columns).get("image")
    names = messages.IMAGE_FIELDS if theirs is None else [theirs] if theirs in value else theirs.split(",")
    return any(first_name(name, value) in value and is_empty(look_up(value, name)) for name in names if name)


def rename_fields(fields: dict[str, Any], reading: Reading) -> None:
    """Rename the fields of a conversation to the names that its schema reads.

    Args:
        fields: Fields of the entry; modified in place.
        reading: Settings with `columns`; several images are joined by commas, "" for the image leaves its fields out.
    """
    for ours, theirs in reading.columns:
        if ours == "image":
            _rename_images(fields, theirs)
            continue
        if not theirs:  # the user excludes the field
            fields.pop(ours, None)
            continue
        value = take(fields, theirs)
        target = (
            (messages.FIELD if reading.schema is Schema.OPENAI else conversation.FIELD) if ours == "messages" else ours
        )
        if not is_missing(value):
            fields[target] = value


def name_of(entry: Entry, reading: Reading) -> str | None:
    """Return the id of an entry whose record was refused, if it can be determined."""
    value, fault = decoded(entry)
    if fault is not None or not isinstance(value, Mapping):
        return None
    return id_of(look_up(value, dict(reading.columns).get("id") or "id"))


def _rename_images(fields: dict[str, Any], theirs: str) -> None:
    if not theirs:
        for name in messages.IMAGE_FIELDS:
            fields.pop(name, None)
        return
    found: list[Any] = []
    for name in [theirs] if theirs in fields else theirs.split(","):
        value = take(fields, name)
        if not is_missing(value) and value not in ("", [], ()):
            found += value if isinstance(value, list | tuple) else [value]
    if found:
        for name in messages.IMAGE_FIELDS:
            fields.pop(name, None)
        fields["image"] = found[0] if len(found) == 1 else found
