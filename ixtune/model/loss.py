"""Cross-entropy on supervised rows only; the full logits of a batch never exist.

Shape letters: T flattened positions, D hidden, S supervised rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

# Rows whose logits exist at one time: at a vocabulary of 92,544 in fp32 this is 190 MB.
CHUNK_ROWS = 512


def supervised_rows(labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the loss is taken, from labels in transformers' convention.

    Args:
        labels_BL: unshifted labels, -100 where nothing is asked.

    Returns:
        (flat indices of the positions whose NEXT token is a target [S], the targets [S])
    """
    shifted = torch.full_like(labels_BL, -100)
    shifted[:, :-1] = labels_BL[:, 1:]
    rows = (shifted.reshape(-1) != -100).nonzero().squeeze(1)
    return rows, shifted.reshape(-1)[rows]


def _chunk_loss(hidden_SD: torch.Tensor, targets_S: torch.Tensor, head: nn.Module) -> torch.Tensor:
    return cross_entropy(head(hidden_SD).float(), targets_S, reduction="sum")


def supervised_loss(
    hidden_TD: torch.Tensor,
    rows_S: torch.Tensor,
    targets_S: torch.Tensor,
    head: nn.Module,
    denominator: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Cross-entropy summed in fp32 over the supervised rows, divided by `denominator` (default: their number).

    Args:
        hidden_TD: hidden states of all positions.
        rows_S: int64 rows of hidden_TD that are asked for a token.
        targets_S: int64 the tokens asked for.
        head: the output projection D -> V.
        denominator: the number of supervised tokens of the whole optimizer step, so that the gradient does not
            depend on how records fall into micro-batches.

    Raises:
        ValueError: no row is supervised; the mean would be NaN (MODEL.md 3.6).
    """
    if len(rows_S) == 0:
        raise ValueError("no supervised position in this batch: the loss would be 0/0")
    hidden_SD = hidden_TD.index_select(0, rows_S)
    total = hidden_SD.new_zeros((), dtype=torch.float32)
    for hidden, targets in zip(hidden_SD.split(CHUNK_ROWS), targets_S.split(CHUNK_ROWS), strict=True):
        if len(rows_S) > CHUNK_ROWS and torch.is_grad_enabled():
            # Recomputing a chunk's logits in the backward pass costs one more head product; keeping them costs
            # gigabytes.
            total = total + checkpoint(_chunk_loss, hidden, targets, head, use_reentrant=False)
        else:
            total = total + _chunk_loss(hidden, targets, head)
    return total / (len(rows_S) if denominator is None else denominator)
