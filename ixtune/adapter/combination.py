"""View a base with adapters merged in: row blocks are computed when they are read.

One adapter gives a tensor W

    LoRA    W + s B A                                  s = alpha / rank, or alpha / sqrt(rank) with rsLoRA
    DoRA    m (W + s B A) / |W + s B A|, row by row    m the trained length of each row (arXiv 2402.09353)
    whole   V                                          the trained tensor itself

Several adapters of one base, with the weights w_i, give W + sum of w_i (W_i - W), where W_i is W with only the i-th
adapter merged in. Everything is computed in float32 and rounded once to the dtype the base stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ixtune.adapter.weights import AdapterWeights, LowRank
from ixtune.checkpoint.safetensors_file import raw_bytes
from ixtune.checkpoint.shards import Checkpoint
from ixtune.errors import IxtuneError


@dataclass(frozen=True, slots=True)
class Ingredient:
    """Hold an adapter and its merge weight; 1 merges it as trained."""

    adapter: AdapterWeights
    weight: float = 1.0


class Merged(Checkpoint):
    """A checkpoint with adapters merged into it, read like any other; nothing is written.

    Attributes:
        ground: The checkpoint they are merged into.
        ingredients: The adapters.
    """

    def __init__(self, ground: Checkpoint, ingredients: Sequence[Ingredient]) -> None:
        self.folder, self.shards, self.by_name = ground.folder, ground.shards, ground.by_name
        self.ground = ground
        self.ingredients = tuple(ingredients)
        self._sum = torch.empty(0)
        self._a: dict[str, torch.Tensor] = {}  # scales of the tensor read last
        self._a_of = ""

    def changes(self, name: str) -> bool:
        """Return whether an adapter changes this tensor."""
        return any(changes(one.adapter, name) for one in self.ingredients)

    def read_rows(self, name: str, start: int, stop: int, into: torch.Tensor | None = None) -> torch.Tensor:
        """Return rows [start, stop) of the merged tensor in the stored dtype, see `Checkpoint.read_rows`.

        Raises:
            IxtuneError: A value is not finite, or a file cannot be read.
        """
        dtype = self.by_name[name].dtype
        ground = self.ground.read_rows(name, start, stop, into)
        if not self.changes(name):
            return ground.to(dtype)
        total = self._combined(name, start, stop, self._widened(ground))
        merged = ground.copy_(total) if ground.dtype == dtype else total.to(dtype)
        if not _rounds_to_finite(total, dtype) and not bool(torch.isfinite(merged).all()):
            raise IxtuneError(
                f"{name} is not finite after merging, in rows {start} to {stop - 1}",
                where=str(self.folder),
                hint=f"check that the base is finite; {str(dtype).removeprefix('torch.')} may be too small for it",
            )
        return merged

    def exact_rows(self, name: str, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows [start, stop) of the base's tensor and of the merged one in float32, before rounding."""
        ground = self.ground.read_rows(name, start, stop).to(torch.float32, copy=True)
        return ground, self._combined(name, start, stop, ground.clone())

    def read_bytes(self, name: str, start: int, stop: int) -> memoryview:
        """Return bytes [start, stop) of the merged tensor, see `Checkpoint.read_bytes`."""
        info = self.by_name[name]
        stop = min(stop, info.nbytes)
        start = min(start, stop)
        if start == stop:
            return memoryview(b"")
        row_bytes = info.nbytes // info.rows
        first = start // row_bytes
        rows = self.read_rows(name, first, -(-stop // row_bytes))
        return raw_bytes(rows)[start - first * row_bytes : stop - first * row_bytes]

    def _combined(self, name: str, start: int, stop: int, ground: torch.Tensor) -> torch.Tensor:
        """Return float32 rows of the sum over all adapters."""
        used = [one for one in self.ingredients if one.weight and changes(one.adapter, name)]
        if all(name in one.adapter.low_rank and name not in one.adapter.magnitudes for one in used):
            for one in used:
                self._add_update(ground, one.adapter, one.adapter.low_rank[name], start, stop, one.weight)
            return ground
        total = ground.clone()
        for one in used:
            alone = self._alone(name, start, stop, ground.clone(), one.adapter)
            # 1 * (V - W) + W is not V in float32
            total = alone if one.weight == 1.0 and len(used) == 1 else total + one.weight * (alone - ground)
        return total

    def _alone(self, name: str, start: int, stop: int, ground: torch.Tensor, adapter: AdapterWeights) -> torch.Tensor:
        """Return the float32 rows of the base after applying one adapter alone."""
        if name in adapter.whole:
            return adapter.file.read_rows(adapter.whole[name], start, stop).float()
        turned = self._add_update(ground, adapter, adapter.low_rank[name], start, stop, 1.0)
        if name not in adapter.magnitudes:
            return turned
        # summed in float64: this norm is the only sum over 4096 values
        norms = torch.linalg.vector_norm(turned, dim=1, keepdim=True, dtype=torch.float64)
        lengths = adapter.file.read_rows(adapter.magnitudes[name], start, stop).double()[:, None]
        scaled: torch.Tensor = turned * (lengths / norms).float()
        return scaled

    def _widened(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows in float32, in a buffer that the next call reuses."""
        if self._sum.numel() < rows.numel():
            self._sum = torch.empty(rows.numel())
        return self._sum[: rows.numel()].view(rows.shape).copy_(rows)

    def _add_update(
        self, ground: torch.Tensor, adapter: AdapterWeights, pair: LowRank, start: int, stop: int, weight: float
    ) -> torch.Tensor:
        """Add weight * scale * B @ A to the rows in place."""
        b_OR = adapter.file.read_rows(pair.b, start, stop).float()
        return ground.addmm_(b_OR, self._first(adapter, pair), alpha=weight * pair.scale)

    def _first(self, adapter: AdapterWeights, pair: LowRank) -> torch.Tensor:
        """Return the pair's A [R, I] in float32, cached for the current tensor."""
        if pair.a != self._a_of:
            self._a_of, self._a = pair.a, {}
        key = str(adapter.folder)
        if key not in self._a:
            self._a[key] = adapter.file.read(pair.a).float()
        return self._a[key]


def _rounds_to_finite(values: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether float32 values are certain to be finite in `dtype`, by one quick check; False is inconclusive.

    If the squares add up to no more than the largest number squared, no value is beyond that number.
    """
    flat = values.reshape(-1)
    squares = float(torch.dot(flat, flat))  # compared in Python: as float32, most limits squared are infinite too
    return math.isfinite(squares) and squares <= torch.finfo(dtype).max ** 2


def changes(adapter: AdapterWeights, name: str) -> bool:
    """Return whether the adapter names this tensor."""
    return name in adapter.low_rank or name in adapter.whole
