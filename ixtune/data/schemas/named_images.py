"""Decide whether a text names an image that a record shows already, or another one that would be lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ixtune.data.images.documents import split_pages
from ixtune.data.images.image_paths import locate
from ixtune.data.record import ImageRef
from ixtune.data.rejects import RecordError
from ixtune.data.schemas.image_values import stem_of


def file_of(text: str, root: Path | None) -> Path | None:
    """Return the existing file that a path names in any of its spellings, without its page."""
    if root is None:
        return None
    try:
        file = locate(root, split_pages(text.strip())[0]).file
        return file if file.is_file() else None
    except (RecordError, OSError, ValueError):
        return None


def is_of(text: str, file: Path, images: Sequence[ImageRef], root: Path | None) -> bool:
    """Return whether one of some images is this file, a page of it, or its embedded copy.

    Args:
        text: The path as written, with its page.
        file: The file that it names.
        images: The images of the record.
        root: The image root.
    """
    return any(_is_same(text, file, image, root) for image in images)


def _is_same(text: str, file: Path, image: ImageRef, root: Path | None) -> bool:
    pages = split_pages(text.strip())[1]
    if pages is not None and split_pages(image.path or "")[1] not in (None, pages):
        return False
    try:
        if image.content is not None:
            return (
                stem_of(image.name) == stem_of(text)
                and file.stat().st_size == len(image.content)
                and file.read_bytes() == image.content
            )
        other = file_of(image.path or "", root)
        return other is not None and os.path.samefile(file, other)
    except OSError:
        return False
