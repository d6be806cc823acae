"""Draw paper forms with a box of 28 pixels for each character; find the tables and fonts that fill them.

The embedded base reads boxed print best, so all stories use it.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

BOX = 28  # pixels; one image token covers 28 x 28
# The nano base was not trained on any of these fonts. Held-out images use families that training images do not.
TRAIN_FONTS = (
    ("font_lato", "Lato-Regular.ttf"),
    ("font_lato", "Lato-Bold.ttf"),
    ("font_caladea", "Caladea-Regular.ttf"),
    ("font_manrope", "Manrope-Medium.ttf"),
)
TEST_FONTS = (
    ("font_source_sans_pro", "SourceSansPro-Regular.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Regular.ttf"),
)


def package_folder(package: str) -> Path:
    """Return the folder of an installed package that contains data.

    Raises:
        SystemExit: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install 'ixtune[demo]'")
    return Path(spec.origin).parent


def table_file(name: str) -> Path:
    """Return the path of a table in vega_datasets."""
    return package_folder("vega_datasets") / "_data" / name


def font_file(package: str, name: str) -> str:
    """Return the path of a font file in a font package."""
    return str(package_folder(package) / "files" / name)


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
