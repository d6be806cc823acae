"""Values of the page's parts above the answers: headline, scores, curves, and how the runs were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from ixtune.pages.charts import COLORS, Chart, interval_chart, line_chart
from ixtune.report import verdict
from ixtune.report.curves import title as curve_title

Table = tuple[list[str], list[list[str]]]
"""Columns and rows."""
_TOGETHER = (("Loss", ("loss", "validation_loss")),)


def cards(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return title, large print, small print and class of the main score of every model and control."""
    return [_card(one, evaluation["main_score"], number) for number, one in enumerate(evaluation["results"])]


def _card(result: Mapping[str, Any], score: str, number: int) -> tuple[str, str, str, str]:
    found = result["scores"].get(score)
    kind = "card control" if result["kind"] == "control" else f"card c{number % COLORS}"
    large = "-" if found is None else f"{found['value']:.3f}"
    small = "not scored" if found is None else f"{found['low']:.3f} to {found['high']:.3f}"
    return result["name"], large, f"{verdict.title(score)}, 95 %: {small}", kind


def scores(evaluations: Sequence[Mapping[str, Any]]) -> Table:
    """Return one table of all scores of all results of all evaluations."""
    several = len(evaluations) > 1
    names = list(dict.fromkeys(score for one in evaluations for result in one["results"] for score in result["scores"]))
    measured = any(loss_of(result) for one in evaluations for result in one["results"])
    columns = [
        *(["run"] if several else []), "answers of", *map(verdict.title, names), *(["loss"] if measured else [])
    ]  # fmt: skip
    rows = [
        [
            *([one["name"]] if several else []),
            result["name"],
            *(with_interval(result["scores"].get(score)) for score in names),
            *([loss_of(result)] if measured else []),
        ]
        for one in evaluations
        for result in one["results"]
    ]
    return columns, rows


def loss_of(result: Mapping[str, Any]) -> str:
    """Return the loss of a result; empty if it was not measured."""
    return "" if result.get("loss") is None else f"{result['loss']:.3f}"


def with_interval(found: Mapping[str, float] | None) -> str:
    """Return a score such as `0.875 [0.830, 0.910]`."""
    return "" if found is None else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def breakdown(evaluation: Mapping[str, Any]) -> list[tuple[Chart, Table]]:
    """Return a chart and its numbers for each dimension."""
    names = [one["name"] for one in evaluation["results"] if one["kind"] == "model"]
    made = []
    for dimension in evaluation["breakdown"]:
        groups = dimension["groups"]
        rows = [
            [str(one["group"]), f"{one['n']:,}", *(with_interval(one["results"].get(name)) for name in names)]
            for one in groups
        ]
        chart = interval_chart(str(dimension["dimension"]).capitalize(), groups, names)
        made.append((chart, (["group", "n", *names], rows)))
    return made


def curves(runs: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the learning curves; those of several runs share a chart."""
    names = list(dict.fromkeys(name for run in runs for name in run["curves"]))
    made = []
    seams = {one["step"]: _extension(one) for run in runs for one in run.get("extensions", ())}
    if len(runs) == 1:
        for title, together in _TOGETHER:
            shown = [name for name in together if name in names]
            if len(shown) > 1:
                lines = {curve_title(name): runs[0]["curves"][name] for name in shown}
                made.append(line_chart(f"{title}: training and validation", lines, seams))
                names = [name for name in names if name not in shown]
    for name in names:
        lines = {run["name"]: run["curves"][name] for run in runs if name in run["curves"]}
        made.append(line_chart(curve_title(name), lines, seams))
    return made


def extensions(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each time a run was extended."""
    several = len(runs) > 1
    return [
        f"{run['name']}: {_extension(one)}" if several else _extension(one)
        for run in runs
        for one in run.get("extensions", ())
    ]


def _extension(one: Mapping[str, Any]) -> str:
    return (
        f"Extended at step {one['step']:,}: {one['steps_before']:,} optimizer steps became {one['steps_after']:,}, "
        "and the learning rate changes to the schedule of the longer run."
    )


def chosen_steps(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each adapter that was chosen by a measurement on validation."""
    found = []
    for run in runs:
        adapter = run["adapter"]
        if adapter.get("best_by"):
            of = f" of {run['name']}" if len(runs) > 1 else ""
            by = "loss" if adapter["best_by"] == "loss" else verdict.title(adapter["best_by"])
            found.append(f"The adapter{of} is from step {adapter['steps']:,}, the best by {by} on validation.")
    return found


def differences(found: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> Table:
    """Return the keys in which recipes differ."""
    names = [run["name"] for run in runs]
    return ["key", *names], [[one["key"], *(str(one["values"][name]) for name in names)] for one in found]


def details(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return cost, data, environment and recipe of a run as text."""
    return {
        "name": run["name"],
        "cost": list(cost_lines(run["cost"])) if run["cost"] else [],
        "data": [(path, list(data_lines(one))) for path, one in run["data"].items()],
        "environment": list(run["environment"].items()),
        "recipe": yaml.safe_dump(run["recipe"], sort_keys=False, allow_unicode=True) if run["recipe"] else "",
    }


def cost_lines(cost: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield name and value of each part of the cost."""
    seconds = cost["seconds"]
    yield "steps", f"{cost['steps']:,}"
    if seconds is not None:
        yield "time", f"{seconds:,.0f} s" + (f" ({seconds / 3600:.1f} h)" if seconds >= 3600 else "")
    for key, name in (("tokens", "tokens trained on"), ("supervised_tokens", "of these supervised")):
        if cost[key] is not None:
            yield name, f"{cost[key]:,}"
    if cost["computed_tokens"] not in (None, cost["tokens"]):  # records share prefixes
        share = cost["computed_tokens"] / cost["tokens"]
        yield "tokens computed for them", f"{cost['computed_tokens']:,} ({share:.0%}): common prefixes once"
        yield "computed tokens per second", f"{cost['computed_tokens_per_s']:,.1f} (median)"
    yield "tokens per second", f"{cost['tokens_per_s']:,.1f} (median)"
    if cost["peak_memory_gib"] is not None:
        yield "peak memory", f"{cost['peak_memory_gib']:.2f} GiB"
    if cost["resumed"]:
        yield "resumed", f"{cost['resumed']} times"
    if cost["out_of_memory"]:
        yield "packs split after running out of memory", f"{cost['out_of_memory']:,}"


def data_lines(one: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield name and value of each figure of a manifest."""
    yield "records", f"{one['records']:,}" + (f", {one['rejected']:,} rejected" if one["rejected"] else "")
    shown = f"shown {one['pictures_shown']:,} times"
    yield "images", shown if one["pictures"] is None else f"{one['pictures']:,}, {shown}"
    if one["tokens"]:
        of_images, supervised = one["image_tokens"], one["supervised_tokens"]
        yield "tokens", f"{one['tokens']:,}, {of_images:,} of images, {supervised:,} supervised"
    yield "hd_num", "each source's own" if one["hd_num"] is None else str(one["hd_num"])
    yield "made from", ", ".join(one["sources"])


def models(evaluation: Mapping[str, Any]) -> Table:
    """Return a table of the evaluated models and what their answers cost."""
    rows = [
        [
            str(one.get("name")),
            str(one.get("base")),
            str(one.get("adapter") or ""),
            str(one.get("quantize") or ""),
            "" if one.get("generate_s") is None else f"{one['generate_s']:,.1f} s",
            "" if one.get("answer_tokens") is None else f"{one['answer_tokens']:,}",
        ]
        for one in evaluation["models"]
    ]
    return ["model", "base", "adapter", "quantize", "time to answer", "answer tokens"], rows
