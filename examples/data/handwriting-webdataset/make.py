"""Arrange handwritten digits of the UCI collection in rows and write them as two WebDataset shards.

    pip install scikit-learn
    python make.py [FOLDER]

writes shard-000.tar and shard-001.tar to FOLDER (default: the folder of this script). The collection stores each
handwritten digit as 8 x 8 shades. The script enlarges them smoothly and puts four to six in a row, dark on light as on
paper. No digit is used twice. The shards are the same each time.
"""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
SHARDS, ROWS_IN_EACH = 2, 20
SHADES = 16  # what the collection calls full ink
CELL, MARGIN = 80, 16  # pixels
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def digits() -> list[tuple[Image.Image, int]]:
    """Return every digit of the collection as an enlarged image, with its label."""
    from sklearn.datasets import load_digits

    collection = load_digits()
    images = []
    for shades, target in zip(collection.images, collection.target, strict=True):
        ink = Image.frombytes("L", (8, 8), bytes(255 - round(255 * shade / SHADES) for shade in shades.flat))
        paper = Image.new("L", (10, 10), 255)  # so that strokes fade out at the edge too
        paper.paste(ink, (1, 1))
        images.append((paper.resize((CELL, CELL), Image.Resampling.BICUBIC), int(target)))
    return images


def rows(chance: random.Random) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Yield each row as PNG bytes with its question and answer."""
    collection = digits()
    chance.shuffle(collection)
    for number in range(SHARDS * ROWS_IN_EACH):
        length = chance.randint(4, 6)
        row, collection = collection[:length], collection[length:]
        sheet = Image.new("L", (2 * MARGIN + length * CELL, 2 * MARGIN + CELL), 255)
        for place, (image, _) in enumerate(row):
            sheet.paste(image, (MARGIN + place * CELL, MARGIN))
        png = io.BytesIO()
        sheet.save(png, "PNG", optimize=True)
        yield png.getvalue(), asked(number, "".join(str(digit) for _, digit in row), chance)


def asked(number: int, written: str, chance: random.Random) -> dict[str, str]:
    """Return one of three questions, in turn, with its answer."""
    if number % 3 == 0:
        return {"question": "Which number is written here?", "answer": written}
    if number % 3 == 1:
        place = chance.randrange(len(written))
        return {"question": f"What is the {ORDINALS[place]} digit?", "answer": written[place]}
    return {"question": "How many digits are written here?", "answer": str(len(written))}


def member(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """Return a tar member without owner or time."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime, info.uid, info.gid = len(content), 0o644, 0, 0, 0
    return info, io.BytesIO(content)


def main() -> None:
    """Write the shards."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    made = rows(random.Random(0))
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard-{shard:03}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard * ROWS_IN_EACH, (shard + 1) * ROWS_IN_EACH):
                png, question = next(made)
                tar.addfile(*member(f"{number:06}.png", png))
                tar.addfile(*member(f"{number:06}.json", json.dumps(question).encode()))
    print(f"{SHARDS * ROWS_IN_EACH} rows in {SHARDS} shards in {folder}")


if __name__ == "__main__":
    main()
