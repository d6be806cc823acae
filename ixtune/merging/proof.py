"""Verify a merge: read the files back from the disk and compare them with base and adapter.

Copied tensors must have the bytes of the base. Sampled rows of merged tensors are recomputed in float64 and must be
within one rounding of the stored values. All files are hashed on the way: with SHA-256, which is kept, and with the
hash used while writing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ixtune.adapter.combination import Merged, changes
from ixtune.adapter.weights import AdapterWeights
from ixtune.checkpoint.safetensors_file import TensorInfo, raw_bytes, unreadable
from ixtune.checkpoint.shards import Checkpoint, open_checkpoint
from ixtune.errors import IxtuneError
from ixtune.merging.nf4_view import Nf4View, is_decoder_linear
from ixtune.merging.read_back import ReadBack

_RANDOM_ROWS = 6  # in addition to the first and the last
_SEED = "ixtune merge"
_FP32_ROUNDING = 2.0**-24


@dataclass(frozen=True, slots=True)
class Proof:
    """Result of the check.

    `max_abs_error` is the largest distance between a stored value and its float64 recomputation. `sha256` has the
    hash of each weights file, of the bytes that came back from the disk.
    """

    sha256: dict[str, str]
    sampled_rows: int
    max_abs_error: float


def prove(folder: Path, model: Merged, written: Mapping[str, str], read_back: ReadBack) -> Proof:
    """Compare a merged folder with its base and adapters.

    Args:
        folder: The merged model, as written.
        model: The expected content: base and adapters.
        written: XXH3 hash of the bytes written, by file.
        read_back: Reader of the files, which has started on those just written.

    Raises:
        IxtuneError: A file differs from what was expected; the message names the tensor.
    """
    merged = open_checkpoint(folder)
    _check_form(model, merged)
    sha256 = {shard: _check_bytes(model, merged, shard, written[shard], read_back) for shard in merged.shards}
    rows, worst = 0, 0.0
    for info in model.tensors:
        if _may_differ(model, info.name):
            sampled, error = _check_rows(model, merged, info)
            rows, worst = rows + sampled, max(worst, error)
    return Proof(sha256, rows, worst)


def _may_differ(model: Merged, name: str) -> bool:
    """Return whether a tensor is computed in any of the steps, rather than copied."""
    ground = model.ground
    below = _may_differ(ground, name) if isinstance(ground, Merged) else isinstance(ground, Nf4View)
    return model.changes(name) or (below and (isinstance(ground, Merged) or is_decoder_linear(name)))


def _check_form(base: Checkpoint, merged: Checkpoint) -> None:
    """Check that names, shapes, dtypes and the assignment to shards are those of the base."""
    if missing := sorted(base.by_name.keys() ^ merged.by_name.keys()):
        raise _failed(merged, f"{missing[0]} is not in both models")
    for name, info in base.by_name.items():
        found = merged.by_name[name]
        if (found.shape, found.dtype) != (info.shape, info.dtype):
            raise _failed(merged, f"{name} is {list(found.shape)} {found.dtype}, not {list(info.shape)} {info.dtype}")
        if merged.shards.index(found.shard) != base.shards.index(info.shard):
            raise _failed(merged, f"{name} is in another shard")


def _check_bytes(model: Merged, merged: Checkpoint, shard: str, written: str, read_back: ReadBack) -> str:
    """Read one file to its end, compare it with the bytes written, and return its SHA-256."""
    path = merged.folder / shard
    try:
        found = read_back.hashes(shard, path)
    except OSError as error:
        raise unreadable(path, error) from error
    if found.fast != written:
        raise _failed(merged, f"the bytes of {_differing(model, merged, shard)} on the disk differ from those written")
    return found.sha256


def _differing(model: Merged, merged: Checkpoint, shard: str) -> str:
    """Return the first tensor of a shard that differs when recomputed, for the error message."""
    for info in merged.in_shard(shard):
        for start, stop in info.row_blocks():
            found, expected = merged.read_rows(info.name, start, stop), model.read_rows(info.name, start, stop)
            if raw_bytes(found) != raw_bytes(expected):
                return info.name
    return shard


def _check_rows(model: Merged, merged: Checkpoint, info: TensorInfo) -> tuple[int, float]:
    """Recompute sampled rows of one merged tensor; return their number and the largest error."""
    if info.nbytes == 0:
        return 0, 0.0
    rows = _sample(info)
    stored = _rows(merged, info.name, rows)
    expected, slack = _expected(model, info, rows)
    kind = torch.finfo(info.dtype)
    # half a unit in the last place, the error of the float32 arithmetic before it, and the smallest step near zero
    allowed = (expected.abs() + slack) * (kind.eps / 2) + slack + kind.smallest_normal * kind.eps
    error = (stored - expected).abs()
    if not bool((error <= allowed).all()):
        row = rows[int((error > allowed).flatten(1).any(1).nonzero()[0])]
        raise _failed(merged, f"row {row} of {info.name} is off by {error.max():.3g}, more than one rounding")
    return len(rows), error.max().item()


def _expected(model: Merged, info: TensorInfo, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the expected rows before rounding, in float64, and the tolerance for float32 arithmetic."""
    if isinstance(model.ground, Merged):  # adapters in sequence: the previous step was rounded to the stored dtype
        old, slack = _expected(model.ground, info, rows)
        kind = torch.finfo(info.dtype)
        slack = slack + (old.abs() + slack) * (kind.eps / 2) + kind.smallest_normal * kind.eps
    else:
        old = _rows(model.ground, info.name, rows)
        slack = torch.zeros_like(old)
    new, allowed = old, slack
    for one in model.ingredients:
        if changes(one.adapter, info.name):
            alone, error = _alone(one.adapter, info.name, rows, old, slack)
            new = new + one.weight * (alone - old)
            allowed = allowed + abs(one.weight) * (error + slack + 4 * _FP32_ROUNDING * (alone.abs() + old.abs()))
    return new, allowed


def _alone(
    adapter: AdapterWeights, name: str, rows: list[int], old: torch.Tensor, slack: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply one adapter to the rows; return them and the tolerance for float32 arithmetic."""
    if name in adapter.whole:
        new = _rows(adapter.file, adapter.whole[name], rows)
        return new, torch.zeros_like(new)
    pair = adapter.low_rank[name]
    a_RI = adapter.file.read(pair.a).double()
    b_KR = _rows(adapter.file, pair.b, rows)
    new = old + pair.scale * (b_KR @ a_RI)
    magnitude = old.abs() + abs(pair.scale) * (b_KR.abs() @ a_RI.abs())
    slack = slack + magnitude * ((a_RI.shape[0] + 3) * _FP32_ROUNDING)
    if name not in adapter.magnitudes:
        return new, slack
    norms = torch.linalg.vector_norm(new, dim=1, keepdim=True)
    factors = _rows(adapter.file, adapter.magnitudes[name], rows) / norms
    # an error in the row is an error in its norm as well
    error = slack + new.abs() * (torch.linalg.vector_norm(slack, dim=1, keepdim=True) / norms + 4 * _FP32_ROUNDING)
    return new * factors, error * factors.abs()


def _rows(checkpoint: Checkpoint, name: str, rows: list[int]) -> torch.Tensor:
    """Return these rows in float64, [rows, ...], with at least two dimensions."""
    return torch.stack([checkpoint.read_rows(name, row, row + 1).double().reshape(-1) for row in rows])


def _sample(info: TensorInfo) -> list[int]:
    """Return the first row, the last, and some in between that depend on the name only."""
    source = random.Random(f"{_SEED} {info.name}")
    picked = {0, info.rows - 1, *(source.randrange(info.rows) for _ in range(_RANDOM_ROWS))}
    return sorted(picked)


def _failed(merged: Checkpoint, what: str) -> IxtuneError:
    return IxtuneError(
        f"the merged model failed its check: {what}",
        where=str(merged.folder),
        hint="check disk and memory, then merge again; report it if it persists. Nothing was left behind",
    )
