"""Read sheets of Excel and OpenDocument workbooks, one entry per row below the header; needs python-calamine."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixtune.data.record import Place
from ixtune.data.schemas.fields import listed
from ixtune.data.sources.entry import Entry
from ixtune.errors import IxtuneError, UsageError

if TYPE_CHECKING:
    from python_calamine import CalamineWorkbook

OLD_EXCEL = b"\xd0\xcf\x11\xe0"


def is_workbook(path: Path, head: bytes) -> bool:
    """Return whether a file is a workbook, by its content: .xlsx, .xlsb, .ods, or an old .xls."""
    if head.startswith(OLD_EXCEL):
        return True
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("xl/") or name == "content.xml" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def pictures_in(path: Path) -> int:
    """Return the number of pictures that a workbook holds itself; nothing says to which row they belong."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(name.startswith(("xl/media/", "Pictures/")) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):  # an old .xls
        return 0


def sheet_of(path: Path, chosen: str | None) -> str:
    """Return the name of the sheet to read: the chosen one, or the only one with any row.

    Raises:
        UsageError: There is no such sheet, or several are filled and none is chosen; or python-calamine is missing.
        IxtuneError: The file is not a workbook.
    """
    names: list[str] = _opened(path).sheet_names
    filled = [name for name in names if _rows(path, name)[1]]
    if chosen is not None and chosen in names:
        return chosen
    if chosen is not None or len(filled) > 1:
        found = f"there is no sheet {chosen}" if chosen is not None else "the workbook has several sheets"
        raise UsageError(
            f"{found}: {listed(names)}", where=str(path), hint=f"choose one, e.g. --split {(filled or names)[0]}"
        )
    if not filled:
        raise IxtuneError("the workbook is empty", where=str(path), hint="pass a sheet with a header row")
    return filled[0]


def sheet_columns(path: Path, sheet: str) -> list[str]:
    """Return the names in the first row that is not empty.

    Raises:
        UsageError: Two columns have the same name.
    """
    _, (header, *_) = _rows(path, sheet)
    names = [str(cell).strip() for cell in header if str(cell).strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"two columns have the same name: {listed(twice)}", where=str(path), hint="rename all columns but one"
        )
    return names


def sheet_entries(path: Path, sheet: str) -> Iterator[Entry]:
    """Yield the rows below the header as mappings of column names to values; empty cells are None."""
    start, (header, *rows) = _rows(path, sheet)
    names = [str(cell).strip() for cell in header]
    number = 0
    for at, row in enumerate(rows, start=start + 1):
        value = {name: _cell(cell) for name, cell in zip(names, row, strict=False) if name}
        if all(cell is None for cell in value.values()):
            continue
        number += 1
        yield Entry(number, str(path), Place("row", at), value=value, position=number)


def sheet_rows(path: Path, sheet: str) -> int:
    """Return the number of rows below the header."""
    return len(_rows(path, sheet)[1]) - 1


def _rows(path: Path, sheet: str) -> tuple[int, list[list[Any]]]:
    """Return (number of the header's row, the rows from the header on)."""
    rows: list[list[Any]] = _opened(path).get_sheet_by_name(sheet).to_python(skip_empty_area=False)
    start = next((at for at, row in enumerate(rows) if any(cell != "" for cell in row)), len(rows))
    return start + 1, rows[start:]


def _cell(value: Any) -> Any:
    """Convert a cell to a JSON value."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    return value


def _opened(path: Path) -> CalamineWorkbook:
    try:
        import python_calamine
    except ImportError as error:
        raise UsageError(
            "this is a workbook, and python-calamine is not installed",
            where=str(path),
            hint="pip install 'ixtune[office]', or save the sheet as CSV UTF-8",
        ) from error
    try:
        return python_calamine.CalamineWorkbook.from_path(str(path))
    except (python_calamine.CalamineError, OSError) as error:
        raise IxtuneError(
            f"the workbook cannot be read: {error}",
            where=str(path),
            hint="remove its password or save it again, or save the sheet as CSV UTF-8",
        ) from error
