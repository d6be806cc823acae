"""Write a small base as the original is on the hub: with a tokenizer, a license, and code that must never run."""

from __future__ import annotations

from pathlib import Path

from small_base import write_small_base

from ixtune.base import shipped

CODE = {
    "configuration_internlm_xcomposer2.py": "",
    "modeling_internlm_xcomposer2.py": "from .build_mlp import tower\nfrom .ixc_utils import HD_transform\n",
    "build_mlp.py": "from . import ixc_utils\n",
    "ixc_utils.py": "def HD_transform(image, hd_num=16):\n    return image\n",
}


def write_original_base(folder: Path) -> Path:
    write_small_base(folder)
    (folder / "tokenizer.model").write_bytes((shipped("nano") / "tokenizer.model").read_bytes())
    (folder / "LICENSE").write_text("the terms of the small base")
    for name, text in CODE.items():
        (folder / name).write_text(text + "raise SystemExit('this must never run')\n")
    return folder
