"""Read a run folder and an evaluation, parts of which may be missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import MANIFEST, read_manifest
from ixtune.errors import IxtuneError, UsageError

EVALUATION = "evaluation.json"
EVALUATION_FORMAT = 2
_METRICS, RECIPE, _RECORD = "metrics.jsonl", "recipe.yaml", "adapter/ixtune.json"
_NEEDED = {"models": list, "results": list, "comparisons": list, "answers": list, "main_score": str, "records": int}


@dataclass(frozen=True, slots=True)
class Run:
    """Readable parts of a run folder.

    Attributes:
        name: Name in the report, distinct among the runs.
        folder: Where it is.
        recipe: The resolved recipe.
        lines: Lines of metrics.jsonl.
        record: The adapter's ixtune.json.
        manifests: Manifests of the recipe's prepared sets, by folder.
        images: Number of distinct images of these sets, by folder.
        missing: A sentence for each missing part.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    lines: tuple[Mapping[str, Any], ...]
    record: Mapping[str, Any]
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def read_run(folder: Path, name: str) -> Run:
    """Read a run folder.

    Raises:
        UsageError: It is not a run folder.
    """
    if not any((folder / part).is_file() for part in (_METRICS, RECIPE, _RECORD)):
        raise UsageError(
            "this is not a run folder: it has neither recipe.yaml nor metrics.jsonl",
            where=str(folder),
            hint="pass the `output` folder of `ixtune train`",
        )
    missing: list[str] = []
    recipe = _mapping(folder / RECIPE, "the recipe is not shown", missing)
    record = _mapping(folder / _RECORD, "versions and the adapter's origin are not shown", missing)
    lines = _lines(folder / _METRICS, missing)
    manifests, images = {}, {}
    data = recipe.get("data") or {}
    train = data.get("train") or []
    for path in [*([train] if isinstance(train, str) else train), *filter(None, [data.get("validation")])]:
        try:
            manifests[str(path)] = read_manifest(Path(path) / MANIFEST)
        except (IxtuneError, OSError) as error:
            why = error if isinstance(error, IxtuneError) else error.strerror
            missing.append(f"the manifest of {path} is not shown: {why}")
            continue
        try:
            images[str(path)] = store.count_images(Path(path))
        except IxtuneError as error:
            missing.append(f"the images of {path} are not counted: {error}")
    return Run(name, folder, recipe, lines, record, manifests, images, tuple(missing))


def distinct_names(folders: list[Path]) -> list[str]:
    """Return the names of the folders, with as many parents as needed to distinguish them."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)) and depth < max(map(len, parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read a file of `ixtune evaluate`.

    Raises:
        UsageError: It is missing or has another format.
    """
    again = "write it with `ixtune evaluate DATA --adapter RUN --out FILE`"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"the evaluation cannot be read: {error}", where=str(path), hint=again) from error
    version = found.get("format") if isinstance(found, dict) else None
    if version != EVALUATION_FORMAT:
        raise UsageError(f"the evaluation has format {version}, not {EVALUATION_FORMAT}", where=str(path), hint=again)
    wrong = [key for key, kind in _NEEDED.items() if not isinstance(found.get(key), kind)]
    if wrong or not found["models"] or not found["results"]:
        notes = [f"missing or wrong: {key}" for key in wrong]
        raise UsageError("the evaluation is damaged", where=str(path), hint=again, notes=notes)
    return dict(found)


def _mapping(path: Path, consequence: str, missing: list[str]) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file; if there is none, an empty one, and add a sentence to `missing`."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        missing.append(f"{consequence}: there is no {path}")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        missing.append(f"{consequence}: {path} cannot be read: {' '.join(str(error).split())}")
        return {}
    if not isinstance(found, dict):
        missing.append(f"{consequence}: {path} is damaged")
        return {}
    return found


def _lines(path: Path, missing: list[str]) -> tuple[Mapping[str, Any], ...]:
    if not path.is_file():
        missing.append(f"learning curves and cost are not shown: there is no {path}")
        return ()
    lines, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            broken += 1
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            lines.append(found)
        else:
            broken += 1
    if broken:
        missing.append(f"{broken} lines of {path} cannot be read, as after a crash; the curves omit them")
    return tuple(lines)
