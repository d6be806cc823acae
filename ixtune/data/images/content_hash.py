"""Compute the content key of an image: a hash of its file's bytes."""

from __future__ import annotations

from pathlib import Path

import xxhash

_BLOCK_BYTES = 1 << 20


def hash_of_bytes(content: bytes) -> str:
    """Return the XXH3 of 128 bits as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(content)


def hash_of_file(path: Path) -> str:
    """Return the content key of a file, read block by block.

    Raises:
        OSError: The file cannot be read.
    """
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
