"""Open a source: detect its container and schema by content, report them, and read its entries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ixtune.data.containers.container_detection import container_of
from ixtune.data.containers.json_text import decoded, line_entries, list_entries
from ixtune.data.containers.paragraphs import has_paragraphs, questions_in
from ixtune.data.schemas.column_roles import CONVERSATION_COLUMNS
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Container, Reading, Schema, Source
from ixtune.data.sources.source_reading import SCHEMA_NAMES, understand
from ixtune.errors import UsageError

_FOLDERS = (Container.ARROW, Container.IMAGEFOLDER, Container.CLASSES, Container.BESIDE)
_FILES = (Container.JSON, Container.JSONL, Container.CSV, Container.TSV, Container.OBJECT, Container.SHEET)
_TEXT_TABLES = (Container.CSV, Container.TSV)
_WITH_SPLITS = (Container.PARQUET, Container.ARROW, Container.HUB, Container.OBJECT, Container.SHEET)

_CONTAINER_NAMES = {
    Container.JSON: "JSON list",
    Container.JSONL: "JSON Lines",
    Container.CSV: "CSV",
    Container.TSV: "TSV",
    Container.PARQUET: "Parquet",
    Container.ARROW: "saved Hugging Face dataset",
    Container.HUB: "dataset of the hub",
    Container.IMAGEFOLDER: "folder of images with metadata",
    Container.CLASSES: "folders of images, named after their classes",
    Container.BESIDE: "folder of images, each with a file of the same name",
    Container.OBJECT: "JSON object",
    Container.SHEET: "workbook",
    Container.WEBDATASET: "WebDataset shards",
}


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened source.

    Attributes:
        source: The source as given; for a folder with one table, that table.
        container: Format in which its entries are stored.
        reading: Settings that a worker needs to read them.
        detected: Detected format and the reason for it, in one line for the user.
        files: Files that the manifest hashes; none for a source on the hub.
        image_root: The folder that paths are relative to, resolved; None if there is none.
        total: Final value of `Entry.position`.
        fingerprint: Fingerprint of a dataset whose files are not the user's.
        read: Function that yields the entries from the beginning.
    """

    source: Source
    container: Container
    reading: Reading
    detected: str
    files: tuple[Path, ...]
    image_root: Path | None
    total: int | None
    fingerprint: str | None
    read: Callable[[], Iterator[Entry]]

    def entries(self) -> Iterator[Entry]:
        """Yield the entries in order, from the beginning each time."""
        return self.read()

    @property
    def schema(self) -> Schema:
        """Meaning of the fields of the entries."""
        return self.reading.schema

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Pairs (our column name, theirs)."""
        return self.reading.columns


@dataclass(frozen=True, slots=True)
class _Stored:
    """Result of a container's reader: entries, files, column names if there are any, and notes to print."""

    read: Callable[[], Iterator[Entry]]
    files: tuple[Path, ...]
    total: int
    columns: Sequence[str] | None = None
    fingerprint: str | None = None
    note: str = ""


def open_source(source: Source) -> Opened:
    """Open a source; detect its container and schema unless the user names them.

    Args:
        source: Settings from the user.

    Raises:
        UsageError: There is no such source, it is of a kind that is not read, its format is ambiguous, or the user's
            settings contradict it.
        IxtuneError: It cannot be read, or holds no record.
    """
    given = source.path
    container, path = (source.container, given) if source.container else container_of(given)
    source = replace(source, path=path)
    _require_consistent(source, container)
    root = _image_root(source, container)
    stored = _unfolded(_stored(source, container), container)
    understood = understand(source, container, stored.read, stored.columns, root)
    reading, why = understood.reading, understood.why
    if container is Container.SHEET:
        _refuse_pictures(Path(path), reading)
    what = f"{_CONTAINER_NAMES[container]} of {understood.form}"
    if source.schema is not None:
        what += f", as --format says{f' ({why})' if why else ''}"
    elif why:
        what += f": {why}"
    folder = f"{Path(path).name} is the only table in the folder" if path != given else ""
    read = stored.read
    if source.origin is not None:  # no record is named after a temporary folder
        read = partial(_with_origin, read, given, source.origin)
    return Opened(
        source=source,
        container=container,
        reading=reading,
        detected="; ".join(filter(None, (what, *understood.notes, folder, source.remark))) + stored.note,
        files=stored.files,
        image_root=root,
        total=stored.total,
        fingerprint=stored.fingerprint,
        read=read,
    )


def _unfolded(stored: _Stored, container: Container) -> _Stored:
    """Return what is stored with an entry for each question, if the entries are articles with paragraphs."""
    if container not in (Container.JSON, Container.JSONL, Container.OBJECT):
        return stored
    first = next(stored.read(), None)
    if first is None or not has_paragraphs(decoded(first)[0]):
        return stored
    read = partial(questions_in, stored.read)
    return replace(stored, read=read, note=f"{stored.note}; a record for each question of the paragraphs")


def _with_origin(read: Callable[[], Iterator[Entry]], local: str, origin: str) -> Iterator[Entry]:
    for entry in read():
        yield replace(entry, file=origin + entry.file.removeprefix(local) if entry.file.startswith(local) else origin)


def _require_consistent(source: Source, container: Container) -> None:
    """Raise if the settings of a source contradict each other or the files."""
    path, where = Path(source.path), source.path
    if container is not Container.HUB and not path.exists():
        raise UsageError("there is no such file or folder", where=where, hint="check the path")
    if container in _FOLDERS and not path.is_dir():
        raise UsageError(f"{container} is a folder, and this is a file", where=where, hint="pass the folder")
    if container in _FILES and path.is_dir():
        raise UsageError(f"{container} is a file, and this is a folder", where=where, hint="pass the file itself")
    named = [ours for ours, _ in source.columns if ours not in CONVERSATION_COLUMNS]
    if source.schema not in (None, Schema.COLUMNS) and (named or source.question is not None):
        raise UsageError(
            f"{SCHEMA_NAMES[source.schema]} have neither columns nor one question for all",
            where=where,
            hint=f"remove either --format {source.schema} or --columns and --question; columns that conversations "
            f"have are {', '.join(CONVERSATION_COLUMNS)}",
        )
    if source.encoding is not None and container not in _TEXT_TABLES:
        raise UsageError(f"{_CONTAINER_NAMES[container]}: no encoding", where=where, hint="remove --encoding")
    if source.split is not None and container not in _WITH_SPLITS:
        raise UsageError(f"{_CONTAINER_NAMES[container]}: no splits", where=where, hint="remove --split")
    if source.config is not None and container is not Container.HUB:
        raise UsageError(f"{_CONTAINER_NAMES[container]}: no configurations", where=where, hint="remove --config")


def _image_root(source: Source, container: Container) -> Path | None:
    if source.remote_root is not None:
        return None
    if source.image_root is not None:
        root = source.image_root.resolve()
        if not root.is_dir():
            raise UsageError("the image root is not a folder", where=str(root), hint="check --image-root")
        return root
    if container is Container.HUB:
        return None
    path = Path(source.path).resolve()
    return path if path.is_dir() else path.parent


def _stored(source: Source, container: Container) -> _Stored:
    """Ask the container's reader for its entries, files and columns."""
    path = Path(source.path)
    if container in (Container.JSON, Container.JSONL):
        read = list_entries if container is Container.JSON else line_entries
        return _Stored(partial(read, path), (path,), path.stat().st_size)
    if container is Container.PARQUET:
        from ixtune.data.containers import parquet_table

        files = parquet_table.parquet_files(path, source.split)
        rows, names = parquet_table.parquet_rows(files), parquet_table.parquet_columns(files)
        return _Stored(partial(parquet_table.parquet_entries, files), files, rows, names)
    if container in _TEXT_TABLES:
        from ixtune.data.containers import tables

        how = ("\t" if container is Container.TSV else None, source.encoding)
        names = tables.csv_columns(path, *how)
        return _Stored(partial(tables.csv_entries, path, *how), (path,), path.stat().st_size, names)
    if container is Container.OBJECT:
        from ixtune.data.containers.json_object import open_object

        entries, files, note = open_object(source)
        return _Stored(entries, files, files[0].stat().st_size, note=note)
    if container is Container.SHEET:
        from ixtune.data.containers import spreadsheet

        sheet = spreadsheet.sheet_of(path, source.split)
        names, rows = spreadsheet.sheet_columns(path, sheet), spreadsheet.sheet_rows(path, sheet)
        note = f"; the sheet {sheet}"
        return _Stored(partial(spreadsheet.sheet_entries, path, sheet), (path,), rows, names, note=note)
    if container in (Container.CLASSES, Container.BESIDE):
        return _stored_images(path, container)
    if container in (Container.ARROW, Container.HUB):
        from ixtune.data.containers import datasets_folder

        opener = datasets_folder.open_arrow if container is Container.ARROW else datasets_folder.open_hub
        opened = opener(source)
        return _Stored(opened.entries, opened.files, opened.total, opened.columns, opened.fingerprint)
    if container is Container.IMAGEFOLDER:
        from ixtune.data.containers import image_folder

        files = image_folder.metadata_files(path)
        if not files:
            raise UsageError("there is no metadata.csv", where=source.path, hint="write one, or pass another --format")
        of_images = [name for ours, theirs in source.columns if ours == "image" for name in theirs.split(",")]
        unnamed = image_folder.unnamed_images(path, of_images)
        note = (
            f"; {unnamed:,} more {'image is' if unnamed == 1 else 'images are'} in it without a line" if unnamed else ""
        )
        return _Stored(partial(image_folder.entries, path, of_images), files, _size(files), note=note)
    from ixtune.data.containers import webdataset

    shards = webdataset.shards(path)
    return _Stored(partial(webdataset.entries, shards), shards, _size(shards))


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _refuse_pictures(path: Path, reading: Reading) -> None:
    """Raise if the images of a workbook are inside of it, where no row can refer to them."""
    from ixtune.data.containers.spreadsheet import pictures_in

    if reading.image_pattern is None and "image" not in dict(reading.columns) and (count := pictures_in(path)):
        raise UsageError(
            f"the workbook holds {count} picture{'s' * (count > 1)} itself, and no column names a file",
            where=str(path),
            hint="save the pictures as files and write their names into a column image, or pass --columns image= "
            "if they are decoration",
        )


def _stored_images(path: Path, container: Container) -> _Stored:
    """Open a folder of images without metadata."""
    from ixtune.data.containers import image_tree

    if container is Container.CLASSES:
        folders = image_tree.classes_in(path)
        if not folders:
            raise UsageError("there are no folders of images", where=str(path), hint="pass another --format")
        read = partial(image_tree.class_entries, folders, path)
        names = "".join(f"{entry.place.at}\n" for entry in read())
        fingerprint = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        total = image_tree.count_images(folders)
        return _Stored(read, (), total, fingerprint=fingerprint, note=f"; {len(folders)} classes")
    found = image_tree.beside_in(path)
    if found is None:
        raise UsageError(
            "no image has a file of the same name next to it", where=str(path), hint="pass another --format"
        )
    texts = tuple(sorted(found.texts.glob(f"*{found.suffix}")))
    note = f"; {found.texts.name}/*{found.suffix} next to {found.images.name}/"
    return _Stored(
        partial(image_tree.beside_entries, found, path), texts, image_tree.count_images((found.images,)), note=note
    )
