"""An entry -> a record: what a worker does with what the containers yield."""

from __future__ import annotations

from collections.abc import Mapping

from ixtune.data.containers.json_text import decoded
from ixtune.data.record import Record
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.columns import record_from_columns
from ixtune.data.schemas.conversation import conversation_record
from ixtune.data.schemas.fields import id_of, shown
from ixtune.data.schemas.messages import messages_record
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading, Schema

_FORMS = {
    Schema.IXC: '{"id": ..., "image": [...], "conversations": [...]}',
    Schema.LLAVA: '{"id": ..., "image": ..., "conversations": [...]}',
    Schema.SHAREGPT: '{"images": [...], "conversations": [...]}',
    Schema.OPENAI: '{"messages": [...]}',
    Schema.COLUMNS: '{"image": ..., "question": ..., "answer": ...}',
}


def record_of(entry: Entry, reading: Reading) -> Record:
    """The record of an entry.

    Args:
        entry: What a container yielded.
        reading: How to read it.

    Raises:
        RecordError: The entry could not be read, or something in it is absent or wrong.
    """
    value, fault = decoded(entry)
    if fault is not None:
        raise RecordError(fault.reason, fault.found, hint=fault.hint)
    if not isinstance(value, Mapping):
        raise RecordError(Reason.NOT_A_RECORD, f"the entry is {shown(value)}", hint=f"write {_FORMS[reading.schema]}")
    if reading.schema is Schema.COLUMNS:
        return record_from_columns(value, entry, reading)
    if reading.schema is Schema.OPENAI:
        return messages_record(value, entry, reading.system)
    return conversation_record(value, entry, reading.schema, reading.system)


def name_of(entry: Entry, reading: Reading) -> str | None:
    """The id of an entry whose record was refused, if it can be told."""
    value, fault = decoded(entry)
    if fault is not None or not isinstance(value, Mapping):
        return None
    return id_of(value.get(dict(reading.columns).get("id") or "id"))
