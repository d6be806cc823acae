"""Test that the model of a base is detected from its tensors, and that a contradicting config.json is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_base import RELEASED_CONFIG
from two_five import ROOT

from ixtune.base import NANO, shipped
from ixtune.checkpoint.member import completed, member_for, member_in
from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.tensor_shapes import tensor_shapes
from ixtune.checkpoint.verify import form_of, read_config_json
from ixtune.errors import IxtuneError, UsageError
from ixtune.family import FOUR_KHD, MEMBERS, TWO_FIVE
from ixtune.model.configuration import IXC2Config
from ixtune.model.loading import expected_shapes
from ixtune.model.model import IXC2ForCausalLM

VIT = "vit.vision_tower.vision_model.embeddings."


def base(folder: Path, positions: int = 1601, wqkv: int = 256, others: int = 256, form: str = "safetensors") -> Path:
    """Write a folder with the tensors that identify the model, each one number wide."""
    tensors = {
        f"{VIT}position_embedding.weight": torch.zeros(positions, 1),
        f"{VIT}patch_embedding.weight": torch.zeros(1, 3, 14, 14),
        "model.layers.0.attention.wqkv.Plora_A.weight": torch.zeros(wqkv, 1),
        "model.layers.0.attention.wo.Plora_A.weight": torch.zeros(others, 1),
    }
    folder.mkdir(exist_ok=True)
    if form == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(RELEASED_CONFIG), encoding="utf-8")
    return folder


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
def test_a_base_is_identified_by_its_tensors_not_its_config(tmp_path: Path, member, form: str):
    folder = base(tmp_path / "any", 1 + (member.crop // 14) ** 2, *member.plora_ranks, form=form)
    assert member_in(folder) == member
    sizes = Sizes.from_config_json(read_config_json(folder))
    assert sizes == Sizes.released(member)
    assert form_of(sizes).startswith("the released 7B")
    config = IXC2Config.from_pretrained(folder, name_or_path=str(folder))
    assert (config.sizes, config.member) == (sizes, member)
    assert config.plora == member.plora()


def test_the_fixture_is_identified_and_its_plora_ranks_are_read():
    config = completed(json.loads((ROOT / "config.json").read_text()), ROOT)
    assert config["vision_config"] == {"image_size": 560}
    rank = config["plora"]["wqkv"]["rank"]
    assert config["plora"] == {name: {"rank": rank, "alpha": rank} for name in ("wqkv", "others")}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({}, {"vision_config": {"image_size": 336}}, r"image_size 336, but .*\[1601, 1\] means crops of 560"),
        ({"wqkv": 8}, {}, "crops of 560 pixels .*2.5.*PLoRA ranks 8 and 256 are those of InternLM-XComposer2-4KHD"),
        ({"positions": 50}, {}, "crops of 98 pixels, which no known model has"),
    ],
)
def test_a_contradiction_is_an_error_that_names_both_sides(tmp_path: Path, tensors: Any, config: Any, message: str):
    folder = base(tmp_path / "base", **tensors)
    with pytest.raises(IxtuneError, match=message):
        completed({**RELEASED_CONFIG, **config}, folder)


def test_data_are_prepared_for_the_model_of_the_base(tmp_path: Path):
    assert member_for(NANO, shipped(NANO)) == FOUR_KHD
    assert member_for(TWO_FIVE.hub_id, tmp_path) == TWO_FIVE
    assert member_for("me/mine", tmp_path, "2.5", "inference") == TWO_FIVE.at_inference
    folder = base(tmp_path / "ixc2-4khd")
    assert member_for(str(folder), folder) == TWO_FIVE
    with pytest.raises(UsageError, match=r"the base is InternLM-XComposer-2.5, not InternLM-XComposer2-4KHD"):
        member_for(str(folder), folder, "4khd")
    with pytest.raises(UsageError, match="no layout rule 'inference'"):
        member_for(NANO, shipped(NANO), rule="inference")
    with pytest.raises(UsageError, match="no model '3'"):
        member_for("me/mine", tmp_path, "3")


def test_the_shapes_of_2_5_are_correct_on_the_meta_device():
    config = IXC2Config(vision_config={"image_size": TWO_FIVE.crop})
    assert config.sizes == Sizes.released(TWO_FIVE)
    shapes = expected_shapes(config)
    assert shapes == tensor_shapes(config.sizes)
    assert len(shapes) == 942
    assert shapes[f"{VIT}position_embedding.weight"] == (1601, 1024)
    assert shapes["model.layers.0.attention.wqkv.Plora_A.weight"] == (256, 4096)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in IXC2ForCausalLM(config).parameters())
    # 4KHD's, wqkv's PLoRA at rank 256 in place of 8, and 1,024 positions more in the tower
    more = 32 * (256 - 8) * (4096 + 6144) + 1024 * 1024
    assert count == 8_597_499_904 + more == sum(config.sizes.parameters().values())


@pytest.mark.parametrize(
    ("given", "kind", "factor"), [(None, "default", 1.0), ({"type": "dynamic", "factor": 2.0}, "dynamic", 2.0)]
)
def test_the_rope_scaling_of_the_checkpoint_is_respected(given: Any, kind: str, factor: float):
    small = {"num_hidden_layers": 1, "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8}
    with torch.device("meta"):
        config = IXC2Config.from_dict({**RELEASED_CONFIG, **small, "rope_scaling": given})
        rotary = IXC2ForCausalLM(config).model.rotary
    assert (rotary.kind, rotary.factor, rotary.theta) == (kind, factor, 1_000_000.0)
