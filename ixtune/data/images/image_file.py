"""Open an image file or its bytes with Pillow, reading only the header, and explain why it cannot be used."""

from __future__ import annotations

import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ixtune.data.images.file_kinds import START_BYTES, is_avif, is_heic, kind_of
from ixtune.data.rejects import Reason, RecordError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970
"""Pillow's own limit for decompression bombs: 0.5 GiB as RGB. (A0 at 300 dpi: 139 million.)"""

# Raster formats that Pillow decodes by itself. Left out: EPS (runs another program), rare readers.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
# First bytes of files that are meant to be images; BMP's two letters could begin any text.
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")

# EXIF 2.3
_ORIENTATION, _SHORT = 0x0112, 3

# Opening a named pipe would block without O_NONBLOCK, which Windows does not have; reading there without O_BINARY would
# change line ends.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class ImageError(RecordError):
    """An image file cannot be used."""


@contextmanager
def opened(source: Path | bytes, name: str) -> Iterator[tuple[Image.Image, IO[bytes]]]:
    """Open an image: yield it with its header read and its size checked, and its file, closed at the end of the block.

    Raises:
        ImageError: There is no such file, it is not an image, or it has more than `MAX_PIXELS`; errors call it `name`.
    """
    _quiet_pillow()
    with _file(source, name) as file:
        image = _header(file, name)
        if min(image.size) < 1:
            raise broken(f"an image of {image.size[0]} x {image.size[1]} pixels", name)
        if image.size[0] * image.size[1] > MAX_PIXELS:
            raise _too_large(name, f"{image.size[0]} x {image.size[1]} pixels, more than {MAX_PIXELS:,}")
        yield image, file


def _quiet_pillow() -> None:
    """Silence Pillow's warnings, which appear from half its limit on and for unusual metadata.

    They are silenced permanently, not only while an image is open: threads share the filters, so `catch_warnings` in
    one thread could restore the wrong ones. Adding an existing filter changes nothing.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(image: Image.Image, name: str) -> None:
    """Read all pixels of an opened image.

    Raises:
        ImageError: The data are corrupt or truncated.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # the exceptions of decoders on broken data differ by format and version
        raise broken(f"the image's data are corrupt or truncated: {_first_line(error)}", name) from error


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 (upright) to 8.

    A TIFF's is 1: its orientation is part of that format, and Pillow follows it by itself.
    """
    if not image.info.get("exif") or image.format == "TIFF":
        return 1
    # By hand, because Pillow reads all tags, which takes longer than opening a JPEG. EXIF 2.3: a small TIFF with
    # a byte order, the position of its first table, and there entries of 12 bytes.
    block = image.info["exif"].removeprefix(b"Exif\0\0")
    order = ">" if block[:2] == b"MM" else "<"
    try:
        (table,) = struct.unpack_from(order + "L", block, 4)
        (count,) = struct.unpack_from(order + "H", block, table)
        for entry in range(table + 2, table + 2 + 12 * count, 12):
            tag, kind, value = struct.unpack_from(order + "HH4xH", block, entry)
            if (tag, kind) == (_ORIENTATION, _SHORT):
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the block is damaged: keep the stored orientation
        pass
    return 1


def broken(found: str, name: str) -> ImageError:
    """Return the error for data that cannot be decoded."""
    return ImageError(Reason.PICTURE_BROKEN, found, where=name, hint="save or copy the file again")


def _header(file: IO[bytes], name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(name, f"more than {MAX_PIXELS:,} pixels") from error
    except MemoryError:
        raise
    except Exception as error:  # a header that confuses the format's reader
        file.seek(0)
        start = file.read(START_BYTES)
        if is_heic(start) or is_avif(start):
            return _heif(file, name, "AVIF" if is_avif(start) else "HEIC")
        if start.startswith(_BEGINNINGS) or (start.startswith(b"RIFF") and start[8:12] == b"WEBP"):
            raise broken("the file begins like an image, but the rest is corrupt or truncated", name) from error
        if kind := kind_of(start):
            raise ImageError(kind.reason, kind.found, where=name, hint=kind.hint) from error
        if isinstance(error, UnidentifiedImageError):
            raise ImageError(
                Reason.PICTURE_UNREADABLE,
                "not an image in a known format",
                where=name,
                hint="save it as PNG, JPEG, WebP or TIFF",
            ) from error
        raise _unreadable(error, name) from error


def _heif(file: IO[bytes], name: str, kind: str) -> Image.Image:
    """Open a HEIC or an AVIF image: the second by Pillow itself, if it was built with the codec."""
    from PIL import Image, features

    if kind == "AVIF" and not features.check("avif"):
        raise ImageError(
            Reason.NEEDS_EXTRA,
            "an AVIF image, and this Pillow was built without AVIF",
            where=name,
            hint="install Pillow's own wheel: pip install --force-reinstall pillow; or convert the image to PNG",
        )
    if kind == "HEIC":
        try:
            import pillow_heif
        except ImportError as error:
            raise ImageError(
                Reason.NEEDS_EXTRA,
                "a HEIC image, and the package that reads it is not installed",
                where=name,
                hint='pip install "ixtune[heif]", or convert the image to JPEG',
            ) from error
        pillow_heif.register_heif_opener()
    file.seek(0)
    try:
        return Image.open(file, formats=("AVIF",) if kind == "AVIF" else ("HEIF",))
    except Image.DecompressionBombError as error:
        raise _too_large(name, f"more than {MAX_PIXELS:,} pixels") from error
    except MemoryError:
        raise
    except Exception as error:  # the exceptions of codecs on broken data differ by version
        raise ImageError(
            Reason.PICTURE_BROKEN,
            f"the {kind} image is corrupt or truncated",
            where=name,
            hint="copy the file again, or convert it to JPEG or PNG where it still opens",
        ) from error


def read_file(path: Path, name: str, most_bytes: int) -> bytes | None:
    """Return the content of an image file; None if it has more than `most_bytes`.

    Raises:
        ImageError: There is no such file, or it cannot be read; errors call it `name`.
    """
    descriptor, size = _descriptor(path, name)
    try:
        if size > most_bytes:
            return None
        # one more call than the size requires, because the file may have grown
        parts = list(iter(lambda: os.read(descriptor, size + 1), b""))
    except OSError as error:
        raise _unreadable(error, name) from error
    finally:
        os.close(descriptor)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _file(source: Path | bytes, name: str) -> IO[bytes]:
    """Open a file or bytes, with errors that say what is wrong."""
    if isinstance(source, bytes):
        if not source:
            raise _empty(name)
        return BytesIO(source)
    return os.fdopen(_descriptor(source, name)[0], "rb")


def _descriptor(source: Path, name: str) -> tuple[int, int]:
    """Open a regular file that is not empty: its descriptor and its size in bytes."""
    try:
        descriptor = os.open(source, _READ)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(
            Reason.PICTURE_MISSING,
            "there is no such image",
            where=name,
            hint="check the path; restore the file if it existed before",
        ) from error
    except (OSError, ValueError) as error:  # permission denied, a socket, a null character
        raise _unreadable(error, name) from error
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise ImageError(Reason.PICTURE_IS_FOLDER, "a folder, not an image", where=name, hint="name one file")
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(Reason.PICTURE_UNREADABLE, "not a regular file", where=name, hint="name an image file")
        if found.st_size == 0:
            raise _empty(name)
        return descriptor, found.st_size
    except ImageError:
        os.close(descriptor)
        raise


def _empty(name: str) -> ImageError:
    return ImageError(Reason.PICTURE_EMPTY, "the image file is empty", where=name, hint="copy the file again")


def _unreadable(error: Exception, name: str) -> ImageError:
    return ImageError(
        Reason.PICTURE_UNREADABLE,
        f"the image cannot be opened: {_first_line(error)}",
        where=name,
        hint="check the path and its permissions, and save the file again if it is damaged",
    )


def _too_large(name: str, found: str) -> ImageError:
    return ImageError(
        Reason.PICTURE_TOO_LARGE, found, where=name, hint="scale it down: its crops need far fewer pixels"
    )


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:  # without its number and the path
        return error.strerror.lower()
    return (str(error) or type(error).__name__).splitlines()[0]
