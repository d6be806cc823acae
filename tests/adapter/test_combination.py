"""Test merging several adapters into one model: by weights, or in sequence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import image_batch, section, stir
from safetensors.torch import save_file

from ixtune.adapter import attach, bundle
from ixtune.adapter.combination import Ingredient, Merged
from ixtune.adapter.weights import read_adapter
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import Checkpoint, open_checkpoint
from ixtune.errors import IxtuneError, UsageError
from ixtune.merging.merge import merge
from ixtune.model.loading import load_base

FP32_STEPS = 4 * 2.0**-23  # a handful of roundings in another order


def train(base: Path, folder: Path, kind: str, size: float) -> Path:
    """Save an adapter of this kind with non-zero updates for this base."""
    model = attach.attach(load_base(base, quantize=False, dtype=torch.float32)[0], section(kind)).eval()
    stir(model, size)
    identity = base_identity(open_checkpoint(base))
    bundle.save(model, folder, {"base": "small", "base_identity": identity, "quantize": "none", "hd_num": 9})
    return folder


def tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.read(name).double() for name in checkpoint.by_name}


def merged(adapter: Path, base: Path, out: Path) -> dict[str, torch.Tensor]:
    merge(adapter, base, out)
    return tensors_of(open_checkpoint(out))


@pytest.fixture(scope="module")
def adapters(small: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    kinds = ("rslora with everything", "dora with everything", "decoder only")
    return [train(small, folder / str(at), kind, 0.02 + 0.02 * at) for at, kind in enumerate(kinds)]


def test_a_weighted_merge_equals_the_base_plus_the_weighted_changes(
    small: Path, adapters: list[Path], tmp_path: Path
) -> None:
    weights = (0.5, 0.3, -0.25)
    base = tensors_of(open_checkpoint(small))
    alone = [merged(adapter, small, tmp_path / str(at)) for at, adapter in enumerate(adapters)]
    report = merge(adapters, small, tmp_path / "merged", weights=weights)
    found = tensors_of(open_checkpoint(tmp_path / "merged"))
    for name, tensor in base.items():
        expected = tensor + sum(w * (one[name] - tensor) for w, one in zip(weights, alone, strict=True))
        largest = max(float(one[name].abs().max()) for one in (*alone, base))
        torch.testing.assert_close(found[name], expected, rtol=0, atol=FP32_STEPS * largest, msg=name)
    assert report.arithmetic.startswith("W +0.5 (W1 - W) +0.3 (W2 - W) -0.25 (W3 - W)")
    assert [one["weight"] for one in report.adapters] == list(weights)


def test_weight_zero_gives_the_base_and_weight_one_the_adapter(
    small: Path, adapters: list[Path], tmp_path: Path
) -> None:
    expected = merged(adapters[1], small, tmp_path / "alone")
    merge(adapters[:2], small, tmp_path / "merged", weights=(0.0, 1.0))
    found = tensors_of(open_checkpoint(tmp_path / "merged"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    report = merge(adapters[:1], small, tmp_path / "base again", weights=(0.0,))
    assert report.changed == 0
    assert "changes nothing" in report.warnings[0]


def test_merging_in_sequence_equals_merging_twice_bit_for_bit(
    small: Path, adapters: list[Path], tmp_path: Path
) -> None:
    merge(adapters[0], small, tmp_path / "first")
    second = train(tmp_path / "first", tmp_path / "second", "dora with everything", 0.03)
    twice = merge(second, tmp_path / "first", tmp_path / "twice")
    at_once = merge([adapters[0], second], small, tmp_path / "at once", in_turn=True)
    assert at_once.file_sha256 == twice.file_sha256
    assert at_once.merged_identity == twice.merged_identity
    assert at_once.arithmetic.startswith("W2 of W1 of W")
    assert at_once.warnings == ()


def test_merging_independently_trained_adapters_in_sequence_is_refused(
    small: Path, adapters: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(IxtuneError, match="trained on another base"):
        merge(adapters[:2], small, tmp_path / "merged", in_turn=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "but neither --weights nor --in-turn"),
        ({"weights": (1.0,)}, "2 adapters and 1 weights"),
        ({"weights": (1.0, float("nan"))}, "not a finite number"),
        ({"weights": (0.5, 0.5), "in_turn": True}, "without weights"),
        ({"in_turn": True, "onto": "nf4"}, "is not defined"),
    ],
)
def test_contradictory_options_are_refused_before_anything_is_read(
    adapters: list[Path], tmp_path: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        merge(adapters[:2], tmp_path / "absent", tmp_path / "merged", **options)  # type: ignore[arg-type]


def test_the_merged_folder_records_the_image_layout_of_training(
    small: Path, adapters: list[Path], tmp_path: Path
) -> None:
    merge(adapters[0], small, tmp_path / "merged")
    info = bundle.json.loads((tmp_path / "merged" / "ixtune.json").read_text())
    assert (info["kind"], info["hd_num"], info["onto"], len(info["adapters"])) == ("merged", 9, "bf16", 1)
    assert info["merged_identity"] == base_identity(open_checkpoint(tmp_path / "merged"))
    model = load_base(tmp_path / "merged", quantize=False, dtype=torch.float32)[0]
    assert torch.isfinite(model(**image_batch()).logits).all()


@pytest.mark.parametrize(
    ("dtype", "kept", "lost"),
    [(torch.float16, 65_504.0, 65_530.0), (torch.bfloat16, 3.38e38, 3.4e38)],
    ids=["float16", "bfloat16"],
)
def test_only_values_that_overflow_to_infinity_are_refused(
    tmp_path: Path, dtype: torch.dtype, kept: float, lost: float
) -> None:
    """Both values are finite in float32; their sum of squares overflows, so the fast check cannot accept them."""
    name = "model.layers.0.attention.wo.weight"
    (tmp_path / "base").mkdir()
    save_file({name: torch.zeros(2, 64, dtype=dtype)}, tmp_path / "base" / "model.safetensors")
    for at, value in enumerate((kept, lost)):
        folder = tmp_path / f"adapter{at}"
        folder.mkdir()
        key = f"base_model.model.{name.removesuffix('.weight')}"
        pair = {f"{key}.lora_A.weight": torch.ones(1, 64), f"{key}.lora_B.weight": torch.full((2, 1), value)}
        save_file(pair, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    view = Merged(open_checkpoint(tmp_path / "base"), [Ingredient(read_adapter(tmp_path / "adapter0"))])
    assert torch.equal(view.read(name), torch.full((2, 64), kept).to(dtype))
    with pytest.raises(IxtuneError, match="is not finite after merging"):
        merge(tmp_path / "adapter1", tmp_path / "base", tmp_path / "merged")
