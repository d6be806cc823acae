"""A prepared set on disk: an Arrow dataset of samples, manifest.json, rejects.jsonl.

The Arrow file has the layout of `datasets.Dataset.save_to_disk`, so the set opens with the plain
`datasets.load_from_disk` too. It is written as a stream and depends only on its rows and their division
into batches: the same input gives the same bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ixtune.data.images.pixels import Corrections
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.prepared.manifest import MANIFEST, options_of, read_manifest, roots_of
from ixtune.data.record import Record
from ixtune.data.text.template import Sample
from ixtune.errors import IxtuneError
from ixtune.family import member_of_layout
from ixtune.files import atomic_write_json, sha256_file
from ixtune.layout import PatchLayout

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, Features

REJECTS = "rejects.jsonl"
IMAGES = "images"
"""Folder in a set for the images that it contains itself."""
ARROW = "data-00000-of-00001.arrow"
OWN_ROOT = 0
"""The image root that is the set's own folder."""

_MEND = "pass a folder that `ixtune prepare` wrote, or prepare the data again"
_STATE = "state.json"
_INFO = "dataset_info.json"
# the batch size of `datasets`; a few megabytes of text tokens at most
_ROWS_PER_BATCH = 1000
_SIZES = ("width", "height", "hd_num", "resized_width", "resized_height", "pad_left", "pad_top", "rows", "cols")


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """An open prepared set; rows are read from the disk on access.

    Attributes:
        dataset: The samples, see `row_of` for the columns.
        manifest: Content of manifest.json.
        root: The folder.
        image_root: Current location of its images, if they moved.
    """

    dataset: Dataset
    manifest: dict[str, Any]
    root: Path
    image_root: Path | None = None

    @property
    def files(self) -> ImageFiles:
        """Locations of its images, and how to open them."""
        roots = roots_of(self.manifest, self.root, self.image_root)
        return ImageFiles(roots, Corrections.of(options_of(self.manifest).corrections))

    def image_path(self, record_index: int, image_index: int) -> Path:
        """Return the file of an image of a record."""
        return self.files.path(self.dataset[record_index]["pictures"][image_index])


class Writer:
    """Writes the Arrow part of a prepared set as a context manager, row by row or in batches.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow

        self._arrow = pyarrow
        self._folder = folder
        self._rows: list[Mapping[str, Any]] = []

    def __enter__(self) -> Writer:
        # Python's own file: a failed write raises an OSError with its number
        self._file = open(self._folder / ARROW, "wb")  # closed in __exit__
        self._stream = self._arrow.ipc.new_stream(self._file, features().arrow_schema)
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row of `row_of`."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_BATCH:
            self._flush()

    def add_batch(self, batch: pyarrow.RecordBatch) -> None:
        """Append rows of `batch_of`, as a separate batch."""
        self._flush()
        if batch.num_rows:
            self._stream.write_batch(batch)

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
            self._stream.write_batch(batch_of(self._rows))
            self._rows.clear()

    def _describe(self) -> None:
        """Write the two JSON files that `datasets` expects next to the Arrow file."""
        from datasets import DatasetInfo

        DatasetInfo(features=features()).write_to_directory(str(self._folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": ARROW}],
            "_fingerprint": sha256_file(self._folder / ARROW)[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        atomic_write_json(self._folder / _STATE, state)


def row_of(record: Record, sample: Sample, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the columns of one sample.

    Args:
        record: The record as read.
        sample: Its tokens from the chat template.
        images: Elements of the column `pictures`, see `stored_image`.
    """
    return {
        "id": record.id,
        "token_ids": sample.token_ids,
        "picture_slots": sample.image_slots,
        "supervised_starts": [start for start, _ in sample.supervised],
        "supervised_ends": [end for _, end in sample.supervised],
        "pictures": list(images),
        "turns": [{"role": turn.role, "text": turn.text.strip()} for turn in record.turns],
        "references": list(record.references),
        "length": sample.length,
        "supervised_tokens": sample.supervised_tokens,
        "source": record.source,
        "place": str(record.place),
    }


def name_of_image(stored: Mapping[str, Any]) -> str:
    """Return the name of a stored image in its source, such as `report.pdf#page=3`."""
    return str(stored.get("name") or stored["path"])


def stored_image(
    root: int, path: str, layout: PatchLayout, *, content: str = "", size: int = 0, name: str = "", document: str = ""
) -> dict[str, Any]:
    """Return one element of the column `pictures`.

    Args:
        root: Index of the image root.
        path: Path of the file, relative to the image root.
        layout: Layout of the image.
        content: Hash of the file's bytes, see `content_hash`: equal for equal images under any name.
        size: Size of the file in bytes.
        name: Name of the image in the source; "" if that is the path.
        document: Hash of the PDF that the image is a page of, with the page: equal for one page in several sizes.
    """
    return {
        "root": root,
        "path": path,
        "content": content,
        "bytes": size,
        "name": name,
        "document": document,
        "upscale": layout.upscale,
        **{name: getattr(layout, name) for name in _SIZES},
        "tokens": layout.tokens,
    }


def layout_of(stored: Mapping[str, Any]) -> PatchLayout:
    """Return the layout in an element of the column `pictures`; its layout rule is not stored there."""
    sizes = {name: stored[name] for name in _SIZES}
    return PatchLayout(
        **sizes,
        upscale=stored["upscale"],
        transposed=stored["width"] < stored["height"],
        member=member_of_layout(stored["rows"], stored["cols"], stored["tokens"]),
    )


def batch_of(rows: Iterable[Mapping[str, Any]]) -> pyarrow.RecordBatch:
    """Convert rows of `row_of` to Arrow."""
    import pyarrow

    return pyarrow.RecordBatch.from_pylist(list(rows), schema=features().arrow_schema)


def require(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared set after checking that all its files exist; opens no other file.

    Raises:
        IxtuneError: It is not a prepared set, or has another format; the message names what is missing.
    """
    if not folder.is_dir():
        raise IxtuneError("there is no such prepared set", where=str(folder), hint=_MEND)
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
        raise IxtuneError(
            "this folder holds several sets, not one",
            where=str(folder),
            hint=f"pass one of {', '.join(str(folder / split) for split in splits)}",
        )
    missing = [name for name in (MANIFEST, _STATE, _INFO, ARROW) if not (folder / name).is_file()]
    if missing:
        raise IxtuneError(f"not a prepared set: {', '.join(missing)} missing", where=str(folder), hint=_MEND)
    return read_manifest(folder / MANIFEST)


def count_images(folder: Path) -> int:
    """Return the number of distinct images in the records of a set.

    Raises:
        IxtuneError: Its Arrow part is missing or broken.
    """
    import pyarrow

    seen: set[tuple[int, str]] = set()
    try:
        with pyarrow.memory_map(str(folder / ARROW)) as file, pyarrow.ipc.open_stream(file) as batches:
            for batch in batches:
                shown = batch.column("pictures").flatten()
                seen.update(zip(*(shown.field(name).to_pylist() for name in ("root", "path")), strict=True))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise _broken(folder) from error
    return len(seen)


def _broken(folder: Path) -> IxtuneError:
    return IxtuneError("the Arrow part of the prepared set is broken", where=str(folder), hint=_MEND)


def load(folder: Path, image_root: Path | None = None) -> PreparedSet:
    """Open a prepared set.

    Args:
        folder: The set.
        image_root: Current location of its images, if they moved; see `roots_of`.

    Raises:
        IxtuneError: It is not a prepared set, has another format, or its parts do not belong together; the
            message names what is missing.
    """
    manifest = require(folder)

    import pyarrow
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(folder) from error
    rows = manifest["records"]["rows"]
    if len(dataset) != rows or dataset.column_names != list(features()):
        raise IxtuneError(
            f"the manifest counts {rows:,} rows, the Arrow part has {len(dataset):,} or other columns",
            where=str(folder),
            hint=_MEND,
        )
    return PreparedSet(dataset, manifest, folder, image_root)


@functools.cache
def features() -> Features:
    """Return the columns and their types; no column is called image, or TRL would require a processor (TRAPS 9)."""
    from datasets import Features, List, Value

    text, int32 = Value("string"), Value("int32")
    return Features(
        {
            "id": text,
            "token_ids": List(int32),
            "picture_slots": List(int32),
            "supervised_starts": List(int32),
            "supervised_ends": List(int32),
            "pictures": List(
                {"root": int32, "path": text, "content": text, "bytes": Value("int64"), "name": text, "document": text}
                | {"upscale": Value("bool")}
                | dict.fromkeys((*_SIZES, "tokens"), int32)
            ),
            "turns": List({"role": text, "text": text}),
            "references": List(text),
            "length": int32,
            "supervised_tokens": int32,
            "source": text,
            "place": text,
        }
    )
