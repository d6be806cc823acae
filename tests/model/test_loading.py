"""Test every checkpoint format, and every kind of damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_base import small_model

from ixtune.errors import IxtuneError
from ixtune.model.loading import load_base
from ixtune.model.model import IXC2ForCausalLM


def _logits(model: IXC2ForCausalLM) -> torch.Tensor:
    ids = torch.tensor([[1, 5, 6, *[0] * 313, 7, 8, 9]])
    crops = torch.randint(0, 256, (1, 3, 336, 336), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids, crops=crops, grids=[(1, 1)]).logits


def _as(small: Path, out: Path, form: str) -> Path:
    """Write the same tensors in another format."""
    shutil.copytree(small, out)
    state = load_file(out / "model.safetensors")
    names = sorted(state)
    parts = {"one": [names], "three": [names[::3], names[1::3], names[2::3]]}[form.split()[0]]
    (out / "model.safetensors").unlink()
    stem, suffix = ("pytorch_model", ".bin") if form.endswith("bin") else ("model", ".safetensors")
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}{suffix}" if len(parts) == 1 else f"{stem}-{number:05d}-of-{len(parts):05d}{suffix}"
        tensors = {name: state[name] for name in part}
        torch.save(tensors, out / file) if suffix == ".bin" else save_file(tensors, out / file)
        weight_map |= dict.fromkeys(part, file)
    if len(parts) > 1:
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (out / f"{stem}{suffix}.index.json").write_text(index, encoding="utf-8")
    return out


@pytest.mark.parametrize("form", ["one safetensors", "three safetensors", "one bin", "three bin"])
def test_every_checkpoint_format_gives_the_same_logits(small: Path, tmp_path: Path, form: str) -> None:
    model, _ = load_base(_as(small, tmp_path / "base", form), quantize=False, dtype=torch.float32)
    assert torch.allclose(_logits(model), _logits(small_model()), atol=1e-5)


def test_loading_in_bfloat16_changes_only_the_precision(small: Path) -> None:
    model, _ = load_base(small, quantize=False, dtype=torch.bfloat16)
    exact = small_model()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    expected = exact.to(torch.bfloat16)
    assert torch.equal(_logits(model), _logits(expected))


def test_saving_writes_the_original_names(small: Path, tmp_path: Path) -> None:
    model, _ = load_base(small, quantize=False, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    before, after = load_file(small / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def _broken(small: Path, out: Path, change: str) -> Path:
    shutil.copytree(small, out)
    state = load_file(out / "model.safetensors")
    if change == "missing":
        del state["model.layers.1.feed_forward.w2.Plora_B.weight"]
    elif change == "extra":
        state["model.layers.2.attention.wo.weight"] = torch.zeros(2, 2)
    else:
        state["vision_proj.0.weight"] = state["vision_proj.0.weight"][:-1].clone()
    save_file(state, out / "model.safetensors")
    return out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "missing: model.layers.1.feed_forward.w2.Plora_B.weight [64, 8]"),
        ("extra", "not part of the model: model.layers.2.attention.wo.weight [2, 2]"),
        ("shape", "wrong shape: vision_proj.0.weight is [63, 128], config.json requires [64, 128]"),
    ],
)
def test_a_mismatched_tensor_is_named(small: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(IxtuneError) as caught:
        load_base(_broken(small, tmp_path / "base", change), quantize=False, dtype=torch.float32)
    assert said in caught.value.notes


def test_another_architecture_is_refused_by_name(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(IxtuneError, match="'llama' checkpoint, not InternLM-XComposer2-4KHD"):
        load_base(tmp_path / "base", quantize=False, dtype=torch.float32)


def test_a_bin_shard_with_code_is_refused_and_never_run(small: Path, tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    shutil.copytree(small, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload()}, tmp_path / "base" / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(IxtuneError):
        load_base(tmp_path / "base", quantize=False, dtype=torch.float32)
    assert not (tmp_path / "ran").exists()
