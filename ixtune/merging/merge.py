"""Merge adapters into their base, shard by shard. The base's names, shapes, dtypes and shards are kept.

`merge_plan` decides what is merged; the arithmetic is in `combination`, the files in `shard_writer`, the check in
`proof`. No whole tensor is ever in memory.
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
from ixtune.data.generation_file import write_generation_file
from ixtune.data.processor_files import PREPROCESSOR_FILE, write_processor_files
from ixtune.errors import IxtuneError
from ixtune.family import member_of
from ixtune.files import atomic_write_json, resumable_folder, sha256_file
from ixtune.merging.merge_plan import MergePlan, Onto, plan_merge
from ixtune.merging.proof import prove
from ixtune.merging.read_back import ReadBack
from ixtune.merging.shard_writer import JOURNAL_FILE, ShardWriter, carry

Progress = Callable[[str, int, int], None]
"""Callback(step, bytes done, bytes in total), where bytes are counted when written and when read back.

Called from two threads, one at a time. An exception from the reading thread is raised again when the files are checked.
"""

REPORT_FILE = "merge_report.json"


@dataclass(frozen=True, slots=True)
class MergeReport:
    """Result of a merge and of its check; `merge_report.json` has the same fields.

    Attributes:
        out: The merged model's folder.
        onto: `bf16`: the base as stored. `nf4`: its decoder linears were quantized to NF4 and back, as in QLoRA
            training.
        arithmetic: The formula in one line.
        adapters: Weight and file hashes of each adapter, in order.
        tensors: Number of tensors in the model.
        merged: Number of tensors that an adapter changes.
        copied: Number of tensors copied from the base.
        changed: Number of tensors in which at least one stored value differs from the base.
        sampled_rows: Number of rows recomputed in float64 for the check.
        max_abs_error: Largest difference between a stored value and its recomputation.
        resumed_shards: Number of shards kept from a merge that was killed.
        base_identity: Identity of the base.
        merged_identity: Identity of the merged model.
        file_sha256: Hash of each weights file of the merged model.
        carried_sha256: Hash of each other file copied from the base.
        warnings: One line each.
        versions: Versions of the software used.
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
    """Merge adapters into a base, verify the result, and only then rename it to `out`.

    After a kill, the same call resumes with the first unfinished shard.

    Args:
        adapters: One or several adapter folders in PEFT's format, or run folders.
        base: The base checkpoint, `.bin` or safetensors.
        out: Folder to write; it must not exist.
        weights: Weight of each adapter's change; 1 by default.
        in_turn: Each adapter was trained on the bf16 merge of those before it.
        onto: Merge into the base as stored, or into its dequantized NF4 weights.
        force: Accept a base other than the one trained on.
        progress: Progress callback.

    Returns:
        Result of the merge and of its check.

    Raises:
        UsageError: The arguments contradict each other.
        IxtuneError: Adapter, base or disk do not allow it, or the check failed; `out` does not exist then.
    """
    plan = plan_merge(adapters, base, out, weights=weights, in_turn=in_turn, onto=onto, force=force)
    source, warnings = plan.base, list(plan.warnings)
    advance = _Counter(progress, 2 * source.nbytes)
    try:
        with resumable_folder(out) as partial, closing(ReadBack(advance)) as read_back:
            writer = ShardWriter(plan.model, _key(plan), advance, read_back)
            writer.write(partial)
            carry(source, list(plan.carried), partial)
            write_generation_file(source.folder, partial)
            advance.step = "checking"
            advance(0)
            proof = prove(partial, plan.model, writer.written, read_back)
            (partial / JOURNAL_FILE).unlink()
            if not writer.changed:
                warnings.append("the adapter changes nothing: every stored value is the same without it")
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
                    record.get("hd_num") or member_of(record).hd_num,
                    upscale=record.get("upscale", True),
                    corrections=tuple(record.get("corrections", ())),
                    member=member_of(record),
                    replace_tokenizer_config=False,
                )
    except OSError as error:
        raise IxtuneError(
            f"the merged model could not be written: {error.strerror or error}",
            where=str(out),
            hint="check free space and permissions, then merge again; nothing was left behind",
        ) from error
    return report


def _described(one: Ingredient) -> dict[str, Any]:
    hashes = {name: sha256_file(one.adapter.folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)}
    return {"folder": str(one.adapter.folder), "weight": one.weight, "sha256": hashes}


def _key(plan: MergePlan) -> dict[str, Any]:
    """Return everything that determines the bytes of the merged model."""
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
    """Return `ixtune.json` of a merged model: the settings needed to use it, from the adapter trained last."""
    last = ingredients[-1].adapter.record
    as_trained = ("hd_num", "upscale", "corrections", "model", "layout_rule", "template_version", "tokenizer_sha256")
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
    """Adds up the bytes of two threads and calls `progress` with the current `step`."""

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
