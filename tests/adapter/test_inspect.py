"""Compare norm and effective rank of updates with those of the plain product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import section, stir
from in_process import call

from ixtune.adapter import attach, bundle
from ixtune.adapter.inspect import by_part, changes_of, inspect_adapter
from ixtune.adapter.weights import read_adapter
from ixtune.base import resolve
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.errors import IxtuneError
from ixtune.model.loading import load_base


def _adapter(small: Path, folder: Path, kind: str, size: float) -> Path:
    model = attach.attach(load_base(small, quantize=False, dtype=torch.float32)[0], section(kind))
    stir(model, size) if size else None
    bundle.save(model, folder, {"base": "small"})
    return folder


@pytest.mark.parametrize("kind", ["rslora with everything", "dora"])
def test_norm_and_effective_rank_match_the_full_product(small: Path, tmp_path: Path, kind: str) -> None:
    folder = _adapter(small, tmp_path / "adapter", kind, 0.05)
    adapter = read_adapter(folder)
    found = inspect_adapter(folder)
    assert found.has_effect
    assert len(found.updates) == len(adapter.low_rank)
    for update in found.updates:
        pair = adapter.low_rank[update.name]
        product = pair.scale * adapter.file.read(pair.b).double() @ adapter.file.read(pair.a).double()
        values = torch.linalg.svdvals(product)
        shares = values[values > 1e-9] / values.sum()
        assert update.norm == pytest.approx(float(product.norm()), rel=1e-6)
        assert update.effective_rank == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-4)
        assert 1 <= update.effective_rank <= update.rank + 1e-6
    assert sum(norm**2 for norm in by_part(found.updates).values()) == pytest.approx(
        sum(update.norm**2 for update in found.updates)
    )


def test_the_change_of_the_base_matches_that_of_full_tensors(small: Path, tmp_path: Path) -> None:
    folder = _adapter(small, tmp_path / "adapter", "dora with everything", 0.05)
    adapter, base = read_adapter(folder), open_checkpoint(small)
    found = changes_of(adapter, base)
    assert set(found) == {*adapter.low_rank, *adapter.whole}
    for name, pair in adapter.low_rank.items():
        old = base.read(name).double()
        turned = old + pair.scale * adapter.file.read(pair.b).double() @ adapter.file.read(pair.a).double()
        lengths = adapter.file.read(adapter.magnitudes[name]).double()
        new = turned * (lengths / turned.norm(dim=1))[:, None]
        assert found[name].norm == pytest.approx(float((new - old).norm()), rel=1e-4)
        assert found[name].ratio == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)
        rows = old.norm(dim=1)
        assert found[name].magnitude == pytest.approx(float((lengths - rows).norm() / rows.norm()), rel=1e-4)
    for name, key in adapter.whole.items():
        old = base.read(name).double()
        moved = adapter.file.read(key).double() - old
        assert found[name].norm == pytest.approx(float(moved.norm()), rel=1e-4)
        assert found[name].magnitude is None


def test_a_base_with_other_shapes_is_refused(small: Path, tmp_path: Path) -> None:
    adapter = read_adapter(_adapter(small, tmp_path / "adapter", "plain", 0.05))
    with pytest.raises(IxtuneError, match="the base has"):
        changes_of(adapter, open_checkpoint(resolve("nano")))


def test_an_adapter_without_effect_is_reported_as_such(small: Path, tmp_path: Path) -> None:
    assert "the adapter has no effect" in call("inspect", _adapter(small, tmp_path / "zero", "decoder only", 0)).stdout
    moved = call("inspect", _adapter(small, tmp_path / "moved", "decoder only", 0.05))
    assert moved.returncode == 0, moved.stderr
    assert "the adapter has no effect" not in moved.stdout
