"""The geometry of one image in plain numbers, the single truth for sizes and token counts.

An image is resized so that it fills at most `hd_num` crops of 336x336, padded with white to whole crops, and
cut.
Source: MODEL.md 2.2 (HD_transform) and 2.5 (sequence), to the letter, unless `upscale` is off.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

CROP = 336
"""Side of a crop in pixels: the input size of the vision tower."""

VIEW_SIDE_TOKENS = 12
"""Vectors along the side of one view: 336 / 14 patches, merged 2x2."""

VIEW_TOKENS = VIEW_SIDE_TOKENS**2
"""Vectors of one view (a crop, or the global view), newline tokens not counted."""

MAX_HD_NUM = 256
"""The largest hd_num that data may ask for: its 37,000 tokens are beyond the model's context as it is."""

LAYOUT_VERSION = 1
"""Written into prepared data; to be raised when `plan` gives another answer for the same input."""


class LayoutError(ValueError):
    """The reference has no layout for this image at this hd_num; it fails there too."""


@dataclass(frozen=True, slots=True)
class PatchLayout:
    """How one image becomes crops and tokens; sizes in pixels, in the frame of the image as it is seen.

    Attributes:
        width: Width of the image.
        height: Height of the image.
        hd_num: The most crops the image may fill.
        upscale: Whether a small image is enlarged until it fills its crops, as the reference does.
        transposed: Whether the image is a portrait, which is transposed for the resize and back then.
        resized_width: Width after the resize, before the padding.
        resized_height: Height after the resize, before the padding.
        pad_left: White columns at the left.
        pad_top: White rows at the top.
        rows: Rows of crops.
        cols: Columns of crops.
    """

    width: int
    height: int
    hd_num: int
    upscale: bool
    transposed: bool
    resized_width: int
    resized_height: int
    pad_left: int
    pad_top: int
    rows: int
    cols: int

    @property
    def final_width(self) -> int:
        """Width after resize and padding, a multiple of 336."""
        return self.cols * CROP

    @property
    def final_height(self) -> int:
        """Height after resize and padding, a multiple of 336."""
        return self.rows * CROP

    @property
    def pad_right(self) -> int:
        """White columns at the right, as many as at the left or one more."""
        return self.final_width - self.resized_width - self.pad_left

    @property
    def pad_bottom(self) -> int:
        """White rows at the bottom, as many as at the top or one more."""
        return self.final_height - self.resized_height - self.pad_top

    @property
    def crops(self) -> int:
        """Number of 336x336 crops, the global view not counted."""
        return self.rows * self.cols

    @property
    def tokens(self) -> int:
        """Length of the image's image span, see `tokens_of`."""
        return tokens_of(self.rows, self.cols)

    def as_dict(self) -> dict[str, Any]:
        """All fields and the derived numbers, for JSON."""
        derived = {
            "pad_right": self.pad_right,
            "pad_bottom": self.pad_bottom,
            "final_width": self.final_width,
            "final_height": self.final_height,
            "crops": self.crops,
            "tokens": self.tokens,
            "token_parts": token_parts(self.rows, self.cols),
        }
        return asdict(self) | derived


def token_parts(rows: int, cols: int) -> dict[str, int]:
    """Where the tokens of an image of `rows` x `cols` crops come from; the values add up to `tokens_of`.

    The global view, a newline token for each of its 12 rows, the separator token, the crops, and a newline
    token for each of the 12 * rows rows of their common map (MODEL.md 2.5).
    """
    return {
        "global_view": VIEW_TOKENS,
        "global_newlines": VIEW_SIDE_TOKENS,
        "separator": 1,
        "crops": VIEW_TOKENS * rows * cols,
        "crop_newlines": VIEW_SIDE_TOKENS * rows,
    }


def tokens_of(rows: int, cols: int) -> int:
    """Tokens of `rows` x `cols` crops: 144 * (rows * cols + 1) + 1 + 12 * (rows + 1) (MODEL.md 2.5)."""
    return VIEW_TOKENS * (rows * cols + 1) + 1 + VIEW_SIDE_TOKENS * (rows + 1)


def plan(width: int, height: int, hd_num: int, *, upscale: bool = True) -> PatchLayout:
    """The layout of an image of `width` x `height` pixels that may fill at most `hd_num` crops.

    Only the aspect ratio matters: a small image is enlarged until it fills its crops. The quotients are
    float64 without tolerance, because the reference's are: exact arithmetic would give other grids.

    Without `upscale`, which departs from the reference, an image that fits into `hd_num` crops as it is keeps its
    size and gets white on all sides. One that does not fit has the reference's layout, and that only shrinks: crops
    that hold it enlarged would hold it as it is.

    Raises:
        TypeError: A number is not an int (a bool is none).
        LayoutError: A size is not positive, hd_num is below 1, or the image is so thin that its shorter
            side vanishes in the resize.
    """
    for name, value in (("width", width), ("height", height), ("hd_num", hd_num)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, not {type(value).__name__}: {value!r}")
    if width < 1 or height < 1:
        raise LayoutError(f"width and height must be positive, not {width} x {height}")
    if hd_num < 1:
        raise LayoutError(f"hd_num must be at least 1, not {hd_num}: height and width must be > 0")

    transposed = width < height  # a square is not transposed
    own_cols, own_rows = -(-width // CROP), -(-height // CROP)
    if not upscale and own_cols * own_rows <= hd_num:
        resized_width, resized_height, cols, rows = width, height, own_cols, own_rows
    elif transposed:
        resized_height, resized_width, rows, cols = _fill(height, width, hd_num)
    else:
        resized_width, resized_height, cols, rows = _fill(width, height, hd_num)
    return PatchLayout(
        width=width,
        height=height,
        hd_num=hd_num,
        upscale=upscale,
        transposed=transposed,
        resized_width=resized_width,
        resized_height=resized_height,
        pad_left=(cols * CROP - resized_width) // 2,
        pad_top=(rows * CROP - resized_height) // 2,
        rows=rows,
        cols=cols,
    )


def _fill(long_side: int, short_side: int, hd_num: int) -> tuple[int, int, int, int]:
    """The reference's resize: long side, short side, and how many crops hold each.

    The long side is always a whole number of crops.
    """
    try:
        ratio = long_side / short_side
    except OverflowError:
        raise LayoutError(f"an image with sides of {long_side} and {short_side} is too large for float64") from None
    steps = 1
    while (steps + 1) * math.ceil((steps + 1) / ratio) <= hd_num:
        steps += 1
    resized_long = CROP * steps
    resized_short = int(resized_long / ratio)
    if resized_short == 0:
        raise LayoutError(
            f"an image with sides of {long_side} and {short_side} is too thin for hd_num {hd_num}: "
            f"height and width must be > 0 after the resize"
        )
    # Not ceil(steps / ratio): the truncation above can save a whole row of crops (5328 x 2132 at 16).
    return resized_long, resized_short, steps, math.ceil(resized_short / CROP)
