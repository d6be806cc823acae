"""A prepared set on disk: an Arrow dataset of samples, manifest.json, rejects.jsonl.

The Arrow file has the layout of `datasets.Dataset.save_to_disk`, so the set opens with the plain
`datasets.load_from_disk` too. It is written as a stream, and depends on nothing but its rows: the same input
gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ixtune.data.record import Record
from ixtune.data.template import TEMPLATE_VERSION, Sample
from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_json, sha256_file
from ixtune.layout import LAYOUT_VERSION, PatchLayout

if TYPE_CHECKING:
    from datasets import Dataset, Features

FORMAT = 1
"""Raised when the columns or the manifest change."""

MANIFEST = "manifest.json"
REJECTS = "rejects.jsonl"
_KIND = "ixtune prepared set"
_ARROW = "data-00000-of-00001.arrow"
_STATE = "state.json"
_INFO = "dataset_info.json"
# as `datasets` itself writes them; a few megabytes of text tokens at most
_ROWS_PER_BATCH = 1000


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """A prepared set, opened; rows are read from the disk when they are asked for.

    Attributes:
        dataset: The samples, see `row_of` for the columns.
        manifest: What manifest.json says.
        root: The folder.
    """

    dataset: Dataset
    manifest: dict[str, Any]
    root: Path

    @property
    def image_root(self) -> Path:
        """The folder that the pictures' paths are relative to."""
        return Path(self.manifest["image_root"])

    def picture_path(self, record_index: int, picture_index: int) -> Path:
        """Where a picture of a record lies."""
        relative: str = self.dataset[record_index]["pictures"][picture_index]["path"]
        return self.image_root / relative


class Writer:
    """Writes the Arrow part of a prepared set, row by row, as a context manager.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow

        self._arrow = pyarrow
        self._folder = folder
        self._features = _features()
        self._schema = self._features.arrow_schema
        self._rows: list[Mapping[str, Any]] = []

    def __enter__(self) -> Writer:
        # Python's own file: what the disk refuses comes back as an OSError with its number
        self._file = open(self._folder / _ARROW, "wb")  # closed in __exit__
        self._stream = self._arrow.ipc.new_stream(self._file, self._schema)
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row of `row_of`."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_BATCH:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._flush()
                self._stream.close()
        if error is None:
            self._describe()

    def _flush(self) -> None:
        if self._rows:
            self._stream.write_batch(self._arrow.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()

    def _describe(self) -> None:
        """Write the two JSON files that `datasets` expects beside the Arrow file."""
        from datasets import DatasetInfo

        DatasetInfo(features=self._features).write_to_directory(str(self._folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": _ARROW}],
            "_fingerprint": sha256_file(self._folder / _ARROW)[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        atomic_write_json(self._folder / _STATE, state)


def row_of(record: Record, sample: Sample, pictures: Sequence[tuple[str, PatchLayout]]) -> dict[str, Any]:
    """The columns of one sample.

    Args:
        record: What was read.
        sample: What the template made of it.
        pictures: For each picture its path relative to the image root, and its layout.
    """
    return {
        "id": record.id,
        "token_ids": sample.token_ids,
        "picture_slots": sample.picture_slots,
        "supervised_starts": [start for start, _ in sample.supervised],
        "supervised_ends": [end for _, end in sample.supervised],
        "pictures": [
            {
                "path": path,
                "width": layout.width,
                "height": layout.height,
                "hd_num": layout.hd_num,
                "rows": layout.rows,
                "cols": layout.cols,
                "tokens": layout.tokens,
            }
            for path, layout in pictures
        ],
        "turns": [{"role": turn.role, "text": turn.text.strip()} for turn in record.turns],
        "length": sample.length,
        "supervised_tokens": sample.supervised_tokens,
        "source": record.source,
        "line": record.line,
    }


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write manifest.json: `content`, and what it takes to tell whether a later ixtune may read the set."""
    from ixtune import __version__

    versions = {
        "kind": _KIND,
        "format": FORMAT,
        "ixtune_version": __version__,
        "layout_version": LAYOUT_VERSION,
        "template_version": TEMPLATE_VERSION,
    }
    atomic_write_json(folder / MANIFEST, versions | dict(content))


def load(folder: Path) -> PreparedSet:
    """Open a prepared set.

    Raises:
        IxtuneError: It is no prepared set, one of another format, or its parts do not belong together; the
            message names what is missing.
    """
    mend = "give a folder that `ixtune prepare` wrote, or prepare the data again"
    if not folder.is_dir():
        raise IxtuneError("there is no such prepared set", where=str(folder), mend=mend)
    missing = [name for name in (MANIFEST, _STATE, _INFO, _ARROW) if not (folder / name).is_file()]
    if missing:
        raise IxtuneError(f"not a prepared set: {', '.join(missing)} missing", where=str(folder), mend=mend)
    manifest = _manifest(folder / MANIFEST, mend)

    import pyarrow
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise IxtuneError("the Arrow part of the prepared set is broken", where=str(folder), mend=mend) from error
    accepted = manifest["records"]["accepted"]
    if len(dataset) != accepted or dataset.column_names != list(_features()):
        raise IxtuneError(
            f"the manifest counts {accepted:,} records, the Arrow part has {len(dataset):,} or other columns",
            where=str(folder),
            mend=mend,
        )
    return PreparedSet(dataset, manifest, folder)


def check_compatible(manifest: Mapping[str, Any], tokenizer_sha256: str) -> None:
    """Refuse a set whose tokens or layouts are not those that this ixtune would make for this tokenizer.

    Raises:
        IxtuneError: Tokenizer, template or layout differ; each difference with both values.
    """
    wanted = {
        "tokenizer_sha256": tokenizer_sha256,
        "template_version": TEMPLATE_VERSION,
        "layout_version": LAYOUT_VERSION,
    }
    notes = [
        f"{key}: the set has {manifest.get(key)}, needed is {value}"
        for key, value in wanted.items()
        if manifest.get(key) != value
    ]
    if notes:
        raise IxtuneError(
            "the set was prepared for another tokenizer or by another ixtune",
            where=str(manifest.get("source", {}).get("path")),
            mend="prepare it again with --base set to the base that is used now",
            notes=notes,
        )


def _manifest(path: Path, mend: str) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, version = manifest["kind"], manifest["format"]
        int(manifest["records"]["accepted"])
        str(manifest["image_root"])
    except (ValueError, KeyError, TypeError) as error:
        raise IxtuneError("the manifest cannot be read", where=str(path), mend=mend) from error
    if kind != _KIND or version != FORMAT:
        raise IxtuneError(
            f"the manifest is of kind {kind!r}, format {version}; needed is {_KIND!r}, format {FORMAT}",
            where=str(path),
            mend="prepare the data again with this ixtune",
        )
    return dict(manifest)


def _features() -> Features:
    """The columns and their types; TRL would ask for a processor if one were called image (TRAPS 9)."""
    from datasets import Features, List, Value

    text, int32 = Value("string"), Value("int32")
    numbers = ("width", "height", "hd_num", "rows", "cols", "tokens")
    return Features(
        {
            "id": text,
            "token_ids": List(int32),
            "picture_slots": List(int32),
            "supervised_starts": List(int32),
            "supervised_ends": List(int32),
            "pictures": List({"path": text} | dict.fromkeys(numbers, int32)),
            "turns": List({"role": text, "text": text}),
            "length": int32,
            "supervised_tokens": int32,
            "source": text,
            "line": Value("int64"),
        }
    )
