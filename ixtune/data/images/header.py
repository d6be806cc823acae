"""Read the header of an image file: its size, and whether it can be used without decoding its pixels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ixtune.data.images.image_file import ImageError, broken, decode, opened, orientation
from ixtune.data.images.image_paths import SPELLINGS
from ixtune.data.images.pixels import Corrections, has_alpha, is_deep
from ixtune.data.rejects import Reason

if TYPE_CHECKING:
    from PIL import Image

DOCUMENT_PAGE = "document_page"

NOTES = {
    "exif_ignored": "the EXIF orientation is ignored, as by the reference: the image is used as stored",
    "exif_applied": "the image is rotated according to its EXIF orientation",
    "alpha_dropped": "transparency is ignored, as by the reference: hidden colors may appear",
    "alpha_composited": "transparent pixels are laid over white",
    "cmyk_converted": "CMYK becomes RGB by Pillow's plain formula, without a color profile",
    "wrong_extension": "the file's suffix does not match its format",
    "depth_scaled": "gray levels of more than 8 bits are scaled to 8",
    "first_frame_taken": "the first of several frames or pages is used",
    **SPELLINGS,
    DOCUMENT_PAGE: "a page of a PDF or TIFF file; prepare stores it in the set as PNG",
}
"""Note codes for accepted images, with their meaning."""

_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
}
_SUFFIXES["MPO"] = _SUFFIXES["JPEG"]  # Pillow's name for a JPEG followed by further views
KNOWN_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
"""Suffixes of image files, in lower case."""

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# the end of the last block, and the trailer: alone, a file cut at any `;` would have it
_GIF_END = b"\0;"
_JPEG_END = b"\xff\xd9"
# TIFF tags: where the strips or tiles of pixels begin, and how long each is
_TIFF_PARTS = ((273, 279), (324, 325))


@dataclass(frozen=True, slots=True)
class Header:
    """Size of a usable image.

    Attributes:
        width: Width in pixels, as returned by `open_image` with the same corrections.
        height: Height in pixels.
        notes: Codes of `NOTES`, in its order.
    """

    width: int
    height: int
    notes: tuple[str, ...]


def read_header(source: Path | bytes, corrections: Corrections, *, name: str) -> Header:
    """Return the size of an image and notes about it, from the two ends of its file.

    If the end does not match the format, the whole image is decoded, since trailing bytes are as likely as a
    truncated file. Damage in the middle is not detected.

    Args:
        source: The file, or its content.
        corrections: Corrections with which the image will be opened.
        name: Name in error messages.

    Raises:
        ImageError: There is no such file, it is not an image, it has too many pixels, several frames or more than
            8 bits without the correction for that, or its end is missing.
    """
    with opened(source, name) as (image, file):
        deep, animated = is_deep(image), _has_frames(image, name)
        if animated and not corrections.first_frame:
            raise ImageError(
                Reason.PICTURE_ANIMATED,
                f"{image.format} with several frames or pages",
                where=name,
                # `predict` and the server read images too, and take neither option
                hint="name a page (#page=1), or pass --correct first-frame (prepare, layout) or --pages all (prepare)"
                if image.format == "TIFF"
                else "save the one you need as PNG, or pass --correct first-frame (prepare, layout)",
            )
        if deep and not corrections.depth:
            raise ImageError(
                Reason.PICTURE_16_BIT,
                f"gray levels of more than 8 bits (mode {image.mode})",
                where=name,
                hint="save it with 8 bits, or pass --correct depth (prepare, layout)",
            )
        turn = orientation(image)
        seen = {
            "exif_ignored": turn != 1 and not corrections.exif,
            "exif_applied": turn != 1 and corrections.exif,
            "cmyk_converted": image.mode == "CMYK",
            "wrong_extension": _is_misnamed(image, name),
            "depth_scaled": deep,
            "first_frame_taken": animated,
        }
        if has_alpha(image):
            seen["alpha_composited" if corrections.alpha else "alpha_dropped"] = True
        width, height = image.size if turn < 5 or not corrections.exif else image.size[::-1]
        if not _ends_well(image, file):
            decode(image, name)
        return Header(width, height, tuple(code for code in NOTES if seen.get(code)))


def _has_frames(image: Image.Image, name: str) -> bool:
    # the further views in an MPO are the same image again: its depth, another eye, a preview
    if image.format == "MPO":
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception as error:  # a GIF is read up to its second frame
        raise broken(f"the image's data are corrupt or truncated: {error}", name) from error


def _is_misnamed(image: Image.Image, name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in KNOWN_SUFFIXES and suffix not in _SUFFIXES.get(image.format or "", ())


def _ends_well(image: Image.Image, file: IO[bytes]) -> bool:
    """Return whether the file ends where its format says; the position in the file is kept."""
    before = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        match image.format:
            case "PNG":
                return _last(file, size, 12) == _PNG_END
            case "JPEG" | "MPO" | "JPEG2000":
                return _last(file, size, 2) == _JPEG_END
            case "GIF":
                return _last(file, size, 2) == _GIF_END
            case "WEBP":
                file.seek(4)
                return int.from_bytes(file.read(4), "little") + 8 == size
            case "TIFF":
                return _tiff_end(image) <= size
            case "BMP":
                return _raw_end(image) <= size
            case _:
                return False
    finally:
        file.seek(before)


def _last(file: IO[bytes], size: int, count: int) -> bytes:
    file.seek(max(0, size - count))
    return file.read(count)


def _tiff_end(image: Image.Image) -> float:
    """Return the offset at which the last strip or tile ends, infinity if it is unknown."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    for starts, counts in _TIFF_PARTS:
        if starts in tags and counts in tags and len(tags[starts]) == len(tags[counts]):
            return max((start + count for start, count in zip(tags[starts], tags[counts], strict=True)), default=0)
    return float("inf")


def _raw_end(image: Image.Image) -> float:
    """Return the offset at which the rows of a bitmap end, infinity if they are compressed."""
    (tile,) = image.tile  # type: ignore[attr-defined]
    if tile.codec_name != "raw":
        return float("inf")
    return float(tile.offset + tile.args[1] * image.size[1])
