"""Open images in the forms that transformers' processors take: paths, URLs, base64, bytes, arrays."""

from __future__ import annotations

import base64
import binascii
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ixtune.data.images.image_file import decode, opened

_TIMEOUT_S = 60
_SHOWN = 60
"""Characters of a reference in error messages; base64 has millions."""


def pil_image(image: Any) -> Image.Image:
    """Return an image as Pillow opens it: neither converted to RGB nor turned by its EXIF orientation.

    Args:
        image: A path, a `file:`, `data:` or `http(s):` URL, base64, the bytes of a file, a Pillow image, or a
            NumPy array or torch tensor, [H, W], [H, W, C] or [C, H, W], uint8 or floats from 0 to 1.

    Raises:
        ImageError: There is no such file, it is not an image, or its data are corrupt.
        ValueError: The text is neither a path nor base64, or the array has no channels.
        TypeError: It is none of these.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str):
        return _loaded(*_source(image))
    if isinstance(image, Path):
        return _loaded(image, str(image))
    if isinstance(image, bytes | bytearray):
        return _loaded(bytes(image), "the image")
    if hasattr(image, "__array__"):
        return _of_array(np.asarray(image))
    raise TypeError(f"an image is a path, a URL, bytes, a Pillow image or an array, not {type(image).__name__}")


def _loaded(source: Path | bytes, name: str) -> Image.Image:
    with opened(source, name) as (image, _):
        decode(image, name)
        return image


def _source(text: str) -> tuple[Path | bytes, str]:
    """Return the file or its bytes that a text names, and its name in messages."""
    name = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    kind = text[:8].lower()
    if kind.startswith("data:"):
        return _decoded(text.partition(",")[2], name), name
    if kind.startswith("file:"):
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(text).path)), name
    if kind.startswith(("http://", "https://")):
        with urllib.request.urlopen(text, timeout=_TIMEOUT_S) as answer:
            return answer.read(), name
    try:
        if Path(text).is_file():
            return Path(text), name
    except (OSError, ValueError):  # too long for a path
        pass
    try:
        return _decoded(text, name), name
    except ValueError:
        return Path(text), name  # whose absence is reported


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is neither the path of an image nor an image in base64") from error


def _of_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """Return an array as an image; floats from 0 to 1 are scaled to 255."""
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"an image has 1, 3 or 4 channels: an array of shape {array.shape} is not an image")
    if array.dtype != np.uint8:
        scale = 255 if np.issubdtype(array.dtype, np.floating) and array.max(initial=0) <= 1 else 1
        array = (array * scale).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))
