"""Pictures to uint8 crops, bit for bit as in the reference: open, resize, pad, cut (MODEL.md 2.1 to 2.4)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ixtune.data.rejects import Reason, RecordError
from ixtune.layout import CROP, PatchLayout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

MAX_PIXELS = 178_956_970
"""Where Pillow itself refuses a decompression bomb: 0.5 GiB as RGB. (A0 at 300 dpi: 139 million.)"""

# Raster formats that Pillow decodes by itself. Left out: EPS (runs another program), rare readers.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")


class PictureError(RecordError):
    """A picture file cannot be used."""


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header; the pixels are not decoded, they may still be broken.

    Raises:
        PictureError: There is no such file, it is no picture, or it has more than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        return image.size


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB, by Pillow's plain conversion.

    As in the reference, EXIF orientation is ignored and alpha dropped, not composited (MODEL.md 2.1).

    Raises:
        PictureError: There is no such file, it is no picture, it has more than `MAX_PIXELS`, or its data are
            broken.
    """
    with _opened(path) as image:
        try:
            return image.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # what a decoder raises on broken data differs by format and version
            raise PictureError(
                Reason.PICTURE_BROKEN,
                f"the picture's data are broken or cut short: {_first_line(error)}",
                where=str(path),
                mend="save or copy the file again",
            ) from error


def place(image: Image.Image, layout: PatchLayout) -> NDArray[np.uint8]:
    """The RGB `image` resized and padded with white as `layout` says: uint8 [final_height, final_width, 3].

    A portrait is really transposed and back. Pillow resizes in two rounded passes, the horizontal one first,
    so a resize with swapped arguments differs by one level in a fifth of the pixels (MODEL.md 2.2).

    Raises:
        ValueError: `image` is not RGB, or has not the size that `layout` was planned for.
    """
    import numpy as np
    from PIL import Image

    if image.mode != "RGB":
        raise ValueError(f"the picture must be RGB, not {image.mode}")
    if image.size != (layout.width, layout.height):
        raise ValueError(
            f"the layout is for a picture of {layout.width} x {layout.height}, "
            f"this one has {image.size[0]} x {image.size[1]}"
        )
    size = (layout.resized_width, layout.resized_height)
    if layout.transposed:
        image = image.transpose(Image.Transpose.TRANSPOSE)
        size = (size[1], size[0])
    image = image.resize(size, Image.Resampling.BILINEAR)
    if layout.transposed:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    padding = (layout.pad_before, layout.pad_after)
    rows, cols = (padding, (0, 0)) if layout.pad_axis == "y" else ((0, 0), padding)
    return np.pad(np.asarray(image), (rows, cols, (0, 0)), constant_values=255)


def crops(placed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The crops of a placed picture [rows * 336, cols * 336, 3], row by row: uint8 [crops, 3, 336, 336].

    Raises:
        ValueError: A side is no multiple of 336, or there are not three channels.
    """
    import numpy as np

    if placed.ndim != 3 or placed.shape[0] % CROP or placed.shape[1] % CROP or placed.shape[2] != 3:
        raise ValueError(f"the sides must be multiples of {CROP} and the channels 3, not {placed.shape}")
    rows, cols = placed.shape[0] // CROP, placed.shape[1] // CROP
    grid = placed.reshape(rows, CROP, cols, CROP, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(grid).reshape(rows * cols, 3, CROP, CROP)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture with its header read and its size checked; the file is closed at the end of the block."""
    from PIL import Image, UnidentifiedImageError

    _require_content(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns from half its limit on; ours is the whole of it. Odd metadata do not matter.
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path, f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise PictureError(
            Reason.PICTURE_UNREADABLE,
            "not a picture in a known format",
            where=str(path),
            mend="save it as PNG, JPEG, WebP or TIFF",
        ) from error
    except Exception as error:  # a permission refused, or a header that sends a format's reader astray
        raise PictureError(
            Reason.PICTURE_UNREADABLE,
            f"the picture cannot be opened: {_first_line(error)}",
            where=str(path),
            mend="check that the file may be read, and save it again if it is damaged",
        ) from error
    with image:
        if image.size[0] * image.size[1] > MAX_PIXELS:
            raise _too_large(path, f"{image.size[0]} x {image.size[1]} pixels, more than {MAX_PIXELS:,}")
        yield image


def _require_content(path: Path) -> None:
    """Raise a PictureError for what Pillow would report in words that do not help."""
    where = str(path)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PictureError(
            Reason.PICTURE_MISSING,
            "there is no such picture",
            where=where,
            mend="check the path and --image-root",
        ) from error
    except (OSError, ValueError) as error:  # a null character, a folder that may not be entered
        raise PictureError(
            Reason.PICTURE_UNREADABLE,
            f"the picture cannot be opened: {_first_line(error)}",
            where=where,
            mend="check the path and its permissions",
        ) from error
    if path.is_dir():
        raise PictureError(Reason.PICTURE_IS_FOLDER, "a folder, not a picture", where=where, mend="name one file")
    if not path.is_file():  # opening a named pipe would wait for ever
        raise PictureError(Reason.PICTURE_UNREADABLE, "not a regular file", where=where, mend="name a picture file")
    if found.st_size == 0:
        raise PictureError(Reason.PICTURE_EMPTY, "the picture file is empty", where=where, mend="copy the file again")


def _too_large(path: Path, what: str) -> PictureError:
    return PictureError(
        Reason.PICTURE_TOO_LARGE, what, where=str(path), mend="scale it down: its crops need far fewer pixels"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
