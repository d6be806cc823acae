"""Start a new adapter from the weights of an older one on the same base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ixtune import base as bases
from ixtune.adapter import attach
from ixtune.adapter.folder import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, find_adapter
from ixtune.adapter.weights import ORIGINAL_NAMES, AdapterWeights, LowRank, read_adapter
from ixtune.errors import IxtuneError, UsageError
from ixtune.files import sha256_file

_KEY = "adapter.start_from"
_WRAPPER = "base_model.model."


def open_start(name: str, base_identity: str) -> AdapterWeights:
    """Open the adapter to start from.

    Args:
        name: A run folder, an adapter folder, or a hub id.
        base_identity: Of the base that the new adapter is trained on.

    Raises:
        IxtuneError: There is no adapter of that name, it is damaged, or it belongs to another base.
    """
    if Path(name).expanduser().exists():
        folder = Path(name).expanduser()
    elif bases.is_hub_id(name):
        files = [CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE]
        folder = bases.hub_snapshot(name, files, lambda found: [one for one in files if not (found / one).is_file()])
    else:
        raise UsageError(
            "there is no such adapter", where=f"{_KEY}: {name}", hint="pass a run folder, an adapter folder or a hub id"
        )
    start = read_adapter(find_adapter(folder))
    trained_on = start.record.get("base_identity")
    if trained_on not in (None, base_identity):
        raise IxtuneError(
            f"the adapter to start from was trained on another base: {str(trained_on)[:12]}, "
            f"this one is {base_identity[:12]}",
            where=f"{_KEY}: {name}",
            hint=f"set base to the one it names ({start.record.get('base')})",
        )
    return start


def ancestors(start: AdapterWeights, name: str) -> list[dict[str, Any]]:
    """Return the adapters that an adapter descends from by this start, oldest first, for its `ixtune.json`."""
    record = start.record
    own = {
        "adapter": name,
        "adapter_sha256": sha256_file(start.folder / WEIGHTS_FILE),
        "base_identity": record.get("base_identity"),
        "steps": record.get("steps"),
        "data": record.get("data"),
    }
    return [*record.get("ancestors", []), own]


def load_start(model: PeftModel, start: AdapterWeights) -> list[str]:
    """Copy the weights of an older adapter into a new one, where names and shapes match.

    A pair of a lower rank fills the first rows of A and columns of B of a higher one, and B is scaled from the old
    alpha and rank to the new ones, so that the update is the same. A pair of a higher rank is left out. A projector
    that was trained through LoRA and is now trained in full gets the sum.

    Args:
        model: The base with the new adapter, before its first step.
        start: The older adapter.

    Returns:
        Lines that name the weights copied, those that start new and why, and those left out of the older adapter.

    Raises:
        UsageError: No weight of the older adapter fits.
    """
    taken: dict[str, int] = {}
    new: dict[str, int] = {}
    used: set[str] = set()
    with torch.no_grad():
        for name, part, reason in (*_pairs(model, start), *_whole(model, start)):
            counts, what = (new, f"{part} ({reason})") if reason else (taken, part)
            counts[what] = counts.get(what, 0) + 1
            used |= set() if reason else {name}
    left: dict[str, int] = {}
    for name in (*start.low_rank, *start.whole):
        if name not in used:
            part = _part(name, "LoRA " if name in start.low_rank else "")
            left[part] = left.get(part, 0) + 1
    if not taken:
        raise UsageError(
            "none of the weights of the adapter to start from fits this one",
            where=f"{_KEY}: {start.folder}",
            hint="train the same targets, layers and projector, with at least the same rank",
            notes=[f"starts new: {what}" for what in new],
        )
    lines = [f"start    from {start.folder}: {_listed(taken)}"]
    lines += [f"         starts new: {_listed(new)}"] if new else []
    lines += [f"         left out of {start.folder}: {_listed(left)}"] if left else []
    return lines


def _pairs(model: PeftModel, start: AdapterWeights) -> Iterator[tuple[str, str, str]]:
    """Fill every LoRA pair that can be filled; yield (original name, part, reason why not)."""
    for module, layer in attach.lora_layers(model):
        name = f"{module.removeprefix(_WRAPPER)}.weight"
        yield name, _part(name, "LoRA "), _fill(layer, start, name)


def _fill(layer: Any, start: AdapterWeights, name: str) -> str:
    """Fill one pair from the older adapter; return why not, or nothing."""
    adapter = attach.ADAPTER
    pair, is_dora = start.low_rank.get(name), bool(layer.lora_variant.get(adapter))
    if pair is None:
        return "not in the older adapter"
    if is_dora != (name in start.magnitudes):
        return "DoRA in only one of the two"
    a_RI, b_OR = (start.file.read(key).float() for key in (pair.a, pair.b))
    rank = a_RI.shape[0]
    if rank > layer.r[adapter]:
        return f"rank {rank} there, {layer.r[adapter]} here"
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    a[:rank] = a_RI
    b.zero_()
    b[:, :rank] = b_OR * (pair.scale / layer.scaling[adapter])
    if is_dora:
        layer.lora_magnitude_vector[adapter].weight.copy_(start.file.read(start.magnitudes[name]).float())
    return ""


def _whole(model: PeftModel, start: AdapterWeights) -> Iterator[tuple[str, str, str]]:
    """Fill the modules that are trained in full; yield (original name, part, reason why not)."""
    for tensor, parameter in attach.trainable(model):
        if ".modules_to_save." not in tensor:
            continue
        name = tensor.removeprefix(_WRAPPER).replace(f".modules_to_save.{attach.ADAPTER}", "")
        name = ORIGINAL_NAMES.get(name, name)
        pair: LowRank | None = start.low_rank.get(name)
        if key := start.whole.get(name):
            parameter.copy_(start.file.read(key).float())
            yield name, _part(name), ""
        elif pair is not None and name not in start.magnitudes:
            a_RI, b_OR = (start.file.read(one).float() for one in (pair.a, pair.b))
            parameter.add_((b_OR @ a_RI).to(parameter.device), alpha=pair.scale)
            yield name, _part(name), ""
        elif not name.endswith(".bias"):  # LoRA does not change them
            yield name, _part(name), "not in the older adapter"


def _part(name: str, prefix: str = "") -> str:
    """Return the part that a tensor belongs to: a decoder linear, the projector or the separators."""
    if name.startswith(attach.PROJECTOR):
        return "projector"
    return "separators" if name in ORIGINAL_NAMES.values() else prefix + name.split(".")[-2]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{part} x{count}" for part, count in counts.items())
