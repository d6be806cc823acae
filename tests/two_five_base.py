"""Write a small random InternLM-XComposer-2.5 in the original format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from original_base import CODE
from safetensors.torch import save_file
from small_base import RELEASED_CONFIG, SMALL

from ixtune.base import shipped
from ixtune.checkpoint.name_mapping import to_original_name
from ixtune.model.configuration import IXC2Config
from ixtune.model.model import IXC2ForCausalLM


def write_two_five_base(folder: Path) -> Path:
    """Write a base whose crop size and PLoRA ranks are found only in the weights; return its folder."""
    folder.mkdir()
    settings = {**RELEASED_CONFIG, **SMALL, "vocab_size": 360}
    del settings["plora"]
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    plora = {"wqkv": {"rank": 8, "alpha": 8}, "others": {"rank": 8, "alpha": 8}}
    vision = {**SMALL["vision_config"], "image_size": 560}
    torch.manual_seed(0)
    model = IXC2ForCausalLM(IXC2Config.from_dict({**settings, "plora": plora, "vision_config": vision}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    state = {to_original_name(name): tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    shutil.copyfile(shipped("nano") / "tokenizer.model", folder / "tokenizer.model")
    for name, text in {**CODE, "ixc_utils.py": "def Image_transform(image, hd_num=24):\n    return image\n"}.items():
        (folder / name).write_text(text + "raise SystemExit('this must never run')\n")
    return folder
