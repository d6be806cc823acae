"""Draw paper forms with a box of 28 pixels for each character."""

from __future__ import annotations

import random

from paper import TEST_FONTS, TRAIN_FONTS, font_file, table_file
from PIL import Image, ImageDraw, ImageFont

__all__ = ["BOX", "TEST_FONTS", "TRAIN_FONTS", "Form", "table_file"]

BOX = 28  # pixels; one image token covers 28 x 28


class Form:
    """A sheet of boxes, one character each."""

    def __init__(self, rng: random.Random, font: tuple[str, str], columns: int, rows: int) -> None:
        """Start a blank form of `columns` x `rows` boxes."""
        self.font = ImageFont.truetype(font_file(*font), rng.randint(26, 31))
        self.paper, self.ink = (rng.randint(235, 255),) * 3, (rng.randint(0, 60),) * 3
        self.image = Image.new("RGB", (columns * BOX, rows * BOX), self.paper)
        self.draw = ImageDraw.Draw(self.image)

    def write(self, column: int, row: int, text: str) -> None:
        """Write `text` into the boxes from (column, row) on, one centered character a box."""
        for index, character in enumerate(text):
            x, y = (column + index + 0.5) * BOX, (row + 0.78) * BOX
            self.draw.text((x, y), character, font=self.font, fill=self.ink, anchor="ms")

    def rule(self, row: int) -> None:
        """Draw a line above a row."""
        self.draw.line((4, row * BOX, self.image.width - 4, row * BOX), fill=self.ink)
