"""Write a data config and a recipe for new data, and list the commands that use them."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ixtune.base import HUB_ID, NANO, shipped
from ixtune.checkpoint.member import member_for
from ixtune.checkpoint.sizes import Sizes
from ixtune.data.rejects import RecordError
from ixtune.data.schemas.fields import shown
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources.data_config import columns_of
from ixtune.data.sources.source import Container, Source
from ixtune.data.sources.source_loader import Opened, open_source
from ixtune.errors import IxtuneError, UsageError, choice
from ixtune.family import UNSUPPORTED, Member, member_named, member_of_hub_id
from ixtune.files import atomic_write_text
from ixtune.planning.advice import advise
from ixtune.planning.gpus import Machine
from ixtune.planning.plan import make_plan
from ixtune.planning.record_mixes import records_of
from ixtune.recipe import recipe as recipes

DATA_CONFIG, RECIPE = "data.yaml", "recipe.yaml"

_PLAIN = re.compile(r"(?:\.{0,2}/)*[A-Za-z_][\w./-]*", re.ASCII)
_COUNTED = 1000  # records; with more, a validation split is never too small
_LOOKED_AT, _FOLDERS_TRIED = 20, 1000  # records whose images are searched, and folders tried
_LEAST_FOR_VALIDATION = 20
_ROUND_TOKENS = 512
_SMALL_GIB, _LARGE_GIB = 20.0, 60.0  # less is a 16 GB card, more is an 80 GB card


@dataclass(frozen=True, slots=True)
class Task:
    """Settings that depend on the task.

    Attributes:
        summary: Short description.
        hd_num: Maximum number of 336x336 crops per image; of larger crops, as many as cover the same pixels.
        pack_tokens: Tokens per micro-batch on a card with 24 GB.
        small_pack_tokens: Tokens per micro-batch on a smaller card: the longest usual record.
        epochs: Passes over the data.
        scores: Scores of answers to validation records, the main one first.
    """

    summary: str
    hd_num: int
    pack_tokens: int
    small_pack_tokens: int
    epochs: int = 1
    scores: tuple[str, ...] = ("exact_match",)


TASKS: Mapping[str, Task] = {
    "documents": Task("questions about scanned pages", 25, 10240, 4096, scores=("anls", "exact_match")),
    "charts": Task("values read from plots", 16, 8192, 4096, 2, ("relaxed_accuracy", "exact_match")),
    "receipts": Task("all fields of a form as JSON", 16, 8192, 4096, 3, ("token_f1", "exact_match")),
    "screenshots": Task("questions about screens", 25, 11264, 4096, scores=("anls", "exact_match")),
    "multi-image": Task("several images in one conversation", 9, 8192, 8192),
}
"""Tasks by the name of the mix that they are planned on."""


@dataclass(frozen=True, slots=True)
class Data:
    """Readable source of records.

    Attributes:
        opened: The source.
        records: Number of records, at most `_COUNTED`.
        largest_group: Number of records that share the most common image.
    """

    opened: Opened
    records: int
    largest_group: int = 1

    @property
    def validation_share(self) -> float | None:
        """Return the fraction for validation; None if there are too few records or too many share one image."""
        share = 0.05 if self.records >= _COUNTED else 0.1
        # records that share an image stay on the same side
        can_be_split = self.records >= _LEAST_FOR_VALIDATION and 2 * self.largest_group <= share * self.records
        return share if can_be_split else None

    @property
    def counted(self) -> str:
        """Return the number of records in words."""
        return f"{self.records:,} records" if self.records < _COUNTED else f"{_COUNTED:,} records or more"


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


def look(path: str, image_root: Path | None = None, columns: str = "") -> Data:
    """Open a source, detect its form, and count its records.

    Args:
        path: File, folder or hub dataset.
        image_root: Folder that image paths are relative to.
        columns: Column names of a table, as `ours=theirs,...`.

    Raises:
        IxtuneError: The source cannot be read, or its images are not found; the message says why.
    """
    source = Source(path=path, image_root=image_root, columns=columns_of(columns))
    opened = open_source(source)
    if root := _other_root(opened):
        opened = open_source(replace(source, image_root=root))
    records, showing = 0, Counter[str | bytes | None]()
    for entry in islice(opened.entries(), _COUNTED):
        records += 1
        with suppress(RecordError):
            images = record_of(entry, opened.reading).images
            showing.update({image.path or image.content for image in images})
    return Data(opened, records, max(showing.values(), default=1))


def _other_root(opened: Opened) -> Path | None:
    """Return the folder that the first image paths are relative to, if it is not the default one.

    Raises:
        UsageError: No image is found. If only some are missing, `ixtune prepare` reports them.
    """
    root, paths = opened.image_root, []
    for entry in islice(opened.entries(), _LOOKED_AT):
        with suppress(RecordError):
            paths += [one.path for one in record_of(entry, opened.reading).images if one.path is not None]
    if root is None or not paths or any((root / path).is_file() for path in paths):
        return None
    below = [folder for folder in islice(root.rglob("*/"), _FOLDERS_TRIED) if not opened.source.image_root]
    for folder in sorted(below, key=lambda folder: len(folder.parts)):
        if all((folder / path).is_file() for path in paths):
            return folder
    raise UsageError(
        f"no image found: {shown(paths[0])}",
        where=str(root),
        hint="pass --image-root with the folder that the image paths are relative to",
    )


def task_named(name: str) -> Task:
    """Return the task with this name.

    Raises:
        UsageError: There is none.
    """
    if name in UNSUPPORTED:
        raise UsageError(UNSUPPORTED[name], where=name, hint=f"choose one of {', '.join(TASKS)}")
    if name not in TASKS:
        raise UsageError("unknown task", where=name, hint=choice(name, TASKS))
    return TASKS[name]


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
    if not validated and data.records >= _LEAST_FOR_VALIDATION:
        notes = [
            f"no validation split: {data.largest_group} of {data.records:,} records share one image, "
            "and such records stay on the same side"
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
