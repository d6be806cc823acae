"""Apply dropout, keeping one bit per element for the mask."""

from __future__ import annotations

import functools

import numpy as np
import torch

from ixtune.model import fused

_STEPS = 1 << 15  # a mask drawn on a CPU rounds the dropout rate to a multiple of 1 / _STEPS
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def draw(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """Return a random mask of x, one bit per number, first bit highest: uint8 [ceil(numel / 8)]."""
    count = x.numel()
    if x.device.type != "cpu":
        drawn: torch.Tensor = fused.draw(_powers(x.device), -(-count // 8), dropout)
        return drawn
    # Four draws of 15 bits from each of torch's: a third of the time of a Bernoulli draw for each number.
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_().view(torch.int16)[:count]
    return torch.from_numpy(np.packbits(draws.bitwise_and_(_STEPS - 1).numpy() >= round(dropout * _STEPS)))


def drop(x_ND: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Return a copy of x with zeros where a bit is 0."""
    if x_ND.device.type != "cpu":
        # flat and detached: compiled versions then differ only in the length
        dropped: torch.Tensor = fused.drop(x_ND.detach().reshape(-1), bits, _powers(x_ND.device))
        return dropped.view_as(x_ND)
    # All ones or all zeros, and a bitwise `and`: a multiplication by a mask takes four times as long.
    return _mask(x_ND, bits).bitwise_and_(_whole(x_ND)).view(x_ND.dtype).view_as(x_ND)


def drop_added(to_ND: torch.Tensor, x_ND: torch.Tensor, bits: torch.Tensor) -> None:
    """Add x, with zeros where a bit is 0, to another matrix; x itself may change."""
    if x_ND.device.type != "cpu":
        fused.drop_added(to_ND.view(-1), x_ND.view(-1), bits, _powers(x_ND.device))
        return
    _whole(x_ND).bitwise_and_(_mask(x_ND, bits))
    to_ND += x_ND


def _whole(x_ND: torch.Tensor) -> torch.Tensor:
    return x_ND.contiguous().view(_WHOLE[x_ND.dtype.itemsize]).view(-1)


def _mask(x_ND: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Return integers of x's size, with all bits set where x's mask bit is 1."""
    stay = torch.from_numpy(np.unpackbits(bits.numpy(), count=x_ND.numel()))
    return stay.view(torch.int8).neg_().to(_WHOLE[x_ND.dtype.itemsize])


@functools.cache
def _powers(device: torch.device) -> torch.Tensor:
    return 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
