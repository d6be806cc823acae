"""Draw sheets in running print, with rules; find the tables and fonts that fill them."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

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


class Sheet:
    """A sheet of paper with lines of print at a fixed pitch."""

    def __init__(self, rng: random.Random, font: tuple[str, str], width: int, height: int) -> None:
        """Start a blank sheet of width x height pixels."""
        self.size = rng.randint(22, 26)
        self.path = font_file(*font)
        self.font = ImageFont.truetype(self.path, self.size)
        self.paper, self.ink = (rng.randint(238, 255),) * 3, (rng.randint(0, 60),) * 3
        self.image = Image.new("RGB", (width, height), self.paper)
        self.draw = ImageDraw.Draw(self.image)

    def write(self, x: float, y: float, text: str, anchor: str = "lm", larger: int = 0) -> None:
        """Write `text` at (x, y); `anchor` is Pillow's, `larger` is added to the font size."""
        font = ImageFont.truetype(self.path, self.size + larger) if larger else self.font
        self.draw.text((x, y), text, font=font, fill=self.ink, anchor=anchor)

    def rule(self, y: float, left: float = 8, right: float | None = None, width: int = 1) -> None:
        """Draw a horizontal line at height y."""
        end = self.image.width - 8 if right is None else right
        self.draw.line((left, y, end, y), fill=self.ink, width=width)

    def dots(self, x: float, y: float, end: float) -> None:
        """Draw a dotted leader from x to `end`."""
        for at in range(int(x), int(end), 8):
            self.draw.point((at, y), fill=self.ink)
