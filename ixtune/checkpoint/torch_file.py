"""Read a torch `.bin` file: tensor positions without running its pickle or loading the tensors.

torch reads the pickle with `weights_only=True` (a fixed list of harmless constructors, nothing else) and puts
the tensors on the meta device, where each storage carries its position in the zip file. torch computes that position
from the conventions of its own writer, so it is trusted only after a check of the zip directory. Files whose
positions cannot be found this way (the format before torch 1.6, repacked zips) are loaded whole, still with
`weights_only=True`.
"""

from __future__ import annotations

import pickle
import re
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import torch

from ixtune.checkpoint.safetensors_file import DTYPE_NAMES, TensorInfo, refuse_lfs_pointer, unreadable
from ixtune.errors import IxtuneError

_LOCAL_HEADER = struct.Struct("<4s22sHH")  # zip local file header: signature, fixed fields, name and extra lengths
_FORBIDDEN = re.compile(r"(?:GLOBAL|class|global:?) +([\w.]+\.[\w.]+)")


def read_torch_index(path: Path) -> list[TensorInfo]:
    """Return the tensors of a torch file in its own order, without loading them.

    Raises:
        IxtuneError: The file cannot be read, is truncated, holds code, or holds something that is not a
            tensor.
    """
    refuse_lfs_pointer(path)
    content = _load(path, device="meta")
    positions = _stored_positions(path)
    tensors = []
    for name, tensor in content.items():
        _refuse_unknown(path, name, tensor)
        storage = tensor.untyped_storage()
        start = getattr(storage, "_checkpoint_offset", None)
        if start is not None and positions.get(start, -1) < storage.nbytes():
            start = None
        offset = None if start is None else start + tensor.storage_offset() * tensor.dtype.itemsize
        info = TensorInfo(name, tuple(tensor.shape), tensor.dtype, path.name, offset, tuple(tensor.stride()))
        if tensor.storage_offset() * tensor.dtype.itemsize + info.span_bytes > storage.nbytes():
            raise IxtuneError(
                f"tensor {name} reaches beyond its stored bytes",
                where=str(path),
                hint="download or copy this file again",
            )
        tensors.append(info)
    return tensors


def load_torch_file(path: Path) -> dict[str, torch.Tensor]:
    """Load all tensors of a torch file, memory-mapped if the format allows it.

    Raises:
        IxtuneError: As `read_torch_index`.
    """
    return _load(path, device="cpu")


def _load(path: Path, device: str) -> dict[str, torch.Tensor]:
    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            # a warning about the pickle protocol; unsupported content is refused below
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            content = torch.load(path, weights_only=True, map_location=device, mmap=zipped and device == "cpu")
    except OSError as error:
        raise unreadable(path, error) from error
    except pickle.UnpicklingError as error:
        # torch's message explains how to disable the protection, so it is not passed on
        forbidden = _FORBIDDEN.search(str(error))
        found = f"it references {forbidden.group(1)}" if forbidden else "its pickle contains other objects"
        raise IxtuneError(
            f"the file holds more than tensors: {found}; none of it was run",
            where=str(path),
            hint="use a checkpoint from a source you trust, preferably in safetensors",
        ) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        struct.error,
    ) as error:
        raise IxtuneError(
            "the file is truncated, or not a torch file",
            where=str(path),
            hint="download or copy this file again",
        ) from error
    if not isinstance(content, dict):
        raise IxtuneError(
            f"the file holds a {type(content).__name__}, not tensors by name",
            where=str(path),
            hint="save the model's state_dict() instead",
        )
    return content


def _refuse_unknown(path: Path, name: object, tensor: object) -> None:
    """Raise for an entry that safetensors cannot express."""
    plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.dtype in DTYPE_NAMES
    if not (isinstance(name, str) and plain):
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise IxtuneError(
            f"entry {name!r} is not a plain tensor but {kind}",
            where=str(path),
            hint="save only the model's state_dict(), with dense tensors",
        )


def _stored_positions(path: Path) -> dict[int, int]:
    """Return the size of every storage in the zip by byte position, from its directory and local headers.

    Empty where positions must not be used: no zip, compressed, a foreign byte order, or storages out of the
    writer's order (then a computed position could hit another tensor's).
    """
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        order = next((archive.read(entry) for entry in entries if entry.filename.endswith("/byteorder")), b"little")
        storages = [entry for entry in entries if re.search(r"/data/\d+$", entry.filename)]
        numbers = [int(entry.filename.rpartition("/")[2]) for entry in storages]
        if order.decode() != sys.byteorder or numbers != sorted(numbers):
            return {}
        positions = {}
        for entry in storages:
            if entry.compress_type != zipfile.ZIP_STORED:
                return {}
            file.seek(entry.header_offset)
            _, _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            positions[entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes] = entry.file_size
        return positions
