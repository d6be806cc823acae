"""Write sources for tests: records as JSON, and their images."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw


def entry(name: str | int, *values: str, image: Any = ()) -> dict[str, Any]:
    """Return a record of a source, with alternating turns of user and assistant."""
    turns = [{"from": ("user", "assistant")[n % 2], "value": value} for n, value in enumerate(values)]
    image = list(image) if isinstance(image, tuple) else image
    return {"id": name, "image": image, "conversations": turns}


def shown(name: str | int, image: str = "a.png") -> dict[str, Any]:
    """Return a valid record with one image."""
    return entry(name, "<ImageHere>What is the total?", "42.50", image=[image])


def write_source(folder: Path, entries: Any, name: str = "source.json") -> Path:
    """Write a source in which each record starts on its own line."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return path


def write_image(path: Path, width: int = 60, height: int = 40) -> Path:
    """Write an image in which no two neighboring pixels are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    red = Image.linear_gradient("L").resize((width, height))
    Image.merge("RGB", (red, red.transpose(Image.Transpose.ROTATE_180), red)).save(path)
    return path


def draw_page(seed: int) -> Image.Image:
    """Draw lines of words as boxes of random width."""
    some = random.Random(seed)
    image = Image.new("L", (500, 700), 255)
    draw = ImageDraw.Draw(image)
    for y in range(40, 660, 24):
        x = 30
        while (end := x + some.randint(15, 80)) < 470:
            draw.rectangle((x, y, end, y + 10), fill=0)
            x = end + some.randint(6, 12)
    return image.convert("RGB")
