"""Write a small random checkpoint in the original format, and provide the released config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ixtune.checkpoint.name_mapping import to_original_name
from ixtune.model.configuration import IXC2Config
from ixtune.model.decoder import Rotary
from ixtune.model.model import IXC2ForCausalLM

# The released file, value by value (MODEL.md 1.2).
RELEASED_CONFIG: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "flash_attention_2",
    "auto_map": {
        "AutoConfig": "configuration_internlm_xcomposer2.InternLMXcomposer2Config",
        "AutoModel": "modeling_internlm_xcomposer2.InternLMXComposer2ForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm_xcomposer2.InternLMXComposer2ForCausalLM",
    },
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_length": 16384,
    "max_position_embeddings": 32768,
    "model_type": "internlmxcomposer2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": False,
    "vocab_size": 92544,
}

SMALL = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "torch_dtype": "float32",
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 32,
    },
    "plora": {"wqkv": {"rank": 4, "alpha": 8}, "others": {"rank": 8, "alpha": 8}},
}


def small_model(seed: int = 0) -> IXC2ForCausalLM:
    """Return a model with random weights, also in PLoRA's B, so that nothing is zero by accident."""
    torch.manual_seed(seed)
    settings = {k: v for k, v in {**RELEASED_CONFIG, **SMALL}.items() if k not in ("architectures", "auto_map")}
    model = IXC2ForCausalLM(IXC2Config.from_dict(settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def stretched(model: IXC2ForCausalLM, above: int) -> IXC2ForCausalLM:
    """Give a model dynamic rotary scaling of sequences longer than `above` tokens."""
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 100.0}
    model.config.max_position_embeddings = above
    model.model.rotary = Rotary(model.config)
    return model


def write_small_base(folder: Path) -> Path:
    """Write a folder in the original format: released config keys, original names, one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {to_original_name(name): tensor.clone() for name, tensor in small_model().state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**RELEASED_CONFIG, **SMALL}), encoding="utf-8")
    return folder
