"""Detect the container of a source from the content of the file or folder, never from its name."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from ixtune.data.containers.json_object import records_lists
from ixtune.data.containers.json_text import decoded, line_entries
from ixtune.data.containers.spreadsheet import is_workbook
from ixtune.data.schemas.fields import listed, shown
from ixtune.data.sources.source import Container
from ixtune.errors import IxtuneError, UsageError

PEEK_ENTRIES = 200
PEEK_BYTES = 16 << 20
"""Number of bytes read from a source for detection."""

_HEAD_BYTES = 1 << 16
_SMALL_JSON_BYTES = 32 << 20
_TAR_MAGIC = (257, b"ustar")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
_RECORDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_DATA = (*_RECORDS, *_IMAGES, ".parquet", ".tar", ".txt", ".yaml", ".yml", ".zip", ".gz")

_UNPACK = "unpack it, and pass the files inside"
_FOREIGN = (
    (b"\x1f\x8b", "a gzip file", "unpack it with gunzip, and pass the files inside"),
    (b"BZh", "a bzip2 file", "unpack it with bunzip2, and pass the files inside"),
    (b"\xfd7zXZ\0", "an xz file", "unpack it with unxz, and pass the files inside"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it with unzstd, and pass the files inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"%PDF", "a PDF", "save its pages as images, and pass a CSV with the columns image, question, answer"),
    (b"ARROW1", "an Arrow file", "pass the folder that save_to_disk wrote, or save it as Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "pass the folder that save_to_disk wrote, or save it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
    (b"\x89HDF", "an HDF5 file", "export it as Parquet or JSON Lines"),
    (b"\x93NUMPY", "a NumPy array", "export it as Parquet or JSON Lines"),
    (b"\x80\x02", "a Python pickle", "export it as Parquet or JSON Lines: a pickle can run any program"),
    (b"\x80\x03", "a Python pickle", "export it as Parquet or JSON Lines: a pickle can run any program"),
    (b"\x80\x04", "a Python pickle", "export it as Parquet or JSON Lines: a pickle can run any program"),
    (b"\x80\x05", "a Python pickle", "export it as Parquet or JSON Lines: a pickle can run any program"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file with git lfs pull"),
)
_IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
_IMAGE_HINT = "pass a CSV with the columns image, question, answer that names it"


def container_of(given: str) -> tuple[Container, str]:
    """Return the container of a source and the path to read: the source itself or a folder's only table.

    Args:
        given: A file, a folder, or the name of a dataset on the hub.

    Raises:
        UsageError: The path does not exist, is of another kind, or matches several kinds.
        IxtuneError: The file is empty or cannot be read.
    """
    path = Path(given)
    if path.is_dir():
        return _of_folder(path, given)
    if path.is_file():
        return _of_file(path), given
    if path.exists():
        raise UsageError("this is neither a file nor a folder", where=given, hint="write the data to a file first")
    owner_is_here = path.parent.exists()
    if _HUB_NAME.fullmatch(given) and not owner_is_here and path.suffix.lower() not in _DATA:
        return Container.HUB, given
    raise UsageError("there is no such file or folder", where=given, hint="check the path")


def _of_folder(folder: Path, given: str) -> tuple[Container, str]:
    from ixtune.data.containers.image_folder import metadata_file

    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise IxtuneError(
            f"the folder cannot be read: {error.strerror}", where=str(folder), hint="check its permissions"
        ) from error
    if "manifest.json" in names and ("state.json" in names or "dataset_dict.json" in names):
        raise UsageError("this is already a prepared set", where=str(folder), hint="pass the data it was made from")
    found = {}
    if "state.json" in names or "dataset_dict.json" in names:
        found[Container.ARROW] = "state.json" if "state.json" in names else "dataset_dict.json"
    elif (metadata := metadata_file(folder)) is not None:
        found[Container.IMAGEFOLDER] = metadata.name
    for container, ending in ((Container.PARQUET, ".parquet"), (Container.WEBDATASET, ".tar")):
        if some := [name for name in names if name.endswith(ending)]:
            found[container] = _some(some)
    if len(found) == 1:
        return next(iter(found)), given
    if found:
        raise UsageError(
            f"the folder holds {' and '.join(found.values())}",
            where=str(folder),
            hint=f"choose one: {formats(found)}",
        )
    records = [name for name in names if name.lower().endswith(_RECORDS)]
    # a list of sources may refer to the table next to it and to others
    lists = [name for name in names if name == "data.txt" or name.lower().endswith((".yaml", ".yml"))]
    if len(records) == 1 and not lists and not _are_sidecars(folder) and (table := folder / records[0]).is_file():
        return _of_file(table), str(table)
    if records and not lists and _are_sidecars(folder):
        return Container.BESIDE, given
    if records:
        held = f"{_some(records)}{' and ' + _some(lists) if lists else ''}"
        raise UsageError(
            f"the folder holds {held}, which may or may not belong together",
            where=str(folder),
            hint=f"pass the files themselves, such as {folder / records[0]}",
        )
    return _of_images(folder, names), given


def _are_sidecars(folder: Path) -> bool:
    from ixtune.data.containers.image_tree import beside_in

    return beside_in(folder) is not None


def _of_images(folder: Path, names: list[str]) -> Container:
    """Detect images with a sidecar file each, or class folders."""
    from ixtune.data.containers.image_tree import beside_in, classes_in, splits_in

    if beside_in(folder) is not None:
        return Container.BESIDE
    if classes_in(folder):
        return Container.CLASSES
    if splits := splits_in(folder):
        raise UsageError(
            f"the folder holds the splits {listed(one.name for one in splits)}",
            where=str(folder),
            hint=f"pass one of them, such as {splits[0]}",
        )
    raise _no_data(folder, names)


def _no_data(folder: Path, names: list[str]) -> UsageError:
    where = str(folder)
    images = [name for name in names if name.lower().endswith(_IMAGES)]
    if images:
        return UsageError(
            f"the folder holds {_some(images)}, but no file with questions and answers",
            where=where,
            hint=f"write the lines above to {folder / 'metadata.csv'}, or put a JSON or text file of the same name "
            "next to each image, and pass the folder again",
            notes=["file_name,question,answer", f"{images[0]},What is the total?,42.50"],
        )
    folders = [name for name in names if (folder / name).is_dir()]
    if folders:
        what = f"there is no data in this folder itself, but perhaps in {_some(folders)}"
        return UsageError(what, where=where, hint=f"pass the folder with the data, such as {folder / folders[0]}")
    return UsageError(
        f"the folder holds {_some(names)}, and no data" if names else "the folder is empty",
        where=where,
        hint="pass a file with records, or a folder of images with a metadata.csv",
    )


def _of_file(path: Path) -> Container:
    where = str(path)
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise IxtuneError(
            f"the file cannot be read: {error.strerror}", where=where, hint="check its permissions"
        ) from error
    if not head:
        raise IxtuneError("the file is empty", where=where, hint="pass a file with records")
    if head.startswith(b"PAR1"):
        return Container.PARQUET
    at, magic = _TAR_MAGIC
    if head[at:].startswith(magic):
        return Container.WEBDATASET
    if is_workbook(path, head):
        return Container.SHEET
    _refuse_foreign(path, head)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = _as_utf8(head)
        if text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"[", b"{")):
            raise UsageError("this is JSON in UTF-16", where=where, hint="save it as UTF-8")
        return _of_table(where, text)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if text.startswith(b"["):
        return Container.JSON
    if text.startswith(b"{"):
        return _of_object_or_lines(path)
    return _of_table(where, text)


def _refuse_foreign(path: Path, head: bytes) -> None:
    """Raise for common kinds of files that do not hold records directly."""
    where = str(path)
    for magic, what, hint in _FOREIGN:
        if head.startswith(magic):
            raise UsageError(f"this is {what}", where=where, hint=hint)
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise UsageError("this is a web page", where=where, hint="download the file itself, not the page about it")
    if head.startswith(_IMAGE_MAGIC) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        raise UsageError("this is an image", where=where, hint=_IMAGE_HINT)
    if head.startswith(b"PK\x03\x04"):
        raise UsageError("this is a ZIP archive", where=where, hint=_UNPACK)
    if b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(
            "this is neither text nor a known format",
            where=where,
            hint="pass JSON, JSON Lines, CSV, TSV, Parquet or tar shards",
        )


def _of_object_or_lines(path: Path) -> Container:
    """Distinguish JSON Lines from one object with records: the first line is a record and another follows."""
    lines = list(islice(line_entries(path), 2))
    first, _ = decoded(lines[0])
    if isinstance(first, dict) and len(lines) > 1:
        return Container.JSONL
    try:
        if records_lists(path):
            return Container.OBJECT
    except IxtuneError:  # broken, or lines after all: the checks below report it
        pass
    _require_lines(path)
    return Container.JSONL


def _as_utf8(head: bytes) -> bytes:
    """Convert the beginning of a UTF-16 text to UTF-8, without a character that its end cuts off."""
    return head[: len(head) // 2 * 2].decode("utf-16", "ignore").encode("utf-8")


def _require_lines(path: Path) -> None:
    """Raise if a file that begins like JSON Lines is one object over many lines."""
    first = None
    for entry in islice(line_entries(path), PEEK_ENTRIES):
        value, fault = decoded(entry)
        if isinstance(value, dict) or entry.line is None:  # or one too large to look at
            return
        first = first or fault
        if entry.position > PEEK_BYTES:
            break
    whole = None
    if path.stat().st_size <= _SMALL_JSON_BYTES:
        try:
            whole = json.loads(path.read_bytes().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            whole = None
    if isinstance(whole, dict):
        raise one_object(whole, str(path))
    raise IxtuneError(
        f"none of the first lines is JSON: {first.found if first else 'there is none'}",
        where=f"{path}, line 1",
        hint="pass a JSON list of records, [{...}, ...], or one record {...} per line",
    )


def one_object(whole: dict[str, object], where: str) -> UsageError:
    """Return the error for a file that is one object around its records."""
    lists = [name for name, value in whole.items() if isinstance(value, list)]
    return UsageError(
        f"the file is one JSON object with the fields {listed(whole)}, not a list of records",
        where=where,
        hint=f"write the list {f'under `{lists[0]}`' if len(lists) == 1 else 'of the records'} into a separate file"
        if lists
        else "write one record {...} per line, or a list of them, [{...}, ...]",
    )


def _of_table(where: str, text: bytes) -> Container:
    """Distinguish CSV from TSV by the separator in the first line."""
    if separator_line(text) is not None:
        return Container.CSV
    header = re.split(rb"[\r\n]", text, maxsplit=1)[0].decode("utf-8", "replace")
    bare = re.sub(r'"(?:[^"]|"")*"', "", header)
    tabs, marks = "\t" in bare, "," in bare or ";" in bare
    if tabs and marks:
        raise UsageError(
            f"the first line has both tabs and commas: {shown(header)}",
            where=where,
            hint='pass --format tsv if tabs separate the columns; if not, put names that contain a tab into "quotes"',
        )
    if not tabs and not marks:
        raise IxtuneError(
            f"the file begins with {shown(header[:1] if len(header) > 200 else header)}"
            if header
            else "the file holds nothing but spaces",
            where=f"{where}, line 1",
            hint="pass a JSON list of records, one record {...} per line, or a CSV with a line of column names",
        )
    return Container.TSV if tabs else Container.CSV


def separator_line(text: bytes) -> str | None:
    """Return the separator that Excel's first line `sep=;` names, None if the line is another."""
    match = re.match(rb"(?:\xef\xbb\xbf)?\"?sep=(.)\"?\r?\n", text, re.IGNORECASE)
    return match[1].decode("latin-1") if match else None


def formats(names: Iterable[str]) -> str:
    """Return the options to choose from, for a message."""
    return " or ".join(f"--format {name}" for name in names)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
