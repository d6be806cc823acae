"""Statistics of a prepared set: counts and small histograms; equal records give equal numbers in any order."""

from __future__ import annotations

import functools
import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ixtune.family import Member
from ixtune.layout import LayoutError, PatchLayout, most_steps, plan

HD_NUMS = range(4, 56)
"""The hd_num values for which image tokens are counted: up to the released model's largest."""

_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CROPS = (1, 2, 4, 6, 9, 12, 16, 20, 25, 30, 36, 42, 49, 55)
_ASPECTS = (0.25, 0.5, 0.71, 0.9, 1.1, 1.41, 2.0, 4.0)
_SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Token counts of one accepted record.

    Attributes:
        text: Text tokens.
        supervised: Number of them that are targets.
        images: (width, height, rows, cols, tokens) of each image.
        by_hd_num: Tokens of its images at each of `HD_NUMS`; -1 where one of them has no layout there.
        notes: Codes of the corrections of its images, see `header.NOTES`.
        lowered: Whether the hd_num of an image was lowered to make it fit.
    """

    text: int
    supervised: int
    images: tuple[tuple[int, int, int, int, int], ...]
    by_hd_num: tuple[int, ...]
    notes: tuple[str, ...]
    lowered: bool

    @property
    def image(self) -> int:
        """Number of image tokens."""
        return sum(image[4] for image in self.images)

    @property
    def length(self) -> int:
        """Total number of tokens."""
        return self.text + self.image


def token_counts_of(
    text: int, supervised: int, layouts: Sequence[PatchLayout], notes: Sequence[str], lowered: bool, upscale: bool
) -> TokenCounts:
    """Return the token counts of a record, from its layouts."""
    columns = [_costs(layout.width, layout.height, upscale, layout.member) for layout in layouts]
    costs = tuple(-1 if -1 in tokens else sum(tokens) for tokens in zip(*columns, strict=True))
    images = tuple((one.width, one.height, one.rows, one.cols, one.tokens) for one in layouts)
    return TokenCounts(text, supervised, images, costs or (0,) * len(HD_NUMS), tuple(notes), lowered)


@functools.lru_cache(maxsize=4096)
def _costs(width: int, height: int, upscale: bool, member: Member) -> tuple[int, ...]:
    tokens: list[int] = []
    changes_at = 0
    for hd_num in HD_NUMS:
        if hd_num < changes_at:
            tokens.append(tokens[-1])
            continue
        try:
            layout = plan(width, height, hd_num, upscale=upscale, member=member)
        except LayoutError:
            tokens.append(-1)
            continue
        tokens.append(layout.tokens)
        changes_at = _next_change(layout)
    return tuple(tokens)


def _next_change(layout: PatchLayout) -> int:
    """Return the lowest hd_num above this layout's that changes the layout of its image (MODEL.md 2.2, step 3)."""
    own_size = (layout.resized_width, layout.resized_height) == (layout.width, layout.height)
    if own_size and not layout.upscale:
        return HD_NUMS.stop
    long_side, short_side = max(layout.width, layout.height), min(layout.width, layout.height)
    steps = max(layout.rows, layout.cols) + 1
    most = most_steps(long_side, layout.member)
    filled = steps * math.ceil(steps / (long_side / short_side)) if steps <= most else HD_NUMS.stop
    own_crops = -(-layout.width // layout.member.crop) * -(-layout.height // layout.member.crop)
    return filled if layout.upscale else min(filled, own_crops)


@dataclass(slots=True)
class Statistics:
    """Sums over accepted records; a few bytes per record, for the median of their lengths."""

    lengths: array[int] = field(default_factory=lambda: array("l"))
    text: int = 0
    image: int = 0
    supervised: int = 0
    lowered: int = 0
    grids: Counter[str] = field(default_factory=Counter)
    crops: Counter[int] = field(default_factory=Counter)
    aspects: Counter[int] = field(default_factory=Counter)
    shares: Counter[int] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    by_hd_num: list[int] = field(default_factory=lambda: [0] * len(HD_NUMS))

    def add(self, counts: TokenCounts, times: int = 1) -> None:
        """Count one record as often as it appears in the set."""
        for _ in range(times):
            self.lengths.append(counts.length)
        self.text += times * counts.text
        self.image += times * counts.image
        self.supervised += times * counts.supervised
        self.lowered += times * counts.lowered
        self.shares[bisect_right(_SHARES, counts.supervised / counts.length)] += times
        for width, height, rows, cols, _ in counts.images:
            self.grids[f"{rows}x{cols}"] += times
            self.crops[rows * cols] += times
            self.aspects[bisect_right(_ASPECTS, width / height)] += times
        for note in counts.notes:
            self.notes[note] += times
        for index, tokens in enumerate(counts.by_hd_num):
            self.by_hd_num[index] = (
                -1 if -1 in (tokens, self.by_hd_num[index]) else self.by_hd_num[index] + times * tokens
            )

    @property
    def rows(self) -> int:
        """Number of records counted."""
        return len(self.lengths)

    def as_manifest(self) -> dict[str, Any]:
        """Return the keys `tokens`, `length`, `grids` and `statistics` of a manifest."""
        ordered = sorted(self.lengths) or [0]
        return {
            "tokens": {
                "text": self.text,
                "image": self.image,
                "supervised": self.supervised,
                "total": self.text + self.image,
            },
            "length": {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]},
            "grids": commonest_first(self.grids),
            "statistics": {
                "length": {"bins": _whole_bins(_LENGTHS, Counter(ordered) if self.lengths else Counter())},
                "crops": {"bins": _whole_bins(_CROPS, self.crops)},
                "aspect": {"bins": _bins((0.0, *_ASPECTS, None), self.aspects)},
                "supervised_share": {"bins": _bins((0.0, *_SHARES, 1.0), self.shares)},
                "image_tokens_by_hd_num": {
                    str(hd_num): None if tokens < 0 else tokens
                    for hd_num, tokens in zip(HD_NUMS, self.by_hd_num, strict=True)
                },
                "notes": commonest_first(self.notes),
                "lowered": self.lowered,
            },
        }


def commonest_first(counts: Counter[str]) -> dict[str, int]:
    """Return the counts, the most common first, ties by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _whole_bins(edges: Sequence[int], counts: Counter[int]) -> list[list[int | None]]:
    """Return [lowest, highest, count] bins of whole numbers from 1 on; the last bin is open."""
    lower = [1, *(edge + 1 for edge in edges)]
    sums: Counter[int] = Counter()
    for value, count in counts.items():
        sums[bisect_right(lower, value) - 1] += count
    return _trim(
        [[low, high, sums[index]] for index, (low, high) in enumerate(zip(lower, (*edges, None), strict=True))]
    )


def _bins(edges: Sequence[float | None], counts: Counter[int]) -> list[list[float | int | None]]:
    """Return [lower, upper, count] bins of fractions, upper edge excluded."""
    return [[edges[index], edges[index + 1], counts[index]] for index in range(len(edges) - 1)]


def _trim(bins: list[list[int | None]]) -> list[list[int | None]]:
    """Remove the empty bins at both ends."""
    full = [index for index, one in enumerate(bins) if one[2]]
    return bins[full[0] : full[-1] + 1] if full else []
