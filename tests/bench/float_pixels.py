"""Convert an image to crops the plain way: one normalized float32 tensor of the whole image, then cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ixtune.family import FOUR_KHD
from ixtune.layout import PatchLayout

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)

CROP = FOUR_KHD.crop


def float_crops(path: Path, layout: PatchLayout) -> np.ndarray:
    """Return float32 crops [crops, 3, 336, 336] of a landscape image."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image = image.resize((layout.resized_width, layout.resized_height), Image.Resampling.BILINEAR)
    placed = Image.new("RGB", (layout.final_width, layout.final_height), "white")
    placed.paste(image, (layout.pad_left, layout.pad_top))
    pixels = (np.asarray(placed).astype(np.float32) / 255 - MEAN) / STD
    grid = pixels.transpose(2, 0, 1).reshape(3, layout.rows, CROP, layout.cols, CROP).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(grid).reshape(layout.crops, 3, CROP, CROP)
