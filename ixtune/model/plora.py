"""Partial LoRA: the low-rank branch that IXC2 adds to its decoder linears at image positions only.

Shape letters: T flattened positions of the batch, D in features, O out features, R rank, I image positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import Function


class PLoRA(nn.Module):
    """The branch `scale * B(A(x))` (MODEL.md 4), a sibling of the linear it belongs to.

    It stands beside a plain `nn.Linear` and not inside it, so that bitsandbytes and PEFT see a plain linear
    (TRAPS.md 1). It is part of the base: frozen, and without dropout.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Linear(in_features, rank, bias=False)
        self.B = nn.Linear(rank, out_features, bias=False)
        self.scale = scale

    def forward(self, x_ID: torch.Tensor) -> torch.Tensor:
        """Return the addition [I, O] for the image rows x_ID."""
        return self.B(self.A(x_ID)) * self.scale


def apply(linear: nn.Module, plora: PLoRA, x: torch.Tensor, image_rows_I: torch.Tensor | None) -> torch.Tensor:
    """`linear(x)`, plus the branch at the image rows.

    Args:
        linear: the base linear, [.., D] -> [.., O]; quantised or wrapped by an adapter as it may be.
        plora: its branch.
        x: [batch, length, D].
        image_rows_I: int64 indices into batch*length; None where there is no image.

    Returns:
        [batch, length, O]
    """
    out = linear(x)
    if image_rows_I is None:
        return out
    branch_IO = plora(x.reshape(-1, x.shape[-1]).index_select(0, image_rows_I))
    added: torch.Tensor = _AddRows.apply(out, image_rows_I, branch_IO)
    return added


class _AddRows(Function):
    """Add some rows in place; torch's own `index_add` would keep what it adds, five matrices a layer."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, rows_I: torch.Tensor, branch_IO: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows_I)
        ctx.mark_dirty(out)
        ctx.dtype = branch_IO.dtype
        out.view(-1, out.shape[-1]).index_add_(0, rows_I, branch_IO.to(out.dtype))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (rows_I,) = ctx.saved_tensors
        to_branch_IO = None
        if ctx.needs_input_grad[2]:
            flat = gradients[0].reshape(-1, gradients[0].shape[-1])
            to_branch_IO = flat.index_select(0, rows_I).to(ctx.dtype)
        return gradients[0], None, to_branch_IO
