"""Shapes of the records of a training set that determine their cost: tokens, images, supervised rows. No tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from ixtune import layout
from ixtune.data.shared_prefixes import Group, Prefixes
from ixtune.family import FOUR_KHD, Member
from ixtune.planning.flops import PackShape

if TYPE_CHECKING:
    from ixtune.data.prepared.store import PreparedSet
    from ixtune.data.prepared.training_set import TrainingSet


class ImageShape(NamedTuple):
    """Properties of a stored image that determine its cost, and those needed to lay it out again."""

    width: int
    height: int
    upscale: bool
    hd_num: int
    rows: int
    cols: int
    tokens: int

    @property
    def crops(self) -> int:
        """Number of local crops; the tower also gets one global view."""
        return self.rows * self.cols

    def at(self, hd_num: int, member: Member) -> ImageShape:
        """Return the image laid out with a smaller hd_num; unchanged if its own is no larger or it is too thin."""
        if hd_num >= self.hd_num:
            return self
        try:
            made = layout.plan(self.width, self.height, hd_num, upscale=self.upscale, member=member)
        except layout.LayoutError:
            return self
        return self._replace(hd_num=hd_num, rows=made.rows, cols=made.cols, tokens=made.tokens)


@dataclass(frozen=True, slots=True)
class RecordShapes:
    """Shapes of all records of a training set, in its order.

    Attributes:
        lengths: tokens, image tokens included.
        supervised: supervised tokens.
        image_tokens: tokens of all its images.
        images: its images.
        prefixes: groups of records with a common prefix; None to compute every record separately.
        member: the model they were prepared for, with its layout rule.
    """

    lengths: Sequence[int]
    supervised: Sequence[int]
    images: Sequence[tuple[ImageShape, ...]]
    prefixes: Prefixes | None = None
    member: Member = FOUR_KHD

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, records: TrainingSet) -> RecordShapes:
        """Read the columns of prepared sets, without reading single rows."""
        by_set = [_images(opened) for opened in records.sets]
        images = [by_set[number][row] for number, row in zip(records.set_of, records.row_of, strict=True)]
        return cls(records.lengths, records.supervised, images, records.prefixes, records.member)

    def pack(self, indices: Iterable[int]) -> PackShape:
        """Return the shape of a pack of some records."""
        chosen = list(indices)
        lengths, prefixes = [], []
        images: list[ImageShape] = []
        for group in self.prefixes.groups(chosen) if self.prefixes else (Group((index,), 0, 0) for index in chosen):
            if group.tokens:
                lengths.append(group.tokens)
                prefixes.append(0)
                images += self.images[group.records[0]][: group.images]
            for index in group.records:
                lengths.append(self.lengths[index] - group.tokens)
                prefixes.append(group.tokens)
                images += self.images[index][group.images :]
        return PackShape(
            lengths=tuple(lengths),
            image_tokens=sum(image.tokens for image in images),
            supervised=sum(self.supervised[index] for index in chosen),
            crops=tuple(image.crops for image in images),
            prefixes=tuple(prefixes) if any(prefixes) else (),
        )

    @property
    def hd_num(self) -> int:
        """Return the largest hd_num that an image was prepared with; 0 without images."""
        return max((image.hd_num for record in self.images for image in record), default=0)

    def at(self, hd_num: int) -> RecordShapes:
        """Return the shapes that the records would have if prepared with this hd_num, where theirs is larger."""
        images = [tuple(image.at(hd_num, self.member) for image in record) for record in self.images]

        def saved(index: int, count: int | None = None) -> int:
            """Count the tokens that the first images of a record lose."""
            pairs = zip(self.images[index][:count], images[index][:count], strict=True)
            return sum(old.tokens - new.tokens for old, new in pairs)

        lengths = [length - saved(index) for index, length in enumerate(self.lengths)]
        prefixes = None
        if self.prefixes is not None:
            tokens = list(self.prefixes.tokens)
            one_of_each = {group: index for index, group in enumerate(self.prefixes.group_of) if group >= 0}
            for group, index in one_of_each.items():
                tokens[group] -= saved(index, self.prefixes.images[group])
            prefixes = replace(self.prefixes, tokens=tokens)
        return RecordShapes(lengths, self.supervised, images, prefixes, self.member)


def _images(opened: PreparedSet) -> list[tuple[ImageShape, ...]]:
    """Return the images of every row of a prepared set."""
    import pyarrow.compute

    column = opened.dataset.data.column("pictures").combine_chunks()
    flat = column.flatten()
    made = list(map(ImageShape, *(flat.field(name).to_pylist() for name in ImageShape._fields)))
    bounds = [0, *pyarrow.compute.cumulative_sum(column.value_lengths()).to_pylist()]
    return [tuple(made[start:stop]) for start, stop in pairwise(bounds)]
