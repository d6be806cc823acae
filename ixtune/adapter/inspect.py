"""How an adapter changes its base: norm and effective rank of every update, without the base and without B A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ixtune.adapter.weights import AdapterWeights, read_adapter


@dataclass(frozen=True, slots=True)
class Update:
    """One low-rank update.

    Attributes:
        name: The original name of the tensor it is added to.
        rank: Of A and B.
        norm: Frobenius norm of scale * B @ A.
        effective_rank: exp of the entropy of its normalised singular values (Roy, Vetterli, EUSIPCO 2007); 0 of none.
        magnitudes: With DoRA the number of trained row lengths; their change needs the base.
    """

    name: str
    rank: int
    norm: float
    effective_rank: float
    magnitudes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an adapter holds.

    Attributes:
        folder: Where it lies.
        updates: In the adapter's order.
        whole: Tensors that take the place of the base's, with their shapes.
        has_effect: Whether an update is not zero, or a tensor is replaced or scaled.
    """

    folder: Path
    updates: tuple[Update, ...]
    whole: dict[str, tuple[int, ...]]
    has_effect: bool


def inspect_adapter(path: Path) -> Inspection:
    """Look at an adapter folder, or the run around it; one pair is in memory at a time.

    Raises:
        IxtuneError: It is not whole, altered, or not understood.
    """
    adapter = read_adapter(path)
    updates = tuple(_update(adapter, name) for name in adapter.low_rank)
    whole = {name: adapter.file.by_name[key].shape for name, key in adapter.whole.items()}
    effect = bool(whole) or bool(adapter.magnitudes) or any(update.norm > 0 for update in updates)
    return Inspection(adapter.folder, updates, whole, effect)


def by_part(updates: Sequence[Update]) -> dict[str, float]:
    """Norm of all updates of one kind of linear together, the largest first."""
    squares: dict[str, float] = {}
    for update in updates:
        part = update.name.removesuffix(".weight").rsplit(".", 1)[-1]
        part = "vision_proj" if update.name.startswith("vision_proj") else part
        squares[part] = squares.get(part, 0.0) + update.norm**2
    return {part: square**0.5 for part, square in sorted(squares.items(), key=lambda one: -one[1])}


def _update(adapter: AdapterWeights, name: str) -> Update:
    pair = adapter.low_rank[name]
    a_RI, b_OR = adapter.file.read(pair.a).double(), adapter.file.read(pair.b).double()
    # B A = Qb (Rb Ra^T) Qa^T: its singular values are those of a matrix of R x R
    inner_RR = torch.linalg.qr(b_OR, mode="r").R @ torch.linalg.qr(a_RI.T, mode="r").R.T
    values_R = abs(pair.scale) * torch.linalg.svdvals(inner_RR)
    total = float(values_R.sum())
    shares_R = values_R[values_R > 0] / total if total else values_R[:0]
    effective = float(torch.exp(-(shares_R * shares_R.log()).sum())) if total else 0.0
    lengths = adapter.magnitudes.get(name)
    count = adapter.file.by_name[lengths].shape[0] if lengths else 0
    return Update(name, a_RI.shape[0], float(values_R.norm()), effective, count)
