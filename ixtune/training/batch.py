"""Turn packs of prepared records into batches that the model takes.

A pack is a list of record indices. Its records become segments of one row of tokens, without padding. Neighbors that
share a prefix become a segment for the prefix, followed by one segment for the rest of each record.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ixtune.data.images.pixels import place_and_cut
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.prepared.store import layout_of
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.shared_prefixes import Group
from ixtune.data.text.template import Sample, expand
from ixtune.errors import IxtuneError
from ixtune.model.model import IXC2ForCausalLM

Batch = dict[str, Any]


class ImageSource:
    """Load the images of records as crops or, from a cache, as vectors of the frozen tower."""

    def __init__(
        self, files: ImageFiles, cache_for: IXC2ForCausalLM | None = None, cache_bytes: int | None = None
    ) -> None:
        """Read the images of a prepared set.

        Args:
            files: image folders and the corrections for opening images.
            cache_for: compute vectors before the projector with this model, once per image, and keep them in memory;
                equal to what the model computes from crops, as long as tower and separators are frozen.
            cache_bytes: maximum size of the kept vectors, the oldest dropped first; None keeps all.
        """
        self.files = files
        self.model = cache_for
        self.cache_bytes = cache_bytes
        self.vectors: dict[Hashable, torch.Tensor] = {}

    def key(self, stored: Mapping[str, Any]) -> Hashable:
        """Return a key that identifies an image, its layout, and the version of its file."""
        version: tuple[int, ...] = ()
        with suppress(OSError):  # reading the image reports it
            file = self.files.path(stored).stat()
            version = (file.st_mtime_ns, file.st_size)
        return (*sorted(stored.items()), *version)

    def crops(self, record: dict[str, Any], index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return uint8 crops [N, 3, 336, 336] and (rows, cols) of one image of a record, in its stored layout.

        Raises:
            IxtuneError: the image cannot be read, or has another size than when it was prepared.
        """
        stored = record["pictures"][index]
        layout, image = layout_of(stored), self.files.open(stored)
        if image.size != (layout.width, layout.height):
            raise IxtuneError(
                f"the image has changed since it was prepared: it now has {image.width}x{image.height} pixels, "
                f"not {layout.width}x{layout.height}",
                where=str(self.files.path(stored)),
                hint="prepare the data again",
            )
        return torch.from_numpy(place_and_cut(image, layout)), (layout.rows, layout.cols)

    def of(self, records: Sequence[dict[str, Any]]) -> Batch:
        """Return the images of some records, in order, as the model's keyword arguments."""
        return self.some((record, index) for record in records for index in range(len(record["pictures"])))

    def some(self, images: Iterable[tuple[dict[str, Any], int]]) -> Batch:
        """Return some images, each given as a record and its number in it, as the model's keyword arguments."""
        wanted = list(images)
        if not wanted:
            return {}
        if self.model is None:
            parts = [self.crops(record, index) for record, index in wanted]
            return {"crops": torch.cat([crops for crops, _ in parts]), "grids": [grid for _, grid in parts]}
        return {"image_vectors": torch.cat([self._vectors(record, index) for record, index in wanted])}

    def _vectors(self, record: dict[str, Any], index: int) -> torch.Tensor:
        stored = record["pictures"][index]
        key = self.key(stored)
        if key in self.vectors:
            return self.vectors[key]
        assert self.model is not None
        crops, grid = self.crops(record, index)
        with torch.no_grad():
            made = self.model.get_image_vectors(crops.to(self.model.device), [grid]).cpu()
        self.vectors[key] = made
        if self.cache_bytes is not None:
            while len(self.vectors) > 1 and sum(kept.nbytes for kept in self.vectors.values()) > self.cache_bytes:
                del self.vectors[next(iter(self.vectors))]
        return made


def sample_of(record: dict[str, Any]) -> Sample:
    """Convert the stored columns of a record to a Sample."""
    return Sample(
        token_ids=tuple(record["token_ids"]),
        image_slots=tuple(record["picture_slots"]),
        supervised=tuple(zip(record["supervised_starts"], record["supervised_ends"], strict=True)),
        image_tokens=tuple(image["tokens"] for image in record["pictures"]),
    )


def make_batch(
    records: Sequence[dict[str, Any]],
    images: ImageSource,
    image_token_id: int = 0,
    groups: Sequence[Group] | None = None,
) -> Batch:
    """Concatenate records as segments.

    Args:
        records: rows of prepared sets.
        images: reads their images.
        image_token_id: token at image positions.
        groups: common prefixes of neighboring records; None for none. Only the number of records of each
            group is read, in the order of `records`.

    Returns:
        input_ids, position_ids [1, T]; image_rows [I]; cu_seq_lens_q [segments + 1] (int32); max_length_q;
        supervised (rows [S], targets [S]), record by record: a row of a prefix is there once for each record that
        supervises it; crops and grids, or image_vectors. If records share a prefix, parents: for each segment the
        number of the segment that it continues, or -1.

    Raises:
        ValueError: records of a group do not share the prefix.
    """
    pack = Segments()
    shown: list[tuple[dict[str, Any], int]] = []
    at = 0
    for group in groups or [Group((0,), 0, 0)] * len(records):
        members = records[at : at + len(group.records)]
        at += len(members)
        expanded = [expand(sample_of(record)) for record in members]
        parent = pack.add_prefix([ids for ids, _ in expanded], group.tokens) if group.tokens else -1
        shown += [(members[0], index) for index in range(group.images)]
        for record, (ids, labels) in zip(members, expanded, strict=True):
            pack.add(ids, labels, group.tokens, parent)
            shown += [(record, index) for index in range(group.images, len(record["pictures"]))]
    batch = pack.batch()
    image_rows = (batch["input_ids"][0] == image_token_id).nonzero().squeeze(1)
    if len(image_rows):
        batch["image_rows"] = image_rows
    return {**batch, **images.some(shown)}


class Segments:
    """Segments of a pack, in the order in which they are added."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.rows: list[int] = []
        self.targets: list[int] = []
        self.bounds = [0]
        self.parents: list[int] = []

    def add_prefix(self, records: Sequence[list[int]], tokens: int) -> int:
        """Add the common prefix of records and return the index of its segment."""
        prefix = records[0][:tokens]
        if any(ids[:tokens] != prefix for ids in records):
            raise ValueError(f"records that share {tokens} tokens do not begin with the same ones")
        return self._segment(prefix, 0, -1)

    def add(self, ids: list[int], labels: list[int], shared: int, parent: int) -> None:
        """Add a record, without its first `shared` tokens, which are in the segment `parent`."""
        number = self._segment(ids[shared:], shared, parent)
        # The row that predicts a token is the one before it; the first token of a record is never a target.
        asked = [(at - 1, label) for at, label in enumerate(labels) if label != -100]
        own, before = self.bounds[number] - shared, self.bounds[parent] if shared else 0
        self.rows += [before + row if row < shared else own + row for row, _ in asked]
        self.targets += [label for _, label in asked]

    def _segment(self, ids: Sequence[int], position: int, parent: int) -> int:
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.bounds.append(len(self.ids))
        self.parents.append(parent)
        return len(self.parents) - 1

    def batch(self) -> Batch:
        """Return everything but the images."""
        batch: Batch = {
            "input_ids": torch.tensor([self.ids]),
            "position_ids": torch.tensor([self.positions]),
            "cu_seq_lens_q": torch.tensor(self.bounds, dtype=torch.int32),
            "max_length_q": int(np.diff(self.bounds).max()),
            "supervised": (torch.tensor(self.rows), torch.tensor(self.targets)),
        }
        if any(parent >= 0 for parent in self.parents):
            batch["parents"] = tuple(self.parents)
        return batch


def pack_dataset(packs: Sequence[Sequence[int]], processes: int = 1) -> Dataset:
    """Return packs as TRL takes them, with empty ones at the end so that all processes get the same number."""
    return Dataset.from_dict({"records": [*map(list, packs), *([[]] * (-len(packs) % processes))]})


class PackCollator:
    """TRL's data collator: turn a list with one row `{"records": [indices]}` into a Batch.

    Besides what the model takes, the batch holds `records`, the indices of its records in the training set, so that
    errors can name the records they happened on. Remove it before calling the model. The batch of an empty pack holds
    nothing else.
    """

    def __init__(self, training_set: TrainingSet, images: ImageSource) -> None:
        self.training_set, self.images = training_set, images
        self.take: Callable[[tuple[int, ...]], Batch] = self.make
        """Makes the batch of a pack's records; prefetching replaces it by a function that may have started earlier."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Read the records of the pack and collate them."""
        indices = tuple(index for row in rows for index in row["records"])
        return self.take(indices) if indices else {"records": ()}

    def make(self, indices: tuple[int, ...]) -> Batch:
        """Return the batch of some records; neighbors with a common prefix share it."""
        prefixes = self.training_set.prefixes
        groups = list(prefixes.groups(indices)) if prefixes else None
        batch = make_batch([self.training_set.record(index) for index in indices], self.images, groups=groups)
        return {**batch, "records": indices}
