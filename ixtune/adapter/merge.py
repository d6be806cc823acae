"""Merging an adapter into its base, shard by shard: the base's names, shapes, dtypes and shards are kept.

W + scale * B @ A is computed in float32 and cast once to the dtype the base stores, in row blocks. No tensor
is ever whole in memory, except when merging onto NF4, where quantisation needs it.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

import ixtune
from ixtune.adapter.nf4 import is_decoder_linear, nf4_round_trip
from ixtune.adapter.proof import changes, prove
from ixtune.adapter.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterWeights,
    all_finite,
    check_fit,
    read_adapter,
)
from ixtune.errors import IxtuneError
from ixtune.files import atomic_folder, atomic_write_json, sha256_file
from ixtune.model.identity import base_identity
from ixtune.model.shards import Checkpoint, open_checkpoint
from ixtune.model.tensorfile import TensorInfo, raw_bytes, write_safetensors

Onto = Literal["bf16", "nf4"]
Progress = Callable[[str, int, int], None]
"""Called with the step's name, the bytes done and the bytes of both steps together."""

REPORT_FILE = "merge_report.json"
# what a loader needs besides the weights; code is neither run nor carried along
_COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_SPARE_BYTES = 8 << 20  # headers, index, report


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did and what its check found; `merge_report.json` holds the same.

    Attributes:
        out: The merged model's folder.
        onto: `bf16`: the base as stored. `nf4`: its decoder linears went through NF4 first, as in QLoRA
            training.
        tensors: Tensors in the model.
        merged: Those the adapter names.
        copied: Those whose bytes are the base's, because nothing was to change them.
        changed: Those in which at least one stored value differs from what lay there without the adapter.
        sampled_rows: Rows recomputed in float64 for the check.
        max_abs_error: The largest distance of a stored value from its recomputation.
        base_identity: Identity of the base.
        merged_identity: Identity of the merged model.
        adapter_sha256: Hash per file of the adapter.
        file_sha256: Hash per weights file of the merged model.
        warnings: One line each.
        versions: Of the software that made it.
    """

    out: str
    onto: Onto
    tensors: int
    merged: int
    copied: int
    changed: int
    sampled_rows: int
    max_abs_error: float
    base_identity: str
    merged_identity: str
    adapter_sha256: dict[str, str]
    file_sha256: dict[str, str]
    warnings: tuple[str, ...]
    versions: dict[str, str]


def merge(
    adapter: Path,
    base: Path,
    out: Path,
    *,
    onto: Onto = "bf16",
    force: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Write the base with the adapter merged in, check it, and only then give it its name.

    Args:
        adapter: An adapter folder in PEFT's format, or the run folder around one.
        base: The base checkpoint, `.bin` or safetensors.
        out: The folder to make; it must not exist.
        onto: Whether the adapter is added to the base as stored, or to what NF4 makes of its decoder linears.
        force: Whether a base with another identity than the one trained on is accepted.
        progress: Told how far it is.

    Returns:
        What was done and found.

    Raises:
        IxtuneError: Adapter, base or disk do not allow it, or the check failed. `out` does not exist then.
    """
    weights = read_adapter(adapter)
    source = open_checkpoint(base)
    identity = base_identity(source)
    warnings = check_fit(weights, source, identity, force=force)
    if onto == "nf4" and weights.record.get("quantize") == "none":
        warnings.append("the adapter was not trained on NF4: merged onto bf16 it answers as it was trained")
    if onto == "bf16" and weights.record.get("quantize") == "nf4":
        warnings.append(
            "the adapter was trained on NF4; on the base as stored it answers a little differently: --onto nf4"
        )
    _require_space(source, out)
    advance = _counter(progress, 2 * source.nbytes)
    try:
        with atomic_folder(out) as partial:
            writer = _Writer(source, weights, onto_nf4=onto == "nf4", advance=functools.partial(advance, "merging"))
            writer.write(partial)
            proof = prove(
                partial,
                source,
                weights,
                writer.sha256,
                onto_nf4=onto == "nf4",
                advance=functools.partial(advance, "checking"),
            )
            if not writer.changed:
                warnings.append("the adapter changes nothing: every stored value is what it was without it")
            merged_count = len(weights.low_rank) + len(weights.whole)
            rewritten = sum(changes(name, weights, onto_nf4=onto == "nf4") for name in source.by_name)
            report = MergeReport(
                out=str(out),
                onto=onto,
                tensors=len(source.tensors),
                merged=merged_count,
                copied=len(source.tensors) - rewritten,
                changed=writer.changed,
                sampled_rows=proof.sampled_rows,
                max_abs_error=proof.max_abs_error,
                base_identity=identity,
                merged_identity=base_identity(open_checkpoint(partial)),
                adapter_sha256={name: sha256_file(weights.folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)},
                file_sha256=dict(proof.file_sha256),
                warnings=tuple(warnings),
                versions=_versions(onto),
            )
            atomic_write_json(partial / REPORT_FILE, asdict(report))
    except OSError as error:
        raise IxtuneError(
            f"the merged model could not be written: {error.strerror or error}",
            where=str(out),
            mend="see that the disk has room and permits it, then merge again; nothing was left behind",
        ) from error
    return report


class _Writer:
    """Writes the merged shards and remembers the hash of every tensor.

    Attributes:
        sha256: Name -> hash of the tensor's bytes: as read from the base if it is copied, else as computed.
        changed: Number of tensors in which the adapter changed at least one stored value.
    """

    def __init__(
        self, base: Checkpoint, adapter: AdapterWeights, *, onto_nf4: bool, advance: Callable[[int], None]
    ) -> None:
        self.base = base
        self.adapter = adapter
        self.onto_nf4 = onto_nf4
        self.advance = advance
        self.sha256: dict[str, str] = {}
        self.changed = 0

    def write(self, folder: Path) -> None:
        """Write shards, index and the small files of the base into an empty folder."""
        names = shard_names(self.base.shards)
        for shard in self.base.shards:
            write_safetensors(folder / names[shard], self.base.in_shard(shard), self._blocks)
        if len(names) > 1:
            weight_map = {name: names[info.shard] for name, info in self.base.by_name.items()}
            index = {"metadata": {"total_size": self.base.nbytes}, "weight_map": weight_map}
            atomic_write_json(folder / "model.safetensors.index.json", index)
        for name in _COPIED_FILES:
            if (self.base.folder / name).is_file():
                shutil.copyfile(self.base.folder / name, folder / name)

    def _blocks(self, info: TensorInfo) -> Iterator[torch.Tensor]:
        """The rows of one tensor of the merged model, in blocks."""
        digest = hashlib.sha256()
        changed = False
        for old, new in self._old_and_new(info):
            changed = changed or (new is not old and not torch.equal(old, new))
            raw = raw_bytes(new)
            digest.update(raw)
            yield new
            self.advance(len(raw))
        self.sha256[info.name] = digest.hexdigest()
        self.changed += changed

    def _old_and_new(self, info: TensorInfo) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Row blocks without and with the adapter, in the stored dtype; one object where nothing changes."""
        name = info.name
        quantised = None
        if self.onto_nf4 and is_decoder_linear(name):
            quantised = nf4_round_trip(self.base.read(name).to(self.adapter.compute_dtype(info.dtype)))
        pair = self.adapter.low_rank.get(name)
        a_RI = self.adapter.file.read(pair.a).float() if pair else None
        for start, stop in info.row_blocks():
            ground = self.base.read_rows(name, start, stop) if quantised is None else quantised[start:stop]
            old = ground.to(info.dtype)
            if name in self.adapter.whole:
                new = self.adapter.file.read_rows(self.adapter.whole[name], start, stop).to(info.dtype)
            elif pair and a_RI is not None:
                b_OR = self.adapter.file.read_rows(pair.b, start, stop).float()
                new = torch.addmm(ground.float(), b_OR, a_RI, alpha=pair.scale).to(info.dtype)
            else:
                new = old
            if new is not old and not all_finite(new):
                raise IxtuneError(
                    f"{name} is not finite after merging, in rows {start} to {stop - 1}",
                    where=str(self.base.folder),
                    mend=f"see that the base is finite; {_named(info.dtype)} may be too narrow for the sum",
                )
            yield old, new


def shard_names(shards: tuple[str, ...]) -> dict[str, str]:
    """Base shard -> merged shard: safetensors keep their names, `.bin` shard k of n becomes shard k of n."""
    if shards[0].endswith(".safetensors"):
        return {shard: shard for shard in shards}
    if len(shards) == 1:
        return {shards[0]: "model.safetensors"}
    return {shard: f"model-{k:05d}-of-{len(shards):05d}.safetensors" for k, shard in enumerate(shards, start=1)}


def _require_space(base: Checkpoint, out: Path) -> None:
    """Refuse before the first byte is written if the merged model cannot fit."""
    existing = next(folder for folder in (out.absolute().parent, *out.absolute().parents) if folder.exists())
    needed, free = base.nbytes + _SPARE_BYTES, shutil.disk_usage(existing).free
    if free < needed:
        raise IxtuneError(
            f"the disk has {free / 2**30:.2f} GiB free, the merged model needs {needed / 2**30:.2f} GiB",
            where=str(existing),
            mend="free some space, or give --out on another disk",
        )


def _counter(progress: Progress | None, total_bytes: int) -> Callable[[str, int], None]:
    """A function that adds up bytes and tells `progress`."""
    done = 0

    def advance(step: str, nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(step, done, total_bytes)

    return advance


def _versions(onto: Onto) -> dict[str, str]:
    versions = {"ixtune": ixtune.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if onto == "nf4":
        versions["bitsandbytes"] = version("bitsandbytes")
    return versions


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
