"""Write a 16-bit checkpoint with its decoder linears in NF4, shard by shard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from ixtune.checkpoint.shards import Checkpoint
from ixtune.checkpoint.sizes import DECODER_LINEARS, Sizes, nf4_bytes
from ixtune.checkpoint.tensor_shapes import linear_name, tensor_shapes
from ixtune.files import atomic_write_json
from ixtune.model import stored_nf4

SHARD_BYTES = 1 << 30  # in memory at a time; more than any tensor of the 7B
INDEX_FILE = "model.safetensors.index.json"


def write(source: Checkpoint, sizes: Sizes, folder: Path, advance: Callable[[int], None]) -> int:
    """Write the weights into an existing folder.

    Args:
        source: The merged model in the dtype of training.
        sizes: Sizes of the network.
        folder: Folder to write to.
        advance: Callback with the bytes read.

    Returns:
        Bytes of all tensors written.
    """
    in_4_bits = set(stored_nf4.linears(sizes))
    plan = _plan(source, in_4_bits)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for k, names in enumerate(plan, start=1):
        shard = "model.safetensors" if len(plan) == 1 else f"model-{k:05d}-of-{len(plan):05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            weight = source.read(name)
            tensors |= stored_nf4.packed(name, weight) if name in in_4_bits else {name: weight}
            advance(source.by_name[name].nbytes)
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(plan) > 1:
        atomic_write_json(folder / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    return total_bytes


def add_to_config(path: Path, sizes: Sizes, compute_dtype: torch.dtype) -> None:
    """Record in config.json which modules are in 4 bits."""
    config = json.loads(path.read_bytes())
    config["quantization_config"] = stored_nf4.quantization_config(linears_in_16_bits(sizes), compute_dtype)
    atomic_write_json(path, config)


def linears_in_16_bits(sizes: Sizes) -> list[str]:
    """Return the module paths of the linears that are not quantized: PLoRA, vision tower, projector, head."""
    plora = [
        f"{linear_name(layer, linear)}_plora.{side}"
        for layer in range(sizes.layers)
        for linear in DECODER_LINEARS
        for side in "AB"
    ]
    vit = "vit.vision_tower.vision_model."
    tower = [
        f"vit.{name.removeprefix(vit).removesuffix('.weight')}"
        for name, shape in tensor_shapes(sizes).items()
        if name.startswith(vit + "encoder.") and len(shape) == 2
    ]
    return [*plora, *tower, "vision_proj.0", "vision_proj.2", "output"]


def _plan(source: Checkpoint, in_4_bits: set[str]) -> list[list[str]]:
    """Yield the tensor names of each shard, in the order of the source."""
    plan: list[list[str]] = []
    room = 0
    for info in source.tensors:
        elements = info.nbytes // info.dtype.itemsize
        nbytes = nf4_bytes(elements) if info.name in in_4_bits else info.nbytes
        if nbytes > room:
            plan.append([])
            room = SHARD_BYTES
        plan[-1].append(info.name)
        room -= nbytes
    return plan
