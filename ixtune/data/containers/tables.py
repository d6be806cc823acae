"""Tables -> entries, one for each row: CSV and TSV with a header row, and Parquet.

    image,question,answer
    a.png,What is the total?,42.50

A row of a CSV may go over several lines where it is quoted, and is named by its first. A row whose quoting breaks
takes every line it covers down with it, each counted: none of them can be trusted. Never more than one row of a CSV,
or one small batch of a Parquet file, is held.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ixtune.data.containers.arrow_rows import batch_rows, column_names, rows_of, too_large
from ixtune.data.record import Place
from ixtune.data.rejects import Reason
from ixtune.data.schemas.fields import listed
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Entry, Fault
from ixtune.errors import IxtuneError, UsageError

if TYPE_CHECKING:
    import pyarrow.parquet

NOT_UTF8_HINT = "in Excel, save as `CSV UTF-8`, or say how the text is encoded, e.g. --encoding cp1252"
_BLOCK = 1 << 20
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
_BOMS_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# read in blocks of this size, so that a row group of large images is never held whole
_PARQUET_BUFFER_BYTES = 1 << 20
# datasets names the files of a split like this: train-00000-of-00003.parquet
_SPLIT_OF_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")


def csv_entries(path: Path, delimiter: str | None = None, encoding: str | None = None) -> Iterator[Entry]:
    r"""Yield the rows of a CSV or TSV as mappings of column names to texts; rows without any text are left out.

    Args:
        path: The file.
        delimiter: "," or ";" or "\t"; None to tell , from ; by the header, or by Excel's first line `sep=;`.
        encoding: Of the text; None for UTF-8, or UTF-16 where the file begins with its byte order mark.

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


def parquet_files(path: Path, split: str | None = None) -> tuple[Path, ...]:
    """The Parquet files of a source: itself, or those in the folder by name.

    Args:
        path: A file or a folder.
        split: Which of several splits, where the names of the files tell them apart as `datasets` does.

    Raises:
        UsageError: The folder holds no Parquet file, or several splits of which none is chosen.
    """
    if not path.is_dir():
        return (path,)
    by_split: dict[str, list[Path]] = {}
    for file in sorted(path.glob("*.parquet")):
        match = _SPLIT_OF_SHARD.fullmatch(file.name)
        by_split.setdefault(match[1] if match else "", []).append(file)
    if not by_split:
        raise UsageError("the folder holds no *.parquet", where=str(path), hint="give the folder with the files")
    if split is not None and split in by_split:
        return tuple(by_split[split])
    if split is not None or len(by_split) > 1:
        found = ", ".join(name or "files of no split" for name in by_split)
        raise UsageError(
            f"the folder holds {found}" + (f", but no split {split}" if split is not None else ""),
            where=str(path),
            hint="choose one with --split, or give the files one by one",
        )
    return tuple(next(iter(by_split.values())))


def parquet_entries(files: Sequence[Path]) -> Iterator[Entry]:
    """The rows of Parquet files, in order, as mappings of column names to values; images stay undecoded.

    Raises:
        IxtuneError: A file is no Parquet, or its data are broken.
    """
    number = 0
    for path in files:
        at, name = 0, str(path)
        with _parquet(path) as file:
            for batch in file.iter_batches(batch_size=batch_rows(file.schema_arrow)):
                for value, fault in rows_of(batch):
                    number, at = number + 1, at + 1
                    yield Entry(number, name, Place("row", at), value=value, fault=fault, position=number)


def parquet_columns(files: Sequence[Path]) -> list[str]:
    """The column names of Parquet files.

    Raises:
        UsageError: They differ from file to file, or a name stands twice.
        IxtuneError: A file is no Parquet.
    """
    first: list[str] = []
    for path in files:
        with _parquet(path) as file:
            names = column_names(file.schema_arrow, str(path))
        if first and set(names) != set(first):
            raise UsageError(
                f"the columns are {listed(names)}; those of {files[0].name} are {listed(first)}",
                where=str(path),
                hint="give files with the same columns, or each as a source of its own",
            )
        first = first or names
    return first


def parquet_rows(files: Sequence[Path]) -> int:
    """The number of rows of Parquet files, from their footers."""
    total = 0
    for path in files:
        with _parquet(path) as file:
            total += file.metadata.num_rows
    return total


@dataclass(slots=True)
class _Row:
    """A row of a CSV as text; None if it is too large. `closed` is False if the file ends inside its quotes."""

    first_line: int
    last_line: int
    text: str | None
    size: int
    closed: bool


class _Rows:
    """Cuts a text into rows: a line end inside quotes does not end one."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.line = 0
        self.at_line_start, self.cut_in_line_end = True, False
        self.delimiter = ","

    def next(self) -> _Row | None:
        """The next row that is not blank, None at the end of the file."""
        while piece := self._piece():
            first_line, size, state = self.line, 0, "start"
            text = io.StringIO(newline="")  # a list of lines takes many times their size where they are short
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
        """A line, or a block of a long one; "" at the end of the file."""
        begins_line, piece = self.at_line_start, self.file.readline(_BLOCK)
        if self.cut_in_line_end and piece == "\n":
            piece = self.file.readline(_BLOCK)
        self.line += begins_line and bool(piece)
        self.at_line_start = piece.endswith(("\r", "\n"))
        self.cut_in_line_end = len(piece) == _BLOCK and piece.endswith("\r")
        return piece

    def _state(self, piece: str, state: str) -> str:
        """Where a piece of a row ends: at the "start" of a cell, in a bare "cell", "quoted", or behind a "quote"."""
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
    """The column names; "" for one without a name, which nothing can refer to."""
    row = rows.next()
    if row is not None and row.text and (named := _SEPARATOR_LINE.fullmatch(row.text)):
        delimiter, row = delimiter or named[1], rows.next()
    if row is None:
        raise UsageError("the table is empty", where=str(path), hint="give a table with a header row")
    where = f"{path}, line {row.first_line}"
    hint = f"write the names of the columns into the first row; {NOT_UTF8_HINT}"
    if row.text is None or not row.closed or "\0" in row.text or _undecodable(row.text):
        raise UsageError("the first row is no header: not text in UTF-8, or without an end", where=where, hint=hint)
    rows.delimiter = delimiter if delimiter is not None else _told_delimiter(row.text, where)
    try:
        names = [name.strip() for name in _cells(row.text, rows.delimiter)]
    except csv.Error as error:
        raise UsageError(f"the header is broken: {error}", where=where, hint=hint) from error
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise UsageError(
            f"two columns have the same name: {listed(twice)}", where=where, hint="rename all columns but one"
        )
    return names


def _told_delimiter(header: str, where: str) -> str:
    """Either , or ; by the header, where both are unlikely to be a part of a name."""
    bare = re.sub(r'"(?:[^"]|"")*"', "", header)
    found = [mark for mark in ",;\t" if mark in bare]
    if len(found) > 1 or "\t" in found:
        raise UsageError(
            f"the header holds {' and '.join('tabs' if mark == chr(9) else mark for mark in found)}: "
            "it cannot be told what divides the columns",
            where=where,
            hint='rename the columns, put their names into "quotes", or say --format tsv if tabs divide them',
        )
    return found[0] if found else ","


def _values(row: _Row, names: list[str], delimiter: str) -> Iterator[tuple[int, Any, Fault | None]]:
    """(line, value, fault) of a row; one for each line it covers if its quoting breaks, none if it is empty."""
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
    """What is wrong with a row that could be cut into cells."""
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
            f'put a cell that holds {mark} into "quotes", or add what is missing',
        )
    return None


def _cells(text: str, delimiter: str) -> list[str]:
    # the limit of a cell is one for the whole process, and its default is 128 KiB
    before = csv.field_size_limit(limits.MAX_ENTRY_BYTES)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(before)


def _undecodable(text: str) -> int:
    """The first byte that was not UTF-8, 0 if there is none; see "surrogateescape"."""
    if text.isascii():
        return 0
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return ord(text[error.start]) - 0xDC00
    return 0


@contextmanager
def _opened(path: Path, encoding: str | None = None) -> Iterator[tuple[IO[bytes], IO[str]]]:
    """A text as bytes, which know how far it is read, and as lines with any kind of end."""
    try:
        with open(path, "rb") as raw:
            wide = encoding is None and raw.read(2) in _BOMS_UTF16
            raw.seek(0)
            chosen, errors = ("utf-16", "replace") if wide else (encoding or "utf-8-sig", "surrogateescape")
            with io.TextIOWrapper(raw, encoding=chosen, errors=errors, newline="") as file:
                yield raw, file
    except LookupError as error:
        raise UsageError(
            f"there is no text encoding {encoding}", where=str(path), hint="give one such as cp1252 or latin-1"
        ) from error
    except OSError as error:
        raise IxtuneError(
            f"the table cannot be read: {error.strerror}", where=str(path), hint="check the file and its permissions"
        ) from error


@contextmanager
def _parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise IxtuneError(
            f"the Parquet file cannot be read: {str(error).splitlines()[0]}",
            where=str(path),
            hint="download or write it again; it may have been cut short",
        ) from error
