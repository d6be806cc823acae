"""The named mixes of records that training is measured on: real lengths for the 7B, the same ones scaled for the twin.

`mixed` is what a document user has: a quarter of the records text of 200 to 1,500 tokens, a quarter A4 pages at hd_num
25 (4x6 crops) and half at hd_num 55 (6x9 crops), each page with 100 to 700 tokens of text. One sixteenth of a record's
tokens is supervised, or all its text but one token where that is less.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ixtune.layout import tokens_of
from ixtune.planning.flops import PackShape

NAME = "mixed"
SCALE = 8
"""The twin is so many times narrower than the 7B, and its records so many times shorter, so that shares stay."""

_SUPERVISED_SHARE = 1 / 16
_TEXT_TOKENS, _PAGE_TEXT_TOKENS = (200, 1500), (100, 700)
# grids of crops, of the 7B's pages and of the twin's
_HD25, _HD55 = ((4, 6), (1, 2)), ((6, 9), (2, 3))
_CYCLE = (None, _HD55, _HD25, _HD55)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a mix.

    Attributes:
        text_tokens: tokens beside the image's.
        grid: (rows, cols) of its image's crops; None without an image.
        supervised: tokens that the loss is taken on, the last ones.
    """

    text_tokens: int
    grid: tuple[int, int] | None
    supervised: int

    @property
    def image_tokens(self) -> int:
        """Tokens of its image."""
        return tokens_of(*self.grid) if self.grid else 0

    @property
    def tokens(self) -> int:
        """All its tokens."""
        return self.text_tokens + self.image_tokens


def records(count: int, *, scale: int = SCALE, seed: int = 0) -> list[Record]:
    """The first `count` records of the mix, in an order that does not know the kinds.

    Args:
        count: a multiple of four keeps the shares exact.
        scale: 1 for the 7B's own lengths, `SCALE` for the twin's.
        seed: of lengths and order.
    """
    chance = random.Random(f"{NAME} {seed}")
    made = []
    for number in range(count):
        kind = _CYCLE[number % len(_CYCLE)]
        text = chance.randint(*(_PAGE_TEXT_TOKENS if kind else _TEXT_TOKENS)) // scale
        grid = kind[scale != 1] if kind else None
        tokens = text + (tokens_of(*grid) if grid else 0)
        made.append(Record(text, grid, min(max(1, round(tokens * _SUPERVISED_SHARE)), text - 1)))
    chance.shuffle(made)
    return made


def shape(chosen: Sequence[Record], *, padded: bool = False) -> PackShape:
    """What some records cost side by side, or padded to the longest with the loss taken on every position."""
    lengths = [record.tokens for record in chosen]
    if padded:
        lengths = [max(lengths)] * len(lengths)
    return PackShape(
        lengths=tuple(lengths),
        image_tokens=sum(record.image_tokens for record in chosen),
        supervised=sum(lengths) if padded else sum(record.supervised for record in chosen),
        crops=tuple(record.grid[0] * record.grid[1] for record in chosen if record.grid),
    )


def batches(chosen: Sequence[Record], size: int) -> list[list[Record]]:
    """Groups of `size` in the order of the mix, as a shuffled loader makes them."""
    return [list(chosen[start : start + size]) for start in range(0, len(chosen), size)]


def padded_share(chosen: Sequence[Record], size: int) -> float:
    """The share of positions that padding to the longest of each batch adds."""
    positions = sum(sum(shape(batch, padded=True).lengths) for batch in batches(chosen, size))
    return 1 - sum(record.tokens for record in chosen) / positions
