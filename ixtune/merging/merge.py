"""Merging adapters into their base, shard by shard: the base's names, shapes, dtypes and shards are kept.

What is merged is settled in `merge_plan`; the arithmetic is in `combination`, the files in `merge_writer`, the check in
`proof`. No tensor is ever whole in memory.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import ixtune
from ixtune.adapter.combination import Ingredient
from ixtune.adapter.folder import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.data.processor_files import DEFAULT_HD_NUM, PREPROCESSOR_FILE, write_processor_files
from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_json, resumable_folder, sha256_file
from ixtune.merging.merge_plan import MergePlan, Onto, plan_merge
from ixtune.merging.proof import prove
from ixtune.merging.read_back import ReadBack
from ixtune.merging.shard_writer import JOURNAL_FILE, Writer, carry

Progress = Callable[[str, int, int], None]
"""Called with the step's name, the bytes done (written, and read back) and both together; from either of two threads,
one at a time. What it raises in the one that reads back comes up when the files are checked."""

REPORT_FILE = "merge_report.json"


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did and what its check found; `merge_report.json` holds the same.

    Attributes:
        out: The merged model's folder.
        onto: `bf16`: the base as stored. `nf4`: its decoder linears went through NF4 first, as in QLoRA
            training.
        arithmetic: The formula in one line.
        adapters: Of each its weight and the hash of its files, in order.
        tensors: Tensors in the model.
        merged: Those an adapter names.
        copied: Those whose bytes are the base's, because nothing was to change them.
        changed: Those in which at least one stored value differs from what lay there without the adapters.
        sampled_rows: Rows recomputed in float64 for the check.
        max_abs_error: The largest distance of a stored value from its recomputation.
        resumed_shards: Shards taken over from a merge that was killed.
        base_identity: Identity of the base.
        merged_identity: Identity of the merged model.
        file_sha256: Hash per weights file of the merged model.
        carried_sha256: Hash per other file of the base that was copied along.
        warnings: One line each.
        versions: Of the software that made it.
    """

    out: str
    onto: Onto
    arithmetic: str
    adapters: tuple[dict[str, Any], ...]
    tensors: int
    merged: int
    copied: int
    changed: int
    sampled_rows: int
    max_abs_error: float
    resumed_shards: int
    base_identity: str
    merged_identity: str
    file_sha256: dict[str, str]
    carried_sha256: dict[str, str]
    warnings: tuple[str, ...]
    versions: dict[str, str]


def merge(
    adapters: Path | Sequence[Path],
    base: Path,
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    in_turn: bool = False,
    onto: Onto = "bf16",
    force: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Write the base with adapters merged in, check it, and only then give it its name.

    After a kill the same call goes on with the first shard that was not finished.

    Args:
        adapters: An adapter folder in PEFT's format, or the run folder around one; or several.
        base: The base checkpoint, `.bin` or safetensors.
        out: The folder to make; it must not exist.
        weights: Of each adapter's change; 1 where not given.
        in_turn: Each adapter was trained on the base with those before it merged in, in bf16.
        onto: Whether to add to the base as stored, or to what NF4 makes of its decoder linears.
        force: Whether a base with another identity than the one trained on is accepted.
        progress: Told how far it is.

    Returns:
        What was done and found.

    Raises:
        UsageError: The arguments contradict each other.
        IxtuneError: Adapter, base or disk do not allow it, or the check failed. `out` does not exist then.
    """
    plan = plan_merge(adapters, base, out, weights=weights, in_turn=in_turn, onto=onto, force=force)
    source, warnings = plan.base, list(plan.warnings)
    advance = _Counter(progress, 2 * source.nbytes)
    try:
        with resumable_folder(out) as partial, closing(ReadBack(advance)) as read_back:
            writer = Writer(plan.model, _key(plan), advance, read_back)
            writer.write(partial)
            carry(source, list(plan.carried), partial)
            advance.step = "checking"
            advance(0)
            proof = prove(partial, plan.model, writer.written, read_back)
            (partial / JOURNAL_FILE).unlink()
            if not writer.changed:
                warnings.append("the adapter changes nothing: every stored value is what it was without it")
            report = MergeReport(
                out=str(out),
                onto=onto,
                arithmetic=plan.arithmetic,
                adapters=tuple(_described(one) for one in plan.ingredients),
                tensors=len(source.tensors),
                merged=len(plan.merged),
                copied=len(plan.copied),
                changed=len(writer.changed),
                sampled_rows=proof.sampled_rows,
                max_abs_error=proof.max_abs_error,
                resumed_shards=writer.resumed,
                base_identity=plan.identity,
                merged_identity=base_identity(open_checkpoint(partial)),
                file_sha256=proof.sha256,
                carried_sha256={str(name): sha256_file(source.folder / name) for name in plan.carried},
                warnings=tuple(warnings),
                versions=_versions(onto),
            )
            atomic_write_json(partial / REPORT_FILE, asdict(report))
            record = _record(report, plan.ingredients)
            atomic_write_json(partial / RECORD_FILE, record)
            if not (partial / PREPROCESSOR_FILE).exists():
                write_processor_files(
                    partial,
                    record.get("hd_num") or DEFAULT_HD_NUM,
                    upscale=record.get("upscale", True),
                    corrections=tuple(record.get("corrections", ())),
                    replace_tokenizer_config=False,
                )
    except OSError as error:
        raise IxtuneError(
            f"the merged model could not be written: {error.strerror or error}",
            where=str(out),
            hint="see that the disk has room and permits it, then merge again; nothing was left behind",
        ) from error
    return report


def _described(one: Ingredient) -> dict[str, Any]:
    hashes = {name: sha256_file(one.adapter.folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)}
    return {"folder": str(one.adapter.folder), "weight": one.weight, "sha256": hashes}


def _key(plan: MergePlan) -> dict[str, Any]:
    """All that decides the bytes of the merged model."""
    sizes = {shard: (plan.base.folder / shard).stat() for shard in plan.base.shards}
    return {
        "versions": _versions(plan.onto),
        "base": plan.identity,
        "shards": {shard: [stat.st_size, stat.st_mtime_ns] for shard, stat in sizes.items()},
        "adapters": [_described(one) for one in plan.ingredients],
        "in_turn": plan.in_turn,
        "onto": plan.onto,
    }


def _record(report: MergeReport, ingredients: Sequence[Ingredient]) -> dict[str, Any]:
    """`ixtune.json` of a merged model: what using it needs, as the adapter trained last knew it."""
    last = ingredients[-1].adapter.record
    as_trained = ("hd_num", "upscale", "corrections", "template_version", "tokenizer_sha256")
    return {
        "kind": "merged",
        "ixtune_version": ixtune.__version__,
        "base": last.get("base"),
        "base_identity": report.base_identity,
        "merged_identity": report.merged_identity,
        **{name: last[name] for name in as_trained if name in last},
        "onto": report.onto,
        "adapters": [
            {
                "sha256": done["sha256"][WEIGHTS_FILE],
                "weight": one.weight,
                "recipe": one.adapter.record.get("recipe"),
                "data": one.adapter.record.get("data"),
            }
            for one, done in zip(ingredients, report.adapters, strict=True)
        ],
    }


class _Counter:
    """Adds up bytes, of two threads, and tells `progress`; `step` is what is being done."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self.step = "merging"
        self._progress, self._total, self._done = progress, total_bytes, 0
        self._lock = threading.Lock()

    def __call__(self, nbytes: int) -> None:
        with self._lock:
            self._done = min(self._done + nbytes, self._total)  # headers are read back too
            if self._progress is not None:
                self._progress(self.step, self._done, self._total)


def _versions(onto: Onto) -> dict[str, str]:
    versions = {"ixtune": ixtune.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if onto == "nf4":
        versions["bitsandbytes"] = version("bitsandbytes")
    return versions
