"""Choose the records that a preview lists and the images that it draws: an even sample, and the extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ixtune.family import member_of_layout

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray

MAX_LISTED = 1000
"""Records in the page's table: a browser sorts these at once, and their texts stay far below its images."""


@dataclass(frozen=True, slots=True)
class Extreme:
    """A record with an extreme value.

    Attributes:
        title: Name of the value.
        row: Its index in the dataset.
        value: The value as text.
    """

    title: str
    row: int
    value: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Records and images to show; the same set and limit give the same choice.

    Attributes:
        listed: Indices of records, ascending.
        drawn: For some of these records, the indices of the images to draw, ascending.
        extremes: Each is listed, and its image is drawn.
    """

    listed: tuple[int, ...]
    drawn: dict[int, tuple[int, ...]]
    extremes: tuple[Extreme, ...]

    @property
    def images(self) -> int:
        """Number of images to draw."""
        return sum(map(len, self.drawn.values()))


def choose(dataset: Dataset, limit: int) -> Choice:
    """Choose about `limit` images from records spread evenly over the set, and the images of its extremes.

    They are spread because a set of several sources has one source after the other.
    """
    import numpy as np

    counts, longest, padded, thin = _survey(dataset)
    extremes = [Extreme("most tokens", longest.row, f"{longest.value:,.0f} tokens")] if len(counts) else []
    drawn: dict[int, set[int]] = {}
    room = limit
    with_images = np.flatnonzero(counts)
    if len(with_images):
        wanted = max(1, int(limit * len(with_images) / counts.sum()))
        for row in _spread(with_images.tolist(), wanted):
            taken = min(room, int(counts[row]))
            room -= taken
            drawn[row] = set(range(taken))
        extremes += [
            Extreme("most padding", padded.row, f"{padded.value:.0%} of its crops"),
            Extreme("most extreme aspect", thin.row, f"{thin.value:.3g} to 1"),
        ]
        drawn.setdefault(longest.row, set()).update(range(min(limit, int(counts[longest.row]))))
        drawn.setdefault(padded.row, set()).add(padded.image)
        drawn.setdefault(thin.row, set()).add(thin.image)
    listed = {*_spread(range(len(dataset)), MAX_LISTED), *drawn, *(extreme.row for extreme in extremes)}
    return Choice(
        tuple(sorted(listed)),
        {row: tuple(sorted(images)) for row, images in sorted(drawn.items()) if images},
        tuple(extremes),
    )


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Return `count` of `values` at equal distances, starting with the first; all of them if there are no more."""
    if count >= len(values):
        return list(values)
    return [values[number * len(values) // count] for number in range(count)]


@dataclass(slots=True)
class _Best:
    """The greatest value so far, with its record and image; the first of equal values is kept."""

    value: float = -1.0
    row: int = 0
    image: int = 0

    def offer(self, values: NDArray[np.float64], rows: NDArray[np.int64], images: NDArray[np.int64]) -> None:
        """Take the greatest of some values, if it is greater."""
        at = int(values.argmax())
        if values[at] > self.value:
            self.value, self.row, self.image = float(values[at]), int(rows[at]), int(images[at])


def _survey(dataset: Dataset) -> tuple[NDArray[np.int64], _Best, _Best, _Best]:
    """Return the image count per record, and the records with most tokens, most padding, largest aspect ratio."""
    import numpy as np

    counts = [np.zeros(0, dtype=np.int64)]
    longest, padded, thin = _Best(), _Best(), _Best()
    begin = 0
    for batch in dataset.select_columns(["length", "pictures"]).with_format("arrow").iter(10_000):
        rows = begin + np.arange(batch.num_rows)
        begin += batch.num_rows
        longest.offer(batch["length"].to_numpy().astype(float), rows, np.zeros_like(rows))
        column = batch["pictures"].combine_chunks()
        count = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        counts.append(count)
        images = column.flatten()
        if len(images):
            names = ("width", "height", "resized_width", "resized_height", "rows", "cols", "tokens")
            width, height, wide, high, down, across, tokens = (
                images.field(name).to_numpy(zero_copy_only=False).astype(float) for name in names
            )
            owners = np.repeat(rows, count)
            numbers = np.arange(len(owners)) - np.repeat(np.cumsum(count) - count, count)
            member = member_of_layout(int(down[0]), int(across[0]), int(tokens[0]))  # of all images of a set
            padded.offer(1 - wide * high / (down * across * member.crop**2), owners, numbers)
            thin.offer(np.maximum(width / height, height / width), owners, numbers)
    return np.concatenate(counts), longest, padded, thin
