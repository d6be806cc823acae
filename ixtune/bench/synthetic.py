"""Random tokens and crops in the shape of a mix, as ixtune takes them and as padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ixtune.bench.mix import Record


def contents(records: Sequence[Record], vocabulary: int, seed: int = 0) -> list[dict[str, Any]]:
    """Token ids (image positions are 0, in front) and uint8 crops of each record, reproducible by seed."""
    source = torch.Generator().manual_seed(seed)
    made = []
    for record in records:
        text = torch.randint(3, vocabulary, (record.text_tokens,), generator=source)
        crops = None
        if record.grid:
            count = record.grid[0] * record.grid[1]
            crops = torch.randint(0, 256, (count, 3, 336, 336), generator=source, dtype=torch.uint8)
        ids = torch.cat((torch.zeros(record.image_tokens, dtype=torch.int64), text))
        made.append({"ids": ids, "crops": crops, "grid": record.grid, "supervised": record.supervised})
    return made


def pack(chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Records as segments of one row, see `ixtune.training.batch.make_batch`."""
    lengths = [len(content["ids"]) for content in chosen]
    ids = torch.cat([content["ids"] for content in chosen])
    ends = torch.tensor(lengths).cumsum(0)
    rows = torch.cat(
        [
            torch.arange(int(end) - 1 - content["supervised"], int(end) - 1)
            for end, content in zip(ends, chosen, strict=True)
        ]
    )
    return {
        "input_ids": ids[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": torch.cat((torch.zeros(1, dtype=torch.int64), ends)).to(torch.int32),
        "max_length_q": max(lengths),
        "supervised": (rows, ids[rows + 1]),
        **({"image_rows": (ids == 0).nonzero().squeeze(1)} if bool((ids == 0).any()) else {}),
        **_images(chosen),
    }


def pad(chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Records as rows padded on the right to the longest."""
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
