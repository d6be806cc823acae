"""Settings of one source of records, and the settings for reading its entries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Container(StrEnum):
    """File format or folder layout in which entries are stored."""

    JSON = "json"  # one list
    JSONL = "jsonl"  # one value per line
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"  # a file, or a folder of them
    ARROW = "arrow"  # a folder written by datasets' save_to_disk
    HUB = "hub"  # a name for datasets.load_dataset
    IMAGEFOLDER = "imagefolder"  # a folder of images with metadata.jsonl (or .csv)
    CLASSES = "classes"  # folders of images, each named after the class of its images
    BESIDE = "beside"  # images, each with a JSON or text file of the same name
    OBJECT = "object"  # one JSON object around a list: DocVQA, TextVQA, VQA v2, COCO captions
    SHEET = "sheet"  # a sheet of an Excel or OpenDocument workbook
    WEBDATASET = "webdataset"  # one tar, or a folder of them


class Schema(StrEnum):
    """Meaning of the fields of an entry."""

    IXC = "ixc"  # image: [paths], conversations: [{from, value}] with <ImageHere>
    LLAVA = "llava"  # image: path, conversations: [{from, value}] with <image>
    SHAREGPT = "sharegpt"  # conversations: [{from, value}], images, system, with <image>
    OPENAI = "openai"  # messages: [{role, content: text or parts}]
    COLUMNS = "columns"  # question, answer, image, ...: see columns.py


# LLaVA uses the image names as ids: a quarter of a million of them repeat in one set derived from it
REPEATED_IDS = (Schema.LLAVA,)
"""Schemas whose ids may repeat within a source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source and its settings; None means detected, or the run's default.

    Attributes:
        path: A file, a folder, or the name of a dataset on the hub.
        container: Format in which entries are stored.
        schema: Meaning of their fields.
        columns: Pairs (our name, theirs); several of theirs for `image`, joined by commas; "" for none.
        question: Question of every record of a table that has no question column.
        image_root: The folder that paths are relative to and must not leave; by default the source's own.
        remote_root: The image root, if it is a URL in an object store.
        origin: The address of an object store that the local copy in `path` is from.
        image_pattern: Path of each record's image with fields in braces, see image_pattern.
        hd_num: Maximum number of crops per image.
        weight: Expected repeats of each record in an epoch.
        count: Records in an epoch, in place of a weight.
        system: System prompt for records that have none.
        split: The split of a dataset, the sheet of a workbook, or the list of a JSON object, if it has several.
        config: The configuration of a dataset on the hub with several.
        encoding: Text encoding of a CSV or TSV; by default UTF-8, or UTF-16 with a byte order mark.
        annotations: The second file of a pair: the answers to the questions of VQA v2.
        tags: Pairs (name in a dataset_info.json, value): how turns are spelled.
        missing_placeholder: Images without placeholders: "front" puts any number in front of the first question,
            "reject" refuses them; by default a single image goes in front and several are refused.
        allow_image_text: Treat marks such as <img> in texts as plain text.
        answers: Whether records need answers; if not, the source holds questions to ask.
        remark: Note from the file that lists the source, printed with the detected format.
    """

    path: str
    container: Container | None = None
    schema: Schema | None = None
    columns: tuple[tuple[str, str], ...] = ()
    question: str | None = None
    image_root: Path | None = None
    remote_root: str | None = None
    origin: str | None = None
    image_pattern: str | None = None
    hd_num: int | None = None
    weight: float | None = None
    count: int | None = None
    system: str | None = None
    split: str | None = None
    config: str | None = None
    encoding: str | None = None
    annotations: Path | None = None
    tags: tuple[tuple[str, str], ...] = ()
    missing_placeholder: str | None = None
    allow_image_text: bool | None = None
    answers: bool = True
    remark: str = ""

    @property
    def name(self) -> str:
        """The path or address as the user gave it."""
        return self.origin or self.path


@dataclass(frozen=True, slots=True)
class Reading:
    """Settings for reading the entries of a source; small and picklable, because every worker gets them.

    Attributes:
        schema: Meaning of the fields of an entry.
        columns: Pairs (our name, theirs); "" for none.
        question: Question of every row of a table that has no question column.
        system: System prompt for records that have none.
        form: The key in `forms.FORMS` of the form to rewrite records from.
        tags: Key and role names of turns, see `Source.tags`.
        image_pattern: See `Source.image_pattern`.
        image_root: Folder in which files named by unused fields are searched for; None to judge by spelling alone.
        remote_root: See `Source.remote_root`; it is cut off from the paths in records.
        image_named: The user named the image fields; others are left out on purpose.
        answer_named: The user named the answer; other annotations are left out on purpose.
        missing_placeholder: See `Source.missing_placeholder`.
        allow_image_text: See `Source.allow_image_text`.
        image_first: See `Member.image_first`.
        answers: See `Source.answers`.
    """

    schema: Schema
    columns: tuple[tuple[str, str], ...] = ()
    question: str | None = None
    system: str | None = None
    form: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    image_pattern: str | None = None
    image_root: Path | None = None
    remote_root: str | None = None
    image_named: bool = False
    answer_named: bool = False
    missing_placeholder: str | None = None
    allow_image_text: bool = False
    image_first: bool = False
    answers: bool = True
