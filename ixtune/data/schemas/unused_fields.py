"""Check the fields that no reader used: an image in them must never be lost silently."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ixtune.data.record import ImageRef, Record
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import shown
from ixtune.data.schemas.image_values import image_at, is_file_of_image, is_path_of_image, stem_of
from ixtune.data.schemas.value_paths import path_of
from ixtune.data.sources.source import Reading

_USUAL = ("image", "images")


def require_no_image_lost(
    unused: Mapping[str, Any], whole: Mapping[str, Any], record: Record, reading: Reading
) -> None:
    """Raise if a field that was not read holds or names an image that the record does not show.

    For a record without any image, everything counts that looks like one: bytes, a path or an address with the suffix
    of an image, an existing image file, base64, and any value in a field whose name says image. For a record with
    images, bytes and files that can be read count, and not what only names the image it has (its original path, the
    address it was downloaded from). Where the user has named the fields of the images, only a record without any is
    looked at: other fields are left out knowingly.

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
    for name, value in unused.items():
        if value is None or isinstance(value, bool):
            continue
        place = image_at(value, name, reading.image_root, addresses=not record.images, names=not record.images)
        if place is None or (record.images and _only_names(value, name, record.images, reading)):
            continue
        raise RecordError(
            Reason.IMAGE_NOT_USED,
            f"`{place}` holds or names an image ({_shown(value)}), and it is not read",
            hint=_hint(place, value, whole, reading),
        )


def _only_names(value: Any, name: str, images: tuple[ImageRef, ...], reading: Reading) -> bool:
    """Return whether a text names an image that the record has, or one that cannot be read anyway."""
    if isinstance(value, list | tuple):
        return all(_only_names(one, name, images, reading) for one in value)
    if not isinstance(value, str):
        return False
    if is_file_of_image(value, reading.image_root):  # before/1.png and after/1.png are two images
        return os.path.normpath(value) in {os.path.normpath(image.path) for image in images if image.path is not None}
    stems = {stem_of(image.name if image.path is None else image.path) for image in images}
    if is_path_of_image(value) and stem_of(value) in stems:
        return True
    # a table that contains its images often names their origin
    return all(image.path is None for image in images) and not _ORIGIN.isdisjoint(name.lower().split("_"))


_ORIGIN = {"source", "url", "origin", "original", "file", "filename", "path", "name", "document", "doc"}


def _hint(place: str, value: Any, whole: Mapping[str, Any], reading: Reading) -> str:
    path = path_of(place)
    if image_at(value, place, reading.image_root, names=False) is None and path in whole:
        return f"name its file, e.g. --image-pattern 'FOLDER/{{{path}}}.jpg', or leave it out with --columns image="
    if image_at(value, place, reading.image_root, addresses=False, names=False) is None:
        return "download the images and write their paths into the records, or leave it out with --columns image="
    given = dict(reading.columns).get("image") or next((name for name in _USUAL if whole.get(name)), None)
    if given:
        return f"use it too with --columns image={given},{path}, or leave it out with --columns image={given}"
    return f"use it with --columns image={path}, or leave it out with --columns image="


def _shown(value: Any) -> str:
    return shown(value) if isinstance(value, str | bytes | int | float) else "a list or an object"
