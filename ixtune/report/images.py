"""Images of examples as data URIs with their crop grid, within a size limit for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ixtune.data.images.image_file import ImageError
from ixtune.data.images.pixels import Corrections, open_image, place
from ixtune.data.preview.drawing import draw_grid
from ixtune.family import member_of_layout
from ixtune.layout import LayoutError, PatchLayout, plan

PAGE_BYTES = 6 << 20
"""Limit of all images of a page together, as JPEG."""
_SIZE = (560, 420)
_PICTURE_BYTES = 96 << 10
_QUALITIES = (80, 60, 40, 25)
# with every correction applied, as people see the file
_WAYS = (Corrections(exif=True, alpha=True, depth=True, first_frame=True), Corrections(first_frame=True))


@dataclass(frozen=True, slots=True)
class Drawn:
    """Image of the page.

    Attributes:
        uri: Its `data:` address.
        width: In pixels.
        height: In pixels.
    """

    uri: str
    width: int
    height: int


class Album:
    """Draw images until the page's limit is reached."""

    def __init__(self, budget_bytes: int = PAGE_BYTES) -> None:
        self.left_bytes = budget_bytes

    def draw(self, stored: Mapping[str, Any], hd_num: int | None) -> Drawn | str:
        """Return an image with its crops framed and numbered, or the reason why there is none.

        Args:
            stored: One of an answer's images.
            hd_num: The first model's hd_num; None if unknown.
        """
        if not stored.get("path"):
            return "the image is inside the benchmark's file and is not shown"
        if self.left_bytes < _PICTURE_BYTES:
            return "not shown: the images of the page have reached their size limit"
        try:
            image = self._opened(Path(stored["path"]), (stored["width"], stored["height"]))
        except ImageError as error:
            return f"the image cannot be shown: {error}"
        if image is None:
            return f"the image is not shown: {stored['path']} has another size than when it was evaluated"
        layout = layout_of(stored, hd_num)
        if layout is None:
            image.thumbnail(_SIZE)
            drawing = image
        else:
            drawing = draw_grid(place(image, layout), layout, *_SIZE)
        content = _jpeg(drawing)
        self.left_bytes -= len(content)
        uri = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
        return Drawn(uri, drawing.width, drawing.height)

    @staticmethod
    def _opened(path: Path, size: tuple[int, int]) -> Any:
        for corrections in _WAYS:
            image = open_image(path, corrections)
            if image.size == size:
                return image
        return None


def layout_of(stored: Mapping[str, Any], hd_num: int | None) -> PatchLayout | None:
    """Return the layout with the crops that the image had; None if there is none."""
    grid = stored["rows"], stored["columns"]
    try:
        member = member_of_layout(*grid, stored["tokens"])
    except ValueError:
        return None
    ways = product(filter(None, (hd_num, grid[0] * grid[1])), (True, False), member.rules)
    for most, upscale, rule in ways:
        with suppress(LayoutError, ValueError):
            found = plan(stored["width"], stored["height"], most, upscale=upscale, member=member.with_rule(rule.name))
            if (found.rows, found.cols) == grid:
                return found
    return None


def _jpeg(image: Any) -> bytes:
    """Return the image at the best quality within the limit of one embedded image."""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= _PICTURE_BYTES:
            break
    return buffer.getvalue()
