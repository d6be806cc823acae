"""Convert a `.bin` checkpoint to safetensors, with the same tensors, names and shards, and check the result.

No whole tensor is ever in memory, and no pickle is run: torch files are read by `torch_file`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import ixtune
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.safetensors_file import TensorInfo, raw_bytes, write_safetensors
from ixtune.checkpoint.shards import Checkpoint, open_checkpoint
from ixtune.errors import IxtuneError
from ixtune.files import atomic_folder, atomic_write_json

REPORT_FILE = "convert_report.json"
Progress = Callable[[str, int, int], None]
"""Called with the step's name, the bytes done and the bytes of all steps together."""

_WEIGHT_SUFFIXES = (".bin", ".safetensors", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")
_SPARE_BYTES = 8 << 20  # headers, index, the small files
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Conversion:
    """Result of a conversion, also written to `convert_report.json`.

    Attributes:
        out: The folder it made.
        tensors: Tensors written, each compared with its source after it was on the disk.
        nbytes: Total bytes of the tensors.
        shards: Shard of the source -> shard written.
        carried: The other files, copied unchanged.
        identity: Identity of source and result, which is the same.
        file_sha256: Hash of every file written.
        ixtune_version: Version of ixtune that made it.
    """

    out: str
    tensors: int
    nbytes: int
    shards: dict[str, str]
    carried: tuple[str, ...]
    identity: str
    file_sha256: dict[str, str]
    ixtune_version: str


def convert(source: Path, out: Path, *, progress: Progress | None = None) -> Conversion:
    """Write a `.bin` checkpoint as safetensors, check it, and only then move it into place.

    Args:
        source: The folder of a checkpoint in torch files.
        out: The folder to make; it must not exist.
        progress: Receives the progress.

    Raises:
        IxtuneError: The source is safetensors already, damaged, or holds code; writing fails; or the written bytes
            differ. `out` does not exist then.
    """
    checkpoint = open_checkpoint(source)
    if checkpoint.shards[0].endswith(".safetensors"):
        raise IxtuneError(
            "this base is already in safetensors",
            where=str(source),
            hint="use it as it is: `ixtune base verify` checks it",
        )
    require_space(out, checkpoint.nbytes + _SPARE_BYTES)
    identity = base_identity(checkpoint)
    names = safetensors_names(checkpoint.shards)
    advance = counter(progress, 3 * checkpoint.nbytes)
    written: dict[str, str] = {}

    def blocks(info: TensorInfo) -> Iterator[torch.Tensor]:
        digest = hashlib.sha256()
        for start, stop in info.row_blocks():
            block = checkpoint.read_rows(info.name, start, stop)
            digest.update(raw_bytes(block))
            yield block
            advance("writing", block.numel() * block.dtype.itemsize)
        written[info.name] = digest.hexdigest()

    try:
        with atomic_folder(out) as partial:
            for shard in checkpoint.shards:
                write_safetensors(partial / names[shard], checkpoint.in_shard(shard), blocks)
            if len(names) > 1:
                weight_map = {name: names[info.shard] for name, info in checkpoint.by_name.items()}
                index = {"metadata": {"total_size": checkpoint.nbytes}, "weight_map": weight_map}
                atomic_write_json(partial / "model.safetensors.index.json", index)
            carried = carry(source, partial)
            _check(open_checkpoint(partial), written, identity, lambda nbytes: advance("checking", nbytes))
            report = Conversion(
                out=str(out),
                tensors=len(written),
                nbytes=checkpoint.nbytes,
                shards=names,
                carried=carried,
                identity=identity,
                file_sha256=hashes_of(partial, lambda nbytes: advance("hashing", nbytes)),
                ixtune_version=ixtune.__version__,
            )
            atomic_write_json(partial / REPORT_FILE, asdict(report))
    except OSError as error:
        raise IxtuneError(
            f"the converted base could not be written: {error.strerror or error}",
            where=str(out),
            hint="check free space and permissions, then convert again; nothing was left behind",
        ) from error
    return report


def safetensors_names(shards: tuple[str, ...]) -> dict[str, str]:
    """Map the name of `.bin` shard k of n to the name of safetensors shard k of n."""
    if len(shards) == 1:
        return {shards[0]: "model.safetensors"}
    return {shard: f"model-{k:05d}-of-{len(shards):05d}.safetensors" for k, shard in enumerate(shards, start=1)}


def other_files(folder: Path) -> list[Path]:
    """List the files of a checkpoint folder besides weights and index: configuration, tokenizer, code, text.

    Subfolders and hidden files are not part of the checkpoint. A link counts as its target, since the hub cache
    stores files as links.
    """
    return [
        file
        for file in sorted(folder.iterdir())
        if file.is_file()
        and not file.name.startswith(".")
        and file.suffix not in _WEIGHT_SUFFIXES
        and not file.name.endswith((".index.json", "_report.json"))
    ]


def carry(source: Path, out: Path) -> tuple[str, ...]:
    """Copy the other files as bytes, unless `out` has one of that name; code among them is never run.

    Returns:
        The names of those copied.
    """
    missing = [file for file in other_files(source) if not (out / file.name).exists()]
    for file in missing:
        shutil.copyfile(file, out / file.name)
    return tuple(file.name for file in missing)


def require_space(out: Path, needed_bytes: int) -> None:
    """Raise before the first byte is written if the disk cannot hold the output.

    Raises:
        IxtuneError: It cannot.
    """
    existing = next(folder for folder in (out.absolute().parent, *out.absolute().parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise IxtuneError(
            f"the disk has {free_bytes / 2**30:.2f} GiB free, {needed_bytes / 2**30:.2f} GiB are needed",
            where=str(existing),
            hint="free some space, or pass --out on another disk",
        )


def counter(progress: Progress | None, total_bytes: int) -> Callable[[str, int], None]:
    """Return a function that adds up bytes and reports the sum to `progress`."""
    done = 0

    def advance(step: str, nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(step, done, total_bytes)

    return advance


def hashes_of(folder: Path, advance: Callable[[int], None] | None = None) -> dict[str, str]:
    """Return the SHA-256 of every visible file of a folder except reports, by file name."""
    return {
        file.name: hash_of(file, advance)
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".") and not file.name.endswith("_report.json")
    }


def hash_of(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file; `advance` receives the number of bytes of every block."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            if advance is not None:
                advance(len(block))
    return digest.hexdigest()


def _check(found: Checkpoint, written: dict[str, str], identity: str, advance: Callable[[int], None]) -> None:
    """Compare the written file with what was read from the source, tensor by tensor.

    Raises:
        IxtuneError: A tensor is missing or differs.
    """
    for name, expected in written.items():
        digest = hashlib.sha256()
        for start, stop in found.by_name[name].row_blocks():
            raw = raw_bytes(found.read_rows(name, start, stop))
            digest.update(raw)
            advance(len(raw))
        if digest.hexdigest() != expected:
            raise IxtuneError(
                f"{name} differs on the disk from what was written",
                where=str(found.folder / found.by_name[name].shard),
                hint="the disk or the memory may be faulty; convert again, to another disk if there is one",
            )
    if base_identity(found) != identity:
        raise IxtuneError(
            "the converted base has another identity than its source",
            where=str(found.folder),
            hint="make sure that nothing writes to the source, then convert again",
        )
