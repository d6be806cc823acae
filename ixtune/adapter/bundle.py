"""Save and load an adapter folder: PEFT's two files, `ixtune.json` and a model card."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import safe_open

from ixtune.adapter import card, dora
from ixtune.adapter.folder import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, read_info
from ixtune.adapter.weights import read_adapter
from ixtune.errors import IxtuneError
from ixtune.family import member_of, require_same
from ixtune.files import atomic_folder, atomic_write_json, sha256_file
from ixtune.model.model import IXC2ForCausalLM

# the adapter's parameters in the wrapped model
_IN_THE_FILE = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector|modules_to_save)\.default\.")


def save(model: PeftModel, folder: Path, info: dict[str, Any]) -> None:
    """Write an adapter folder atomically.

    Args:
        model: the wrapped model.
        folder: must not exist.
        info: recipe, base and data identities, versions; the weights' hash is added.
    """
    with atomic_folder(folder) as partial:
        model.save_pretrained(str(partial))
        config = json.loads((partial / CONFIG_FILE).read_text(encoding="utf-8"))
        # the name from the recipe: PEFT writes a path on this machine
        atomic_write_json(partial / CONFIG_FILE, {**config, "base_model_name_or_path": info["base"]})
        (partial / card.FILE).write_text(card.of_adapter(info), encoding="utf-8")
        atomic_write_json(partial / RECORD_FILE, {**info, "adapter_sha256": sha256_file(partial / WEIGHTS_FILE)})


def load(model: IXC2ForCausalLM, folder: Path, base_identity: str, force: bool = False) -> PeftModel:
    """Attach a saved adapter to a loaded base, in evaluation mode.

    Raises:
        IxtuneError: a key is unused, missing or misshapen, the base is another model, or not the one it was trained on
            (unless `force`).
    """
    info = read_info(folder)
    read_adapter(folder)  # complete, unaltered, finite and of a supported kind; PEFT does not check this
    hint = f"use the base it names ({info.get('base')})"
    trained_on = info.get("base_identity")
    if trained_on is not None:
        require_same(member_of(info), model.config.member, "the adapter", str(folder), hint)
    if trained_on != base_identity and not force:
        raise IxtuneError(
            f"the adapter was trained on another base: {str(trained_on)[:16]}…, this one is {base_identity[:16]}…",
            where=str(folder),
            hint=f"{hint}, or continue with --force",
        )
    try:
        with warnings.catch_warnings():
            # PEFT only warns about missing keys; the exact comparison below reports them by name.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except KeyError as error:  # PEFT looks for every tensor of a module that is saved whole
        raise IxtuneError(
            f"the adapter lacks {error.args[0]}",
            where=str(folder / WEIGHTS_FILE),
            hint="copy the adapter again, or train it again with this version",
        ) from error
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise IxtuneError(
            f"the adapter does not fit the base: {str(error).splitlines()[0]}",
            where=str(folder),
            hint="use the base it was trained on, or copy the adapter again",
            notes=[line.strip() for line in str(error).splitlines()[1:9]],  # torch names each tensor and both shapes
        ) from error
    _check_keys(wrapped, folder)
    dora.install(wrapped)
    wrapped.eval()
    return wrapped


def _check_keys(wrapped: PeftModel, folder: Path) -> None:
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        stored = set(file.keys())
    wanted = {_stored_name(name) for name, _ in wrapped.named_parameters() if _IN_THE_FILE.search(name)}
    notes = [f"not used by the model: {name}" for name in sorted(stored - wanted)]
    notes += [f"missing in the adapter: {name}" for name in sorted(wanted - stored)]
    if notes:
        raise IxtuneError(
            f"the adapter and the model differ in {len(notes)} tensors",
            where=str(folder / WEIGHTS_FILE),
            hint="copy the adapter again, or train it again with this version",
            notes=notes[:8],
        )


def _stored_name(name: str) -> str:
    """Return the name under which PEFT saves a parameter of the wrapped model."""
    name = name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    return name.replace(".default.", ".").replace(".modules_to_save.", ".")
