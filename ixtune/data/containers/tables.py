"""Read CSV and TSV with a header row, an entry for each row.

    image,question,answer
    a.png,What is the total?,42.50

A quoted row of a CSV may span several lines; messages name its first line. A row with broken quoting rejects
and counts every line it covers: none of them can be trusted. At most one row is in memory at a time.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ixtune.data.containers.arrow_rows import too_large
from ixtune.data.record import Place
from ixtune.data.rejects import Reason
from ixtune.data.schemas.fields import listed
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Entry, Fault
from ixtune.errors import IxtuneError, UsageError

NOT_UTF8_HINT = "in Excel, save as `CSV UTF-8`, or name the encoding, e.g. --encoding cp1252"
_BLOCK = 1 << 20
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
_BOMS_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def csv_entries(path: Path, delimiter: str | None = None, encoding: str | None = None) -> Iterator[Entry]:
    r"""Yield the rows of a CSV or TSV as mappings of column names to texts; rows without any text are left out.

    Args:
        path: The file.
        delimiter: "," or ";" or "\t"; None to detect , or ; from the header, or by Excel's first line `sep=;`.
        encoding: Text encoding; None for UTF-8, or UTF-16 if the file begins with its byte order mark.

    Raises:
        UsageError: There is no usable header.
        IxtuneError: The file cannot be read.
    """
    with _opened(path, encoding) as (raw, file):
        rows = _Rows(file)
        names = _header(rows, path, delimiter)
        number, name = 0, str(path)
        while row := rows.next():
            for line, value, fault in _values(row, names, rows.delimiter):
                number += 1
                yield Entry(number, name, Place("line", line), value=value, fault=fault, position=raw.tell())


def csv_columns(path: Path, delimiter: str | None = None, encoding: str | None = None) -> list[str]:
    """Return the column names of a CSV or TSV, see `csv_entries`."""
    with _opened(path, encoding) as (_, file):
        return [name for name in _header(_Rows(file), path, delimiter) if name]


@dataclass(slots=True)
class _Row:
    """A row of a CSV as text; None if it is too large. `closed` is False if the file ends inside its quotes."""

    first_line: int
    last_line: int
    text: str | None
    size: int
    closed: bool


class _Rows:
    """Splitter of a text into rows; a line end inside quotes does not end a row."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.line = 0
        self.at_line_start, self.cut_in_line_end = True, False
        self.delimiter = ","

    def next(self) -> _Row | None:
        """Return the next row that is not blank, None at the end of the file."""
        while piece := self._piece():
            first_line, size, state = self.line, 0, "start"
            text = io.StringIO(newline="")  # a list of short lines takes many times their size
            while piece:
                size += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogateescape"))
                if size <= limits.MAX_ENTRY_BYTES:
                    text.write(piece)
                elif text.tell():
                    text = io.StringIO(newline="")
                state = self._state(piece, state)
                if self.at_line_start and state != "quoted":
                    break
                piece = self._piece()
            whole = text.getvalue() if size <= limits.MAX_ENTRY_BYTES else None
            if whole is None or whole.strip("\r\n"):
                return _Row(first_line, self.line, whole, size, state != "quoted")
        return None

    def _piece(self) -> str:
        """Return the next line, or a block of a long one; "" at the end of the file."""
        begins_line, piece = self.at_line_start, self.file.readline(_BLOCK)
        if self.cut_in_line_end and piece == "\n":
            piece = self.file.readline(_BLOCK)
        self.line += begins_line and bool(piece)
        self.at_line_start = piece.endswith(("\r", "\n"))
        self.cut_in_line_end = len(piece) == _BLOCK and piece.endswith("\r")
        return piece

    def _state(self, piece: str, state: str) -> str:
        """Return the state after a piece of a row: "start" of a cell, bare "cell", "quoted", or after a "quote"."""
        at = 0
        if state == "start" and piece.startswith('"'):
            at, state = 1, "quoted"
        elif state == "quote":  # doubled quotes are one of the text
            state = "quoted" if piece.startswith('"') else "cell"
            at = int(state == "quoted")
        opening = f'{self.delimiter}"'
        while True:
            if state == "quoted":
                at = piece.find('"', at) + 1
                if not at:
                    return "quoted"
                if at == len(piece):
                    return "quote"
                if piece[at] == '"':
                    at += 1
                    continue
                state = "cell"
            at = piece.find(opening, at) + len(opening)
            if at < len(opening):
                return "start" if piece.endswith(self.delimiter) else "cell"
            state = "quoted"


def _header(rows: _Rows, path: Path, delimiter: str | None) -> list[str]:
    """Read the column names; "" for a column without a name, which nothing can refer to."""
    row = rows.next()
    if row is not None and row.text and (named := _SEPARATOR_LINE.fullmatch(row.text)):
        delimiter, row = delimiter or named[1], rows.next()
    if row is None:
        raise UsageError("the table is empty", where=str(path), hint="pass a table with a header row")
    where = f"{path}, line {row.first_line}"
    hint = f"write the names of the columns into the first row; {NOT_UTF8_HINT}"
    if row.text is None or not row.closed or "\0" in row.text or _undecodable(row.text):
        raise UsageError("the first row is not a header: not UTF-8 text, or without an end", where=where, hint=hint)
    rows.delimiter = delimiter if delimiter is not None else _delimiter_of(row.text, where)
    try:
        names = [name.strip() for name in _cells(row.text, rows.delimiter)]
    except csv.Error as error:
        raise UsageError(f"the header is broken: {error}", where=where, hint=hint) from error
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise UsageError(
            f"two columns have the same name: {listed(twice)}", where=where, hint="rename all columns but one"
        )
    return names


def _delimiter_of(header: str, where: str) -> str:
    """Choose , or ; as the delimiter by the header, where both are unlikely to be part of a name."""
    bare = re.sub(r'"(?:[^"]|"")*"', "", header)
    found = [mark for mark in ",;\t" if mark in bare]
    if len(found) > 1 or "\t" in found:
        raise UsageError(
            f"the header holds {' and '.join('tabs' if mark == chr(9) else mark for mark in found)}: "
            "what separates the columns is ambiguous",
            where=where,
            hint='rename the columns, put their names into "quotes", or pass --format tsv if tabs separate them',
        )
    return found[0] if found else ","


def _values(row: _Row, names: list[str], delimiter: str) -> Iterator[tuple[int, Any, Fault | None]]:
    """Yield (line, value, fault) of a row; one for each of its lines if its quoting is broken, none if it is empty."""
    mend_quotes = 'put a cell that holds quotes or line ends into quotes, and double those inside: "a 12"" screen"'
    if not row.closed:
        fault = Fault(
            Reason.WRONG_COLUMNS,
            f"quotes are opened in the row of line {row.first_line} and never closed: the rest of the file is in them",
            mend_quotes,
        )
        yield from ((line, None, fault) for line in range(row.first_line, row.last_line + 1))
        return
    if row.text is None:
        yield row.first_line, None, too_large(row.size, limits.MAX_ENTRY_BYTES)
        return
    try:
        cells = _cells(row.text, delimiter)
    except csv.Error as error:
        lines = f"line {row.first_line}" + (f" to {row.last_line}" if row.last_line > row.first_line else "")
        fault = Fault(Reason.WRONG_COLUMNS, f"the quoting of {lines} is broken: {error}", mend_quotes)
        yield from ((line, None, fault) for line in range(row.first_line, row.last_line + 1))
        return
    if any(cell.strip() for cell in cells):
        value = {name: cell for name, cell in zip(names, cells, strict=False) if name}
        wrong = _fault(row.text, cells, names, delimiter)
        yield row.first_line, None if wrong else value, wrong


def _fault(text: str, cells: list[str], names: list[str], delimiter: str) -> Fault | None:
    """Return the fault of a row that could be split into cells, None if it is good."""
    at = dict(enumerate(names))
    if "\0" in text:
        column = next((n for n, cell in enumerate(cells) if "\0" in cell), 0)
        return Fault(
            Reason.NULL_CHARACTER,
            f"{at.get(column) or f'column {column + 1}'} holds a null character",
            "remove it; if there are many, write or copy the table again",
        )
    if byte := _undecodable(text):
        column = next((n for n, cell in enumerate(cells) if _undecodable(cell)), 0)
        return Fault(
            Reason.NOT_UTF8,
            f"{at.get(column) or f'column {column + 1}'} holds the byte 0x{byte:02x}, which is not UTF-8",
            NOT_UTF8_HINT,
        )
    if len(cells) != len(names):
        cell = "cell" if len(cells) == 1 else "cells"
        columns = "column" if len(names) == 1 else "columns"
        mark = "a tab" if delimiter == "\t" else delimiter
        return Fault(
            Reason.WRONG_COLUMNS,
            f"{len(cells)} {cell}, the table has {len(names)} {columns}",
            f'put a cell that holds {mark} into "quotes", or add the missing cells',
        )
    return None


def _cells(text: str, delimiter: str) -> list[str]:
    # the cell limit is global to the process, and its default is 128 KiB
    before = csv.field_size_limit(limits.MAX_ENTRY_BYTES)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(before)


def _undecodable(text: str) -> int:
    """Return the first byte that was not UTF-8, 0 if there is none; see "surrogateescape"."""
    if text.isascii():
        return 0
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return ord(text[error.start]) - 0xDC00
    return 0


@contextmanager
def _opened(path: Path, encoding: str | None = None) -> Iterator[tuple[IO[bytes], IO[str]]]:
    """Open a text as bytes, for the read position, and as lines with any line ending."""
    try:
        with open(path, "rb") as raw:
            wide = encoding is None and raw.read(2) in _BOMS_UTF16
            raw.seek(0)
            chosen, errors = ("utf-16", "replace") if wide else (encoding or "utf-8-sig", "surrogateescape")
            with io.TextIOWrapper(raw, encoding=chosen, errors=errors, newline="") as file:
                yield raw, file
    except LookupError as error:
        raise UsageError(
            f"there is no text encoding {encoding}", where=str(path), hint="pass one such as --encoding cp1252"
        ) from error
    except OSError as error:
        raise IxtuneError(
            f"the table cannot be read: {error.strerror}", where=str(path), hint="check the file and its permissions"
        ) from error
