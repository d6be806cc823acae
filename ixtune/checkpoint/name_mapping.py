"""Map original tensor names to module names and back. Only the original form is read and written.

| in the checkpoint                              | in the module tree               |
| `X.Plora_A.weight`, `X.Plora_B.weight`         | `X_plora.A.weight`, `X_plora.B.weight` |
| `plora_glb_GN`, `plora_sub_GN`                 | `separators.glb`, `separators.sub` |
| `vit.vision_tower.vision_model.`               | `vit.`                           |
"""

from __future__ import annotations

import re

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

_VIT = "vit.vision_tower.vision_model."
_SEPARATORS = {"plora_glb_GN": "separators.glb", "plora_sub_GN": "separators.sub"}
_PLORA = re.compile(r"\.(wqkv|wo|w1|w2|w3)\.Plora_([AB])\.")
_SIBLING = re.compile(r"\.(wqkv|wo|w1|w2|w3)_plora\.([AB])\.")


def to_module_name(original: str) -> str:
    """Return the module name of a checkpoint tensor."""
    if original.startswith(_VIT):
        return "vit." + original.removeprefix(_VIT)
    return _SEPARATORS.get(original, _PLORA.sub(r".\1_plora.\2.", original))


def to_original_name(module_name: str) -> str:
    """Return the checkpoint name of a tensor of the module tree."""
    if module_name.startswith("vit."):
        return _VIT + module_name.removeprefix("vit.")
    reverse = {ours: theirs for theirs, ours in _SEPARATORS.items()}
    return reverse.get(module_name, _SIBLING.sub(r".\1.Plora_\2.", module_name))


register_checkpoint_conversion_mapping(
    "IXC2ForCausalLM",
    [
        WeightRenaming(r"(wqkv|wo|w1|w2|w3)\.Plora_A", r"\1_plora.A"),
        WeightRenaming(r"(wqkv|wo|w1|w2|w3)\.Plora_B", r"\1_plora.B"),
        WeightRenaming(r"^plora_glb_GN", r"separators.glb"),
        WeightRenaming(r"^plora_sub_GN", r"separators.sub"),
        WeightRenaming(r"^vit\.vision_tower\.vision_model\.", r"vit."),
    ],
    overwrite=True,
)
