"""Recognize an image by its value: a path, an address, base64, bytes, or a struct around one of these."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm"),
    *(".jp2", ".j2k", ".heic", ".heif", ".avif", ".jxl", ".svg", ".ico", ".dcm", ".pdf", ".djvu"),
)
"""Suffixes of image and document files, including unreadable kinds: the record still refers to an image."""

_FILM_SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv", ".mp3", ".wav", ".flac", ".ogg")
_SUFFIX = "(?:" + "|".join(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *_FILM_SUFFIXES)) + ")"
# a path or an address ends with the suffix, optionally followed by `?query` or `#page=3`
_PATH = re.compile(rf"[^\n\r\t]{{1,2000}}\.{_SUFFIX}(?:[?#][^\s]{{0,1000}})?", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?|s3|gs|gcs|az|hf|ftp)://\S+", re.IGNORECASE)
_QUOTED = re.compile(rf"\.{_SUFFIX}(?:[?#][^\s\"']{{0,1000}})?[\"']|data:image/", re.IGNORECASE)
# the first characters of PNG, JPEG, GIF, WebP, TIFF and PDF files in base64
_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "JVBERi")
_BASE64_CHARACTERS = 100
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"RIFF", b"\0\0\0\x0cjP", b"%PDF")
_MAGIC_BYTES = 12
_PATH_CHARACTERS = 1024
_DEPTH = 12
_NUMBERS = 8
_WORDS = {
    *("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "screenshot"),
    *("screenshots", "scan", "scans", "pixels", "pixel", "imagefile", "imagepath", "imagename", "imgname", "imgpath"),
}
_NO_VALUE = {"none", "null", "nan", "n/a", "no", "false", "-", "0"}
_NAME_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def image_at(value: Any, name: str, root: Path | None, *, addresses: bool = True, names: bool = True) -> str | None:
    """Return where a value holds or names an image, such as `pages[0].scan`; None if it does not.

    Args:
        value: Value of one field: anything that JSON or Arrow can hold.
        name: The field.
        root: A path to an existing image below it counts whatever its name; None to judge by spelling alone.
        addresses: Count images with an `http://` or similar address.
        names: Count any value in a field with an image name, such as `image_id`.
    """
    return _at(value, name, root, addresses, names, _DEPTH)


def says_image(name: str) -> bool:
    """Return whether a field's name says that it holds an image: `image_id`, `imgPath`, `scan`, `photo_2`."""
    return _says_image(name)


def is_path_of_image(text: str) -> bool:
    """Return whether a text is spelled like a path or an address of an image or document file."""
    text = text.strip()
    return text.isprintable() and "." in text and _PATH.fullmatch(text) is not None


def is_base64_of_image(text: str) -> bool:
    """Return whether a text begins like an image or PDF file in base64."""
    return len(text) >= _BASE64_CHARACTERS and text.startswith(_BASE64)


def is_file_of_image(text: str, root: Path | None) -> bool:
    """Return whether a text is the path of an existing image file at or below the root, by the file's first bytes."""
    text = text.strip()
    if root is None or not 0 < len(text) <= _PATH_CHARACTERS or not text.isprintable():
        return False
    path = os.path.join(root, text)
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(_MAGIC_BYTES).startswith(_MAGIC)
    except (OSError, ValueError):
        return False


def stem_of(path: str) -> str:
    """Return the name of a file without folders and suffixes, to compare spellings of one image."""
    name = PurePosixPath(path.replace("\\", "/").split("?")[0].split("#")[0]).name
    return name.split(".")[0] or name


def _at(value: Any, name: str, root: Path | None, addresses: bool, names: bool, depth: int) -> str | None:
    if value is None or value is False or value is True or value == "" or depth == 0:
        return None
    if isinstance(value, str):
        return name if _is_image_text(value, name, root, addresses, names) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return name if len(value) else None
    if isinstance(value, Mapping):
        return _in_struct(value, name, root, addresses, names, depth)
    if isinstance(value, list | tuple):
        if all(isinstance(one, int | float) for one in value[:_NUMBERS]):
            return None  # a box or an embedding: the remaining numbers are alike
        for number, one in enumerate(value):
            if found := _at(one, f"{name}[{number}]", root, addresses, names, depth - 1):
                return found
        return None
    if isinstance(value, int | float):
        return name if names and value and value == value and says_image(name) else None
    return name if type(value).__module__.startswith("PIL.") else None


def _is_image_text(text: str, name: str, root: Path | None, addresses: bool, names: bool) -> bool:
    if text[:5].lower() == "data:":
        return text[5:11].lower() == "image/" or "base64," in text[:100]
    if _ADDRESS.match(text):
        return addresses and (is_path_of_image(text) or says_image(name))
    if is_path_of_image(text) or is_base64_of_image(text):
        return True
    if text[:1] in ("[", "{") and _QUOTED.search(text):
        return True
    if names and says_image(name) and text.strip() and text.strip().lower() not in _NO_VALUE:
        return True
    return is_file_of_image(text, root)


def _in_struct(
    value: Mapping[str, Any], name: str, root: Path | None, addresses: bool, names: bool, depth: int
) -> str | None:
    if set(value) == {"bytes", "path"} and any(value.values()):
        return name
    kind = value.get("type")
    if isinstance(kind, str) and kind in ("image", "image_url", "input_image"):
        return name
    for key, one in value.items():
        if found := _at(one, f"{name}.{key}", root, addresses, names, depth - 1):
            return found
    return None


@lru_cache(maxsize=4096)
def _says_image(name: str) -> bool:
    last = re.sub(r"\[\d+\]", "", name).rpartition(".")[2]
    return any(part.lower() in _WORDS for part in _NAME_PARTS.findall(last))
