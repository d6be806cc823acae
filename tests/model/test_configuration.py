"""Test the unchanged released config.json on current transformers (TRAPS.md 20), and the sizes of the 7B."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from small_base import RELEASED_CONFIG
from transformers import AutoConfig, AutoModelForCausalLM

from ixtune.checkpoint.name_mapping import to_original_name
from ixtune.model.configuration import IXC2Config
from ixtune.model.loading import expected_shapes
from ixtune.model.model import IXC2ForCausalLM


def test_released_config_loads_through_auto_config_without_remote_code(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED_CONFIG), encoding="utf-8")
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is IXC2Config
    assert config.rope_parameters == {"rope_theta": 1000000, "rope_type": "default"}
    assert config.use_cache is True
    assert config._attn_implementation is None
    assert (config.plora_of("wqkv"), config.plora_of("w2")) == ((8, 2.0), (256, 1.0))
    assert config.vision_config.num_hidden_layers == 24


def test_the_7b_on_the_meta_device_has_exactly_the_released_tensors(golden: Path) -> None:
    released = json.loads((golden / "full_7b_tensor_index.json").read_text(encoding="utf-8"))
    config = IXC2Config.from_dict(RELEASED_CONFIG)
    assert expected_shapes(config) == {name: tuple(shape) for name, shape in released.items()}
    assert len(released) == 942


def test_the_7b_has_the_released_parameter_counts() -> None:
    with torch.device("meta"):
        model = IXC2ForCausalLM(IXC2Config.from_dict(RELEASED_CONFIG))
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        original = to_original_name(name)
        part = "plora" if "Plora_" in original else original.split(".")[0]
        part = "embeddings" if "tok_embeddings" in original else part
        counts[part] = counts.get(part, 0) + parameter.numel()
    assert counts == {
        "embeddings": 379_060_224,
        "output": 379_060_224,
        "model": 6_979_588_096,
        "plora": 522_715_136,
        "vit": 303_505_408,
        "vision_proj": 33_562_624,
        "plora_glb_GN": 4096,
        "plora_sub_GN": 4096,
    }
    assert not list(model.buffers()), "a buffer could be lost by loading through the meta device"


def test_auto_model_builds_our_class_from_the_released_config(small: Path) -> None:
    assert type(AutoModelForCausalLM.from_pretrained(small)) is IXC2ForCausalLM
