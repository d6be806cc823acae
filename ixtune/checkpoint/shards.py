"""Open a checkpoint folder without loading it: tensors, shards, byte offsets, and reads by rows.

Opening loads nothing, and a read copies only the requested rows. safetensors and torch `.bin` shards have the same
interface. Needs torch, but neither transformers nor a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from ixtune.checkpoint.safetensors_file import TensorInfo, raw_bytes, read_safetensors_index, read_span, unreadable
from ixtune.checkpoint.torch_file import load_torch_file, read_torch_index
from ixtune.errors import IxtuneError

# in the order in which transformers looks for them
_SINGLE_THEN_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


class Checkpoint:
    """Tensors of one checkpoint by name, in shard order, whose bytes are read on demand.

    Attributes:
        folder: Folder of the shards.
        shards: Their file names, in order.
        by_name: Tensor metadata by name, in shard order and within a shard in file order.
    """

    def __init__(self, folder: Path, by_shard: Mapping[str, Sequence[TensorInfo]]) -> None:
        self.folder = folder
        self.shards = tuple(by_shard)
        self.by_name: Mapping[str, TensorInfo] = MappingProxyType(_one_of_each(folder, by_shard))
        # the one shard in memory, if its tensors cannot be read otherwise
        self._resident: tuple[str, dict[str, torch.Tensor]] | None = None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Return all tensors, in shard order."""
        return tuple(self.by_name.values())

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors)

    def in_shard(self, shard: str) -> list[TensorInfo]:
        """Return the tensors of one shard, in file order."""
        return [info for info in self.tensors if info.shard == shard]

    def read(self, name: str) -> torch.Tensor:
        """Return a contiguous copy of a tensor."""
        return self.read_rows(name, 0, self.by_name[name].rows)

    def read_rows(self, name: str, start: int, stop: int, into: torch.Tensor | None = None) -> torch.Tensor:
        """Return rows [start, stop) of the first dimension, contiguous; a scalar is one row.

        They are in new memory, or in `into` (uint8) if that is given and long enough: reusing memory avoids a page
        fault for every 4 KiB read. The result may be modified.

        Raises:
            IxtuneError: The file cannot be read or has become shorter.
            IndexError: The tensor has no such rows.
        """
        info = self.by_name[name]
        if not 0 <= start <= stop <= info.rows:
            raise IndexError(f"{name} has {info.rows} rows, not {start} to {stop}")
        shape = (stop - start, *info.shape[1:]) if info.shape else ()
        if info.offset is not None and info.contiguous:
            row_bytes = info.nbytes // info.rows if info.rows else 0
            place = info.offset + start * row_bytes
            raw = read_span(self.folder / info.shard, place, (stop - start) * row_bytes, into)
            return raw.view(info.dtype).reshape(shape)
        whole = self._spread(info)
        return (whole[start:stop] if info.shape else whole).contiguous().clone()

    def read_bytes(self, name: str, start: int, stop: int) -> memoryview:
        """Return bytes [start, stop) of the row-major elements, cut off at the end of the tensor."""
        info = self.by_name[name]
        stop = min(stop, info.nbytes)
        start = min(start, stop)
        if info.offset is not None and info.contiguous:
            return raw_bytes(read_span(self.folder / info.shard, info.offset + start, stop - start))
        return raw_bytes(self._spread(info))[start:stop]

    def _spread(self, info: TensorInfo) -> torch.Tensor:
        """Return a tensor whose rows are not contiguous in the file, or that only a loaded shard has."""
        if info.offset is not None:
            raw = read_span(self.folder / info.shard, info.offset, info.span_bytes)
            return raw.view(info.dtype).as_strided(info.shape, info.stride)
        if self._resident is None or self._resident[0] != info.shard:
            self._resident = None  # free the last shard before loading the next
            self._resident = (info.shard, load_torch_file(self.folder / info.shard))
        return self._resident[1][info.name].detach()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder: safetensors or else torch `.bin`, one file or an index of shards.

    Raises:
        IxtuneError: The folder holds no checkpoint, an index and its shards do not agree, or a shard is
            damaged or holds code. The message names file and tensor.
    """
    if not folder.is_dir():
        raise IxtuneError("there is no such folder", where=str(folder), hint="pass the folder of a checkpoint")
    for single, index in _SINGLE_THEN_INDEX:
        if (folder / single).is_file():
            return open_file(folder / single)
        if (folder / index).is_file():
            return _open_index(folder / index)
    raise IxtuneError(
        "the folder holds no checkpoint: no weights and no index of weights",
        where=str(folder),
        hint=f"pass a folder with one of {', '.join(name for pair in _SINGLE_THEN_INDEX for name in pair)}",
    )


def open_file(path: Path) -> Checkpoint:
    """Open a single weights file, as `open_checkpoint` does a folder."""
    return Checkpoint(path.parent, {path.name: _read_shard_index(path)})


def _open_index(path: Path) -> Checkpoint:
    """Open a sharded checkpoint; index and shards must list the same tensors."""
    weight_map = _read_weight_map(path)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not (path.parent / shard).is_file():
            needed = next(name for name, place in weight_map.items() if place == shard)
            raise IxtuneError(
                f"the shard {shard} is missing (it holds {needed} and more)",
                where=str(path),
                hint="download the missing file into the same folder",
            )
    checkpoint = Checkpoint(path.parent, {shard: _read_shard_index(path.parent / shard) for shard in shards})
    for name, shard in weight_map.items():
        if name not in checkpoint.by_name or checkpoint.by_name[name].shard != shard:
            raise _disagreement(path, f"the index places tensor {name} in {shard}, which does not hold it")
    for name, info in checkpoint.by_name.items():
        if name not in weight_map:
            raise _disagreement(path, f"{info.shard} holds tensor {name}, which the index does not list")
    return checkpoint


def _read_weight_map(path: Path) -> dict[str, str]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        content = dict(pairs)
        if len(content) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _disagreement(path, f"the index lists tensor {twice} twice")
        return content

    try:
        weight_map = json.loads(path.read_bytes(), object_pairs_hook=unique)["weight_map"]
        plain = weight_map and all(
            isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values()
        )
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _disagreement(path, "the index of the weights is not an index") from error
    if not plain:
        raise _disagreement(path, "the index of the weights is empty or names files outside its folder")
    return dict(weight_map)


def _read_shard_index(path: Path) -> list[TensorInfo]:
    return read_safetensors_index(path) if path.suffix == ".safetensors" else read_torch_index(path)


def _one_of_each(folder: Path, by_shard: Mapping[str, Sequence[TensorInfo]]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for shard, infos in by_shard.items():
        for info in infos:
            if info.name in tensors:
                raise _disagreement(folder, f"tensor {info.name} is in {tensors[info.name].shard} and in {shard}")
            tensors[info.name] = info
    return tensors


def _disagreement(where: Path, what: str) -> IxtuneError:
    return IxtuneError(
        what, where=str(where), hint="copy the whole checkpoint again; index and shards must belong together"
    )
