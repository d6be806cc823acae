"""Partial LoRA: the low-rank branch that IXC2 adds to its decoder linears at image positions only.

Shape letters: T flattened positions of the batch, D in features, O out features, R rank, I image positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import Function

FusedProduct = Callable[[Any, "PLoRA", torch.Tensor, "tuple[slice, ...]"], "torch.Tensor | None"]
"""(linear, its branch, input [.., D], image rows) -> [.., O], or None to compute the products separately."""


class PLoRA(nn.Module):
    """Branch `scale * B(A(x))` (MODEL.md 4), a sibling of the linear it belongs to.

    It is a sibling of a plain `nn.Linear`, not a wrapper, so that bitsandbytes and PEFT see a plain linear
    (TRAPS.md 1). It is part of the base: frozen, and without dropout.

    Attributes:
        fused: Computes linear, branch and adapter in one product, where an adapter has set it (`lean_lora`).
    """

    fused: FusedProduct | None

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Linear(in_features, rank, bias=False)
        self.B = nn.Linear(rank, out_features, bias=False)
        self.scale = scale
        self.fused = None

    def forward(self, x_ID: torch.Tensor) -> torch.Tensor:
        """Return the addition [I, O] for the image rows x_ID."""
        added: torch.Tensor = self.B(self.A(x_ID)) * self.scale
        return added


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Image positions of a batch.

    Attributes:
        rows_I: int64 indices into batch*length.
        spans: the same positions as (start, stop) runs, in plain integers, so that no layer waits for the GPU.
    """

    rows_I: torch.Tensor
    spans: tuple[slice, ...]

    @classmethod
    def of(cls, rows_I: torch.Tensor | None) -> ImageRows | None:
        """Create from indices; None if there is no image."""
        if rows_I is None or not len(rows_I):
            return None
        rows = np.array(rows_I.tolist(), dtype=np.int64)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return cls(rows_I, tuple(slice(int(run[0]), int(run[-1]) + 1) for run in runs))


def apply(linear: nn.Module, plora: PLoRA, x: torch.Tensor, images: ImageRows | None) -> torch.Tensor:
    """Return `linear(x)` plus the PLoRA branch at the image rows.

    Args:
        linear: the base linear, [.., D] -> [.., O]; possibly quantized or wrapped by an adapter.
        plora: its branch.
        x: [batch, length, D].
        images: image positions; None without images.

    Returns:
        [batch, length, O]
    """
    if plora.fused is not None:
        whole = plora.fused(linear, plora, x, images.spans if images else ())
        if whole is not None:
            return whole
    out: torch.Tensor = linear(x)
    if images is None:
        return out
    branch_IO = plora(x.reshape(-1, x.shape[-1]).index_select(0, images.rows_I.to(x.device)))
    added: torch.Tensor = _AddRows.apply(out, images.spans, branch_IO)  # type: ignore[no-untyped-call]
    return added


class _AddRows(Function):
    """Add rows in place; torch's `index_add` would save what it adds, five matrices per layer."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, spans: tuple[slice, ...], branch_IO: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(out)
        ctx.spans, ctx.dtype = spans, branch_IO.dtype
        flat = out.view(-1, out.shape[-1])
        for span, part in zip(spans, branch_IO.split([s.stop - s.start for s in spans]), strict=True):
            flat[span] += part
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        to_branch_IO = None
        if ctx.needs_input_grad[2]:
            flat = gradients[0].reshape(-1, gradients[0].shape[-1])
            to_branch_IO = torch.cat([flat[span] for span in ctx.spans]).to(ctx.dtype)
        return gradients[0], None, to_branch_IO
