"""Read Hugging Face `datasets`: folders written by save_to_disk, and names on the hub. No image is decoded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixtune.data.containers.arrow_rows import batch_rows, column_names, rows_of
from ixtune.data.record import Place
from ixtune.data.rejects import Reason
from ixtune.data.sources.entry import Entry, Fault
from ixtune.data.sources.source import Source
from ixtune.errors import IxtuneError, UsageError

if TYPE_CHECKING:
    import datasets

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Rows:
    """An opened dataset.

    Attributes:
        columns: Column names.
        total: The number of rows.
        fingerprint: Fingerprint by which `datasets` distinguishes versions.
        files: Files of the dataset; () for the hub, whose files belong to the cache.
        name: Name in messages.
        dataset: The dataset, which yields Arrow tables.
        roots: Cache folders from which image files of the hub may be read.
    """

    columns: list[str]
    total: int
    fingerprint: str
    files: tuple[Path, ...]
    name: str
    dataset: datasets.Dataset
    roots: tuple[Path, ...] = ()

    def entries(self) -> Iterator[Entry]:
        """Yield the rows in order, as mappings of column names to values.

        Raises:
            IxtuneError: The files are broken.
        """
        import pyarrow

        number = 0
        try:
            for table in self.dataset.iter(batch_rows(self.dataset.data.schema)):
                for value, fault in rows_of(table):
                    number += 1
                    if self.roots and value is not None:
                        value, fault = _with_files(value, self.roots)
                    yield Entry(number, self.name, Place("row", number), value=value, fault=fault, position=number)
        except (pyarrow.ArrowException, OSError) as error:
            raise IxtuneError(
                f"the dataset is broken: {str(error).splitlines()[0]}",
                where=f"{self.name}, after row {number}",
                hint="save or download it again",
            ) from error


def open_arrow(source: Source) -> Rows:
    """Open a folder written by `save_to_disk`.

    Raises:
        UsageError: It holds several splits and none is chosen, or not the one that is.
        IxtuneError: It is not such a folder, or it is broken.
    """
    folder = Path(source.path)
    splits = _saved_splits(folder)
    if splits is not None:
        folder /= _chosen(splits, source)
    elif source.split is not None:
        raise UsageError("the folder holds a dataset without splits", where=source.path, hint="remove --split")
    with _explained("the folder cannot be read", source.path, "save the dataset again with save_to_disk"):
        import datasets

        dataset = datasets.load_from_disk(str(folder), keep_in_memory=False)
        return _rows(dataset, source.path, files=tuple(sorted(Path(one["filename"]) for one in dataset.cache_files)))


def open_hub(source: Source) -> Rows:
    """Open a dataset on the Hugging Face hub; it is downloaded unless the cache has it.

    Raises:
        UsageError: The name cannot be one, or there are several configurations or splits and none is chosen.
        IxtuneError: It is not in the cache and cannot be downloaded.
    """
    if Path(source.path).exists() or not _HUB_NAME.fullmatch(source.path):
        raise UsageError(
            "this is a local path, not the name of a dataset on the hub"
            if Path(source.path).exists()
            else "this is not the name of a dataset on the hub",
            where=source.path,
            hint="write OWNER/NAME; for local data remove `hub` from --format",
        )
    with _explained(
        "the dataset could not be loaded from the hub",
        source.path,
        "check the name and the network (a gated one needs a token); to have it offline, download it once with "
        f"the network: python -c \"import datasets; datasets.load_dataset('{source.path}')\"",
    ):
        import datasets
        import huggingface_hub.constants

        builder = _builder(source)
        if builder.info.splits:  # known before the download; not always
            _chosen(list(builder.info.splits), source)
        builder.download_and_prepare()
        splits = builder.as_dataset()
        dataset = splits[_chosen(list(splits), source)]
        caches = (
            huggingface_hub.constants.HF_HUB_CACHE,
            datasets.config.HF_DATASETS_CACHE,
            datasets.config.DOWNLOADED_DATASETS_PATH,
        )
        return _rows(dataset, source.path, roots=tuple(Path(cache).resolve() for cache in caches))


def _rows(dataset: datasets.Dataset, name: str, *, files: tuple[Path, ...] = (), roots: tuple[Path, ...] = ()) -> Rows:
    plain = dataset.with_format("arrow")  # tables as they are stored: nothing is decoded
    return Rows(
        columns=column_names(plain.features.arrow_schema, name),
        total=len(plain),
        fingerprint=str(dataset._fingerprint),
        files=files,
        name=name,
        dataset=plain,
        roots=roots,
    )


def _saved_splits(folder: Path) -> list[str] | None:
    """Return the splits of a folder that has several; None for a folder of one dataset."""
    listing = folder / "dataset_dict.json"
    if not listing.is_file():
        return None
    try:
        splits = json.loads(listing.read_bytes())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        splits = None
    # a split is the name of a folder next to the list, not an arbitrary path
    if not isinstance(splits, list) or not all(
        isinstance(one, str) and re.fullmatch(r"\w[\w.-]*", one) for one in splits
    ):
        raise IxtuneError(
            "the list of splits is broken", where=str(listing), hint="save the dataset again with save_to_disk"
        )
    return splits


def _chosen(splits: list[str], source: Source) -> str:
    """Return the split to read."""
    if source.split in splits:
        assert source.split is not None
        return source.split
    if source.split is None and len(splits) == 1:
        return splits[0]
    listed = ", ".join(splits) or "no split"
    raise UsageError(
        f"there are the splits {listed}" if source.split is None else f"there is no split {source.split}, but {listed}",
        where=source.path,
        hint="choose one with --split",
    )


def _builder(source: Source) -> datasets.DatasetBuilder:
    import datasets

    try:
        return datasets.load_dataset_builder(source.path, source.config)
    except ValueError as error:
        # some messages have the list of configurations in brackets and some without, cached or not
        if "config" not in str(error).lower():
            raise
        raise UsageError(
            "there is no such configuration" if source.config else "there are several configurations",
            where=source.path,
            hint="choose one with --config",
            notes=[line.strip() for line in str(error).splitlines() if line.strip()],
        ) from error


@contextmanager
def _explained(what: str, where: str, hint: str) -> Iterator[None]:
    try:
        yield
    except (IxtuneError, MemoryError):
        raise
    except Exception as error:  # the exceptions of `datasets` differ by version, file system and network
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise IxtuneError(f"{what}: {lines[0] if lines else type(error).__name__}", where=where, hint=hint) from error


def _with_files(value: dict[str, Any], roots: tuple[Path, ...]) -> tuple[dict[str, Any] | None, Fault | None]:
    """Return a row of the hub with the content of image files that are in the cache next to the table."""
    try:
        return {name: _with_file(one, roots) for name, one in value.items()}, None
    except OSError as error:
        return None, Fault(
            Reason.PICTURE_MISSING,
            f"an image of the cache cannot be read: {error.strerror}",
            "download the dataset again",
        )


def _with_file(value: Any, roots: tuple[Path, ...]) -> Any:
    if isinstance(value, list):
        return [_with_file(one, roots) for one in value]
    if isinstance(value, dict) and set(value) == {"bytes", "path"} and value["bytes"] is None and value["path"]:
        path = Path(value["path"]).resolve()
        if any(path.is_relative_to(root) for root in roots):  # never an arbitrary path from a downloaded table
            return {"bytes": path.read_bytes(), "path": path.name}
    return value
