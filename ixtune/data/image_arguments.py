"""Expand image arguments of the command line: files, pages of documents, folders, and patterns (scans/*.pdf)."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ixtune.data.image_reader import ImageReader
from ixtune.data.images.header import KNOWN_SUFFIXES
from ixtune.data.images.pixels import Corrections
from ixtune.data.prepared.manifest import MANIFEST
from ixtune.data.record import ImageRef
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.image_references import image_of
from ixtune.errors import IxtuneError, UsageError

_ENDINGS = (*sorted(KNOWN_SUFFIXES), ".pdf")


def expand(given: Sequence[str], bad: list[IxtuneError] | None = None) -> list[str]:
    """Return the images that some arguments name: those in a folder and below it, and those that match a pattern.

    Args:
        given: Paths, folders and patterns.
        bad: Receives the errors of arguments that name no image; None to raise the first one.

    Raises:
        IxtuneError: A folder holds no image, or nothing matches a pattern.
    """
    images: list[str] = []
    for one in given:
        try:
            images += _expanded(one)
        except IxtuneError as error:
            if bad is None:
                raise
            bad.append(error)
    return images


def require_single(given: Sequence[str]) -> None:
    """Raise for a folder or a pattern if one question is asked about all images at once.

    Raises:
        UsageError: There is one; the hint says how to ask about each of its images.
    """
    for one in given:
        if os.path.isdir(one) or _is_pattern(one):
            count = len(_expanded(one))
            raise UsageError(
                f"{one} stands for {count:,} image{'s' * (count != 1)}",
                where="--image",
                hint="add --out answers.jsonl to ask the question about each of them, or name one image",
            )


def image_argument(given: str | os.PathLike[str]) -> ImageRef:
    """Return the image that an argument names, anywhere on this machine, with an absolute path.

    Raises:
        RecordError: It is a URL, or the image itself.
    """
    image = image_of(os.fspath(given), "the image")
    if image.path is None:
        raise RecordError(
            Reason.BAD_IMAGE_FIELD, "the argument is the image itself", hint="pass a path, or a file of questions"
        )
    return ImageRef(image.name, str(Path(image.path).expanduser().absolute()))


def argument_reader(corrections: Corrections, dpi: int | None = None) -> ImageReader:
    """Return a reader of images anywhere on this machine; pages of documents are opened when they are needed.

    Args:
        corrections: Deviations from how the reference opens an image.
        dpi: Resolution of PDF pages; None for the one that fills their layouts.
    """
    return ImageReader(Path("/"), 0, Path(), corrections=corrections, dpi=dpi, render=False)


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a prepared set or contains several."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def _expanded(one: str) -> list[str]:
    if os.path.isdir(one):
        found = sorted(
            os.path.join(below, name)
            for below, _, names in os.walk(one)
            for name in names
            if name.lower().endswith(_ENDINGS) and not name.startswith(".")
        )
        if not found:
            raise IxtuneError("the folder holds no image", where=one, hint="pass a folder with images or PDF files")
        return found
    if not _is_pattern(one):
        return [one]
    if not (found := sorted(glob.glob(one, recursive=True))):
        raise IxtuneError("no file matches this pattern", where=one, hint="check it with `ls`")
    return found


def _is_pattern(one: str) -> bool:
    return glob.has_magic(one) and "://" not in one and not os.path.exists(one)
