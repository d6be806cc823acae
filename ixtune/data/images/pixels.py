"""Convert images to uint8 crops, bit for bit as in the reference: open, resize, pad, cut (MODEL.md 2.1 to 2.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ixtune.data.images.image_file import broken, decode, opened, orientation
from ixtune.errors import UsageError
from ixtune.family import FOUR_KHD
from ixtune.layout import PatchLayout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

WHITE = 255
"""Value of the padding in each channel."""


@dataclass(frozen=True, slots=True)
class Corrections:
    """Optional deviations from how the reference opens an image.

    Attributes:
        exif: Apply the EXIF orientation, which the reference ignores.
        alpha: Lay transparent pixels over white; the reference drops the alpha channel, and hidden colors appear.
        depth: Scale 16- and 32-bit gray levels to 8 bits; the reference clips them at 255, and nearly all turn white.
        first_frame: Use the first of several frames or pages instead of refusing the image.
    """

    exif: bool = False
    alpha: bool = False
    depth: bool = False
    first_frame: bool = False

    def names(self) -> tuple[str, ...]:
        """Names of the enabled corrections, as on the command line and in manifests."""
        return tuple(name for name, field in _FIELDS.items() if getattr(self, field))

    @classmethod
    def of(cls, names: Iterable[str]) -> Corrections:
        """Return the corrections with these names.

        Raises:
            UsageError: There is no correction with such a name.
        """
        given = tuple(names)
        unknown = [name for name in given if name not in _FIELDS]
        if unknown:
            raise UsageError(
                f"no correction is called {', '.join(map(repr, unknown))}",
                where="--correct",
                hint=f"choose from {', '.join(_FIELDS)}",
            )
        return cls(**{_FIELDS[name]: True for name in given})


_FIELDS = {"exif": "exif", "alpha": "alpha", "depth": "depth", "first-frame": "first_frame"}

NONE = Corrections()
"""No corrections: open images as the reference does."""


def open_image(source: Path | bytes, corrections: Corrections = NONE, name: str | None = None) -> Image.Image:
    """Open an image and convert it to RGB with Pillow and the given corrections.

    Without corrections as in the reference: EXIF orientation is ignored, alpha dropped, not composited, and of
    several frames the first is taken (MODEL.md 2.1).

    Args:
        source: The file, or its content.
        corrections: Deviations from Pillow's plain conversion.
        name: Name in error messages; the path by default.

    Raises:
        ImageError: There is no such file, it is not an image, it has too many pixels, or its data are corrupt.
    """
    called = name or (str(source) if isinstance(source, Path) else "the image")
    with opened(source, called) as (image, _):
        turn = orientation(image) if corrections.exif else 1
        decode(image, called)
        try:
            rgb = _rgb(image, corrections)
        except ValueError as error:  # a mode that Pillow cannot convert
            raise broken(f"the image's colors cannot be converted: {error}", called) from error
        return rgb if turn == 1 else rgb.transpose(_turns()[turn])


def converted(image: Image.Image, corrections: Corrections = NONE) -> Image.Image:
    """Convert an image that is already open, with the result of `open_image` for its file.

    Raises:
        ValueError: Pillow cannot convert its colors.
    """
    turn = orientation(image) if corrections.exif else 1
    rgb = _rgb(image, corrections)
    return rgb if turn == 1 else rgb.transpose(_turns()[turn])


def place(image: Image.Image, layout: PatchLayout) -> NDArray[np.uint8]:
    """Resize the RGB `image` and pad it with white according to `layout`: uint8 [final_height, final_width, 3].

    Raises:
        ValueError: `image` is not RGB, or does not have the size that `layout` was planned for.
    """
    import numpy as np

    rows = (layout.pad_top, layout.pad_bottom)
    cols = (layout.pad_left, layout.pad_right)
    return np.pad(np.asarray(_resized(image, layout)), (rows, cols, (0, 0)), constant_values=WHITE)


def crops(placed: NDArray[np.uint8], side: int = FOUR_KHD.crop) -> NDArray[np.uint8]:
    """Return the crops of a placed image [rows * side, cols * side, 3], row by row: uint8 [crops, 3, side, side].

    Raises:
        ValueError: A side of the image is not a multiple of `side`, or there are not three channels.
    """
    import numpy as np

    if placed.ndim != 3 or placed.shape[0] % side or placed.shape[1] % side or placed.shape[2] != 3:
        raise ValueError(f"the sides must be multiples of {side} and the channels 3, not {placed.shape}")
    rows, cols = placed.shape[0] // side, placed.shape[1] // side
    grid = placed.reshape(rows, side, cols, side, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(grid).reshape(rows * cols, 3, side, side)


def place_and_cut(image: Image.Image, layout: PatchLayout) -> NDArray[np.uint8]:
    """Compute `crops(place(image, layout), layout.member.crop)` one row of crops at a time.

    This avoids two more copies of the whole image, resized and padded: 2 x 18 MB at hd_num 55.

    Raises:
        ValueError: `image` is not RGB, or does not have the size that `layout` was planned for.
    """
    import numpy as np

    resized = _resized(image, layout)
    width, height = resized.size
    side = layout.member.crop
    made = np.empty((layout.rows, layout.cols, 3, side, side), dtype=np.uint8)
    for row in range(layout.rows):
        top = max(0, row * side - layout.pad_top)
        bottom = max(top, min(height, (row + 1) * side - layout.pad_top))
        above = top - (row * side - layout.pad_top)
        strip = np.full((side, layout.final_width, 3), WHITE, dtype=np.uint8)
        strip[above : above + bottom - top, layout.pad_left : layout.pad_left + width] = np.asarray(
            resized.crop((0, top, width, bottom))
        )
        made[row] = strip.reshape(side, layout.cols, side, 3).transpose(1, 3, 0, 2)
    return made.reshape(layout.crops, 3, side, side)


def _resized(image: Image.Image, layout: PatchLayout) -> Image.Image:
    """Resize `image` to its size before the padding.

    A portrait is really transposed and back. Pillow resizes in two rounded passes, the horizontal one first,
    so a resize with swapped arguments differs by one level in a fifth of the pixels (MODEL.md 2.2).
    """
    from PIL import Image

    if image.mode != "RGB":
        raise ValueError(f"the image must be RGB, not {image.mode}")
    if image.size != (layout.width, layout.height):
        raise ValueError(
            f"the layout is for an image of {layout.width} x {layout.height}, "
            f"this one has {image.size[0]} x {image.size[1]}"
        )
    size = (layout.resized_width, layout.resized_height)
    if image.size == size:
        return image
    if not layout.transposed:
        return image.resize(size, Image.Resampling.BILINEAR)
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    return turned.resize(size[::-1], Image.Resampling.BILINEAR).transpose(Image.Transpose.TRANSPOSE)


def _rgb(image: Image.Image, corrections: Corrections) -> Image.Image:
    from PIL import Image

    if corrections.depth and is_deep(image):
        image = _scaled_to_8_bits(image)
    if corrections.alpha and has_alpha(image):
        over = Image.new("RGB", image.size, (WHITE, WHITE, WHITE))
        seen = image.convert("RGBA")
        over.paste(seen, mask=seen)
        return over
    # converting RGB to RGB would copy it
    return image if image.mode == "RGB" else image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Return whether an open image is gray with 16 or 32 bits; of such colors Pillow keeps the upper 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def has_alpha(image: Image.Image) -> bool:
    """Return whether an open image may have transparent pixels; Pillow's own test fails on a lost palette."""
    return (
        image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        or "transparency" in image.info
        or (image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"))
    )


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale gray values to 8 bits: 16-bit ones from their full range, others, which have none, from their extremes."""
    import numpy as np
    from PIL import Image

    deep = np.asarray(image).astype(np.float64)
    # Pillow gives the 16 bits of a PGM, already scaled to that range, as 32
    if image.mode.startswith("I;16") or image.format == "PPM":
        low, high = 0.0, 65535.0
    else:
        known = deep[np.isfinite(deep)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    scaled = np.nan_to_num((deep - low) / ((high - low) or np.inf) * 255, posinf=255, neginf=0)
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def _turns() -> dict[int, Image.Transpose]:
    """Return EXIF orientation -> the transposition that puts such an image upright (EXIF 2.3, tag 0x0112)."""
    from PIL import Image

    how = Image.Transpose
    return {
        2: how.FLIP_LEFT_RIGHT,
        3: how.ROTATE_180,
        4: how.FLIP_TOP_BOTTOM,
        5: how.TRANSPOSE,
        6: how.ROTATE_270,
        7: how.TRANSVERSE,
        8: how.ROTATE_90,
    }
