"""Check the fields that no reader used: an image in them must never be lost silently."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ixtune.data.record import ImageRef, Record
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import shown
from ixtune.data.schemas.image_values import (
    NAME_WORDS,
    ORIGIN_WORDS,
    FoundImage,
    image_at,
    images_in,
    is_path_of_image,
    stem_of,
)
from ixtune.data.schemas.named_images import file_of, is_of
from ixtune.data.schemas.value_paths import path_of
from ixtune.data.sources.source import Reading

_USUAL = ("image", "images")


def require_no_image_lost(
    unused: Mapping[str, Any], whole: Mapping[str, Any], record: Record, reading: Reading
) -> None:
    """Raise if a field that was not read holds or names an image that the record does not show.

    For a record without any image, anything that looks like one counts: bytes, a path or a URL with the suffix of an
    image, an existing image file, base64, and any value in a field whose name says image. For a record with
    images, bytes and files that can be read count, but not a value that only names the image it has (its original
    path or its download URL). If the user has named the image fields, only records without images are checked: other
    fields are ignored on purpose.

    Args:
        unused: The remaining fields.
        whole: All fields of the entry.
        record: The record as read.
        reading: Settings for reading it.

    Raises:
        RecordError: `IMAGE_NOT_USED`, with the name of the field.
    """
    named = dict(reading.columns).get("image") if reading.image_named else None
    if named == "" or (record.images and named):
        return
    with_images = bool(record.images)
    for name, value in unused.items():
        if value is None or isinstance(value, bool):
            continue
        for found in images_in(value, name, reading.image_root, addresses=not with_images, names=not with_images):
            if with_images and _is_shown(found, record.images, reading.image_root):
                continue
            raise RecordError(
                Reason.IMAGE_NOT_USED,
                f"`{found.place}` contains or names an image ({_shown(found.value)}), but is not used",
                hint=_hint(found, whole, reading),
            )


def _is_shown(found: FoundImage, images: tuple[ImageRef, ...], root: Path | None) -> bool:
    """Return whether a text names an image that the record has, or only says where its images come from."""
    if not isinstance(found.value, str):
        return False
    file = file_of(found.value, root)
    if file is not None:  # before/1.png and after/1.png are two images
        return is_of(found.value, file, images, root)
    stems = {stem_of(image.name if image.path is None else image.path) for image in images}
    if found.mentioned or (is_path_of_image(found.value) and stem_of(found.value) in stems):
        return True
    # there is no such file: the report that a crop was cut from, the address it was downloaded from
    words = {word.lower() for word in _WORDS.findall(found.place)}
    return not words.isdisjoint(ORIGIN_WORDS) or (
        # a table that contains its images often names their files
        all(image.path is None for image in images) and not words.isdisjoint(NAME_WORDS)
    )


_WORDS = re.compile(r"[A-Z]?[a-z]+")


def _hint(found: FoundImage, whole: Mapping[str, Any], reading: Reading) -> str:
    place, value = found.place, found.value
    path = path_of(place)
    given = dict(reading.columns).get("image") or next((name for name in _USUAL if whole.get(name)), None) or ""
    if found.mentioned:
        return f"write the path alone into its own field, or leave it out with --columns image={given}"
    if image_at(value, place, reading.image_root, names=False) is None and path in whole:
        return f"name its file, e.g. --image-pattern 'FOLDER/{{{path}}}.jpg', or ignore it with --columns image="
    if image_at(value, place, reading.image_root, addresses=False, names=False) is None:
        return "download the images and write their paths into the records, or ignore it with --columns image="
    if given:
        return f"use it too with --columns image={given},{path}, or ignore it with --columns image={given}"
    return f"use it with --columns image={path}, or ignore it with --columns image="


def _shown(value: Any) -> str:
    return shown(value) if isinstance(value, str | bytes | int | float) else "a list or an object"
