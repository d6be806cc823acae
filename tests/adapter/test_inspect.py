"""Norm and effective rank of updates, against the plain product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import section, stir
from in_process import call

from ixtune.adapter import attach, bundle
from ixtune.adapter.inspect import by_part, inspect_adapter
from ixtune.adapter.weights import read_adapter
from ixtune.model.loading import load_base


def _adapter(small: Path, folder: Path, kind: str, size: float) -> Path:
    model = attach.attach(load_base(small, quantize=False, dtype=torch.float32)[0], section(kind))
    stir(model, size) if size else None
    bundle.save(model, folder, {"base": "small"})
    return folder


@pytest.mark.parametrize("kind", ["rslora with everything", "dora"])
def test_norm_and_effective_rank_are_those_of_the_product(small: Path, tmp_path: Path, kind: str) -> None:
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


def test_the_command_line_shows_bars_and_names_an_adapter_without_effect(small: Path, tmp_path: Path) -> None:
    told = call("inspect", _adapter(small, tmp_path / "adapter", "plain", 0.05))
    assert told.returncode == 0, told.stderr
    assert "█" * 30 in told.stdout
    assert "vision_proj.0.weight" in told.stdout
    fresh = _adapter(small, tmp_path / "fresh", "separators through a frozen projector", 0)
    assert '"has_effect": true' in call("inspect", fresh, "--json").stdout  # separators are there as a whole
    nothing = call("inspect", _adapter(small, tmp_path / "zero", "decoder only", 0))
    assert "it changes nothing" in nothing.stdout
    missing = call("inspect", tmp_path / "absent")
    assert missing.returncode == 1
    assert "there is no adapter" in missing.stderr
