"""Write a checkpoint with the 942 names and shapes of the released 7B as sparse files, with real headers.

A hole in a file reads as zeros. What is shown with it is honest for names, shapes, sizes and offsets, not for values.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from small_base import RELEASED_CONFIG

from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.tensor_shapes import tensor_shapes

FIRST_SHARD_TENSORS = 471
NBYTES = 17_194_999_808  # MODEL.md 1.1


def write_full_size_base(folder: Path) -> Path:
    """Write two sparse safetensors files of 17.2 GB in total, an index, and the released config.json."""
    folder.mkdir(parents=True)
    shapes = list(tensor_shapes(Sizes()).items())
    halves = (shapes[:FIRST_SHARD_TENSORS], shapes[FIRST_SHARD_TENSORS:])
    weight_map = {}
    for k, half in enumerate(halves, start=1):
        shard = f"model-0000{k}-of-00002.safetensors"
        write_sparse(folder / shard, dict(half))
        weight_map |= {name: shard for name, _ in half}
    index = {"metadata": {"total_size": NBYTES}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(RELEASED_CONFIG))
    (folder / "tokenizer.model").write_bytes(b"not the released pieces")
    return folder


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a sparse safetensors file of bf16 zeros."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        nbytes = 2
        for size in shape:
            nbytes *= size
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    raw = json.dumps(header).encode()
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + position)
