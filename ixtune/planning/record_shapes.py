"""What of each record of a training set decides its cost: tokens, pictures, supervised rows. No tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from ixtune import layout
from ixtune.planning.flops import PackShape

if TYPE_CHECKING:
    from ixtune.data.prepared.store import PreparedSet
    from ixtune.data.prepared.training_set import TrainingSet


class Picture(NamedTuple):
    """What of a stored picture decides its cost, and what it takes to lay it out anew."""

    width: int
    height: int
    upscale: bool
    hd_num: int
    rows: int
    cols: int
    tokens: int

    @property
    def crops(self) -> int:
        """Its local crops; the tower sees one view more."""
        return self.rows * self.cols

    def at(self, hd_num: int) -> Picture:
        """Laid out with a smaller hd_num; as it is, if its own is no larger or it is too thin for that."""
        if hd_num >= self.hd_num:
            return self
        try:
            made = layout.plan(self.width, self.height, hd_num, upscale=self.upscale)
        except layout.LayoutError:
            return self
        return self._replace(hd_num=hd_num, rows=made.rows, cols=made.cols, tokens=made.tokens)


@dataclass(frozen=True, slots=True)
class RecordShapes:
    """Of every record of a training set, in its order.

    Attributes:
        lengths: tokens, image tokens included.
        supervised: tokens the loss is taken on.
        image_tokens: tokens of all its pictures.
        pictures: its pictures.
    """

    lengths: Sequence[int]
    supervised: Sequence[int]
    pictures: Sequence[tuple[Picture, ...]]

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, records: TrainingSet) -> RecordShapes:
        """From the columns of prepared sets, without reading a row."""
        by_set = [_pictures(opened) for opened in records.sets]
        pictures = [by_set[number][row] for number, row in zip(records.set_of, records.row_of, strict=True)]
        return cls(records.lengths, records.supervised, pictures)

    def pack(self, indices: Iterable[int]) -> PackShape:
        """Some of them side by side."""
        chosen = list(indices)
        pictures = [picture for index in chosen for picture in self.pictures[index]]
        return PackShape(
            lengths=tuple(self.lengths[index] for index in chosen),
            image_tokens=sum(picture.tokens for picture in pictures),
            supervised=sum(self.supervised[index] for index in chosen),
            crops=tuple(picture.crops for picture in pictures),
        )

    @property
    def hd_num(self) -> int:
        """The largest that a picture was prepared with; 0 without pictures."""
        return max((picture.hd_num for record in self.pictures for picture in record), default=0)

    def at(self, hd_num: int) -> RecordShapes:
        """As if they had been prepared with this hd_num, where theirs is larger."""
        pictures = [tuple(picture.at(hd_num) for picture in record) for record in self.pictures]
        saved = [
            sum(old.tokens - new.tokens for old, new in zip(*pair, strict=True))
            for pair in zip(self.pictures, pictures, strict=True)
        ]
        lengths = [length - less for length, less in zip(self.lengths, saved, strict=True)]
        return RecordShapes(lengths, self.supervised, pictures)


def _pictures(opened: PreparedSet) -> list[tuple[Picture, ...]]:
    """The pictures of every row of a prepared set."""
    import pyarrow.compute

    column = opened.dataset.data.column("pictures").combine_chunks()
    flat = column.flatten()
    made = list(map(Picture, *(flat.field(name).to_pylist() for name in Picture._fields)))
    bounds = [0, *pyarrow.compute.cumulative_sum(column.value_lengths()).to_pylist()]
    return [tuple(made[start:stop]) for start, stop in pairwise(bounds)]
