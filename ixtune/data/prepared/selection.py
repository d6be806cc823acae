"""Weighted sampling of records, and the train/validation split; both depend on the seed alone."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from ixtune.errors import UsageError


def draw(count: int, total: int, seed: str) -> array[int]:
    """Return how often each of `count` records is drawn for `total`: all equally often, the rest without replacement.

    As in the official mixture (MODEL.md 6): if `total` is less than `count`, records are drawn without replacement;
    if more, all are used plus random repeats.

    Args:
        count: Number of records; 0 gives nothing.
        total: Number of records to draw.
        seed: Any text.
    """
    if not count:
        return array("l")
    whole, rest = divmod(total, count)
    times = array("l", [whole]) * count
    for index in random.Random(f"draw {seed}").sample(range(count), rest):
        times[index] += 1
    return times


@dataclass(slots=True)
class Groups:
    """Groups of records that share an image, directly or through other records; a split keeps groups whole."""

    seed: int
    parents: array[int] = field(default_factory=lambda: array("l"))
    of_image: dict[bytes, int] = field(default_factory=dict)
    of_row: array[int] = field(default_factory=lambda: array("l"))
    order: list[bytes] = field(default_factory=list)

    def add(self, keys: Sequence[str], name: str) -> None:
        """Add the next record.

        Args:
            keys: Keys that identify its images.
            name: Key that identifies a record without images.
        """
        digests = [self._digest(f"image {key}") for key in keys]
        known = [self._root(self.of_image[digest]) for digest in digests if digest in self.of_image]
        if known:
            group = min(known)
            for other in known:
                self.parents[other] = group
        else:
            group = len(self.parents)
            self.parents.append(group)
            self.order.append(min(digests) if digests else self._digest(f"record {name}"))
        for digest in digests:
            self.of_image[digest] = group
        self.of_row.append(group)

    def validation(self, fraction: float) -> bytearray:
        """Return 1 for each validation record, 0 for the others.

        Whole groups are taken in an order that depends on the seed and on the groups' own images, as long as they
        fit into the share.

        Raises:
            UsageError: No group fits, so that one of the sides would be empty.
        """
        roots = [self._root(group) for group in self.of_row]
        sizes: dict[int, int] = {}
        for root in roots:
            sizes[root] = sizes.get(root, 0) + 1
        left = round(fraction * len(roots))
        chosen = set()
        for root in sorted(sizes, key=lambda root: (self.order[root], root)):
            if sizes[root] <= left:
                chosen.add(root)
                left -= sizes[root]
        if not chosen or len(chosen) == len(sizes):
            raise UsageError(
                f"{len(roots):,} records in {len(sizes):,} groups that share images cannot be split at {fraction:g}",
                hint="choose another --val-fraction; records that show the same image stay on one side",
            )
        return bytearray(root in chosen for root in roots)

    def _root(self, group: int) -> int:
        while self.parents[group] != group:
            self.parents[group] = group = self.parents[self.parents[group]]
        return group

    def _digest(self, text: str) -> bytes:
        return hashlib.blake2b(f"{self.seed} {text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
