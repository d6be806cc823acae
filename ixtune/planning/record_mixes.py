"""Made-up records for planning without data: named mixes of typical images and texts.

The cost of a recipe is planned on one of these, so that anyone can recompute the figure. Nothing here is
measured on a dataset: sizes are those of common papers, screens and cameras, and lengths are round numbers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from ixtune import layout
from ixtune.errors import UsageError, choice
from ixtune.family import FOUR_KHD, Member
from ixtune.planning.record_shapes import ImageShape, RecordShapes

RECORDS = 1000
"""Records of a mix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKind:
    """Kind of record; each range is (minimum, maximum), drawn uniformly.

    Attributes:
        share: fraction of all records.
        images: number of images in a record.
        width: width of an image, in pixels.
        aspect: height / width.
        hd_num: maximum number of crops per image; with larger crops, fewer with as many tokens.
        text: tokens besides those of images, the answer's included.
        answer: supervised tokens.
    """

    share: int = 1
    images: tuple[int, int] = (1, 1)
    width: tuple[int, int] = (0, 0)
    aspect: tuple[float, float] = (1.0, 1.0)
    hd_num: int = 25
    text: tuple[int, int]
    answer: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mix:
    """Mix of kinds of records.

    Attributes:
        description: description in one line, with {hd_num}.
        kinds: kinds of its records.
    """

    description: str
    kinds: tuple[RecordKind, ...]

    def describe_for(self, member: Member) -> str:
        """Describe the mix for a model of the family, in one line."""
        return self.description.format(hd_num=member.like(self.kinds[0].hd_num))


_PAGES = RecordKind(width=(1240, 1700), aspect=(1.29, 1.42), text=(60, 260), answer=(5, 60))
_TEXTS = RecordKind(images=(0, 0), text=(200, 1500), answer=(50, 150))

MIXES: Mapping[str, Mix] = {
    "documents": Mix("scanned pages at 150 to 200 dpi, a question and a short answer each; hd_num {hd_num}", (_PAGES,)),
    "charts": Mix(
        "plots of 600 to 1,200 pixels, a question and a value each; hd_num {hd_num}",
        (RecordKind(width=(600, 1200), aspect=(0.55, 0.85), hd_num=16, text=(30, 80), answer=(2, 12)),),
    ),
    "receipts": Mix(
        "photos of receipts, tall and narrow, with all fields as JSON; hd_num {hd_num}",
        (RecordKind(width=(600, 1100), aspect=(1.6, 3.2), hd_num=16, text=(150, 420), answer=(80, 300)),),
    ),
    "screenshots": Mix(
        "screens of desktops and of phones, half each; hd_num {hd_num}",
        (
            RecordKind(width=(1280, 1920), aspect=(0.5625, 0.625), text=(40, 200), answer=(10, 120)),
            RecordKind(width=(720, 1170), aspect=(2.0, 2.2), text=(40, 200), answer=(10, 120)),
        ),
    ),
    "multi-image": Mix(
        "two to five pages or photos in one conversation; hd_num {hd_num} each",
        (
            RecordKind(
                images=(2, 5), width=(800, 1600), aspect=(0.7, 1.42), hd_num=9, text=(120, 500), answer=(20, 200)
            ),
        ),
    ),
    "text-mix": Mix("documents, and as many records of text alone", (_PAGES, _TEXTS)),
}


def records_of(name: str, member: Member = FOUR_KHD, count: int = RECORDS) -> RecordShapes:
    """Generate the records of a mix, deterministically.

    Args:
        name: name of the mix.
        member: the model they are laid out for.
        count: number of records.

    Raises:
        UsageError: The mix is unknown.
    """
    if name not in MIXES:
        raise UsageError("there is no such mix of records", where=name, hint=choice(name, MIXES))
    chance = random.Random(name)
    turns = [kind for kind in MIXES[name].kinds for _ in range(kind.share)]
    lengths, supervised, images = [], [], []
    for number in range(count):
        kind = turns[number % len(turns)]
        seen = tuple(_image(kind, chance, member) for _ in range(chance.randint(*kind.images)))
        answer = chance.randint(*kind.answer)
        text = max(chance.randint(*kind.text), answer + 1)
        lengths.append(text + sum(image.tokens for image in seen))
        supervised.append(answer)
        images.append(seen)
    return RecordShapes(lengths, supervised, images, member=member)


def _image(kind: RecordKind, chance: random.Random, member: Member) -> ImageShape:
    width = chance.randint(*kind.width)
    height = round(width * chance.uniform(*kind.aspect))
    hd_num = member.like(kind.hd_num)
    made = layout.plan(width, height, hd_num, member=member)
    return ImageShape(width, height, True, hd_num, made.rows, made.cols, made.tokens)
