"""An entry -> a record: what a worker does with what the containers yield."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ixtune.data.record import Record
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.sources.columns import record_from_columns
from ixtune.data.sources.conversation import conversation_record
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.fields import id_of, shown
from ixtune.data.sources.json_text import decoded
from ixtune.data.sources.messages import messages_record
from ixtune.data.sources.source import Schema

_FORMS = {
    Schema.IXC: '{"id": ..., "image": [...], "conversations": [...]}',
    Schema.LLAVA: '{"id": ..., "image": ..., "conversations": [...]}',
    Schema.SHAREGPT: '{"images": [...], "conversations": [...]}',
    Schema.OPENAI: '{"messages": [...]}',
    Schema.COLUMNS: '{"image": ..., "question": ..., "answer": ...}',
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How the entries of a source are read; small and picklable, for it goes to every worker.

    Attributes:
        schema: What the fields of an entry mean.
        columns: Pairs (our name, theirs) for tables.
        question: Asked of every row of a table that has no question column.
        system: The system prompt for records that bring none.
    """

    schema: Schema
    columns: tuple[tuple[str, str], ...] = ()
    question: str | None = None
    system: str | None = None


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
        raise RecordError(fault.reason, fault.found, mend=fault.mend)
    if not isinstance(value, Mapping):
        raise RecordError(Reason.NOT_A_RECORD, f"the entry is {shown(value)}", mend=f"write {_FORMS[reading.schema]}")
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
