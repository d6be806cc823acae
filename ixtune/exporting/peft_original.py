"""Write an adapter as peft 0.10 loads it onto the original remote-code model.

Its tensors are already named as that model names its modules. What has to change is the configuration: peft 0.10
refuses any key it does not know, and looks ranks and alphas up by other rules than later versions. Here every
module is listed by its full name, with its own rank and alpha where they differ, which both readings agree on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ixtune.adapter.folder import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from ixtune.adapter.weights import AdapterWeights
from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_json

# every field of LoraConfig and its parents in peft 0.10.0
KNOWN_KEYS = frozenset(
    "peft_type auto_mapping base_model_name_or_path revision task_type inference_mode r target_modules lora_alpha "
    "lora_dropout fan_in_fan_out bias use_rslora modules_to_save init_lora_weights layers_to_transform layers_pattern "
    "rank_pattern alpha_pattern megatron_config megatron_core loftq_config use_dora layer_replication".split()
)
_SEPARATORS = ("plora_glb_GN", "plora_sub_GN")
_PROJECTOR = "vision_proj"


def write(adapter: AdapterWeights, folder: Path, base_name: str) -> None:
    """Write the adapter's two files and its record into an existing folder.

    Args:
        adapter: Adapter to write.
        folder: Folder to write to.
        base_name: Value of `base_model_name_or_path`.

    Raises:
        IxtuneError: The adapter holds something peft 0.10 cannot load on the original model.
    """
    refuse_what_peft_cannot_load(adapter)
    shutil.copyfile(adapter.folder / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    atomic_write_json(folder / CONFIG_FILE, _config(adapter, base_name))
    if adapter.record:
        atomic_write_json(folder / RECORD_FILE, dict(adapter.record))


def refuse_what_peft_cannot_load(adapter: AdapterWeights) -> None:
    """Refuse trained separators, and an adapter without LoRA.

    Raises:
        IxtuneError: It is one of these.
    """
    if trained := [name for name in _SEPARATORS if name in adapter.whole]:
        raise IxtuneError(
            f"the adapter holds trained separators ({', '.join(trained)}), bare parameters in the original model, "
            "which peft does not load",
            where=str(adapter.folder),
            hint="use --profile original or transformers, which merge them",
        )
    if not adapter.low_rank:
        raise IxtuneError(
            "the adapter has no LoRA, and peft 0.10 loads no adapter without a LoRA layer",
            where=str(adapter.folder),
            hint="use --profile original or transformers, which merge the projector",
        )


def _config(adapter: AdapterWeights, base_name: str) -> dict[str, Any]:
    given = json.loads((adapter.folder / CONFIG_FILE).read_bytes())
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, pair in adapter.low_rank.items():
        module = name.removesuffix(".weight")
        rank = adapter.file.by_name[pair.a].shape[0]
        alpha = pair.scale * (rank**0.5 if given.get("use_rslora") else rank)
        if rank != given.get("r"):
            ranks[module] = rank
        if abs(alpha - given.get("lora_alpha")) > 1e-6 * abs(alpha):
            alphas[module] = int(alpha) if float(alpha).is_integer() else alpha
    return {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": given["r"],
        "lora_alpha": given["lora_alpha"],
        "lora_dropout": given.get("lora_dropout", 0.0),
        "target_modules": [name.removesuffix(".weight") for name in adapter.low_rank],
        "fan_in_fan_out": False,
        "bias": "none",
        "use_rslora": bool(given.get("use_rslora")),
        "use_dora": bool(given.get("use_dora")),
        "modules_to_save": [_PROJECTOR] if any(name.startswith(f"{_PROJECTOR}.") for name in adapter.whole) else None,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
