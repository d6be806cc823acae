"""Plan a merge before its first byte is written: adapters, target, and whether everything fits.

`ixtune merge --dry-run` ends here.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from ixtune.adapter.combination import Ingredient, Merged
from ixtune.adapter.weights import check_fit, read_adapter
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import Checkpoint, open_checkpoint
from ixtune.errors import IxtuneError, UsageError, require_one_of
from ixtune.files import refuse_existing
from ixtune.merging.nf4_view import Nf4View, is_decoder_linear
from ixtune.merging.shard_writer import other_files, shard_names

Onto = Literal["bf16", "nf4"]

_SPARE_BYTES = 8 << 20  # headers, index, reports


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Adapters and base, checked against each other and against the free disk space.

    Attributes:
        base: Base checkpoint, as stored.
        identity: Identity of the base.
        ingredients: Adapters with their weights.
        model: The merged model, read block by block.
        in_turn: Each adapter was trained on the merge of those before it.
        onto: `bf16`: the base as stored. `nf4`: its dequantized NF4 weights.
        carried: Other files of the base, which are copied.
        needed_bytes: Disk space still needed, less the shards that a killed merge left.
        free_bytes: Free disk space.
        warnings: One line each.
    """

    base: Checkpoint
    identity: str
    ingredients: tuple[Ingredient, ...]
    model: Merged
    in_turn: bool
    onto: Onto
    carried: tuple[Path, ...]
    needed_bytes: int
    free_bytes: int
    warnings: tuple[str, ...]

    @property
    def merged(self) -> frozenset[str]:
        """Return the names of the tensors that an adapter changes."""
        return frozenset(n for one in self.ingredients for n in (*one.adapter.low_rank, *one.adapter.whole))

    @property
    def copied(self) -> frozenset[str]:
        """Return the names of the tensors that are copied from the base."""
        rewritten = {name for name in self.base.by_name if self.onto == "nf4" and is_decoder_linear(name)}
        return frozenset(self.base.by_name) - self.merged - rewritten

    @property
    def arithmetic(self) -> str:
        """Return the formula of the merge in one line."""
        if len(self.ingredients) == 1 and self.ingredients[0].weight == 1.0:
            return "W1 replaces W: each weight of the base changed by the adapter; in float32, rounded once"
        if self.in_turn:
            steps = " of ".join(f"W{at}" for at in range(len(self.ingredients), 0, -1))
            return (
                f"{steps} of W: each weight W of the base changed by adapter 1, the result by the next one; each in "
                "float32, rounded to the stored dtype before the next"
            )
        terms = " ".join(f"{one.weight:+g} (W{at} - W)" for at, one in enumerate(self.ingredients, start=1))
        return f"W {terms}: W a weight of the base, Wi that weight changed by adapter i alone; in float32, rounded once"

    @property
    def shard_bytes(self) -> dict[str, int]:
        """Return the size in bytes of each weights file to write."""
        names = shard_names(self.base.shards)
        return {names[shard]: sum(info.nbytes for info in self.base.in_shard(shard)) for shard in self.base.shards}


def plan_merge(
    adapters: Path | Sequence[Path],
    base: Path,
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    in_turn: bool = False,
    onto: Onto = "bf16",
    force: bool = False,
) -> MergePlan:
    """Check adapters, base and disk, and refuse what cannot be merged. Takes the arguments of `merge`.

    Nothing is written.

    Raises:
        UsageError: The arguments contradict each other.
        IxtuneError: Adapter, base or disk do not allow it, or `out` exists.
    """
    folders = [adapters] if isinstance(adapters, Path) else list(adapters)
    in_turn = in_turn and len(folders) > 1
    ingredients = _ingredients(folders, weights, in_turn, onto)
    refuse_existing(out)
    source = open_checkpoint(base)
    identity = base_identity(source)
    model, warnings = _stack(ingredients, source, identity, in_turn=in_turn, onto=onto, force=force)
    carried = other_files(source)
    needed, free = _room(source, carried, out)
    return MergePlan(
        base=source,
        identity=identity,
        ingredients=tuple(ingredients),
        model=model,
        in_turn=in_turn,
        onto=onto,
        carried=tuple(carried),
        needed_bytes=needed,
        free_bytes=free,
        warnings=(*warnings, *_about_nf4(ingredients, onto)),
    )


def _ingredients(
    folders: Sequence[Path], weights: Sequence[float] | None, in_turn: bool, onto: Onto
) -> list[Ingredient]:
    """Read the adapters and pair each with its weight.

    Raises:
        UsageError: The arguments contradict each other.
        IxtuneError: An adapter cannot be used.
    """
    require_one_of("onto", onto, get_args(Onto))
    if weights is not None and len(weights) != len(folders):
        raise UsageError(
            f"{len(folders)} adapters and {len(weights)} weights", hint="pass one weight per adapter, in order"
        )
    if weights is not None and not all(math.isfinite(weight) for weight in weights):
        raise UsageError("a weight is not a finite number", hint="pass numbers such as 0.5,0.5")
    if in_turn and weights is not None:
        raise UsageError(
            "adapters trained on top of each other are merged in sequence, without weights",
            hint="leave out --weights, or leave out --in-turn if all were trained on one base",
        )
    if in_turn and onto == "nf4":
        raise UsageError(
            "--in-turn --onto nf4 is not defined: the second adapter saw NF4 of the first merged model",
            hint="merge the first onto the form that the second was trained on, then the second into that folder",
        )
    if len(folders) > 1 and not in_turn and weights is None:
        raise UsageError(
            f"{len(folders)} adapters, but neither --weights nor --in-turn",
            hint="pass --weights such as 0.5,0.5, or --in-turn if each was trained on the result of those before it",
        )
    return [
        Ingredient(read_adapter(folder), (weights or [1.0] * len(folders))[at]) for at, folder in enumerate(folders)
    ]


def _stack(
    ingredients: Sequence[Ingredient], source: Checkpoint, identity: str, *, in_turn: bool, onto: Onto, force: bool
) -> tuple[Merged, list[str]]:
    """Return the merged model as a readable checkpoint, and warnings.

    Raises:
        IxtuneError: An adapter was trained on another base.
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
            hint="merge them --onto bf16",
        )
    return Merged(Nf4View(source, ingredients[0].adapter.compute_dtype), ingredients), warnings


def _about_nf4(ingredients: Sequence[Ingredient], onto: Onto) -> list[str]:
    trained_on = {one.adapter.record.get("quantize") for one in ingredients}
    if onto == "nf4" and "none" in trained_on:
        return ["the adapter was not trained on NF4: merged onto bf16 it answers as it was trained"]
    if onto == "bf16" and "nf4" in trained_on:
        return ["the adapter was trained on NF4; on the base as stored its answers differ slightly; see --onto nf4"]
    return []


def _room(base: Checkpoint, carried: Sequence[Path], out: Path) -> tuple[int, int]:
    """Return the bytes that the merged model needs, and the free bytes.

    Raises:
        IxtuneError: There is not enough free space.
    """
    existing = next(folder for folder in (out.absolute().parent, *out.absolute().parents) if folder.exists())
    there = sum(path.stat().st_size for path in (out.parent / f".{out.name}.unfinished").glob("*.safetensors"))
    needed = base.nbytes + sum((base.folder / name).stat().st_size for name in carried) + _SPARE_BYTES - there
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise IxtuneError(
            f"the disk has {free / 2**30:.2f} GiB free, the merged model needs {needed / 2**30:.2f} GiB",
            where=str(existing),
            hint="free some space, or pass --out on another disk",
        )
    return needed, free
