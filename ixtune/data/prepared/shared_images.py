"""Find the images that prepared sets have in common, by the content of their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ixtune.data.images.content_hash import hash_of_file
from ixtune.data.images.near_images import NearImages, near_hash
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import MANIFEST
from ixtune.data.prepared.store import PreparedSet
from ixtune.errors import IxtuneError

_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Overlap:
    """Counts of the images and records that two sets have in common.

    Attributes:
        records: Number of records of each set.
        images: Number of distinct images of each set.
        shared_images: Number of images in both sets.
        showing: Number of records of each set that show a shared image.
        equal_records: Number of records of the second set with a duplicate in the first: the same images and turns.
    """

    records: tuple[int, int]
    images: tuple[int, int]
    shared_images: int
    showing: tuple[int, int]
    equal_records: int

    def as_json(self) -> dict[str, Any]:
        """Return all numbers by name."""
        return asdict(self)


@dataclass(slots=True)
class ExcludedImages:
    """Images of sets that must not appear in other records.

    Attributes:
        contents: Hashes of their files; for a page of a PDF that of the document with the page, too.
        near: Perceptual hashes, if near-duplicates are searched for.
    """

    contents: set[str] = field(default_factory=set)
    near: NearImages | None = None

    @classmethod
    def of(cls, folders: Sequence[Path], *, near: bool) -> ExcludedImages:
        """Read the images of sets.

        Args:
            folders: Prepared sets, or folders around a split.
            near: Decode every image for its perceptual hash too.

        Raises:
            IxtuneError: A folder is not a prepared set, or an image cannot be read.
        """
        excluded = cls(near=NearImages() if near else None)
        for prepared in (one for folder in folders for one in sets_in(folder)):
            files = prepared.files
            for _, images in _records(prepared):
                for image, content in images:
                    if content in excluded.contents:
                        continue
                    excluded.contents.update(filter(None, (content, image.get("document"))))
                    if excluded.near is not None:
                        excluded.near.add(near_hash(files.open(image)))
        return excluded

    def finds(self, contents: Iterable[str], near: Iterable[int]) -> bool:
        """Return whether any of these images is excluded."""
        if not self.contents.isdisjoint(contents):
            return True
        return self.near is not None and any(self.near.near(value) for value in near)


def sets_in(folder: Path) -> list[PreparedSet]:
    """Open a prepared set, or those of the splits in a folder.

    Raises:
        IxtuneError: There is none.
    """
    splits = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    return [store.load(path) for path in splits or [folder]]


def compare(first: Path, second: Path) -> Overlap:
    """Count the images and records that two prepared sets, or folders around splits, have in common.

    Raises:
        IxtuneError: One of them is not a prepared set, or an image that is not hashed yet cannot be read.
    """
    sides = [[record for prepared in sets_in(folder) for record in _keys(prepared)] for folder in (first, second)]
    images = [{content for contents, _ in side for content in contents} for side in sides]
    shared = images[0] & images[1]
    showing = [sum(not shared.isdisjoint(contents) for contents, _ in side) for side in sides]
    twins = {digest for _, digest in sides[0]}
    return Overlap(
        records=(len(sides[0]), len(sides[1])),
        images=(len(images[0]), len(images[1])),
        shared_images=len(shared),
        showing=(showing[0], showing[1]),
        equal_records=sum(digest in twins for _, digest in sides[1]),
    )


def _keys(prepared: PreparedSet) -> Iterator[tuple[list[str], bytes]]:
    """Yield for each record the hashes of its images (of a PDF page in any size), and one hash of the whole record."""
    for turns, images in _records(prepared):
        contents = [str(image.get("document") or content) for image, content in images]
        text = json.dumps([contents, turns], ensure_ascii=False)
        yield contents, hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _records(prepared: PreparedSet) -> Iterator[tuple[Any, list[tuple[dict[str, Any], str]]]]:
    """Yield for each record its turns, and its images with their content hashes; hash the images of format 2."""
    hashed: dict[tuple[int, str], str] = {}

    def content_of(image: dict[str, Any]) -> str:
        if content := image.get("content"):
            return str(content)
        key = (image["root"], image["path"])
        if key not in hashed:
            hashed[key] = _hash(prepared.files.path(image))
        return hashed[key]

    rows = prepared.dataset.select_columns(["turns", "pictures"])
    for start in range(0, len(rows), _ROWS):
        batch = rows[start : start + _ROWS]
        for turns, images in zip(batch["turns"], batch["pictures"], strict=True):
            yield turns, [(image, content_of(image)) for image in images]


def _hash(path: Path) -> str:
    try:
        return hash_of_file(path)
    except OSError as error:
        raise IxtuneError(
            f"an image of the set cannot be read: {error.strerror or error}",
            where=str(path),
            hint="put it back, or prepare the set again: newer sets store the hashes of their images",
        ) from error
