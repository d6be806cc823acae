"""Recognize an image by its value: a path, an address, base64, bytes, or a struct around one of these."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ixtune.data.schemas.value_paths import literal_in_text

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm"),
    *(".jp2", ".j2k", ".heic", ".heif", ".avif", ".jxl", ".svg", ".ico", ".dcm", ".pdf", ".djvu"),
)
"""Suffixes of image and document files, including unreadable kinds: the record still refers to an image."""

_FILM_SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv", ".mp3", ".wav", ".flac", ".ogg")
_SUFFIX = "(?:" + "|".join(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *_FILM_SUFFIXES)) + ")"
# a path or an address ends with the suffix, optionally followed by `?query` or `#page=3`
_PATH = re.compile(rf"[^\n\r\t]{{1,2000}}\.{_SUFFIX}(?:[?#][^\s]{{0,1000}})?", re.IGNORECASE)
# a path inside a longer text, and the marks by which HTML, Markdown and LaTeX show an image
_APART = r"\s\"'<>()\[\]{}|,;="
_MENTION = re.compile(rf"(?<![^{_APART}])[^{_APART}]{{1,500}}\.{_SUFFIX}(?![\w])", re.IGNORECASE)
_MARKUP = re.compile(
    r"<img\s[^<>]{0,2000}>|!\[[^\]\n]{0,300}\]\([^()\n]{1,2000}\)|!\[\[[^\]\n]{1,500}\]\]|\\includegraphics\b",
    re.IGNORECASE,
)
_MOST_MENTIONS = 20
# in longer texts only an existing file counts: prose may mention files that are not images of the record
_SHORT_CHARACTERS = 300
_ADDRESS = re.compile(r"(?:https?|s3|gs|gcs|az|hf|ftp)://\S+", re.IGNORECASE)
# an image in a text as base64: no question is spelled like that
_EMBEDDED = re.compile(
    r"data:image/[\w.+-]{1,40};base64,|(?<![A-Za-z0-9+/])(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/]{100}"
)
_EMBEDDED_STARTS = ("data:image/", "iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # looking for these takes 1/60 of the time
_IMAGE_ADDRESS = re.compile(
    r"(?:https?|s3|gs|gcs|az|hf|ftp)://[^\s\"'<>()]{1,2000}?\.(?:png|jpe?g|jpe|jfif|webp|bmp|tiff?|gif|heic|avif)"
    r"(?:\?[^\s\"'<>()]{0,1000})?(?![\w/.])",
    re.IGNORECASE,
)
_SUFFIXED = re.compile(rf"\.{_SUFFIX}(?![\w])")
_QUOTED = re.compile(rf"\.{_SUFFIX}(?:[?#][^\s\"']{{0,1000}})?[\"']|data:image/", re.IGNORECASE)
# the first characters of PNG, JPEG, GIF, WebP, TIFF and PDF files in base64
_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "JVBERi")
_BASE64_CHARACTERS = 100
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"RIFF", b"\0\0\0\x0cjP", b"%PDF")
_MAGIC_BYTES = 12
_BOX_TYPE = (4, b"ftyp")  # HEIC and AVIF
_PATH_CHARACTERS = 1024
_DEPTH = 12
_NUMBERS = 8
_SHOWN = 40
_WORDS = {
    *("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "screenshot"),
    *("screenshots", "scan", "scans", "pixels", "pixel", "imagefile", "imagepath", "imagename", "imgname", "imgpath"),
}
ORIGIN_WORDS = {"source", "url", "origin", "original", "document", "doc"}
"""Words in the names of fields that tell where an image comes from."""
NAME_WORDS = {"file", "filename", "path", "name"}
"""Words in the names of fields that repeat the name of an image."""
_NO_VALUE = {"none", "null", "nan", "n/a", "no", "false", "-", "0"}
_NAME_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class FoundImage(NamedTuple):
    """Something in a value that holds or names an image.

    Attributes:
        place: Where it is, such as `pages[0].scan`.
        value: The image, its path or its address; of a longer text only the path in it, if there is one.
        mentioned: Whether it is part of a longer text.
    """

    place: str
    value: Any
    mentioned: bool = False


def images_in(
    value: Any, name: str, root: Path | None, *, addresses: bool = True, names: bool = True
) -> Iterator[FoundImage]:
    """Yield everything in a value that holds or names an image.

    Args:
        value: Value of one field: anything that JSON or Arrow can hold.
        name: The field.
        root: A path to an existing image below it counts whatever its name; None to judge by spelling alone.
        addresses: Count images with an `http://` or similar address.
        names: Count any value in a field with an image name, such as `image_id`.
    """
    return _in(value, name, root, addresses, names, _DEPTH)


def image_at(value: Any, name: str, root: Path | None, *, addresses: bool = True, names: bool = True) -> str | None:
    """Return the first place of `images_in` that is more than a mention in a longer text; None if there is none."""
    found = images_in(value, name, root, addresses=addresses, names=names)
    return next((one.place for one in found if not one.mentioned), None)


def says_image(name: str) -> bool:
    """Return whether a field's name suggests an image: `image_id`, `imgPath`, `scan`, `photo_2`."""
    return _says_image(name)


def is_name_of_image(field: str) -> bool:
    """Return whether a field's name says that it names an image's file or where it comes from: `original_name`."""
    return not {part.lower() for part in _NAME_PARTS.findall(field)}.isdisjoint(ORIGIN_WORDS | NAME_WORDS)


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
            start = file.read(_MAGIC_BYTES)
    except (OSError, ValueError):
        return False
    return start.startswith(_MAGIC) or start.startswith(_BOX_TYPE[1], _BOX_TYPE[0])


def mentioned_files(text: str, root: Path | None) -> list[str]:
    """Return the paths in a text that are existing image files at or below the root."""
    if "." not in text or not _has_suffix(text):
        return []
    found = (match.group() for match in islice(_MENTION.finditer(text), _MOST_MENTIONS))
    return [path for path in found if is_file_of_image(path, root)]


def embedded_in(text: str) -> str | None:
    """Return the beginning of an image that a text contains as base64 or a `data:` URL; None if it contains none."""
    if len(text) < _BASE64_CHARACTERS:
        return None
    for start in _EMBEDDED_STARTS:
        if start in text:
            break
    else:
        return None
    found = _EMBEDDED.search(text)
    return found.group()[:_SHOWN] if found else None


def address_in(text: str) -> str | None:
    """Return the address of an image in a short text; None if there is none, or the text is prose about files."""
    if "://" not in text or len(text) > _SHORT_CHARACTERS:
        return None
    found = _IMAGE_ADDRESS.search(text)
    return found.group() if found else None


def stem_of(path: str) -> str:
    """Return the name of a file without folders and suffixes, to compare spellings of one image."""
    name = PurePosixPath(path.replace("\\", "/").split("?")[0].split("#")[0]).name
    return name.split(".")[0] or name


def _has_suffix(text: str) -> bool:
    """Return whether a text contains the suffix of an image or film."""
    return _SUFFIXED.search(text.lower()) is not None  # a search that ignores case takes five times as long


def _in(value: Any, name: str, root: Path | None, addresses: bool, names: bool, depth: int) -> Iterator[FoundImage]:
    if value is None or value is False or value is True or value == "" or depth == 0:
        return
    if isinstance(value, str):
        yield from _in_text(value, name, root, addresses, names, depth)
    elif isinstance(value, bytes | bytearray | memoryview):
        if len(value):
            yield FoundImage(name, value)
    elif isinstance(value, Mapping):
        kind = value.get("type")
        if (set(value) == {"bytes", "path"} and any(value.values())) or (
            isinstance(kind, str) and kind in ("image", "image_url", "input_image")
        ):
            yield FoundImage(name, value)
            return
        for key, one in value.items():
            yield from _in(one, f"{name}.{key}", root, addresses, names, depth - 1)
    elif isinstance(value, list | tuple):
        if all(isinstance(one, int | float) for one in value[:_NUMBERS]):
            return  # a box or an embedding: the remaining numbers are alike
        for number, one in enumerate(value):
            yield from _in(one, f"{name}[{number}]", root, addresses, names, depth - 1)
    elif isinstance(value, int | float):
        if names and value and value == value and says_image(name):
            yield FoundImage(name, value)
    elif type(value).__module__.startswith("PIL."):
        yield FoundImage(name, value)


def _in_text(text: str, name: str, root: Path | None, addresses: bool, names: bool, depth: int) -> Iterator[FoundImage]:
    if text[:1] in ("[", "{") and _QUOTED.search(text):
        inside = list(_in(literal_in_text(text), name, root, addresses, names, depth - 1))
        yield from (FoundImage(name, one.value, one.mentioned) for one in inside)
        if not inside:
            yield FoundImage(name, text)
    elif _is_image_text(text, name, root, addresses, names):
        yield FoundImage(name, text)
    elif addresses or not _ADDRESS.match(text):
        yield from _mentioned(text, name, root, addresses)


def _mentioned(text: str, name: str, root: Path | None, addresses: bool) -> Iterator[FoundImage]:
    """Yield the images that a longer text names: by a path, or by a mark of HTML, Markdown or LaTeX."""
    marked = _MARKUP.search(text) if "<" in text or "[" in text or "\\" in text else None
    if "." in text and _has_suffix(text):
        for match in islice(_MENTION.finditer(text), _MOST_MENTIONS):
            path = match.group()
            if (len(text) <= _SHORT_CHARACTERS and (addresses or "://" not in path)) or is_file_of_image(path, root):
                yield FoundImage(name, path, True)
    if marked:
        yield FoundImage(name, marked.group(), True)


def _is_image_text(text: str, name: str, root: Path | None, addresses: bool, names: bool) -> bool:
    if text[:5].lower() == "data:":
        return text[5:11].lower() == "image/" or "base64," in text[:100]
    if _ADDRESS.match(text):
        return addresses and (is_path_of_image(text) or says_image(name))
    if is_path_of_image(text) or is_base64_of_image(text):
        return True
    if names and says_image(name) and text.strip() and text.strip().lower() not in _NO_VALUE:
        return True
    return is_file_of_image(text, root)


@lru_cache(maxsize=4096)
def _says_image(name: str) -> bool:
    last = re.sub(r"\[\d+\]", "", name).rpartition(".")[2]
    return any(part.lower() in _WORDS for part in _NAME_PARTS.findall(last))
