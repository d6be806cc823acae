"""Compute the identity of a base: one hash that does not depend on how the checkpoint is stored."""

from __future__ import annotations

import hashlib
import json

from ixtune.checkpoint.shards import Checkpoint

_EDGE_BYTES = 64 << 10


def base_identity(checkpoint: Checkpoint) -> str:
    """Return the identity of a checkpoint in hexadecimal (DESIGN decision 10).

    SHA-256 over one JSON line per tensor, sorted by name: name, shape, dtype, and the SHA-256 of the first 64
    KiB of its row-major bytes followed by the last 64 KiB (overlapping where the tensor is smaller). It is
    the same for `.bin`, safetensors and any sharding, and reads at most 128 KiB per tensor: it distinguishes
    bases; it does not prove that a download is undamaged.

    Raises:
        IxtuneError: A shard cannot be read.
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint.by_name):
        info = checkpoint.by_name[name]
        edges = hashlib.sha256(checkpoint.read_bytes(name, 0, _EDGE_BYTES))
        edges.update(checkpoint.read_bytes(name, max(0, info.nbytes - _EDGE_BYTES), info.nbytes))
        dtype = str(info.dtype).removeprefix("torch.")
        line = json.dumps([name, list(info.shape), dtype, edges.hexdigest()], separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
