"""Open images in the forms that transformers' processors take: paths, URLs, base64, bytes, arrays.

A caller of the processor names the addresses itself, so these are loaded, with bounds, wherever they are. Commands of
ixtune never load an address that a record names, and `ixtune serve` has rules of its own (`ixtune.serving.fetch`).
"""

from __future__ import annotations

import base64
import binascii
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ixtune.data.images.image_file import ImageError, decode, opened
from ixtune.data.rejects import Reason

_TIMEOUT_S = 60.0
"""Most seconds of a whole download."""
_MOST_BYTES = 256 << 20
"""Most bytes of a download."""
_BLOCK = 1 << 20
_SHOWN = 60
"""Characters of a reference in error messages; base64 has millions."""


def pil_image(image: Any) -> Image.Image:
    """Return an image as Pillow opens it: neither converted to RGB nor turned by its EXIF orientation.

    Args:
        image: A path, a `file:`, `data:` or `http(s):` URL, base64, the bytes of a file, a Pillow image, or a
            NumPy array or torch tensor, [H, W], [H, W, C] or [C, H, W], uint8 or floats from 0 to 1.

    Raises:
        ImageError: There is no such file, it is not an image, its data are corrupt, or it cannot be downloaded.
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
        return _downloaded(text, name), name
    try:
        if Path(text).is_file():
            return Path(text), name
    except (OSError, ValueError):  # too long for a path
        pass
    try:
        return _decoded(text, name), name
    except ValueError:
        return Path(text), name  # whose absence is reported


def _downloaded(url: str, name: str) -> bytes:
    """Return the content of an http or https URL, whose redirects lead to such URLs only."""
    web = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,  # raises for ftp:, to which Python's own opener would follow a redirect
    ):
        web.add_handler(handler())
    deadline = time.monotonic() + _TIMEOUT_S
    content = bytearray()
    try:
        with web.open(url, timeout=_TIMEOUT_S) as answer:
            while block := answer.read1(_BLOCK):
                content += block
                if len(content) > _MOST_BYTES:
                    raise _not_downloaded(f"it has more than {_MOST_BYTES:,} bytes", name)
                if time.monotonic() > deadline:
                    raise _not_downloaded(f"it takes more than {_TIMEOUT_S:g} seconds", name)
            if left := answer.length:  # not reported by `read1`
                raise _not_downloaded(f"the connection ended {left:,} bytes before the end", name)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise _not_downloaded(str(error) or type(error).__name__, name) from error
    return bytes(content)


def _not_downloaded(why: str, name: str) -> ImageError:
    return ImageError(
        Reason.PICTURE_REMOTE,
        f"the image cannot be downloaded: {why} ({name})",
        hint="check the address, or download the image and pass its path",
    )


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
