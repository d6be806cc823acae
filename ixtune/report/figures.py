"""Collect the content of a report as one mapping, for report.json, the page and the Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ixtune
from ixtune.report import curves, verdict
from ixtune.report.groups import breakdown, value
from ixtune.report.run_reader import RECIPE, Run

FORMAT = 2
EXAMPLES = 6
"""Number of worst regressions and of best gains."""


def figures(
    runs: Sequence[Run], evaluations: Sequence[tuple[str, Path, Mapping[str, Any]]], absent: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the content of report.json.

    Args:
        runs: Runs in the order of the command line.
        evaluations: Name, file and content of each.
        absent: A sentence for each missing evaluation.
    """
    found = [judged(name, path, content) for name, path, content in evaluations]
    missing = [*absent, *((f"{run.name}: " if len(runs) > 1 else "") + one for run in runs for one in run.missing)]
    return {
        "format": FORMAT,
        "ixtune_version": ixtune.__version__,
        "runs": [_described(run) for run in runs],
        "evaluations": found,
        "comparable": len({one["content_sha256"] for one in found}) <= 1,
        "recipe_differences": recipe_differences(runs),
        "missing": missing,
    }


def judged(name: str, path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation without its answers: scores, comparisons, verdicts, notes and examples."""
    score = content["main_score"]
    models = [one["name"] for one in content["results"] if one["kind"] == "model"]
    return {
        "name": name,
        "file": str(path),
        "data": content.get("data"),
        "content_sha256": content.get("manifest_sha256") or content.get("file_sha256"),
        "records": content["records"],
        "main_score": score,
        "models": content["models"],
        "results": content["results"],
        "comparisons": content["comparisons"],
        "verdicts": verdict.verdicts(content),
        "notes": content.get("notes", []),
        "breakdown": breakdown(content["answers"], models, score),
        **_examples(content, models, score),
    }


def change(answer: Mapping[str, Any], first: str, last: str, score: str) -> float | None:
    """Return the improvement of an answer; negative if it became worse."""
    before, after = value(answer, first, score), value(answer, last, score)
    return None if before is None or after is None else verdict.sign(score) * (after - before)


def _examples(content: Mapping[str, Any], models: Sequence[str], score: str) -> dict[str, Any]:
    """Return the answers that changed most for worse and for better, from the first model to the last."""
    if len(models) < 2:
        return {"regressions": [], "gains": [], "worse": 0, "better": 0}
    answers = content["answers"]
    changes = [(change(one, models[0], models[-1], score) or 0.0, at) for at, one in enumerate(answers)]
    worse = sorted((one for one in changes if one[0] < 0), key=lambda one: (one[0], one[1]))
    better = sorted((one for one in changes if one[0] > 0), key=lambda one: (-one[0], one[1]))
    return {
        "regressions": [_example(answers, at, by) for by, at in worse[:EXAMPLES]],
        "gains": [_example(answers, at, by) for by, at in better[:EXAMPLES]],
        "worse": len(worse),
        "better": len(better),
    }


def _example(answers: Sequence[Mapping[str, Any]], at: int, by: float) -> dict[str, Any]:
    kept = ("id", "question", "references", "answers", "scores")
    return {"place": at, "change": by, **{key: answers[at][key] for key in kept}}


def _described(run: Run) -> dict[str, Any]:
    record = run.record
    return {
        "name": run.name,
        "title": _title(run),
        "about": _about(run),
        "folder": str(run.folder),
        "curves": curves.curves(run),
        "extensions": curves.extensions(run),
        "cost": cost(run),
        "recipe": run.recipe,
        "data": {path: _of_manifest(manifest, run.images.get(path)) for path, manifest in run.manifests.items()},
        "environment": {
            **{key: record[key] for key in ("ixtune_version", "base", "base_identity", "quantize") if key in record},
            **record.get("versions", {}),
        },
        "adapter": {
            key: record[key]
            for key in ("steps", "trained_steps", "best_by", "validation_loss", "validation_scores", "reproducible")
            if key in record
        },
    }


def _title(run: Run) -> str:
    """Return the last folders of the run's path, and its base."""
    base = run.recipe.get("base") or run.record.get("base")
    return "/".join(run.folder.resolve().parts[-2:]) + (f" on {base}" if base else "")


def _about(run: Run) -> str:
    """Describe the trained parts and the data in one line."""
    adapter, data = run.recipe.get("adapter") or {}, run.recipe.get("data") or {}
    train = data.get("train") or []
    facts = [
        f"recipe {run.folder / RECIPE}" if run.recipe else "",
        f"{adapter['variant']} of rank {adapter.get('rank')}" if adapter.get("variant") else "",
        f"projector {adapter['projector']}" if adapter.get("projector") else "",
        f"base in {adapter['quantize']}" if adapter.get("quantize") not in (None, "none") else "",
        f"trained on {', '.join([train] if isinstance(train, str) else map(str, train))}" if train else "",
    ]
    return "; ".join(filter(None, facts))


def cost(run: Run) -> dict[str, Any]:
    """Return the cost of a run, from its metrics.jsonl."""
    measured = [line for line in run.lines if "tokens_per_s" in line]
    if not measured:
        return {}
    events = [line["event"] for line in run.lines if "event" in line]
    last = measured[-1]
    return {
        "steps": last["step"],
        "seconds": last.get("seconds"),
        "tokens": last.get("tokens"),
        "computed_tokens": last.get("computed_tokens"),
        "supervised_tokens": last.get("supervised_tokens"),
        "tokens_per_s": round(statistics.median(line["tokens_per_s"] for line in measured), 1),
        "computed_tokens_per_s": round(
            statistics.median(line.get("computed_tokens_per_s", line["tokens_per_s"]) for line in measured), 1
        ),
        "peak_memory_gib": max((line["memory_gib"] for line in measured if "memory_gib" in line), default=None),
        "resumed": events.count("resumed"),
        "out_of_memory": events.count("out_of_memory"),
    }


def recipe_differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the keys in which recipes differ, with each run's value; the output folder does not count."""
    if len(runs) < 2:
        return []
    flat = [flattened(run.recipe) for run in runs]
    keys = sorted({key for one in flat for key in one} - {"output", "resume"})
    return [
        {"key": key, "values": {run.name: one.get(key) for run, one in zip(runs, flat, strict=True)}}
        for key in keys
        if any(one.get(key) != flat[0].get(key) for one in flat)
    ]


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree of mappings into `section.key` -> value."""
    found: dict[str, Any] = {}
    for key, one in tree.items():
        found |= flattened(one, f"{prefix}{key}.") if isinstance(one, Mapping) and one else {f"{prefix}{key}": one}
    return found


def _of_manifest(manifest: Mapping[str, Any], images: int | None) -> dict[str, Any]:
    tokens = manifest.get("tokens", {})
    return {
        "records": manifest["records"]["rows"],
        "rejected": manifest["records"].get("rejected"),
        "tokens": tokens.get("total"),
        "image_tokens": tokens.get("image"),
        "supervised_tokens": tokens.get("supervised"),
        "pictures": images,
        "pictures_shown": sum(manifest.get("grids", {}).values()),
        "hd_num": manifest.get("options", {}).get("hd_num"),
        "sources": [str(source.get("path")) for source in manifest.get("sources", [])],
        "tokenizer_sha256": manifest.get("tokenizer_sha256"),
    }
