"""Fill order forms with real handwritten digits and ask for their fields as JSON.

The digits come from `digits.png` (see README.md), which has one handwriting in each of its fourteen rows. Each form
uses one handwriting. Training uses ten of them, validation one, and the held-out forms three others and other fonts.
"""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
from functools import cache
from pathlib import Path

from PIL import Image, ImageChops

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
from boxes import BOX, TEST_FONTS, TRAIN_FONTS, Form

HERE = Path(__file__).resolve().parent
TRAIN_HANDS, VALIDATION_HANDS, TEST_HANDS = tuple(range(10)), (10,), (11, 12, 13)
SIDE = 8  # pixels of a digit in the collection
COLUMNS, ROWS = 12, 12  # boxes; one crop
FIELDS = {"NO": 4, "QTY": 2, "SUM": 3}  # printed name: number of digits
FIRST_DIGIT = 5  # column of boxes
QUESTION = "What is written on the form?"
FONTS = {"train": TRAIN_FONTS, "validation": TRAIN_FONTS, "test": TEST_FONTS}
HANDS = {"train": TRAIN_HANDS, "validation": VALIDATION_HANDS, "test": TEST_HANDS}


@cache
def digits(hand: int) -> dict[str, list[Image.Image]]:
    """Return all images of each digit in one handwriting, dark on white, at the size of a box."""
    labels = json.loads((HERE / "digits.json").read_text(encoding="utf-8"))[hand]
    with Image.open(HERE / "digits.png") as file:
        sheet = file.convert("L")
    found: dict[str, list[Image.Image]] = {}
    for place, digit in enumerate(labels):
        corner = (place * SIDE, hand * SIDE)
        small = sheet.crop((*corner, corner[0] + SIDE, corner[1] + SIDE))
        found.setdefault(digit, []).append(small.resize((BOX, BOX), Image.Resampling.BICUBIC))
    return found


def draw(rng: random.Random, hand: int, font: tuple[str, str]) -> tuple[Image.Image, dict[str, str]]:
    """Draw a filled form; return it with its fields, in their order on the form."""
    form = Form(rng, font, COLUMNS, ROWS)
    written = digits(hand)
    fields = {}
    for index, name in enumerate(rng.sample(list(FIELDS), len(FIELDS))):
        row = 1 + 4 * index + rng.randint(0, 1)
        form.write(0, row, name)
        value = "".join(rng.choice(sorted(written)) for _ in range(FIELDS[name]))
        for place, digit in enumerate(value):
            left, top = (FIRST_DIGIT + place) * BOX, row * BOX
            area = (left, top, left + BOX, top + BOX)
            ink = Image.merge("RGB", [rng.choice(written[digit])] * 3)
            form.image.paste(ImageChops.multiply(form.image.crop(area), ink), area)
        fields[name.lower()] = value
    return form.image, fields


def draw_set(folder: Path, name: str, forms: int) -> Path:
    """Draw forms and write FOLDER/NAME.tar, a WebDataset shard of one question a form."""
    rng = random.Random(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(forms):
            image, fields = draw(rng, rng.choice(HANDS[name]), rng.choice(FONTS[name]))
            png = io.BytesIO()
            image.save(png, "PNG")
            add(tar, f"{index:06}.png", png.getvalue())
            asked = {"question": QUESTION, "answer": json.dumps(fields)}
            add(tar, f"{index:06}.json", json.dumps(asked).encode())
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar without owner, mode or time."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
