"""Compute norm and effective rank of every update of an adapter, without the base and without computing B A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ixtune.adapter.combination import Ingredient, Merged
from ixtune.adapter.weights import AdapterWeights, read_adapter
from ixtune.checkpoint.shards import Checkpoint
from ixtune.errors import IxtuneError


@dataclass(frozen=True, slots=True)
class Update:
    """One low-rank update.

    Attributes:
        name: The original name of the tensor it is added to.
        rank: Of A and B.
        norm: Frobenius norm of scale * B @ A.
        effective_rank: exp of the entropy of its normalized singular values (Roy, Vetterli, EUSIPCO 2007); 0 if zero.
        magnitudes: With DoRA the number of trained row lengths; their change needs the base.
    """

    name: str
    rank: int
    norm: float
    effective_rank: float
    magnitudes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """Content of an adapter.

    Attributes:
        folder: Adapter folder.
        updates: In the adapter's order.
        whole: Tensors that replace those of the base, with their shapes.
        has_effect: Whether an update is not zero, or a tensor is replaced or scaled.
    """

    folder: Path
    updates: tuple[Update, ...]
    whole: dict[str, tuple[int, ...]]
    has_effect: bool


def inspect_adapter(path: Path) -> Inspection:
    """Inspect an adapter folder or a run; one pair is in memory at a time.

    Raises:
        IxtuneError: It is incomplete, altered, or of an unsupported kind.
    """
    adapter = read_adapter(path)
    updates = tuple(_update(adapter, name) for name in adapter.low_rank)
    whole = {name: adapter.file.by_name[key].shape for name, key in adapter.whole.items()}
    effect = bool(whole) or bool(adapter.magnitudes) or any(update.norm > 0 for update in updates)
    return Inspection(adapter.folder, updates, whole, effect)


@dataclass(frozen=True, slots=True)
class Change:
    """Change of one tensor relative to the base's.

    Attributes:
        norm: Frobenius norm of the change, including DoRA's magnitudes.
        ratio: `norm` divided by the norm of the base tensor.
        magnitude: With DoRA the norm of the row lengths' change over that of the base's row lengths; None without.
    """

    norm: float
    ratio: float
    magnitude: float | None


def changes_of(adapter: AdapterWeights, base: Checkpoint) -> dict[str, Change]:
    """Return the change of every tensor the adapter names, in row blocks, so that no base tensor is whole in memory.

    Raises:
        IxtuneError: The base lacks a tensor, or has it in another shape.
    """
    together = Merged(base, [Ingredient(adapter)])
    found = {}
    for name in (*adapter.low_rank, *adapter.whole):
        info = base.by_name.get(name)
        shape = _shape(adapter, name)
        if info is None or tuple(info.shape) != shape:
            has = "x".join(map(str, info.shape)) if info else "no such tensor"
            raise IxtuneError(
                f"the adapter changes {name} of {'x'.join(map(str, shape))}; the base has {has}",
                where=str(base.folder),
                hint="pass the base it was trained on",
            )
        moved = before = turned = 0.0
        for start, stop in info.row_blocks():
            old, new = together.exact_rows(name, start, stop)
            moved += float((new - old).double().square().sum())
            before += float(old.double().square().sum())
            if name in adapter.magnitudes:
                lengths = adapter.file.read_rows(adapter.magnitudes[name], start, stop).double()
                turned += float((lengths - old.double().norm(dim=1)).square().sum())
        magnitude = (turned / before) ** 0.5 if before and name in adapter.magnitudes else None
        ratio = (moved / before) ** 0.5 if before else float("inf") if moved else 0.0
        found[name] = Change(moved**0.5, ratio, magnitude)
    return found


def _shape(adapter: AdapterWeights, name: str) -> tuple[int, ...]:
    if name in adapter.whole:
        return tuple(adapter.file.by_name[adapter.whole[name]].shape)
    pair = adapter.low_rank[name]
    return (adapter.file.by_name[pair.b].shape[0], adapter.file.by_name[pair.a].shape[1])


def by_part(updates: Sequence[Update]) -> dict[str, float]:
    """Return the joint norm of the updates of each kind of linear, the largest first."""
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
