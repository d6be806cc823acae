"""Generate random tokens and crops in the shape of a mix, as packs of ixtune and as padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ixtune.bench.mix import MixRecord
from ixtune.data.shared_prefixes import Group
from ixtune.training.batch import Segments


def contents(records: Sequence[MixRecord], vocabulary: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return token ids (image positions are 0, in front) and uint8 crops of each record, reproducible by seed."""
    source = torch.Generator().manual_seed(seed)
    made: list[dict[str, Any]] = []
    for record in records:
        text = torch.randint(3, vocabulary, (record.text_tokens,), generator=source)
        crops = None
        if record.page is not None and made and made[-1]["page"] == record.page:
            crops = made[-1]["crops"]
        elif record.grid:
            count = record.grid[0] * record.grid[1]
            crops = torch.randint(0, 256, (count, 3, 336, 336), generator=source, dtype=torch.uint8)
        ids = torch.cat((torch.zeros(record.image_tokens, dtype=torch.int64), text))
        one = {"ids": ids, "crops": crops, "grid": record.grid, "supervised": record.supervised, "page": record.page}
        made.append(one)
    return made


def pack(chosen: Sequence[dict[str, Any]], groups: Iterable[Group] | None = None) -> dict[str, Any]:
    """Concatenate records as segments, see `ixtune.training.batch.make_batch`.

    Args:
        chosen: the records.
        groups: common prefixes of neighboring records; None for none.
    """
    segments = Segments()
    shown: list[Any] = []
    at = 0
    for group in groups or [Group((0,), 0, 0)] * len(chosen):
        members = chosen[at : at + len(group.records)]
        at += len(members)
        ids = [content["ids"].tolist() for content in members]
        parent = segments.add_prefix(ids, group.tokens) if group.tokens else -1
        for content, own in zip(members, ids, strict=True):
            quiet = len(own) - content["supervised"]
            segments.add(own, [-100] * quiet + own[quiet:], group.tokens, parent)
        shown += members[:1] if group.images else members
    batch = segments.batch()
    image_rows = (batch["input_ids"][0] == 0).nonzero().squeeze(1)
    return {**batch, **({"image_rows": image_rows} if len(image_rows) else {}), **_images(shown)}


def pad(chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pad records on the right to the longest."""
    longest = max(len(content["ids"]) for content in chosen)
    ids = torch.full((len(chosen), longest), 2)
    mask = torch.zeros((len(chosen), longest), dtype=torch.int64)
    labels = torch.full((len(chosen), longest), -100)
    for row, content in enumerate(chosen):
        length, asked = len(content["ids"]), content["supervised"]
        ids[row, :length], mask[row, :length] = content["ids"], 1
        labels[row, length - asked : length] = content["ids"][-asked:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **_images(chosen)}


def _images(chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    with_image = [content for content in chosen if content["grid"]]
    if not with_image:
        return {}
    return {
        "crops": torch.cat([content["crops"] for content in with_image]),
        "grids": [content["grid"] for content in with_image],
    }
