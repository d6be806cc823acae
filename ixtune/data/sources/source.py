"""What a user says about one source of records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Container(StrEnum):
    """How entries are stored."""

    JSON = "json"  # one list
    JSONL = "jsonl"  # one value a line
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"  # a file, or a folder of them
    ARROW = "arrow"  # a folder written by datasets' save_to_disk
    HUB = "hub"  # a name for datasets.load_dataset
    IMAGEFOLDER = "imagefolder"  # a folder of images with metadata.jsonl (or .csv)
    WEBDATASET = "webdataset"  # one tar, or a folder of them


class Schema(StrEnum):
    """What the fields of an entry mean."""

    IXC = "ixc"  # image: [paths], conversations: [{from, value}] with <ImageHere>
    LLAVA = "llava"  # image: path, conversations: [{from, value}] with <image>
    SHAREGPT = "sharegpt"  # conversations: [{from, value}], images, system, with <image>
    OPENAI = "openai"  # messages: [{role, content: text or parts}]
    COLUMNS = "columns"  # question, answer, image, ...: see columns.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source and how it is to be read; what is None is detected or the run's default.

    Attributes:
        path: A file, a folder, or the name of a dataset on the hub.
        container: How entries are stored.
        schema: What their fields mean.
        columns: Pairs (our name, theirs) for tables; several of theirs for `image`, joined by commas.
        question: Asked of every record of a table that has no question column.
        image_root: The folder that paths are relative to and may not leave; by default the source's own.
        hd_num: The most crops an image may fill.
        weight: Expected repeats of each record in an epoch.
        count: Records in an epoch, in place of a weight.
        system: A system prompt for records that bring none.
        split: Of a dataset with several.
        config: Of a dataset on the hub with several configurations.
    """

    path: str
    container: Container | None = None
    schema: Schema | None = None
    columns: tuple[tuple[str, str], ...] = ()
    question: str | None = None
    image_root: Path | None = None
    hd_num: int | None = None
    weight: float | None = None
    count: int | None = None
    system: str | None = None
    split: str | None = None
    config: str | None = None


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
