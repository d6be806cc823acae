"""Build rows with common prefixes for `small_base.small_model`, with images generated from their names."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from ixtune.data.pack import pack
from ixtune.data.shared_prefixes import Prefixes, beginning, group
from ixtune.data.text.template import expand
from ixtune.family import FOUR_KHD
from ixtune.training.batch import ImageSource, make_batch, sample_of

GRID = (1, 1)


class Pixels(ImageSource):
    """Return random crops, always the same for a name."""

    def __init__(self, cache_for: Any = None) -> None:
        super().__init__(files=None, cache_for=cache_for)  # type: ignore[arg-type] # no file is read

    def key(self, stored: Mapping[str, Any]) -> Hashable:
        return stored["path"]

    def crops(self, record: dict[str, Any], index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        seed = ord(record["pictures"][index]["path"])
        shape = (GRID[0] * GRID[1], 3, 336, 336)
        source = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=source), GRID


def stored(stream: Sequence[int | str], supervised: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the row of a record.

    Args:
        stream: text tokens, and images by their one-letter names.
        supervised: half-open spans of the text tokens.
    """
    text: list[int] = []
    slots, images = [], []
    for element in stream:
        if isinstance(element, str):
            slots.append(len(text))
            images.append({"root": 0, "path": element, "hd_num": 1, "tokens": FOUR_KHD.tokens(*GRID)})
        else:
            text.append(element)
    return {
        "token_ids": text,
        "picture_slots": slots,
        "pictures": images,
        "supervised_starts": [start for start, _ in supervised],
        "supervised_ends": [end for _, end in supervised],
    }


def prefixes_of(rows: Sequence[dict[str, Any]]) -> Prefixes:
    """Return the groups of some rows."""
    numbers: dict[Any, int] = {}
    keys = [[(image["path"], image["tokens"]) for image in row["pictures"]] for row in rows]
    images = [
        [(slot, *key) for slot, key in zip(row["picture_slots"], of_row, strict=True)]
        for row, of_row in zip(rows, keys, strict=True)
    ]
    return group([beginning(row["token_ids"], of_row, numbers) for row, of_row in zip(rows, images, strict=True)])


def shared_batch(rows: Sequence[dict[str, Any]], source: ImageSource) -> dict[str, Any]:
    """Return all rows in one pack, with common prefixes shared."""
    prefixes = prefixes_of(rows)
    lengths = [len(expand(sample_of(row))[0]) for row in rows]
    (indices,) = pack(lengths, sum(lengths), prefixes)
    return make_batch([rows[index] for index in indices], source, groups=list(prefixes.groups(indices)))
