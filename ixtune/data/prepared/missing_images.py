"""Check that the images of prepared sets are still the files they were prepared from, without decoding them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ixtune.data.images.content_hash import hash_of_file
from ixtune.data.images.header import read_header
from ixtune.data.prepared.manifest import MANIFEST, moved_roots
from ixtune.data.prepared.store import OWN_ROOT, PreparedSet
from ixtune.data.rejects import RecordError
from ixtune.errors import IxtuneError

_NAMED = 5
# stat waits for the disk, usually a network disk; more threads than this gained nothing on the disks tested
_THREADS = 16
_ROUND = 4096


@dataclass(frozen=True, slots=True)
class ImageFault:
    """An image that a set cannot be trained or evaluated with.

    Attributes:
        path: The file.
        found: The problem in one line.
    """

    path: Path
    found: str


def missing_images(sets: Iterable[PreparedSet]) -> list[ImageFault]:
    """Return every image of the sets that is missing or has changed; each file once, in set order.

    A file has to exist and to have the size in bytes recorded at preparation. A file that was modified or replaced
    after the set was written is hashed and compared, and so is every file of an image root that is elsewhere now. Sets
    of format 2 record neither; there the size in pixels is compared.
    """
    return [fault for prepared in sets for fault in _faults(prepared)]


def require_images(sets: Sequence[PreparedSet], *, hint: str) -> None:
    """Raise unless every image of the sets exists and is unchanged.

    Args:
        sets: Prepared sets.
        hint: One-line hint for images that have moved, such as "set data.image_root=FOLDER".

    Raises:
        IxtuneError: Images are missing or have changed; all are counted, the first are named.
    """
    faults = missing_images(sets)
    if faults:
        more = len(faults) - _NAMED
        notes = [f"{fault.path}: {fault.found}" for fault in faults[:_NAMED]]
        raise IxtuneError(
            f"{len(faults):,} {'image of the data is' if len(faults) == 1 else 'images of the data are'} "
            "missing or changed",
            where=", ".join(dict.fromkeys(str(prepared.root) for prepared in sets)),
            hint=f"put them back; if they moved, {hint}; if they changed, prepare the data again",
            notes=[*notes, *([f"and {more:,} more"] if more > 0 else [])],
        )


@dataclass(frozen=True, slots=True)
class _Image:
    root: int
    path: str
    content: str | None
    size: int | None
    width: int
    height: int


def _faults(prepared: PreparedSet) -> Iterator[ImageFault]:
    manifest = (prepared.root / MANIFEST).stat()
    written = max(manifest.st_mtime_ns, manifest.st_ctime_ns)
    files = prepared.files
    moved = moved_roots(prepared.manifest, files.roots)

    def check(image: _Image) -> ImageFault | None:
        try:
            file = files.path({"root": image.root, "path": image.path})
        except RecordError as error:
            return ImageFault(Path(image.path), error.what)
        try:
            found = os.stat(file)
            if image.size is None:
                header = read_header(file, files.corrections, name=str(file))
                if (header.width, header.height) != (image.width, image.height):
                    return ImageFault(
                        file, f"{header.width}x{header.height} pixels, prepared with {image.width}x{image.height}"
                    )
                return None
            if found.st_size != image.size:
                return ImageFault(file, f"{found.st_size:,} bytes, prepared with {image.size:,}")
            # a copy that keeps the old time of modification still has a new time of change
            changed_at = found.st_mtime_ns if image.root == OWN_ROOT else max(found.st_mtime_ns, found.st_ctime_ns)
            suspect = image.root in moved or changed_at > written
            if image.content and suspect and hash_of_file(file) != image.content:
                return ImageFault(file, "its content has changed since it was prepared")
        except FileNotFoundError:
            return ImageFault(file, "there is no such file")
        except OSError as error:
            return ImageFault(file, (error.strerror or str(error)).lower())
        except RecordError as error:
            return ImageFault(file, error.what)
        return None

    images = _images(prepared)
    with ThreadPoolExecutor(_THREADS) as pool:
        # in batches: a future for each of a million images would take a gigabyte
        while some := list(islice(images, _ROUND)):
            yield from filter(None, pool.map(check, some))


def _images(prepared: PreparedSet) -> Iterator[_Image]:
    """Yield each image of a set once."""
    seen: set[tuple[int, str]] = set()
    for chunk in prepared.dataset.data.column("pictures").chunks:
        stored = chunk.flatten()
        names = [field.name for field in stored.type]

        def column(name: str, stored: Any = stored, names: list[str] = names) -> list[Any]:
            return stored.field(name).to_pylist() if name in names else [None] * len(stored)

        rows = zip(*(column(name) for name in ("root", "path", "content", "bytes", "width", "height")), strict=True)
        for row in rows:
            if row[:2] not in seen:
                seen.add(row[:2])
                yield _Image(*row)
