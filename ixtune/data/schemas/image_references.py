"""Read an image reference into an `ImageRef`: paths, `file:` and `data:` URLs, base64, bytes. No network."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from ixtune.data.record import ImageRef
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import is_missing, require_text, shown
from ixtune.data.schemas.image_values import (
    image_at,
    is_base64_of_image,
    is_name_of_image,
    is_path_of_image,
    stem_of,
)
from ixtune.data.schemas.value_paths import literal_in_text

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_DATA = re.compile(r"data:(?P<type>[^;,]*)(?P<parameters>(?:;[^;,]*)*),", re.IGNORECASE)
_FILE = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/?.*)", re.IGNORECASE | re.DOTALL)
# no system accepts longer paths; a longer value is usually the image itself in base64
_PATH_CHARACTERS = 4096

_HINT = 'write a path such as "receipts/1.png", below the image root, or leave it out if there is no image'
_PAIR = ("bytes", "path")
_STRUCT_KEYS = ("url", "file_name", "image", "image_path", "src")
_SEPARATORS = ";|,"


def images_of(value: Any, field: str) -> tuple[ImageRef, ...]:
    """Return the images of a field that holds one, a list of them, or null or "" for none.

    A text that is a list or an object in JSON or Python, as in cells of tables, is read as such.

    Args:
        value: Value of the field.
        field: Its name.

    Raises:
        RecordError: See `image_of`.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str) and (read := literal_in_text(value)) is not None:
        value = read
    if isinstance(value, list | tuple):
        return tuple(image_of(one, f"`{field}` {number}") for number, one in enumerate(value, start=1))
    return (image_of(value, f"`{field}`"),)


def image_of(value: Any, name: str) -> ImageRef:
    """Return one image: a path, a `file:` or `data:` URL, the bytes of a file, or {"bytes": ..., "path": ...}.

    Args:
        value: The value.
        name: Name in messages, and of the image if it has no path.

    Raises:
        RecordError: It is none of these, it is a network URL, its base64 is broken, or its path contains characters
            that no path can.
    """
    if isinstance(value, str) and value:
        return _of_text(value, name)
    if isinstance(value, bytes | bytearray | memoryview) and len(value):
        return ImageRef(name, content=bytes(value))
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        if not value.keys() <= set(_PAIR):
            _refuse_another(value, _PAIR, name)
        return _of_pair(value, name)
    if isinstance(value, Mapping) and (key := next((key for key in _STRUCT_KEYS if value.get(key)), None)):
        _refuse_another(value, (key,), name)
        return image_of(value[key], name)
    if is_missing(value) and value is not None:
        raise RecordError(
            Reason.MISSING_FIELD,
            f"{name} is NaN",
            hint="write null, or leave the field out, if there is no image",
        )
    raise _bad(f"{name} is {'empty' if isinstance(value, bytes | bytearray) else shown(value)}")


def _refuse_another(value: Mapping[str, Any], used: tuple[str, ...], name: str) -> None:
    """Raise for a second image in the object of an image, such as a mask; its address and its names are none."""
    stems = {stem_of(value[key]) for key in used if isinstance(value.get(key), str)}
    for key, other in value.items():
        if key in used or is_missing(other) or (isinstance(other, str) and is_name_of_image(key)):
            continue
        place = image_at(other, key, None, addresses=False, names=False)
        if place and not (isinstance(other, str) and stem_of(other) in stems):
            raise _bad(f"{name} holds another image in `{place}`", "write a list of both images, or remove that one")


def _of_pair(value: Mapping[str, Any], name: str) -> ImageRef:
    """Read an image of a Hugging Face image column; the bytes are used, the path names them."""
    content, path = value.get("bytes"), value.get("path")
    if content is None:
        if path is None:
            raise _bad(f"{name} has neither bytes nor a path")
        return image_of(path, name)
    if not isinstance(content, bytes | bytearray | memoryview) or not len(content):
        raise _bad(f"the bytes of {name} are {'empty' if isinstance(content, bytes | bytearray) else shown(content)}")
    if isinstance(path, str) and path:
        require_text(path, f"the path of {name}")
        name = path
    return ImageRef(name, content=bytes(content))


def _of_text(value: str, name: str) -> ImageRef:
    start = value[:8].lower()
    if start.startswith("data:"):
        return ImageRef(name, content=_decoded(value, name))
    path = _path_of_address(value, name) if start.startswith("file:") else value
    if scheme := _SCHEME.match(path):
        raise RecordError(
            Reason.PICTURE_REMOTE,
            f"{name} is a URL: {shown(path)}",
            hint=f"images of records are not downloaded: fetch them from {scheme[1].lower()}:// and write their "
            "paths, or pass the folder of an object store as --image-root with --embed-images",
        )
    if is_base64_of_image(path):
        return ImageRef(name, content=decoded_base64(path, name))
    if len(path) > _PATH_CHARACTERS:
        raise _bad(
            f"{name} is a text of {len(path):,} characters, longer than any path",
            'if it is the image in base64, put "data:image/png;base64," (or jpeg) in front',
        )
    require_text(path, name)
    _refuse_several(path, name)
    return ImageRef(path, path=path)


def _refuse_several(text: str, name: str) -> None:
    """Raise for several paths in one text; which mark separates them is not guessed."""
    for mark in _SEPARATORS:
        parts = text.split(mark) if mark in text else ()
        if len(parts) > 1 and all(is_path_of_image(part) for part in parts):
            listed = ", ".join(f'"{part.strip()}"' for part in parts)
            raise _bad(f"{name} holds {len(parts)} paths separated by {mark}", f"write them as a JSON list: [{listed}]")


def _path_of_address(address: str, name: str) -> str:
    """Return the path of a `file:` URL; `?` and `#` are part of it, since nobody else puts them there."""
    match = _FILE.fullmatch(address)
    host, path = (match["host"] or "", match["path"]) if match else ("", "")
    if host.lower() not in ("", "localhost"):
        raise RecordError(
            Reason.PICTURE_REMOTE,
            f"{name} is a file on the host {shown(host)}: {shown(address)}",
            hint="write file:///absolute/path with three slashes, or the path alone",
        )
    try:
        path = urllib.parse.unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise _bad(f"{name} has escapes that are not UTF-8: {shown(address)}", "write the path alone") from error
    if not path.startswith("/"):
        raise _bad(f"{name} has no absolute path: {shown(address)}", "write file:///absolute/path, or the path alone")
    return path


def _decoded(address: str, name: str) -> bytes:
    """Return the bytes in a `data:` URL."""
    head = _DATA.match(address)
    if head is None or not head["type"].lower().startswith("image/"):
        kind = shown(head["type"]) if head else "nothing known"
        raise _bad(f"{name} is a data: URL of {kind}, not of an image", "write data:image/png;base64,...")
    if "base64" not in head["parameters"].lower().split(";"):
        raise _bad(f"{name} is a data: URL without base64", "write data:image/png;base64,...")
    return decoded_base64(address[head.end() :], name)


def decoded_base64(text: str, name: str) -> bytes:
    """Return the bytes of an image file in base64; at most three quarters of the text's length.

    Raises:
        RecordError: It is not base64, or empty.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(
            f"the base64 of {name} is broken: {str(error)[:1].lower()}{str(error)[1:]}",
            "encode the image again; it may have been truncated",
        ) from error
    if not content:
        raise _bad(f"the base64 of {name} is empty", "encode the image again")
    return content


def _bad(found: str, hint: str = _HINT) -> RecordError:
    return RecordError(Reason.BAD_IMAGE_FIELD, found, hint=hint)
