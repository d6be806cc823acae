"""Merging adapters into their base, shard by shard: the base's names, shapes, dtypes and shards are kept.

The arithmetic is in `combination`, the files in `merge_writer`, the check in `proof`. No tensor is ever whole in
memory.
"""

from __future__ import annotations

import functools
import math
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

import ixtune
from ixtune.adapter.combination import Ingredient, Merged
from ixtune.adapter.merge_writer import JOURNAL_FILE, Writer, carry, other_files
from ixtune.adapter.nf4 import Nf4View, is_decoder_linear
from ixtune.adapter.proof import prove
from ixtune.adapter.weights import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, check_fit, read_adapter
from ixtune.data.processor_files import DEFAULT_HD_NUM, PREPROCESSOR_FILE, write_processor_files
from ixtune.errors import IxtuneError, UsageError
from ixtune.files import atomic_write_json, resumable_folder, sha256_file
from ixtune.model.identity import base_identity
from ixtune.model.shards import Checkpoint, open_checkpoint

Onto = Literal["bf16", "nf4"]
Progress = Callable[[str, int, int], None]
"""Called with the step's name, the bytes done and the bytes of both steps together."""

REPORT_FILE = "merge_report.json"
_SPARE_BYTES = 8 << 20  # headers, index, reports


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
    folders = [adapters] if isinstance(adapters, Path) else list(adapters)
    in_turn = in_turn and len(folders) > 1
    ingredients = _ingredients(folders, weights, in_turn, onto)
    source = open_checkpoint(base)
    identity = base_identity(source)
    model, warnings = _stack(ingredients, source, identity, in_turn=in_turn, onto=onto, force=force)
    warnings += _about_nf4(ingredients, onto)
    carried = other_files(source)
    _require_space(source, carried, out)
    advance = _counter(progress, 2 * source.nbytes)
    try:
        with resumable_folder(out) as partial:
            writer = Writer(
                model, _key(ingredients, source, identity, in_turn, onto), functools.partial(advance, "merging")
            )
            writer.write(partial)
            carry(source, carried, partial)
            proof = prove(partial, model, writer.written, advance=functools.partial(advance, "checking"))
            (partial / JOURNAL_FILE).unlink()
            if not writer.changed:
                warnings.append("the adapter changes nothing: every stored value is what it was without it")
            named = {name for one in ingredients for name in (*one.adapter.low_rank, *one.adapter.whole)}
            rewritten = named | {name for name in source.by_name if onto == "nf4" and is_decoder_linear(name)}
            report = MergeReport(
                out=str(out),
                onto=onto,
                arithmetic=_arithmetic(ingredients, in_turn),
                adapters=tuple(_described(one) for one in ingredients),
                tensors=len(source.tensors),
                merged=len(named),
                copied=len(source.tensors) - len(rewritten),
                changed=len(writer.changed),
                sampled_rows=proof.sampled_rows,
                max_abs_error=proof.max_abs_error,
                resumed_shards=writer.resumed,
                base_identity=identity,
                merged_identity=base_identity(open_checkpoint(partial)),
                file_sha256=proof.sha256,
                carried_sha256={str(name): sha256_file(source.folder / name) for name in carried},
                warnings=tuple(warnings),
                versions=_versions(onto),
            )
            atomic_write_json(partial / REPORT_FILE, asdict(report))
            record = _record(report, ingredients)
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
            mend="see that the disk has room and permits it, then merge again; nothing was left behind",
        ) from error
    return report


def _ingredients(
    folders: Sequence[Path], weights: Sequence[float] | None, in_turn: bool, onto: Onto
) -> list[Ingredient]:
    """Read the adapters, each with its weight.

    Raises:
        UsageError: The arguments contradict each other.
        IxtuneError: An adapter cannot be used.
    """
    if weights is not None and len(weights) != len(folders):
        raise UsageError(
            f"{len(folders)} adapters and {len(weights)} weights", mend="give one weight for each adapter, in order"
        )
    if weights is not None and not all(math.isfinite(weight) for weight in weights):
        raise UsageError("a weight is not a finite number", mend="give numbers such as 0.5,0.5")
    if in_turn and weights is not None:
        raise UsageError(
            "adapters trained one on the other are merged as they were trained, without weights",
            mend="leave out --weights, or leave out --in-turn if all were trained on one base",
        )
    if in_turn and onto == "nf4":
        raise UsageError(
            "--in-turn --onto nf4 is not defined: the second adapter saw NF4 of the first merged model",
            mend="merge the first onto nf4 or bf16, as its successor was trained on, then the second into that folder",
        )
    if len(folders) > 1 and not in_turn and weights is None:
        raise UsageError(
            f"{len(folders)} adapters, and no word on how they go together",
            mend="give --weights, such as 0.5,0.5, or --in-turn if each was trained on the result of those before",
        )
    return [
        Ingredient(read_adapter(folder), (weights or [1.0] * len(folders))[at]) for at, folder in enumerate(folders)
    ]


def _stack(
    ingredients: Sequence[Ingredient], source: Checkpoint, identity: str, *, in_turn: bool, onto: Onto, force: bool
) -> tuple[Merged, list[str]]:
    """The merged model as something to read from, and warnings.

    Raises:
        IxtuneError: An adapter does not belong to what it is merged into.
    """
    if in_turn:
        warnings: list[str] = []
        model: Checkpoint = source
        for at, one in enumerate(ingredients):
            warnings += check_fit(one.adapter, model, identity if at == 0 else base_identity(model), force=force)
            model = Merged(model, [one])
        assert isinstance(model, Merged)
        return model, warnings
    warnings = [line for one in ingredients for line in check_fit(one.adapter, source, identity, force=force)]
    if onto == "bf16":
        return Merged(source, ingredients), warnings
    held = {one.adapter.compute_dtype(torch.bfloat16) for one in ingredients}
    if len(held) > 1:
        raise IxtuneError(
            "the adapters saw different NF4 weights: they were trained in different compute dtypes",
            where=", ".join(str(one.adapter.folder) for one in ingredients),
            mend="merge them --onto bf16",
        )
    return Merged(Nf4View(source, ingredients[0].adapter.compute_dtype), ingredients), warnings


def _about_nf4(ingredients: Sequence[Ingredient], onto: Onto) -> list[str]:
    trained_on = {one.adapter.record.get("quantize") for one in ingredients}
    if onto == "nf4" and "none" in trained_on:
        return ["the adapter was not trained on NF4: merged onto bf16 it answers as it was trained"]
    if onto == "bf16" and "nf4" in trained_on:
        return ["the adapter was trained on NF4; on the base as stored it answers a little differently: --onto nf4"]
    return []


def _arithmetic(ingredients: Sequence[Ingredient], in_turn: bool) -> str:
    """What was computed, in one line."""
    if len(ingredients) == 1 and ingredients[0].weight == 1.0:
        return "W1, which adapter 1 makes of W"
    if in_turn:
        steps = " of ".join(f"W{at}" for at in range(len(ingredients), 0, -1))
        return f"{steps} of W; each in float32, rounded to the stored dtype before the next"
    terms = " ".join(f"{one.weight:+g} (W{at} - W)" for at, one in enumerate(ingredients, start=1))
    return f"W {terms}, where Wi is what adapter i alone makes of W; in float32, rounded once"


def _described(one: Ingredient) -> dict[str, Any]:
    hashes = {name: sha256_file(one.adapter.folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)}
    return {"folder": str(one.adapter.folder), "weight": one.weight, "sha256": hashes}


def _key(
    ingredients: Sequence[Ingredient], source: Checkpoint, identity: str, in_turn: bool, onto: Onto
) -> dict[str, Any]:
    """All that decides the bytes of the merged model."""
    sizes = {shard: (source.folder / shard).stat() for shard in source.shards}
    return {
        "versions": _versions(onto),
        "base": identity,
        "shards": {shard: [stat.st_size, stat.st_mtime_ns] for shard, stat in sizes.items()},
        "adapters": [_described(one) for one in ingredients],
        "in_turn": in_turn,
        "onto": onto,
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


def _require_space(base: Checkpoint, carried: Sequence[Path], out: Path) -> None:
    """Refuse before the first byte is written if the merged model cannot fit."""
    existing = next(folder for folder in (out.absolute().parent, *out.absolute().parents) if folder.exists())
    there = sum(path.stat().st_size for path in (out.parent / f".{out.name}.unfinished").glob("*.safetensors"))
    needed = base.nbytes + sum((base.folder / name).stat().st_size for name in carried) + _SPARE_BYTES - there
    free = shutil.disk_usage(existing).free
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
