"""Image layout: the single source of truth for image sizes, crops and token counts.

An image is resized so that it fills at most `hd_num` crops, padded with white to whole crops, and cut. The `Member`
defines the size of a crop, how far an image may grow and where its padding goes.
Source: MODEL.md 2.2 (HD_transform) and 2.5 (sequence), MODEL25.md, to the letter, unless `upscale` is off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ixtune.family import FOUR_KHD, Member

MAX_HD_NUM = 256
"""The largest hd_num that data may request: its 37,000 tokens already exceed the model's context."""

LAYOUT_VERSION = 1
"""Version stored in prepared data; increase it whenever `plan` gives a different result for the same input."""


class LayoutError(ValueError):
    """The reference has no layout for this image at this hd_num; it fails there too."""


@dataclass(frozen=True, slots=True)
class PatchLayout:
    """Layout of one image as crops and tokens; sizes in pixels, in the image's visible orientation.

    Attributes:
        width: Width of the image.
        height: Height of the image.
        hd_num: Maximum number of crops for the image.
        upscale: Whether a small image is enlarged until it fills its crops, as the reference does.
        transposed: Whether the image is a portrait, which is transposed for the resize and back afterwards.
        resized_width: Width after the resize, before the padding.
        resized_height: Height after the resize, before the padding.
        pad_left: White columns on the left.
        pad_top: White rows at the top.
        rows: Rows of crops.
        cols: Columns of crops.
        member: The model that the layout is for.
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
    member: Member = FOUR_KHD

    @property
    def final_width(self) -> int:
        """Width after resize and padding, a whole number of crops."""
        return self.cols * self.member.crop

    @property
    def final_height(self) -> int:
        """Height after resize and padding, a whole number of crops."""
        return self.rows * self.member.crop

    @property
    def pad_right(self) -> int:
        """White columns on the right; with centered padding, `pad_left` or one more."""
        return self.final_width - self.resized_width - self.pad_left

    @property
    def pad_bottom(self) -> int:
        """White rows at the bottom; with centered padding, `pad_top` or one more."""
        return self.final_height - self.resized_height - self.pad_top

    @property
    def crops(self) -> int:
        """Number of crops, without the global view."""
        return self.rows * self.cols

    @property
    def tokens(self) -> int:
        """Number of image tokens of the image."""
        return self.member.tokens(self.rows, self.cols)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and the derived numbers as a JSON-serializable dict."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "member"}
        derived = {
            "pad_right": self.pad_right,
            "pad_bottom": self.pad_bottom,
            "final_width": self.final_width,
            "final_height": self.final_height,
            "crops": self.crops,
            "tokens": self.tokens,
            "token_parts": self.member.token_parts(self.rows, self.cols),
        }
        return own | self.member.record() | derived


def plan(width: int, height: int, hd_num: int, *, upscale: bool = True, member: Member = FOUR_KHD) -> PatchLayout:
    """Return the layout of an image of `width` x `height` pixels with at most `hd_num` crops.

    Only the aspect ratio matters, unless the member's rule bounds growth: a small image is enlarged until it fills its
    crops. The quotients are float64 without tolerance, because the reference's are: exact arithmetic would give other
    grids.

    Without `upscale`, which departs from the reference, an image that fits into `hd_num` crops keeps its size and is
    padded with white on all sides. Any other image has the reference's layout, which only shrinks it.

    Raises:
        TypeError: A number is not an int (a bool is not one).
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
    crop = member.crop
    own_cols, own_rows = -(-width // crop), -(-height // crop)
    if not upscale and own_cols * own_rows <= hd_num:
        resized_width, resized_height, cols, rows = width, height, own_cols, own_rows
    elif transposed:
        resized_height, resized_width, rows, cols = _fill(height, width, hd_num, member)
    else:
        resized_width, resized_height, cols, rows = _fill(width, height, hd_num, member)
    return PatchLayout(
        width=width,
        height=height,
        hd_num=hd_num,
        upscale=upscale,
        transposed=transposed,
        resized_width=resized_width,
        resized_height=resized_height,
        pad_left=(cols * crop - resized_width) // 2 * member.rule.centered,
        pad_top=(rows * crop - resized_height) // 2 * member.rule.centered,
        rows=rows,
        cols=cols,
        member=member,
    )


def most_steps(long_side: int, member: Member) -> float:
    """Return the maximum number of crops along the enlarged long side of an image, whatever hd_num allows."""
    growth = member.rule.growth
    return math.inf if growth is None else math.ceil(growth * long_side / member.crop)


def _fill(long_side: int, short_side: int, hd_num: int, member: Member) -> tuple[int, int, int, int]:
    """Return long side and short side after the reference's resize, and the number of crops along each.

    The long side is always a whole number of crops.
    """
    try:
        ratio = long_side / short_side
    except OverflowError:
        raise LayoutError(f"an image with sides of {long_side} and {short_side} is too large for float64") from None
    steps, most = 1, most_steps(long_side, member)
    while steps < most and (steps + 1) * math.ceil((steps + 1) / ratio) <= hd_num:
        steps += 1
    resized_long = member.crop * steps
    resized_short = int(resized_long / ratio)
    if resized_short == 0:
        raise LayoutError(
            f"an image with sides of {long_side} and {short_side} is too thin for hd_num {hd_num}: "
            f"height and width must be > 0 after the resize"
        )
    # Not ceil(steps / ratio): the truncation above can save a whole row of crops (5328 x 2132 at 16).
    return resized_long, resized_short, steps, math.ceil(resized_short / member.crop)
