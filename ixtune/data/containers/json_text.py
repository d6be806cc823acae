"""Read JSON text: one list, or JSON Lines. Never more than one record and one block are held.

A problem in one record is a fault of its entry; one that makes the rest of a list unreadable is an error.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ixtune.data.containers.json_stream import (
    ListReader,
    fault_of_bytes,
    fault_of_size,
    fault_of_value,
    unique_names,
)
from ixtune.data.record import Place
from ixtune.data.rejects import Reason
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Entry, Fault

_BLOCK = 1 << 20


def list_entries(path: Path) -> Iterator[Entry]:
    """Yield the elements of one JSON list, in order, with the lines on which they begin.

    An element that is too large, not UTF-8, or too deep for Python's reader becomes a fault; the following ones are
    still read.

    Raises:
        IxtuneError: The file is not a list, or its JSON is broken; with line and column.
    """
    with (
        open(path, "rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file,
    ):
        for number, (line, value, fault) in enumerate(ListReader(file, path).elements(), start=1):
            yield Entry(number, str(path), Place("line", line), value=value, fault=fault, position=raw.tell())


def field_entries(path: Path, field: str) -> Iterator[Entry]:
    """Yield the elements of the list in one field of a JSON object, as `list_entries` those of a list.

    Raises:
        IxtuneError: The file is not an object, has no such field or no list in it, or its JSON is broken.
    """
    with (
        open(path, "rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file,
    ):
        found = ListReader(file, path).elements_of(field)
        for number, (line, value, fault) in enumerate(found, start=1):
            yield Entry(number, str(path), Place("line", line), value=value, fault=fault, position=raw.tell())


def line_entries(path: Path) -> Iterator[Entry]:
    """Yield the lines of a JSON Lines file that are not blank, not decoded yet; a line that is too large is a fault."""
    name = str(path)
    number = position = 0
    with open(path, "rb") as file:
        for at, line in enumerate(_lines(file), start=1):
            if isinstance(line, int):
                position += line
                number += 1
                yield Entry(number, name, Place("line", at), fault=fault_of_size(line), position=position)
                continue
            position += len(line)
            if at == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line and not line.isspace():
                number += 1
                yield Entry(number, name, Place("line", at), line=line, position=position)


def decoded(entry: Entry) -> tuple[Any, Fault | None]:
    """Return the value of an entry, or why there is none; decodes its line if it has one."""
    if entry.fault is not None or entry.line is None:
        return entry.value, entry.fault
    try:
        return json.loads(entry.line.decode("utf-8"), object_pairs_hook=unique_names), None
    except UnicodeDecodeError as error:
        return None, fault_of_bytes(entry.line[error.start], f" at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        if b"\0" in entry.line:
            hint = "remove the line: a file system writes null bytes after a crash; or copy the source again"
            return None, Fault(Reason.NULL_CHARACTER, "the line holds null bytes", hint)
        found = f"{error.msg} at column {error.colno}"
        return None, Fault(Reason.NOT_JSON, found, "write one JSON object per line")
    except (ValueError, RecursionError) as error:
        return None, fault_of_value(error)


def _lines(file: IO[bytes]) -> Iterator[bytes | int]:
    """Yield the lines of a binary file with their ends; for a line that is too large, only the number of its bytes."""
    while line := file.readline(_BLOCK):
        size = len(line)
        if size == _BLOCK and not line.endswith(b"\n"):
            parts = [line]
            while part := file.readline(_BLOCK):
                size += len(part)
                if size <= limits.MAX_ENTRY_BYTES:
                    parts.append(part)
                else:
                    parts.clear()
                if part.endswith(b"\n"):
                    break
            line = b"".join(parts)
        yield line if size <= limits.MAX_ENTRY_BYTES else size
