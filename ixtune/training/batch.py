"""Packs of prepared records -> what the model takes.

A pack is a list of record indices. Its records become segments of one row of tokens, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ixtune.data.images.pixels import open_image, place_and_cut
from ixtune.data.prepared.store import ImageFiles, layout_of
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.text.template import Sample, expand
from ixtune.errors import IxtuneError
from ixtune.model.model import IXC2ForCausalLM

Batch = dict[str, Any]


class ImageSource:
    """Gives the images of records, as crops or, from a cache, as the frozen tower's vectors."""

    def __init__(
        self, files: ImageFiles, cache_for: IXC2ForCausalLM | None = None, cache_bytes: int | None = None
    ) -> None:
        """Read the images of a prepared set.

        Args:
            files: where they lie, and how they are opened.
            cache_for: compute vectors before the projector with this model, once an image, and keep them in memory;
                equal to what the model computes from crops, as long as tower and separators are frozen.
            cache_bytes: keep at most so much, the oldest going first; None keeps all.
        """
        self.files = files
        self.model = cache_for
        self.cache_bytes = cache_bytes
        self.vectors: dict[Hashable, torch.Tensor] = {}

    def key(self, stored: Mapping[str, Any]) -> Hashable:
        """Return what tells an image and its layout from others, and from the same file after an edit."""
        version: tuple[int, ...] = ()
        with suppress(OSError):  # reading the image reports it
            file = self.files.path(stored).stat()
            version = (file.st_mtime_ns, file.st_size)
        return (*sorted(stored.items()), *version)

    def crops(self, record: dict[str, Any], index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """uint8 crops [N, 3, 336, 336] and (rows, cols) of one image of a record, in the layout that it has there.

        Raises:
            IxtuneError: the image cannot be read, or has another size than when it was prepared.
        """
        stored = record["pictures"][index]
        path, layout = self.files.path(stored), layout_of(stored)
        image = open_image(path, self.files.corrections)
        if image.size != (layout.width, layout.height):
            raise IxtuneError(
                f"the image has changed since it was prepared: it now has {image.width}x{image.height} pixels, "
                f"not {layout.width}x{layout.height}",
                where=str(path),
                hint="prepare the data again",
            )
        return torch.from_numpy(place_and_cut(image, layout)), (layout.rows, layout.cols)

    def of(self, records: Sequence[dict[str, Any]]) -> Batch:
        """The images of some records, in order, as the model's keyword arguments."""
        wanted = [(record, index) for record in records for index in range(len(record["pictures"]))]
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
    """The stored columns of a record as a Sample."""
    return Sample(
        token_ids=tuple(record["token_ids"]),
        image_slots=tuple(record["picture_slots"]),
        supervised=tuple(zip(record["supervised_starts"], record["supervised_ends"], strict=True)),
        image_tokens=tuple(image["tokens"] for image in record["pictures"]),
    )


def make_batch(records: Sequence[dict[str, Any]], images: ImageSource, image_token_id: int = 0) -> Batch:
    """Put records side by side as segments.

    Returns:
        input_ids, position_ids [1, T]; image_rows [I]; cu_seq_lens_q [records + 1] (int32); max_length_q;
        supervised (rows [S], targets [S]); crops and grids, or image_vectors.
    """
    ids: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    image_rows: list[int] = []
    positions: list[int] = []
    bounds = [0]
    for record in records:
        input_ids, labels = expand(sample_of(record))
        start = len(ids)
        ids += input_ids
        positions += range(len(input_ids))
        image_rows += [start + at for at, token in enumerate(input_ids) if token == image_token_id]
        # The row that predicts a token is the one before it; a segment's first token is never a target.
        asked = [(start + at - 1, label) for at, label in enumerate(labels) if label != -100]
        rows += [row for row, _ in asked]
        targets += [label for _, label in asked]
        bounds.append(len(ids))
    batch: Batch = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32),
        "max_length_q": int(np.diff(bounds).max()),
        "supervised": (torch.tensor(rows), torch.tensor(targets)),
    }
    if image_rows:
        batch["image_rows"] = torch.tensor(image_rows)
    return {**batch, **images.of(records)}


def pack_dataset(packs: Sequence[Sequence[int]], processes: int = 1) -> Dataset:
    """The packs as TRL takes them; empty ones at the end, so that each of several processes gets equally many."""
    return Dataset.from_dict({"records": [*map(list, packs), *([[]] * (-len(packs) % processes))]})


class PackCollator:
    """TRL's data collator: a list with one row `{"records": [indices]}` -> a Batch.

    Besides what the model takes, the batch holds `records`, the indices in the training set of its segments, so that
    what goes wrong can be told by the records it went wrong with. Take it out before the model is called. The batch of
    an empty pack holds nothing else.
    """

    def __init__(self, training_set: TrainingSet, images: ImageSource) -> None:
        self.training_set, self.images = training_set, images
        self.take: Callable[[tuple[int, ...]], Batch] = self.make
        """What is called for a pack's records; another one may have begun before."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Read the pack's records and put them together."""
        indices = tuple(index for row in rows for index in row["records"])
        return self.take(indices) if indices else {"records": ()}

    def make(self, indices: tuple[int, ...]) -> Batch:
        """The batch of some records."""
        batch = make_batch([self.training_set.record(index) for index in indices], self.images)
        return {**batch, "records": indices}
