"""Named mixes of records to measure training on: real lengths for the 7B, scaled ones for the twin.

`mixed` imitates document data: a quarter of the records text of 200 to 1,500 tokens, a quarter A4 pages at hd_num
25 (4x6 crops) and half at hd_num 55 (6x9 crops), each page with 100 to 700 tokens of text. One sixteenth of a record's
tokens is supervised, or all its text but one token where that is less. Every record has its own page.

The other mixes ask several questions about each A4 page, 30 to 60 tokens with their answers: `pages-hd25` and
`pages-hd55` four, and `docvqa` 1 to 12, 3.9 on average, as DocVQA does (39,463 questions on 10,194 pages; hd_num 25).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from ixtune.data.shared_prefixes import Prefixes
from ixtune.family import FOUR_KHD
from ixtune.planning.flops import PackShape
from ixtune.planning.record_shapes import ImageShape, RecordShapes

NAME = "mixed"
MIXES = (NAME, "pages-hd25", "pages-hd55", "docvqa")
SCALE = 8
"""Factor by which the twin is narrower than the 7B and its records are shorter, so that the shares stay the same."""

_SUPERVISED_SHARE = 1 / 16
_TEXT_TOKENS, _PAGE_TEXT_TOKENS = (200, 1500), (100, 700)
# grids of crops: pages of the 7B, pages of the twin
_HD25, _HD55 = ((4, 6), (1, 2)), ((6, 9), (2, 3))
_CYCLE = (None, _HD55, _HD25, _HD55)
# mixes with several questions per page: grids, and number of questions of the pages in turn
_ASKED = {"pages-hd25": (_HD25, (4,)), "pages-hd55": (_HD55, (4,)), "docvqa": (_HD25, (3, 1, 6, 2, 12, 3, 1, 4, 2, 5))}
_QUESTION_TOKENS, _ANSWER_TOKENS = (30, 60), 8


@dataclass(frozen=True, slots=True)
class MixRecord:
    """Record of a mix.

    Attributes:
        text_tokens: tokens besides the image's.
        grid: (rows, cols) of its image's crops; None without an image.
        supervised: tokens that the loss is taken on, the last ones.
        page: number of its page; records with the same one show the same image.
    """

    text_tokens: int
    grid: tuple[int, int] | None
    supervised: int
    page: int | None = None

    @property
    def image_tokens(self) -> int:
        """Number of tokens of the image."""
        return FOUR_KHD.tokens(*self.grid) if self.grid else 0

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return self.text_tokens + self.image_tokens


def records(count: int, name: str = NAME, *, scale: int = SCALE, seed: int = 0) -> list[MixRecord]:
    """Return the first `count` records of a mix; those of `mixed` in random order.

    Args:
        count: a multiple of four keeps the shares exact, in `docvqa` a multiple of 39.
        name: one of `MIXES`.
        scale: 1 for the 7B's own lengths, `SCALE` for the twin's.
        seed: random seed of lengths and order.
    """
    chance = random.Random(f"{name} {seed}")
    if name != NAME:
        return list(islice(_questions(name, scale, chance), count))
    made = []
    for number in range(count):
        kind = _CYCLE[number % len(_CYCLE)]
        text = chance.randint(*(_PAGE_TEXT_TOKENS if kind else _TEXT_TOKENS)) // scale
        grid = kind[scale != 1] if kind else None
        tokens = text + (FOUR_KHD.tokens(*grid) if grid else 0)
        made.append(MixRecord(text, grid, min(max(1, round(tokens * _SUPERVISED_SHARE)), text - 1)))
    chance.shuffle(made)
    return made


def _questions(name: str, scale: int, chance: random.Random) -> Iterator[MixRecord]:
    """Yield questions about one page after the other."""
    grids, asked = _ASKED[name]
    for page, questions in enumerate(cycle(asked)):
        for _ in range(questions):
            text = max(2, chance.randint(*_QUESTION_TOKENS) // scale)
            yield MixRecord(text, grids[scale != 1], max(1, _ANSWER_TOKENS // scale), page)


def prefixes(chosen: Sequence[MixRecord]) -> Prefixes:
    """Return the groups of records that share a page."""
    numbers: dict[int, int] = {}
    tokens: list[int] = []
    group_of = []
    for record in chosen:
        if record.page is not None and record.page not in numbers:
            numbers[record.page] = len(numbers)
            tokens.append(record.image_tokens)
        group_of.append(-1 if record.page is None else numbers[record.page])
    return Prefixes(group_of, tokens, [1] * len(tokens))


def shapes(chosen: Sequence[MixRecord]) -> RecordShapes:
    """Return the shapes of records that share the prefixes of their pages."""
    return RecordShapes(
        lengths=[record.tokens for record in chosen],
        supervised=[record.supervised for record in chosen],
        images=[(_image(*record.grid),) if record.grid else () for record in chosen],
        prefixes=prefixes(chosen),
    )


def _image(rows: int, cols: int) -> ImageShape:
    """Return the shape of an image that fills a grid of crops."""
    width, height = FOUR_KHD.crop * cols, FOUR_KHD.crop * rows
    return ImageShape(width, height, True, rows * cols, rows, cols, FOUR_KHD.tokens(rows, cols))


def shape(chosen: Sequence[MixRecord], *, padded: bool = False) -> PackShape:
    """Return the shape of records side by side, or padded to the longest with the loss on every position."""
    lengths = [record.tokens for record in chosen]
    if padded:
        lengths = [max(lengths)] * len(lengths)
    return PackShape(
        lengths=tuple(lengths),
        image_tokens=sum(record.image_tokens for record in chosen),
        supervised=sum(lengths) if padded else sum(record.supervised for record in chosen),
        crops=tuple(record.grid[0] * record.grid[1] for record in chosen if record.grid),
    )


def batches(chosen: Sequence[MixRecord], size: int) -> list[list[MixRecord]]:
    """Split records into batches of `size` in the order of the mix, as a shuffled loader does."""
    return [list(chosen[start : start + size]) for start in range(0, len(chosen), size)]


def padded_share(chosen: Sequence[MixRecord], size: int) -> float:
    """Return the fraction of positions that padding to the longest of each batch adds."""
    positions = sum(sum(shape(batch, padded=True).lengths) for batch in batches(chosen, size))
    return 1 - sum(record.tokens for record in chosen) / positions
