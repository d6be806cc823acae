"""Look at the data of a new project: its form, its number of records, and where its images are."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ixtune.data.rejects import RecordError
from ixtune.data.schemas.fields import shown
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources.data_config import columns_of
from ixtune.data.sources.source import Source
from ixtune.data.sources.source_loader import Opened, open_source
from ixtune.errors import UsageError

_COUNTED = 1000  # records; with more, a validation split is never too small
_LOOKED_AT, _FOLDERS_TRIED = 20, 1000  # records whose images are searched, and folders tried
LEAST_FOR_VALIDATION = 20
"""Number of records below which there is no validation split."""


@dataclass(frozen=True, slots=True)
class Data:
    """Readable source of records.

    Attributes:
        opened: The source.
        records: Number of records, at most `_COUNTED`.
        largest_group: Number of records that share the most common image.
    """

    opened: Opened
    records: int
    largest_group: int = 1

    @property
    def validation_share(self) -> float | None:
        """Return the fraction for validation; None if there are too few records or too many share one image."""
        share = 0.05 if self.records >= _COUNTED else 0.1
        # records that share an image stay on the same side
        can_be_split = self.records >= LEAST_FOR_VALIDATION and 2 * self.largest_group <= share * self.records
        return share if can_be_split else None

    @property
    def counted(self) -> str:
        """Return the number of records in words."""
        return f"{self.records:,} records" if self.records < _COUNTED else f"{_COUNTED:,} records or more"


def look(path: str, image_root: Path | None = None, columns: str = "") -> Data:
    """Open a source, detect its form, and count its records.

    Args:
        path: File, folder or hub dataset.
        image_root: Folder that image paths are relative to.
        columns: Column names of a table, as `ours=theirs,...`.

    Raises:
        IxtuneError: The source cannot be read, or its images are not found; the message says why.
    """
    source = Source(path=path, image_root=image_root, columns=columns_of(columns))
    opened = open_source(source)
    if root := _other_root(opened):
        opened = open_source(replace(source, image_root=root))
    records, showing = 0, Counter[str | bytes | None]()
    for entry in islice(opened.entries(), _COUNTED):
        records += 1
        with suppress(RecordError):
            images = record_of(entry, opened.reading).images
            showing.update({image.path or image.content for image in images})
    return Data(opened, records, max(showing.values(), default=1))


def _other_root(opened: Opened) -> Path | None:
    """Return the folder that the first image paths are relative to, if it is not the default one.

    Raises:
        UsageError: No image is found. If only some are missing, `ixtune prepare` reports them.
    """
    root, paths = opened.image_root, []
    for entry in islice(opened.entries(), _LOOKED_AT):
        with suppress(RecordError):
            paths += [one.path for one in record_of(entry, opened.reading).images if one.path is not None]
    if root is None or not paths or any((root / path).is_file() for path in paths):
        return None
    below = [folder for folder in islice(root.rglob("*/"), _FOLDERS_TRIED) if not opened.source.image_root]
    for folder in sorted(below, key=lambda folder: len(folder.parts)):
        if all((folder / path).is_file() for path in paths):
            return folder
    raise UsageError(
        f"no image found: {shown(paths[0])}",
        where=str(root),
        hint="pass --image-root with the folder that the image paths are relative to",
    )
