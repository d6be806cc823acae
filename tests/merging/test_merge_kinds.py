"""Test merging every kind of adapter: the merged model gives the logits of base plus adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import KINDS, image_batch, section, stir
from safetensors.torch import load_file, save_file

from ixtune.adapter import attach, bundle
from ixtune.adapter.weights import read_adapter
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.errors import IxtuneError
from ixtune.merging.merge import merge
from ixtune.model.loading import load_base


def _trained(small: Path, folder: Path, kind: str) -> torch.Tensor:
    """Save an adapter that changes all its weights; return its logits in fp32."""
    model = attach.attach(load_base(small, quantize=False, dtype=torch.float32)[0], section(kind)).eval()
    stir(model)
    identity = base_identity(open_checkpoint(small))
    bundle.save(model, folder, {"base": "small", "base_identity": identity, "quantize": "none"})
    with torch.no_grad():
        return model(**image_batch()).logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_answers_like_base_plus_adapter(small: Path, tmp_path: Path, kind: str) -> None:
    expected = _trained(small, tmp_path / "adapter", kind)
    report = merge(tmp_path / "adapter", small, tmp_path / "merged")
    assert report.changed == report.merged > 0
    with torch.no_grad():
        merged = load_base(tmp_path / "merged", quantize=False, dtype=torch.float32)[0](**image_batch()).logits
    torch.testing.assert_close(merged, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_dora_on_nf4_is_merged_into_the_base_it_was_trained_on(small: Path, tmp_path: Path) -> None:
    model = attach.attach(load_base(small, quantize=True, dtype=torch.float32)[0], section("dora")).eval()
    stir(model)
    record = {"base": "small", "base_identity": base_identity(open_checkpoint(small)), "quantize": "nf4"}
    record["recipe"] = {"training": {"compute_dtype": "fp32"}}
    bundle.save(model, tmp_path / "adapter", record)
    merge(tmp_path / "adapter", small, tmp_path / "merged", onto="nf4")
    with torch.no_grad():
        expected = model(**image_batch()).logits
        found = load_base(tmp_path / "merged", quantize=False, dtype=torch.float32)[0](**image_batch()).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_a_dora_adapter_with_a_missing_magnitude_is_refused(small: Path, tmp_path: Path) -> None:
    _trained(small, tmp_path / "adapter", "dora with everything")
    assert len(read_adapter(tmp_path / "adapter").magnitudes) == 2 * 5 + 2
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "magnitude" in name)
    (tmp_path / "adapter" / "ixtune.json").unlink()
    for wrong, words in (({name: tensors[name][:-1].clone()}, "has the shape"), ({}, "no low-rank pair or no magn")):
        save_file({key: value for key, value in tensors.items() if key != name} | wrong, file)
        with pytest.raises(IxtuneError, match=words):
            merge(tmp_path / "adapter", small, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
