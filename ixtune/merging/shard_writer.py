"""Write the files of a merged model shard by shard. Shards finished before a kill are kept."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ixtune import platforms
from ixtune.adapter.combination import Merged
from ixtune.checkpoint.safetensors_file import BLOCK_BYTES, TensorInfo, write_safetensors
from ixtune.checkpoint.shards import Checkpoint
from ixtune.data.generation_file import GENERATION_FILE
from ixtune.files import atomic_write_json
from ixtune.merging.read_back import ReadBack, new_fast_hash

JOURNAL_FILE = "merge_journal.json"
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
# descriptions of the base itself or of another merge, and the file that the merge writes itself
_NOT_CARRIED = ("ixtune.json", "merge_report.json", "export_report.json", "convert_report.json", GENERATION_FILE)


class ShardWriter:
    """Writes the shards of a merged model and keeps the hash of the bytes written.

    Attributes:
        written: XXH3 hash by merged shard.
        changed: Number of tensors with at least one changed value.
        resumed: Number of shards finished by an earlier process.
    """

    def __init__(
        self, model: Merged, key: Mapping[str, Any], advance: Callable[[int], None], read_back: ReadBack
    ) -> None:
        """Prepare to write.

        Args:
            model: Content to write.
            key: Everything that determines the bytes; shards with another key are not reused.
            advance: Receives the number of bytes just written.
            read_back: Reads back what is on the disk.
        """
        self._read_back = read_back
        self.model = model
        self.key = dict(key)
        self.advance = advance
        self.written: dict[str, str] = {}
        self.changed: set[str] = set()
        self.resumed = 0
        self._landing = torch.empty(BLOCK_BYTES, dtype=torch.uint8)

    def write(self, folder: Path) -> None:
        """Write shards and index, keeping shards in the folder that were finished with the same key.

        The journal stays, so that a kill during the check does not cost the shards either.
        """
        names = shard_names(self.model.shards)
        finished = self._finished(folder)
        for left in folder.iterdir():
            if left.name not in {JOURNAL_FILE, *(names[shard] for shard in finished)}:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        for shard in self.model.shards:
            tensors = self.model.in_shard(shard)
            if shard in finished:
                self.written[names[shard]] = finished[shard]["xxh3"]
                self.changed |= set(finished[shard]["changed"])
                self.resumed += 1
                self.advance(sum(info.nbytes for info in tensors))
                continue
            partial = folder / f"{names[shard]}.partial"
            settled: Callable[[int], None] = functools.partial(self._read_back.until, names[shard], partial)
            if not platforms.has_posix_files():  # no open file can be renamed: it is read back afterwards
                settled = _not_yet
            self.written[names[shard]] = write_safetensors(partial, tensors, self._blocks, new_fast_hash(), settled)
            os.replace(partial, folder / names[shard])
            finished[shard] = {
                "xxh3": self.written[names[shard]],
                "changed": sorted(self.changed & {info.name for info in tensors}),
            }
            atomic_write_json(folder / JOURNAL_FILE, {"key": self.key, "finished": finished})
        if len(names) > 1:
            weight_map = {name: names[info.shard] for name, info in self.model.by_name.items()}
            index = {"metadata": {"total_size": self.model.nbytes}, "weight_map": weight_map}
            atomic_write_json(folder / "model.safetensors.index.json", index)

    def _finished(self, folder: Path) -> dict[str, Any]:
        """Return the hashes written by an earlier process, by base shard; empty if its key differs."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            journal = json.loads((folder / JOURNAL_FILE).read_bytes())
            if journal["key"] == json.loads(json.dumps(self.key)):
                return dict(journal["finished"])
        return {}

    def _blocks(self, info: TensorInfo) -> Iterator[torch.Tensor]:
        """Yield the rows of one tensor of the merged model, in blocks."""
        may_change = self.model.changes(info.name)
        for start, stop in info.row_blocks():
            new = self.model.read_rows(info.name, start, stop, self._landing)
            if may_change and info.name not in self.changed:
                old = self.model.ground.read_rows(info.name, start, stop).to(info.dtype)
                if not torch.equal(old, new):
                    self.changed.add(info.name)
            yield new
            self.advance(new.nbytes)


def shard_names(shards: tuple[str, ...]) -> dict[str, str]:
    """Map base shards to merged shards: safetensors keep their names, `.bin` shard k of n becomes shard k of n."""
    if shards[0].endswith(".safetensors"):
        return {shard: shard for shard in shards}
    if len(shards) == 1:
        return {shards[0]: "model.safetensors"}
    return {shard: f"model-{k:05d}-of-{len(shards):05d}.safetensors" for k, shard in enumerate(shards, start=1)}


def other_files(base: Checkpoint) -> list[Path]:
    """List the other files of a base, relative to its folder: configuration, tokenizer, license, code, ...

    Hidden files, and files in hidden folders, are not copied: they belong to the tool that fetched them.
    """
    found = []
    for parent, folders, names in os.walk(base.folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            hidden = name.startswith(".")
            if not (hidden or name in _NOT_CARRIED or name.endswith(_OTHER_WEIGHTS)) and path.is_file():
                found.append(path.relative_to(base.folder))
    return found


def carried_name(name: Path) -> Path:
    """Return the name of a base file in the merged folder."""
    return Path("README.base.md") if name == Path("README.md") else name


def carry(base: Checkpoint, names: list[Path], folder: Path) -> None:
    """Copy files of the base byte for byte; runs none of them. The README is renamed to mark it as the base's."""
    for name in names:
        target = folder / carried_name(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base.folder / name, target)


def _not_yet(nbytes: int) -> None:
    """Postpone reading back."""
