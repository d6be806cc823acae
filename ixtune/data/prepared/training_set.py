"""Read several weighted prepared sets as one list of records. Rows are read from the disk on access.

The weight of a set is the number of times that its records appear in the list, drawn once with the seed: with 2.5,
every record appears twice, and half of them a third time.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixtune.data.prepared import manifest, store
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.prepared.selection import draw
from ixtune.data.prepared.store import PreparedSet
from ixtune.data.shared_prefixes import Prefixes, find_prefixes, leave_alone
from ixtune.errors import IxtuneError, UsageError
from ixtune.family import Member


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The records to train on.

    Attributes:
        sets: The prepared sets.
        set_of: For each record the index of its set.
        row_of: For each record its row in that set.
        lengths: For each record its tokens, image tokens included.
        supervised: For each record its supervised tokens.
        files: Locations of the images of all sets; an image's `root` from `record` is an index into this.
        prefixes: Groups of records with a common prefix, and records that need their own pack; None if there are none.
    """

    sets: tuple[PreparedSet, ...]
    set_of: array[int]
    row_of: array[int]
    lengths: list[int]
    supervised: list[int]
    files: ImageFiles
    prefixes: Prefixes | None = None

    @classmethod
    def load(
        cls,
        paths: Sequence[Path],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        image_root: Path | None = None,
        *,
        share_prefixes: bool = False,
        alone_above: int | None = None,
    ) -> TrainingSet:
        """Open prepared sets and draw from each according to its weight.

        Args:
            paths: Their folders.
            weights: How often each set's records appear in the list; None for once.
            seed: Random seed for fractional weights.
            image_root: Current location of the images of all sets, if they moved.
            share_prefixes: Find records with a common prefix.
            alone_above: Longer records do not share, and have a pack of their own; see `leave_alone`.

        Raises:
            UsageError: A weight leaves nothing of its set, or two folders hold the same records.
            IxtuneError: A folder is not a prepared set, or the sets open their images in different ways.
        """
        sets = tuple(store.load(path, image_root) for path in paths)
        _require_distinct(sets)
        _require_one_way_of_opening(sets)
        set_of, row_of = array("l"), array("l")
        lengths: list[int] = []
        supervised: list[int] = []
        for number, (opened, weight) in enumerate(zip(sets, weights or [1.0] * len(sets), strict=True)):
            count = len(opened.dataset)
            total = round(count * weight)
            if not total:
                raise UsageError(
                    f"weight {weight:g} of {count:,} records leaves none",
                    where=str(opened.root),
                    hint="raise its weight in data.weights, or remove the set from data.train",
                )
            times = draw(count, total, f"{seed} {number}")
            # whole passes one after the other, so that copies of a record are not neighbors
            rows = [row for passed in range(max(times)) for row in range(count) if times[row] > passed]
            length, asked = _column(opened, "length"), _column(opened, "supervised_tokens")
            set_of.extend([number] * total)
            row_of.extend(rows)
            lengths += [length[row] for row in rows]
            supervised += [asked[row] for row in rows]
        roots = tuple(root for opened in sets for root in opened.files.roots)
        files = ImageFiles(roots, sets[0].files.corrections)
        prefixes = leave_alone(find_prefixes(sets, set_of, row_of) if share_prefixes else None, lengths, alone_above)
        return cls(sets, set_of, row_of, lengths, supervised, files, prefixes)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def manifests(self) -> tuple[dict[str, Any], ...]:
        """Manifest of each set."""
        return tuple(opened.manifest for opened in self.sets)

    def record(self, index: int) -> dict[str, Any]:
        """Return the row of a record, see `store.row_of`; the roots of its images are those of `files`."""
        number = self.set_of[index]
        row: dict[str, Any] = self.sets[number].dataset[self.row_of[index]]
        before = sum(len(opened.files.roots) for opened in self.sets[:number])
        for image in row["pictures"]:
            image["root"] += before
        return row

    def files_of(self, index: int) -> ImageFiles:
        """Return the locations of the images of a record, equal for all records."""
        return self.files

    def identity(self, index: int) -> str:
        """Return a description that identifies a record: its set, its id, and its place in the source."""
        opened = self.sets[self.set_of[index]]
        row = opened.dataset[self.row_of[index]]
        return f"{opened.root}: record {row['id']} ({row['source']}, {row['place']})"

    @property
    def member(self) -> Member:
        """The model the sets were prepared for, with the layout rule of their images."""
        return manifest.options_of(self.manifests[0]).member

    def check_compatible(self, tokenizer_sha256: str, member: Member) -> None:
        """Raise if a set was prepared for another base or by an incompatible ixtune.

        Raises:
            IxtuneError: One was not; it is named, with each difference.
        """
        for opened in self.sets:
            try:
                manifest.check_compatible(opened.manifest, tokenizer_sha256, member)
            except IxtuneError as error:
                raise IxtuneError(error.what, where=str(opened.root), hint=error.hint, notes=error.notes) from error


def _column(opened: PreparedSet, name: str) -> list[int]:
    values: list[int] = opened.dataset.data.column(name).to_pylist()
    return values


def _require_distinct(sets: Sequence[PreparedSet]) -> None:
    known: dict[tuple[Any, ...], Path] = {}
    for opened in sets:
        # equal rows about images in equal places
        key = (opened.dataset._fingerprint, *(root.resolve() for root in opened.files.roots[1:]))
        if key in known:
            raise UsageError(
                f"the same records as in {known[key]}",
                where=str(opened.root),
                hint="remove one of the two from data.train; data.weights repeats a set",
            )
        known[key] = opened.root


def _require_one_way_of_opening(sets: Sequence[PreparedSet]) -> None:
    """Raise if the sets open images differently: an adapter records one set of corrections and always requires it."""

    def way(described: Mapping[str, Any]) -> dict[str, Any]:
        options = manifest.options_of(described)
        return {"upscale": options.upscale, "corrections": sorted(options.corrections)} | options.member.record()

    ways = [way(opened.manifest) for opened in sets]
    if any(other != ways[0] for other in ways):
        raise IxtuneError(
            "the sets open their images in different ways, but an adapter can record only one",
            hint="prepare them with the same --no-upscale, --correct and --layout-rule",
            notes=[f"{opened.root}: {found}" for opened, found in zip(sets, ways, strict=True)],
        )
