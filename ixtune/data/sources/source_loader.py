"""A source -> what stores it, what its fields mean, and its entries. Everything is told by content, and said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ixtune.data.containers.container_detection import PEEK_BYTES, PEEK_ENTRIES, container_of
from ixtune.data.containers.json_text import decoded, line_entries, list_entries
from ixtune.data.schemas.fields import shown
from ixtune.data.schemas.schema_detection import schema_of
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Container, Reading, Schema, Source
from ixtune.errors import IxtuneError, UsageError

_FOLDERS = (Container.ARROW, Container.IMAGEFOLDER)
_FILES = (Container.JSON, Container.JSONL, Container.CSV, Container.TSV)
_TEXT_TABLES = (Container.CSV, Container.TSV)
# record, messages, message, content, part, image, bytes
_PICTURE_DEPTH = 7
_WITH_SPLITS = (Container.PARQUET, Container.ARROW, Container.HUB)

_CONTAINER_NAMES = {
    Container.JSON: "JSON list",
    Container.JSONL: "JSON Lines",
    Container.CSV: "CSV",
    Container.TSV: "TSV",
    Container.PARQUET: "Parquet",
    Container.ARROW: "saved Hugging Face data set",
    Container.HUB: "data set of the hub",
    Container.IMAGEFOLDER: "folder of images with metadata",
    Container.WEBDATASET: "WebDataset shards",
}
_SCHEMA_NAMES = {
    Schema.IXC: "InternLM-XComposer conversations",
    Schema.LLAVA: "LLaVA conversations",
    Schema.SHAREGPT: "ShareGPT conversations",
    Schema.OPENAI: "OpenAI messages",
    Schema.COLUMNS: "questions and answers",
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that is ready to be read.

    Attributes:
        source: As it was given, but for a folder with one table: that table.
        container: How its entries are stored.
        schema: What their fields mean.
        columns: Pairs (our name, theirs) where the schema is COLUMNS.
        detected: What was found and why, in one line for people.
        files: What the manifest hashes; none of a source on the hub.
        image_root: The folder that paths are relative to, resolved; None if there is none.
        total: What `Entry.position` ends at.
        fingerprint: Of a data set whose files are not the user's.
        read: Gives the entries from the beginning.
    """

    source: Source
    container: Container
    schema: Schema
    columns: tuple[tuple[str, str], ...]
    detected: str
    files: tuple[Path, ...]
    image_root: Path | None
    total: int | None
    fingerprint: str | None
    read: Callable[[], Iterator[Entry]]

    def entries(self) -> Iterator[Entry]:
        """Its entries in order, from the beginning each time."""
        return self.read()

    @property
    def reading(self) -> Reading:
        """What a worker needs to read its entries."""
        return Reading(self.schema, self.columns, self.source.question, self.source.system)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a container tells of itself; the names of its columns if it has any, and what else is worth knowing."""

    read: Callable[[], Iterator[Entry]]
    files: tuple[Path, ...]
    total: int
    columns: Sequence[str] | None = None
    fingerprint: str | None = None
    note: str = ""


def open_source(source: Source) -> Opened:
    """Find out how a source is stored and what its fields mean, from its content unless the user says it.

    Args:
        source: What the user says.

    Raises:
        UsageError: There is no such source, it is of a kind that is not read, what it is cannot be told, or what the
            user says of it cannot be.
        IxtuneError: It cannot be read, or holds no record.
    """
    given = source.path
    container, path = (source.container, given) if source.container else container_of(given)
    source = replace(source, path=path)
    _require_sense(source, container)
    root = _image_root(source, container)
    stored = _stored(source, container)
    schema, columns, why = _schema(source, container, stored)
    said = source.schema is not None
    what = f"{_CONTAINER_NAMES[container]} of {_SCHEMA_NAMES[schema]}"
    return Opened(
        source=source,
        container=container,
        schema=schema,
        columns=columns,
        detected=(f"{what}, as --format says{f' ({why})' if why else ''}" if said else f"{what}: {why}")
        + (f"; {Path(path).name} is the only table in the folder" if path != given else "")
        + stored.note,
        files=stored.files,
        image_root=root,
        total=stored.total,
        fingerprint=stored.fingerprint,
        read=stored.read,
    )


def _require_sense(source: Source, container: Container) -> None:
    """Raise where what the user says of a source cannot be."""
    path, where = Path(source.path), source.path
    if container is not Container.HUB and not path.exists():
        raise UsageError("there is no such file or folder", where=where, hint="check the path")
    if container in _FOLDERS and not path.is_dir():
        raise UsageError(f"{container} is a folder, and this is a file", where=where, hint="give the folder")
    if container in _FILES and path.is_dir():
        raise UsageError(f"{container} is a file, and this is a folder", where=where, hint="give the file itself")
    if container in _TEXT_TABLES and source.schema not in (None, Schema.COLUMNS):
        raise UsageError(
            f"the cells of a table hold no {_SCHEMA_NAMES[source.schema]}",
            where=where,
            hint=f"leave --format {source.schema} out, and name the columns with --columns",
        )
    if source.schema not in (None, Schema.COLUMNS) and (source.columns or source.question is not None):
        raise UsageError(
            f"{_SCHEMA_NAMES[source.schema]} have neither columns nor one question for all",
            where=where,
            hint=f"leave either --format {source.schema} or --columns and --question out",
        )
    if source.split is not None and container not in _WITH_SPLITS:
        raise UsageError(f"{_CONTAINER_NAMES[container]}: no splits", where=where, hint="leave --split out")
    if source.config is not None and container is not Container.HUB:
        raise UsageError(f"{_CONTAINER_NAMES[container]}: no configurations", where=where, hint="leave `config` out")


def _image_root(source: Source, container: Container) -> Path | None:
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
    """What the container's own reader tells."""
    path = Path(source.path)
    if container in (Container.JSON, Container.JSONL):
        read = list_entries if container is Container.JSON else line_entries
        return _Stored(partial(read, path), (path,), path.stat().st_size)
    if container in (*_TEXT_TABLES, Container.PARQUET):
        from ixtune.data.containers import tables

        if container is Container.PARQUET:
            files = tables.parquet_files(path, source.split)
            rows, names = tables.parquet_rows(files), tables.parquet_columns(files)
            return _Stored(partial(tables.parquet_entries, files), files, rows, names)
        delimiter = "\t" if container is Container.TSV else None
        names = tables.csv_columns(path, delimiter)
        return _Stored(partial(tables.csv_entries, path, delimiter), (path,), path.stat().st_size, names)
    if container in (Container.ARROW, Container.HUB):
        from ixtune.data.containers import datasets_folder

        opener = datasets_folder.open_arrow if container is Container.ARROW else datasets_folder.open_hub
        opened = opener(source)
        return _Stored(opened.entries, opened.files, opened.total, opened.columns, opened.fingerprint)
    if container is Container.IMAGEFOLDER:
        from ixtune.data.containers import image_folder

        files = image_folder.metadata_files(path)
        if not files:
            raise UsageError("there is no metadata.csv", where=source.path, hint="write one, or give another --format")
        of_images = [name for ours, theirs in source.columns if ours == "image" for name in theirs.split(",")]
        unnamed = image_folder.unnamed_images(path, of_images)
        note = (
            f"; {unnamed:,} more {'image lies' if unnamed == 1 else 'images lie'} in it, in no line" if unnamed else ""
        )
        return _Stored(partial(image_folder.entries, path, of_images), files, _size(files), note=note)
    from ixtune.data.containers import webdataset

    shards = webdataset.shards(path)
    return _Stored(partial(webdataset.entries, shards), shards, _size(shards))


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _schema(source: Source, container: Container, stored: _Stored) -> tuple[Schema, tuple[tuple[str, str], ...], str]:
    """The schema, its columns, and why."""
    schema, why = source.schema, ""
    records: list[Mapping[str, Any]] = []
    if container in _TEXT_TABLES:
        schema = Schema.COLUMNS
    elif schema in (None, Schema.COLUMNS):
        records = _peek(stored.read, source)
        schema, why = schema_of(records, source) if schema is None else (schema, "")
    if schema is not Schema.COLUMNS:
        assert schema is not None
        return schema, (), why
    from ixtune.data.schemas.columns import check_columns, described

    names = stored.columns or list(dict.fromkeys(str(name) for record in records for name in record))
    columns = check_columns(names, source)
    return schema, tuple(columns.items()), described(columns, names, source)


def _peek(read: Callable[[], Iterator[Entry]], source: Source) -> list[Mapping[str, Any]]:
    """The first records of a source, without the content of images."""
    records: list[Mapping[str, Any]] = []
    seen, first = 0, ""
    for entry in islice(read(), PEEK_ENTRIES):
        seen += 1
        value, fault = decoded(entry)
        if isinstance(value, Mapping):
            records.append(_light(value))
        elif not first:
            first = fault.found if fault else shown(value)
        if entry.position > PEEK_BYTES and records:
            break
    if not seen:
        raise IxtuneError("the source holds no record", where=source.path, hint="give a source with records")
    if not records:
        what = "the first entry is no record" if seen == 1 else f"none of the first {seen} entries is a record"
        raise UsageError(
            f"{what}: {first}",
            where=source.path,
            hint="give records: objects such as {...}; `ixtune prepare --help` lists the formats",
        )
    return records


def _light(value: Any, depth: int = _PICTURE_DEPTH) -> Any:
    """A value with images' bytes taken out: two hundred pages as PNG would be four gigabytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return b""
    if depth and isinstance(value, Mapping):
        return {name: _light(one, depth - 1) for name, one in value.items()}
    return [_light(one, depth - 1) for one in value] if depth and isinstance(value, list | tuple) else value
