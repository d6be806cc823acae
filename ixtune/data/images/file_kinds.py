"""Identify files that are not readable images by their first bytes, and suggest a fix."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ixtune.data.rejects import Reason

START_BYTES = 1024
"""Number of bytes that `kind_of` needs."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_HTML = re.compile(rb"<(!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file that is not readable as an image.

    Attributes:
        reason: The reason code of a record that names it.
        found: Description of the kind, with its article.
        hint: How to fix it.
    """

    reason: Reason
    found: str
    hint: str


_LFS = FileKind(
    Reason.GIT_LFS_POINTER,
    "a Git LFS pointer, not the image it stands for",
    "run `git lfs pull` in the repository that the images come from",
)
_WEB_PAGE = FileKind(
    Reason.PICTURE_IS_HTML, "an HTML page, not an image: its download failed", "download the image again"
)
_ERROR_TEXT = FileKind(
    Reason.PICTURE_UNREADABLE, "JSON text, not an image", "download the image again if a server sent this"
)
_DRAWING = FileKind(
    Reason.PICTURE_VECTOR, "an SVG drawing", "render it to PNG, e.g. `rsvg-convert -o page.png page.svg`"
)
_POSTSCRIPT = FileKind(
    Reason.PICTURE_VECTOR, "a PostScript file", "convert it to PDF or PNG, e.g. `ps2pdf figure.eps figure.pdf`"
)
_PDF = FileKind(Reason.PICTURE_UNREADABLE, "a PDF, not an image", "name a page of it: #page=1")
_DICOM = FileKind(
    Reason.PICTURE_DICOM, "a DICOM file", "export the frame as PNG with the window that a reader would choose"
)
_OTHERS = (
    (b"8BPS", "a Photoshop file", "export it as PNG"),
    (b"PK\3\4", "a ZIP archive or an Office file", "unpack it, or save its pages as PDF or PNG"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"\xff\x0a", "a JPEG XL image", "convert it to PNG, e.g. `djxl image.jxl image.png`"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image", "convert it to PNG, e.g. `djxl image.jxl image.png`"),
    (b"\x93NUMPY", "a NumPy array", "save it as PNG with 8 bits per channel"),
    (b"\x1aE\xdf\xa3", "a video", "save the frames you need as PNG or JPEG"),
)


def kind_of(start: bytes) -> FileKind | None:
    """Return the kind of a file that begins like this; None if it is unknown."""
    if is_pdf(start):
        return _PDF
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return _LFS
    if text.startswith(b"<"):
        if _SVG.search(text):
            return _DRAWING
        if _HTML.search(text):
            return _WEB_PAGE
    if text.startswith(b"%!PS"):
        return _POSTSCRIPT
    if start[128:132] == b"DICM":
        return _DICOM
    if text.startswith((b'{"', b"[{")):
        return _ERROR_TEXT
    if start[4:8] == b"ftyp" and not (is_heic(start) or is_avif(start)):
        return FileKind(Reason.PICTURE_UNREADABLE, "a video", "save the frames you need as PNG or JPEG")
    for beginning, found, hint in _OTHERS:
        if start.startswith(beginning):
            return FileKind(Reason.PICTURE_UNREADABLE, found, hint)
    return None


def is_heic(start: bytes) -> bool:
    """Return whether these are the first bytes of a HEIC image (ISO 23008-12: its brand in the `ftyp` box)."""
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS and not is_avif(start)


def is_avif(start: bytes) -> bool:
    """Return whether these are the first bytes of an AVIF image; `mif1` is any HEIF, so further brands decide."""
    if start[4:8] != b"ftyp":
        return False
    if start[8:12] in _AVIF_BRANDS:
        return True
    length = int.from_bytes(start[:4], "big")
    return start[8:12] in (b"mif1", b"msf1") and any(
        start[at : at + 4] in _AVIF_BRANDS for at in range(16, min(length, len(start)), 4)
    )


def is_pdf(start: bytes) -> bool:
    """Return whether these are the first bytes of a PDF; readers allow up to a kilobyte before its header."""
    return b"%PDF-" in start[:START_BYTES]
