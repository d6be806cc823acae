"""Cross-entropy on supervised rows only; the full logits of a batch never exist.

Shape letters: T flattened positions, D hidden, S supervised rows, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

# Rows whose logits exist at the same time: 190 MB in fp32 at a vocabulary of 92,544.
CHUNK_ROWS = 512


def supervised_rows(labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and targets of the loss from labels in transformers' convention.

    Args:
        labels_BL: unshifted labels, -100 at unsupervised positions.

    Returns:
        (flat indices of the positions whose NEXT token is a target [S], the targets [S])
    """
    shifted = torch.full_like(labels_BL, -100)
    shifted[:, :-1] = labels_BL[:, 1:]
    rows = (shifted.reshape(-1) != -100).nonzero().squeeze(1)
    return rows, shifted.reshape(-1)[rows]


class _FrozenHead(Function):
    """Sum of the cross-entropies with a frozen output head.

    The gradient to the hidden states is computed along with the loss, chunk by chunk, while the logits exist: nothing
    of vocabulary width is kept, and nothing is recomputed.
    """

    @staticmethod
    def forward(ctx: Any, hidden_SD: torch.Tensor, weight_VD: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
        kind = hidden_SD.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_SD.dtype
        weight_VD = weight_VD.to(dtype)
        wanted = ctx.needs_input_grad[0]
        gradient_SD = torch.empty_like(hidden_SD) if wanted else None
        total = hidden_SD.new_zeros((), dtype=torch.float32)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden_SD), CHUNK_ROWS):
                chunk = slice(start, start + CHUNK_ROWS)
                targets_C1 = targets_S[chunk, None]
                # One fp32 matrix that becomes logits, exponentials, probabilities and gradients in turn.
                matrix_CV = (hidden_SD[chunk].to(dtype) @ weight_VD.t()).float()
                matrix_CV -= matrix_CV.amax(dim=-1, keepdim=True)
                total -= matrix_CV.gather(1, targets_C1).sum()
                sums_C1 = matrix_CV.exp_().sum(dim=-1, keepdim=True)
                total += sums_C1.log().sum()
                if gradient_SD is not None:
                    matrix_CV /= sums_C1
                    matrix_CV.scatter_add_(1, targets_C1, -torch.ones_like(sums_C1))
                    gradient_SD[chunk] = matrix_CV.to(dtype) @ weight_VD
                del matrix_CV  # before the next chunk
        ctx.save_for_backward(gradient_SD)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient_SD,) = ctx.saved_tensors
        return gradient_SD * gradients[0], None, None


def _chunk_loss(hidden_CD: torch.Tensor, targets_C: torch.Tensor, head: nn.Module) -> torch.Tensor:
    return cross_entropy(head(hidden_CD).float(), targets_C, reduction="sum")


def _trained_head(hidden_SD: torch.Tensor, targets_S: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Return the sum of the cross-entropies with any kind of head, with gradients for the head too."""
    total = hidden_SD.new_zeros((), dtype=torch.float32)
    for hidden, targets in zip(hidden_SD.split(CHUNK_ROWS), targets_S.split(CHUNK_ROWS), strict=True):
        if len(targets_S) > CHUNK_ROWS and torch.is_grad_enabled():
            # Recomputing a chunk's logits in the backward pass costs one more head product; keeping them costs
            # gigabytes.
            total = total + checkpoint(_chunk_loss, hidden, targets, head, use_reentrant=False)
        else:
            total = total + _chunk_loss(hidden, targets, head)
    return total


def supervised_loss(
    hidden_TD: torch.Tensor,
    rows_S: torch.Tensor,
    targets_S: torch.Tensor,
    head: nn.Module,
    denominator: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Return the cross-entropy summed in fp32 over supervised rows, divided by `denominator` (default: their number).

    Args:
        hidden_TD: hidden states of all positions.
        rows_S: int64 rows of hidden_TD that predict a target.
        targets_S: int64 target tokens.
        head: the output projection D -> V.
        denominator: the number of supervised tokens of the whole optimizer step, so that the gradient does not
            depend on how records fall into micro-batches.

    Raises:
        ValueError: no row is supervised; the mean would be NaN (MODEL.md 3.6).
    """
    if len(rows_S) == 0:
        raise ValueError("no supervised position in this batch: the loss would be 0/0")
    hidden_SD = hidden_TD.index_select(0, rows_S)
    # A subclass may compute something else than the plain product, e.g. a quantized or sharded head.
    if type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad:
        total = _FrozenHead.apply(hidden_SD, head.weight, targets_S)
    else:
        total = _trained_head(hidden_SD, targets_S, head)
    return total / (len(rows_S) if denominator is None else denominator)
