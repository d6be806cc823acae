"""Read and write safetensors files as raw bytes: tensor offsets, positioned reads, and a streaming writer.

The format (github.com/huggingface/safetensors, README): an unsigned 64-bit little-endian length, a JSON
header of that length giving dtype, shape and byte range of every tensor, then the ranges without gap or
overlap. Reads go to a file position and copy into a buffer. Memory maps would count as resident memory
(TRAPS.md 16c).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from ixtune import platforms
from ixtune.errors import IxtuneError

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_HEADER_LIMIT_BYTES = 100_000_000  # the limit of the official reader: a longer header means a damaged file
_LFS_POINTER = b"version https://git-lfs"
_FLUSH_BYTES = 16 << 20  # bytes between two requests to start writing, so that the disk works while we compute
_SYNC_BYTES = 1 << 30  # bytes between two waits for the disk; gigabytes of dirty pages would push out everything else
BLOCK_BYTES = 4 << 20  # block size: small compared with the imports, large compared with the cost of a read call


class Digest(Protocol):
    """Running hash with the interface of hashlib and xxhash."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Add bytes to the hash."""

    def hexdigest(self) -> str:
        """Return the hash of all bytes so far."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Metadata and file position of a tensor, without its bytes.

    `offset` is the byte position of the first element in the file; None where only loading the whole file
    gives the tensor (torch files from before the zip format). `stride` counts elements, as torch does.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    shard: str
    offset: int | None
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Number of bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def contiguous(self) -> bool:
        """Return whether the elements are stored in row-major order without gaps."""
        return self.nbytes == 0 or all(
            size == 1 or step == plain
            for size, step, plain in zip(self.shape, self.stride, row_major(self.shape), strict=True)
        )

    @property
    def span_bytes(self) -> int:
        """Number of bytes from the first element to the end of the last one in storage order."""
        if self.nbytes == 0:
            return 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.dtype.itemsize

    def row_blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        """Yield half-open row ranges that cover the tensor, each of at most `block_bytes` or one row."""
        if self.nbytes == 0:
            return
        step = max(1, block_bytes // (self.nbytes // self.rows))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of this shape, in elements."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def read_span(path: Path, offset: int, nbytes: int, into: torch.Tensor | None = None) -> torch.Tensor:
    """Return the bytes [offset, offset + nbytes) of a file as uint8 [nbytes].

    They are read into the uint8 memory `into` if that is given and long enough, else into new memory.

    Raises:
        IxtuneError: The file cannot be read or ends too early.
    """
    fits = into is not None and into.numel() >= nbytes
    buffer = into[:nbytes] if into is not None and fits else torch.empty(nbytes, dtype=torch.uint8)
    view = raw_bytes(buffer)
    done = 0
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while done < nbytes:
                got = file.readinto(view[done:])
                if not got:
                    raise IxtuneError(
                        f"the file ends at byte {offset + done}, {nbytes - done} bytes too early",
                        where=str(path),
                        hint="download or copy this file again",
                    )
                done += got
    except OSError as error:
        raise unreadable(path, error) from error
    return buffer


def read_safetensors_index(path: Path) -> list[TensorInfo]:
    """Return the tensors of a safetensors file in file order, reading only its header.

    Raises:
        IxtuneError: The file cannot be read, is truncated, names a tensor twice, or its ranges do not fit.
    """
    refuse_lfs_pointer(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _HEADER_LIMIT_BYTES + 1
            if length > min(_HEADER_LIMIT_BYTES, size - 8):
                raise _damaged(path, "the file is truncated, or not a safetensors file")
            raw = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        header = json.loads(raw, object_pairs_hook=lambda pairs: _unique(pairs, path))
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        found = [_entry(name, entry, path, 8 + length) for name, entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, "this is not a safetensors header") from error
    found.sort(key=lambda pair: (pair[0].offset or 0, pair[1]))
    position = 8 + length
    for info, end in found:
        if info.offset != position or end - position != info.nbytes:
            raise _damaged(path, f"the byte range of tensor {info.name} does not fit its shape {list(info.shape)}")
        if end > size:
            raise _damaged(path, f"the file is truncated: it ends inside tensor {info.name}")
        position = end
    if position != size:
        raise _damaged(path, f"{size - position} bytes follow the last tensor")
    return [info for info, _ in found]


def write_safetensors(
    path: Path,
    tensors: Iterable[TensorInfo],
    blocks_of: Callable[[TensorInfo], Iterable[torch.Tensor]],
    digest: Digest | None = None,
    settled: Callable[[int], None] = lambda nbytes: None,
) -> str:
    """Write a new safetensors file front to back, never holding more than one block.

    The order is kept, but wider elements come before narrower ones where dtypes are mixed: readers refuse
    tensors that are not aligned to their element size.

    Args:
        path: The file; it must not exist.
        tensors: Names, shapes and dtypes, in order.
        blocks_of: Returns a tensor's rows as consecutive blocks of its dtype; each may be overwritten by the next.
        digest: Hash to compute; SHA-256 by default.
        settled: Receives the number of bytes that are on disk and no longer in memory.

    Returns:
        Hash of the bytes written.

    Raises:
        OSError: The disk is full or refuses the write.
        ValueError: The blocks of a tensor do not add up to its size or dtype.
    """
    ordered = sorted(tensors, key=lambda info: -info.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    position = 0
    for info in ordered:
        header[info.name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, position + info.nbytes],
        }
        position += info.nbytes
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    start = struct.pack("<Q", len(raw)) + raw
    digest = digest or hashlib.sha256()
    digest.update(start)
    with open(path, "xb") as file:
        platforms.reserve(path, file.fileno(), len(start) + position)
        file.write(start)
        unflushed = unsynced = 0
        for info in ordered:
            written = 0
            for block in blocks_of(info):
                if block.dtype != info.dtype:
                    raise ValueError(f"{info.name}: a block of {block.dtype} for a tensor of {info.dtype}")
                view = raw_bytes(block)
                digest.update(view)
                written += file.write(view)
                unflushed += len(view)
                unsynced += len(view)
                if unsynced >= _SYNC_BYTES:
                    settled(_settle(file))
                    unflushed = unsynced = 0
                elif unflushed >= _FLUSH_BYTES:
                    _start_settling(file)
                    unflushed = 0
            if written != info.nbytes:
                raise ValueError(f"{info.name}: {written} bytes written, {info.nbytes} announced")
        settled(_settle(file))
    return digest.hexdigest()


def _start_settling(file: IO[bytes]) -> None:
    """Start writing dirty pages to the disk, without waiting."""
    file.flush()
    platforms.drop_cached(file.fileno())


def _settle(file: IO[bytes]) -> int:
    """Flush what was written to the disk and drop it from the page cache, so that reading back reads the disk."""
    file.flush()
    os.fsync(file.fileno())
    platforms.drop_cached(file.fileno())
    return file.tell()


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the elements in row-major order as bytes, without a copy if they are contiguous."""
    array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)  # type: ignore[arg-type]  # typeshed knows arrays as buffers from Python 3.12 on


def unreadable(path: Path, error: OSError) -> IxtuneError:
    """Return the error for a file that cannot be read."""
    return IxtuneError(
        f"the file cannot be read: {error.strerror or error}",
        where=str(path),
        hint="check the path and its permissions",
    )


def refuse_lfs_pointer(path: Path) -> None:
    """Raise if the file is a git-lfs pointer instead of the weights.

    Raises:
        IxtuneError: It is one, or the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise unreadable(path, error) from error
    if start == _LFS_POINTER:
        raise IxtuneError(
            "the file is a git-lfs pointer, not the weights",
            where=str(path),
            hint="run `git lfs pull` in that folder",
        )


def _entry(name: str, entry: dict[str, Any], path: Path, data_start: int) -> tuple[TensorInfo, int]:
    """Return one header entry as (tensor, end of its byte range in the file)."""
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise IxtuneError(
            f"tensor {name} has the dtype {entry['dtype']}, which is not read here",
            where=str(path),
            hint=f"use a checkpoint stored in one of {', '.join(DTYPE_NAMES.values())}",
        )
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name}: shape and range must be whole numbers")
    dtype = _DTYPES[entry["dtype"]]
    return TensorInfo(name, shape, dtype, path.name, data_start + begin, row_major(shape)), data_start + end


def _unique(pairs: list[tuple[str, object]], path: Path) -> dict[str, object]:
    """Return a JSON object as a dict; raise if a name occurs twice, which JSON readers accept silently."""
    content: dict[str, object] = {}
    for name, value in pairs:
        if name in content:
            raise _damaged(path, f"the name {name} occurs twice")
        content[name] = value
    return content


def _damaged(path: Path, what: str) -> IxtuneError:
    return IxtuneError(what, where=str(path), hint="download or copy this file again")
