"""Read the first records of a source, from which its form is detected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from ixtune.data.containers.container_detection import PEEK_BYTES, PEEK_ENTRIES
from ixtune.data.containers.json_text import decoded
from ixtune.data.containers.tables import NOT_UTF8_HINT
from ixtune.data.rejects import Reason
from ixtune.data.schemas.fields import shown
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Container, Source
from ixtune.errors import IxtuneError, UsageError

# record, messages, message, content, part, image, bytes
_BYTES_DEPTH = 7
_BYTES_SHOWN = 16

Rows = list[Mapping[str, Any]]


def names_in(records: Rows) -> list[str]:
    """Return the fields of some records, in order of first appearance."""
    return list(dict.fromkeys(str(name) for record in records for name in record))


def first_records(read: Callable[[], Iterator[Entry]], source: Source, container: Container) -> Rows:
    """Return the first records of a source, without the content of images.

    Raises:
        UsageError: None of the entries is a record, or a table is in another encoding.
        IxtuneError: There is no entry.
    """
    encoding_open = container in (Container.CSV, Container.TSV) and source.encoding is None
    records: Rows = []
    seen, first = 0, ""
    for entry in islice(read(), PEEK_ENTRIES):
        seen += 1
        value, fault = decoded(entry)
        if isinstance(value, Mapping):
            records.append(_light(value))
        elif not first:
            first = fault.found if fault else shown(value)
        if fault is not None and fault.reason is Reason.NOT_UTF8 and encoding_open:
            raise UsageError(
                f"the table is not in UTF-8: {fault.found}", where=f"{source.name}, {entry.place}", hint=NOT_UTF8_HINT
            )
        if entry.position > PEEK_BYTES and records:
            break
    if not seen:
        raise IxtuneError("the source holds no record", where=source.name, hint="pass a source with records")
    if not records:
        what = "the first entry is not a record" if seen == 1 else f"none of the first {seen} entries is a record"
        raise UsageError(
            f"{what}: {first}",
            where=source.name,
            hint="give records: objects such as {...}; `ixtune prepare --help` lists the formats",
        )
    return records


def _light(value: Any, depth: int = _BYTES_DEPTH) -> Any:
    """Truncate images in a value to their first bytes: two hundred pages as PNG would take four gigabytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value[:_BYTES_SHOWN])
    if depth and isinstance(value, Mapping):
        return {name: _light(one, depth - 1) for name, one in value.items()}
    return [_light(one, depth - 1) for one in value] if depth and isinstance(value, list | tuple) else value
