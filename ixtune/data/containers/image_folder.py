"""Read a folder of images with metadata: an entry for each line of metadata.jsonl, or row of metadata.csv.

    photos/metadata.csv    file_name,question,answer
                           a.png,What is the total?,42.50
    photos/a.png

The metadata may also be in each of several sub-folders. The images they name are in the folder of the metadata or
below; in the entries the names become relative to the top folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ixtune.data.containers.json_text import decoded, line_entries
from ixtune.data.containers.tables import csv_entries
from ixtune.data.schemas.fields import listed
from ixtune.data.sources.entry import Entry
from ixtune.errors import UsageError

_METADATA = ("metadata.jsonl", "metadata.csv")
# evaluation data in a neighboring folder must not become training data
HELD_OUT = ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "heldout", "held_out")
_IMAGE_COLUMNS = ("file_name", "file_names", "image", "images")
_IMAGE_ENDINGS = ("_file_name", "_file_names")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Suffixes of image files, in lower case."""


def metadata_file(folder: Path) -> Path | None:
    """Return the first metadata file of a folder or its sub-folders, None if there is none."""
    return next(iter(metadata_files(folder)), None)


def metadata_files(folder: Path) -> tuple[Path, ...]:
    """Return the metadata file of a folder, or those of its sub-folders by name.

    Raises:
        UsageError: There are two in one folder, or some subfolders are held-out splits.
    """
    if own := _metadata_in(folder):
        return (own,)
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [file for inside in folders if (file := _metadata_in(inside)) is not None]
    if len(found) > 1 and any(file.parent.name.lower() in HELD_OUT for file in found):
        raise UsageError(
            f"the folder holds the splits {listed(file.parent.name for file in found)}",
            where=str(folder),
            hint=f"pass one of them, such as {found[0].parent}",
        )
    return tuple(found)


def entries(folder: Path, image_columns: Iterable[str] = ()) -> Iterator[Entry]:
    """Yield the entries of a folder's metadata, in order, with image names relative to the folder.

    Args:
        folder: The folder of the metadata, or of the sub-folders with metadata.
        image_columns: Further columns with image names, in addition to `file_name`, `image` and similar ones.

    Raises:
        UsageError: See `metadata_files`; or there is no header in a metadata.csv.
        IxtuneError: A file cannot be read.
    """
    number = done = 0
    for file in metadata_files(folder):
        below = file.parent.relative_to(folder).as_posix()
        for entry in csv_entries(file) if file.suffix == ".csv" else line_entries(file):
            number += 1
            entry = replace(entry, number=number, position=done + entry.position)
            if below != ".":
                value, fault = decoded(entry)
                if isinstance(value, dict):
                    value = _relative_to_folder(value, below, image_columns)
                entry = replace(entry, value=value, line=None, fault=fault)
            yield entry
        done += file.stat().st_size


def unnamed_images(folder: Path, image_columns: Iterable[str] = ()) -> int:
    """Return the number of images in the folder that no metadata name; not an error, but often unintended.

    Args:
        folder: See `entries`.
        image_columns: See `entries`.
    """
    there = set()
    for below, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                there.add(os.path.relpath(os.path.join(below, name), folder))
    for entry in entries(folder, image_columns):
        value, _ = decoded(entry)
        if isinstance(value, dict):
            for column, cell in value.items():
                if _names_images(column, image_columns):
                    there.difference_update(map(os.path.normpath, _paths(cell)))
    return len(there)


def _metadata_in(folder: Path) -> Path | None:
    found = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise UsageError(
            f"the folder holds both {' and '.join(_METADATA)}",
            where=str(folder),
            hint="keep one of them, or pass the right one as the source, with --image-root",
        )
    return found[0] if found else None


def _relative_to_folder(value: dict[str, Any], below: str, image_columns: Iterable[str]) -> dict[str, Any]:
    """Return a row with the names of its images relative to the top folder."""
    return {
        column: _moved(cell, below) if _names_images(column, image_columns) else cell for column, cell in value.items()
    }


def _moved(cell: Any, below: str) -> Any:
    if isinstance(cell, list):
        return [_moved(one, below) for one in cell]
    if isinstance(cell, dict) and isinstance(cell.get("path"), str):
        return {**cell, "path": _moved(cell["path"], below)}
    # absolute paths stay unchanged, and so do URLs, which are refused later
    if isinstance(cell, str) and cell and "://" not in cell and not cell.startswith(("data:", "file:")):
        return str(PurePosixPath(below, cell))
    return cell


def _names_images(column: str, image_columns: Iterable[str]) -> bool:
    return column in _IMAGE_COLUMNS or column in image_columns or column.endswith(_IMAGE_ENDINGS)


def _paths(cell: Any) -> Iterator[str]:
    if isinstance(cell, str) and cell:
        yield cell
    elif isinstance(cell, list):
        for one in cell:
            yield from _paths(one)
    elif isinstance(cell, dict):
        yield from _paths(cell.get("path"))
