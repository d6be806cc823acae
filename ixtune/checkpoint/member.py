"""Detect the model of a base from the shapes of its tensors; safetensors headers need no torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ixtune.errors import IxtuneError, UsageError
from ixtune.family import FOUR_KHD, MEMBERS, Member, member_named, member_of_crop, member_of_hub_id

CONFIG_FILE = "config.json"
_VIT = "vit.vision_tower.vision_model.embeddings."
_POSITIONS, _PATCHES = f"{_VIT}position_embedding.weight", f"{_VIT}patch_embedding.weight"
_WQKV, _WO = (f"model.layers.0.attention.{name}.Plora_A.weight" for name in ("wqkv", "wo"))
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_HEADER_LIMIT_BYTES = 100_000_000
Shape = tuple[int, ...]


def completed(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a config.json with the size of a crop and the PLoRA ranks that the original keeps in code.

    Both come from the shapes of the folder's tensors. Nothing is added if these cannot be read: the code that needs
    them reports the error.

    Raises:
        IxtuneError: config.json contradicts the tensors, they contradict each other, or fit no member.
    """
    shapes = _shapes(folder)
    side = _side(shapes)
    if side is None:
        return dict(config)
    found = f"{_POSITIONS} {list(shapes[_POSITIONS])} means crops of {side} pixels"
    member = member_of_crop(side)
    if member is None:
        known = ", ".join(f"{one.title} {one.crop}" for one in MEMBERS.values())
        raise IxtuneError(f"{found}, which no known model has", where=str(folder), hint=f"use a base of {known}")
    vision = dict(config.get("vision_config") or {})
    if (said := vision.get("image_size", side)) != side:
        raise IxtuneError(
            f"config.json says image_size {said}, but {found}: {member.title}",
            where=str(folder / CONFIG_FILE),
            hint="correct vision_config.image_size, or copy config.json again from the source of the weights",
        )
    ranks = (shapes[_WQKV][0], shapes[_WO][0]) if _WQKV in shapes and _WO in shapes else member.plora_ranks
    other = next((one for one in MEMBERS.values() if one.plora_ranks == ranks != member.plora_ranks), None)
    if other is not None and not config.get("plora"):
        raise IxtuneError(
            f"{found} ({member.title}), but the PLoRA ranks {ranks[0]} and {ranks[1]} are those of {other.title}",
            where=str(folder),
            hint="copy the whole checkpoint again: its tensors come from two models",
        )
    plora = config.get("plora") or member.plora(ranks)
    return {**config, "vision_config": {**vision, "image_size": side}, "plora": plora}


def member_in(folder: Path) -> Member | None:
    """Return the member that a folder holds, by its tensors or else its config.json; None where it has neither.

    Raises:
        IxtuneError: As in `completed`.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_bytes()) if path.is_file() else {}
        side = completed(config, folder).get("vision_config", {}).get("image_size")
    except (ValueError, TypeError, AttributeError):
        return None  # the code that needs the file reports it
    if side is None:
        return FOUR_KHD if config else None
    return member_of_crop(side)


def member_for(base: str, folder: Path, model: str | None = None, rule: str | None = None) -> Member:
    """Return the member of the family to prepare data for.

    Args:
        base: Name of the base.
        folder: Where it is; for a hub id it may contain the tokenizer only.
        model: Name of the member given by the user; None for that of the base.
        rule: The layout rule; None for that of the official fine-tuning.

    Raises:
        UsageError: There is no such member or rule, or the base is another member.
        IxtuneError: As in `completed`.
    """
    by_name = None if Path(base).exists() else member_of_hub_id(base)
    found = by_name or member_in(folder)
    chosen = (found or FOUR_KHD).with_rule(rule) if model is None else member_named(model, rule)
    if found is not None and found.name != chosen.name:
        raise UsageError(
            f"the base is {found.title}, not {chosen.title}",
            where="--model",
            hint=f"remove --model, or pass another --base, such as {chosen.hub_id}",
        )
    return chosen


def _side(shapes: Mapping[str, Shape]) -> int | None:
    """Return the side of a crop in pixels; None if the position embeddings are missing or do not form a square."""
    if _POSITIONS not in shapes or _PATCHES not in shapes:
        return None
    positions = shapes[_POSITIONS][0] - 1  # without the class token
    patches = math.isqrt(max(positions, 0))
    return patches * shapes[_PATCHES][-1] if patches and patches**2 == positions else None


def _shapes(folder: Path) -> dict[str, Shape]:
    """Return the shapes of the tensors in which the models differ, as far as they can be read."""
    wanted = (_POSITIONS, _PATCHES, _WQKV, _WO)
    for single in _WEIGHTS:
        index = folder / f"{single}.index.json"
        try:
            if (folder / single).is_file():
                shards = [single]
            elif index.is_file():
                places = json.loads(index.read_bytes())["weight_map"]
                shards = sorted({Path(places[name]).name for name in wanted if name in places})
            else:
                continue
            shapes = {name: shape for shard in shards for name, shape in _headers(folder / shard).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, IxtuneError):
            return {}
        return {name: shapes[name] for name in wanted if name in shapes}
    return {}


def _headers(path: Path) -> dict[str, Shape]:
    if path.suffix == ".bin":
        from ixtune.checkpoint.torch_file import read_torch_index

        return {info.name: tuple(info.shape) for info in read_torch_index(path)}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _HEADER_LIMIT_BYTES:
            return {}
        header = json.loads(file.read(length))
    return {name: tuple(one["shape"]) for name, one in header.items() if name != "__metadata__"}
