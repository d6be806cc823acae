"""Write a data config and a recipe for new data, and list the commands that use them."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixtune.base import HUB_ID, NANO, shipped
from ixtune.checkpoint.member import member_for
from ixtune.checkpoint.sizes import Sizes
from ixtune.data.sources.source import Container
from ixtune.errors import IxtuneError, UsageError
from ixtune.family import Member, member_named, member_of_hub_id
from ixtune.files import atomic_write_text
from ixtune.init_project.first_look import LEAST_FOR_VALIDATION, Data
from ixtune.init_project.tasks import TASKS, task_named
from ixtune.planning.advice import advise
from ixtune.planning.gpus import Machine
from ixtune.planning.plan import make_plan
from ixtune.planning.record_mixes import records_of
from ixtune.recipe import recipe as recipes

DATA_CONFIG, RECIPE = "data.yaml", "recipe.yaml"

_PLAIN = re.compile(r"(?:\.{0,2}/)*[A-Za-z_][\w./-]*", re.ASCII)
_ROUND_TOKENS = 512
_SMALL_GIB, _LARGE_GIB = 20.0, 60.0  # less is a 16 GB card, more is an 80 GB card


@dataclass(frozen=True, slots=True)
class Project:
    """Files of a new project.

    Attributes:
        files: Files written.
        notes: Remarks about them.
        commands: Commands to run next, in this order.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]


def require_free(out: Path) -> tuple[Path, Path]:
    """Return the paths of the two files to write.

    Raises:
        UsageError: One of them exists.
    """
    files = out / DATA_CONFIG, out / RECIPE
    if there := [str(path) for path in files if path.exists()]:
        raise UsageError("the file exists already", where=", ".join(there), hint="pass another folder with --out")
    return files


def write_project(
    data: Data, gpu_gib: float, task: str, out: Path, base: str | None = None, model: str | None = None
) -> Project:
    """Write the data config and the recipe into a folder.

    Args:
        data: Training data.
        gpu_gib: Memory of the GPU in GiB; 0 for no GPU, which selects the embedded base.
        task: Name of the task.
        out: Folder; created if needed.
        base: Base to train on; by default the released 7B.
        model: Member of the family; by default that of the base, or the first.

    Raises:
        UsageError: The task is unknown, or the files exist.
        IxtuneError: The released base does not fit the GPU.
    """
    base = base or (member_named(model).hub_id if gpu_gib else NANO)
    member = member_for(base, shipped("nano") if base == NANO else Path(base), model)
    config, recipe = require_free(out)
    chosen, notes = _recipe(data, gpu_gib, task, out, base, member)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(config, _data_config(data, out))
    atomic_write_text(recipe, _text(chosen, gpu_gib, task, out))
    return Project((config, recipe), tuple(notes), tuple(_commands(data, chosen, gpu_gib, task, out, member)))


def _recipe(
    data: Data, gpu_gib: float, task: str, out: Path, base: str, member: Member
) -> tuple[dict[str, Any], list[str]]:
    """Return the recipe values that differ from the defaults, by `section.key`, and notes."""
    wanted = task_named(task)
    validated = data.validation_share is not None
    prepared = out / "prepared"
    chosen: dict[str, Any] = {"base": base, "data.train": str(prepared / "train" if validated else prepared)}
    if validated:
        chosen["data.validation"] = str(prepared / "validation")
    if not gpu_gib:
        chosen |= {
            "adapter.rank": 32,
            "adapter.dropout": 0.0,
            "training.epochs": 3,
            "training.pack_tokens": 4096,
            "training.learning_rate": 1e-3,
            "training.gradient_checkpointing": False,
            "training.save_every": 50,
        }
    else:
        size = 0 if gpu_gib < _SMALL_GIB else 1 if gpu_gib < _LARGE_GIB else 2
        longest = max(records_of(task, member).lengths)
        usual = (wanted.small_pack_tokens, wanted.pack_tokens, 2 * wanted.pack_tokens)[size]
        tokens = max(usual, math.ceil(longest / _ROUND_TOKENS) * _ROUND_TOKENS)
        chosen |= {"adapter.rank": 32, "adapter.alpha": 32} if size == 0 else {}
        chosen |= {"training.epochs": wanted.epochs} if wanted.epochs > 1 else {}
        chosen |= {
            "training.pack_tokens": tokens,
            # an optimizer step takes about 64,000 tokens
            "training.gradient_accumulation": max(1, round(65536 / tokens)),
            "training.optimizer": ("paged_adamw_8bit", "adamw_8bit", "adamw")[size],
            "training.save_every": 100,
        }
    if validated:
        chosen["training.scores"] = list(wanted.scores)
    chosen["output"] = str(out / "run")
    notes = []
    if not validated and data.records >= LEAST_FOR_VALIDATION:
        notes = [
            f"no validation split: too few images, since {data.largest_group} of {data.records:,} records share one "
            "and stay on the same side"
        ]
    if not gpu_gib or member_of_hub_id(base) is None:
        return chosen, notes
    fitted, said = _fitted(chosen, gpu_gib, task, member)
    return fitted, notes + said


def _fitted(chosen: dict[str, Any], gpu_gib: float, task: str, member: Member) -> tuple[dict[str, Any], list[str]]:
    """Apply the advice of the plan if the recipe does not fit the memory.

    Raises:
        IxtuneError: Nothing makes it fit without lowering hd_num.
    """
    records, machine = records_of(task, member), Machine("cuda", round(gpu_gib * 2**30), "as given")
    made = make_plan(recipes.Recipe.model_validate(_tree(chosen)), Sizes.released(member), records, machine)
    if made.fits:
        return chosen, []
    notes = []
    for change in advise(made, records):
        words = " ".join(f"{key}={value}" for key, value in change.overrides.items())
        if change.hd_num is not None:
            notes.append(f"it fits with smaller images: prepare --hd-num {change.hd_num}, and {words} in the recipe")
        else:
            return chosen | dict(change.overrides), [f"to fit {gpu_gib:g} GiB, the recipe sets {words}"]
    needed = made.memory.total / 2**30
    enough = math.ceil(needed)
    raise IxtuneError(
        f"the released 7B does not fit: it needs {needed:.2f} GiB, {needed - gpu_gib:.2f} GiB more than this GPU has",
        where=f"{gpu_gib:g} GiB",
        notes=notes,
        hint=f"use a GPU with {enough} GiB (--gpu-gib {enough}), or try all steps on the embedded base (--gpu-gib 0)",
    )


def _tree(chosen: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for dotted, value in chosen.items():
        section, _, key = dotted.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = value
    return tree


def _text(chosen: Mapping[str, Any], gpu_gib: float, task: str, out: Path) -> str:
    """Return the recipe as YAML with a header."""
    gpu = f"one with {gpu_gib:g} GiB" if gpu_gib else "none"
    head = [
        f"# ixtune train {shlex.quote(str(out / RECIPE))}",
        f"# purpose: {TASKS[task].summary}",
        f"# gpu: {gpu}",
        "# status: written by `ixtune init`, not yet run",
        "# Missing keys have their defaults; `ixtune recipes schema` and the recipe.yaml of the run list all keys.",
    ]
    return "\n".join([*head, *_yaml(_tree(chosen))]) + "\n"


def _yaml(tree: Mapping[str, Any]) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from ("", f"{key}:", *(f"  {name}: {_scalar(one)}" for name, one in value.items()))
        else:
            yield from ("", f"{key}: {_scalar(value)}")


def _data_config(data: Data, out: Path) -> str:
    """Return the data config as YAML, with one source."""
    source, opened = data.opened.source, data.opened
    on_hub = opened.container is Container.HUB
    entry: dict[str, str] = {"path": _scalar(source.path if on_hub else _seen_from(Path(source.path), out))}
    if on_hub:
        entry["format"] = "hub"
    if source.image_root is not None:
        entry["image_root"] = _scalar(_seen_from(source.image_root, out))
    if source.columns:
        entry["columns"] = "{" + ", ".join(f"{ours}: {_scalar(theirs)}" for ours, theirs in source.columns) + "}"
    lines = [f"    {key}: {value}" for key, value in entry.items()]
    return "\n".join(
        [
            f"# {opened.detected}",
            "# Paths are relative to this file. More sources, weights and system prompts: `ixtune prepare --help`.",
            "sources:",
            "  - " + lines[0].strip(),
            *lines[1:],
            "",
        ]
    )


def _seen_from(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())


def _scalar(value: Any) -> str:
    """Return a value as YAML: JSON, except for words that need no quotes."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in ("true", "false", "null")
    return value if plain else json.dumps(value, ensure_ascii=False)


def _commands(
    data: Data, chosen: Mapping[str, Any], gpu_gib: float, task: str, out: Path, member: Member
) -> Iterator[str]:
    prepared, recipe = out / "prepared", str(out / RECIPE)
    usual = member.like(TASKS[task].hd_num)
    hd_num = usual if gpu_gib else min(usual, 4)
    validated = "data.validation" in chosen
    # records longer than a pack get smaller images, so that none is rejected
    limit = ["--max-tokens", chosen["training.pack_tokens"], "--over-length", "lower"]
    split = ["--val-fraction", data.validation_share] if validated else []
    base = [] if chosen["base"] == HUB_ID else ["--base", chosen["base"]]
    yield _line("prepare", out / DATA_CONFIG, "--out", prepared, "--hd-num", hd_num, *limit, *split, *base)
    yield _line("plan", recipe, *(["--gpu-gib", f"{gpu_gib:g}"] if gpu_gib else []))
    yield _line("train", recipe, "--dry-run")
    yield _line("train", recipe)
    yield _line("merge", out / "run", "--out", out / "merged")


def _line(*words: object) -> str:
    return shlex.join(["ixtune", *map(str, words)])
