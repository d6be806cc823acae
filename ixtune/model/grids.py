"""Grids of crops of the images in a batch, and the rows of the batch that show them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ixtune.family import Member

Grids = Sequence[tuple[int, int]] | torch.Tensor
"""(rows, cols) of each image; the processor gives a tensor [images, 2] where tensors are asked for."""


def repeat_pieces(stacked: torch.Tensor | None, sizes: list[int], times: int) -> torch.Tensor | None:
    """Split along the first axis into `sizes` and repeat each piece `times` times, copies next to each other."""
    if stacked is None:
        return None
    return torch.cat([piece for piece in stacked.split(sizes) for _ in range(times)])


def split_by_tokens(
    grids: list[tuple[int, int]], tokens_of_rows: list[int], member: Member
) -> list[list[tuple[int, int]]]:
    """Distribute the images over the batch rows by the number of image positions of each row."""
    remaining = list(grids)
    rows: list[list[tuple[int, int]]] = []
    for wanted in tokens_of_rows:
        row: list[tuple[int, int]] = []
        while sum(member.tokens(*grid) for grid in row) < wanted and remaining:
            row.append(remaining.pop(0))
        rows.append(row)
    return rows


def pairs_of(grids: Grids) -> list[tuple[int, int]]:
    """Return (rows, cols) of each image as integers."""
    return [(int(rows), int(cols)) for rows, cols in (grids.tolist() if isinstance(grids, torch.Tensor) else grids)]
