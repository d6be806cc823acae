from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_base import RELEASED_CONFIG

from ixtune.checkpoint.sizes import Sizes, nf4_bytes
from ixtune.errors import IxtuneError
from ixtune.model import stored_nf4
from ixtune.model.loading import load_base


@pytest.fixture
def stored(small: Path, tmp_path: Path) -> Path:
    """Return the small base with its decoder linears stored in NF4."""
    config = json.loads((small / "config.json").read_text())
    tensors = load_file(small / "model.safetensors")
    for name in stored_nf4.linears(Sizes.from_config_json(config)):
        tensors |= stored_nf4.packed(name, tensors[name])
    folder = tmp_path / "stored"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config["quantization_config"] = stored_nf4.quantization_config([], torch.float32)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_stored_nf4_equals_quantizing_at_load_bit_for_bit(small: Path, stored: Path) -> None:
    at_loading, counted = load_base(small, quantize=True, dtype=torch.float32)
    as_stored, found = load_base(stored, quantize=False, dtype=torch.float32)
    assert str(found) == str(counted)
    expected, got = at_loading.state_dict(), as_stored.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(at_loading(input_ids=ids).logits, as_stored(input_ids=ids).logits)


def test_names_and_shapes_match_bitsandbytes(stored: Path) -> None:
    config = json.loads((stored / "config.json").read_text())
    expected = stored_nf4.stored_shapes(Sizes.from_config_json(config))
    found = {name: tuple(tensor.shape) for name, tensor in load_file(stored / "model.safetensors").items()}
    assert expected.keys() == found.keys()
    assert all(shape in (found[name], (-1,)) for name, shape in expected.items())


def test_a_missing_scale_is_named(stored: Path) -> None:
    tensors = load_file(stored / "model.safetensors")
    del tensors["model.layers.1.attention.wo.weight.nested_absmax"]
    save_file(tensors, stored / "model.safetensors")
    with pytest.raises(IxtuneError) as caught:
        load_base(stored, quantize=True, dtype=torch.float32)
    assert caught.value.notes[0].startswith("missing: model.layers.1.attention.wo.weight.nested_absmax")


def test_the_7b_takes_5_5_to_6_5_gib_when_stored_in_nf4() -> None:
    sizes = Sizes.from_config_json(RELEASED_CONFIG)
    shapes = stored_nf4.stored_shapes(sizes)
    assert len(shapes) == 942 + 160 * 5
    assert 5.5 < (sum(sizes.weight_bytes(nf4=True, float_bytes=2).values())) / 2**30 < 6.5
    name = stored_nf4.linears(sizes)[0]
    assert shapes[name][0] + shapes[f"{name}.absmax"][0] < nf4_bytes(6144 * 4096)
