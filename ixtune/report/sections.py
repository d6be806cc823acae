"""The parts of the page above the answers: headline, verdicts, scores, curves, and what the runs were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from ixtune.data.preview.markup import definitions, table, text
from ixtune.report import charts, verdict
from ixtune.report.curves import title as curve_title

_TOGETHER = (("Loss", ("loss", "validation_loss")),)


def headline(evaluation: Mapping[str, Any]) -> str:
    """The main score of every model and control in large print, and what it says in words."""
    score = evaluation["main_score"]
    cards = "".join(_card(one, score, number) for number, one in enumerate(evaluation["results"]))
    told = "".join(f'<li class="{one["kind"]}">{text(one["text"])}</li>' for one in evaluation["verdicts"])
    return (
        f'<section class="cards" aria-label="Headline numbers">{cards}</section>'
        f'<ul class="verdicts" aria-label="What the figures say">{told}</ul>'
    )


def _card(result: Mapping[str, Any], score: str, number: int) -> str:
    found = result["scores"].get(score)
    kind = "card control" if result["kind"] == "control" else f"card c{number % charts.COLOURS}"
    large = "-" if found is None else f"{found['value']:.3f}"
    small = "not scored" if found is None else f"{found['low']:.3f} to {found['high']:.3f}"
    return (
        f'<div class="{kind}"><h3>{text(result["name"], 80)}</h3><p class="large">{large}</p>'
        f'<p class="quiet">{text(verdict.title(score))}, 95 %: {small}</p></div>'
    )


def scores(evaluations: Sequence[Mapping[str, Any]], *, comparable: bool) -> str:
    """One table of all scores of all results of all evaluations."""
    several = len(evaluations) > 1
    names = list(dict.fromkeys(score for one in evaluations for result in one["results"] for score in result["scores"]))
    columns = [*(["run"] if several else []), "answers of", *map(verdict.title, names), "loss"]
    rows = [
        [
            *([one["name"]] if several else []),
            result["name"],
            *(with_interval(result["scores"].get(score)) for score in names),
            "" if result.get("loss") is None else f"{result['loss']:.3f}",
        ]
        for one in evaluations
        for result in one["results"]
    ]
    note = "" if comparable else '<p class="tag warn">The runs were evaluated on different data: compare with care.</p>'
    return (
        f"<section><h2>Scores</h2>{note}{table(columns, rows, 2 if several else 1)}"
        '<p class="quiet">In brackets: 95 % intervals, by resampling images with their questions.</p></section>'
    )


def with_interval(found: Mapping[str, float] | None) -> str:
    """A score such as `0.875 [0.830, 0.910]`."""
    return "" if found is None else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def breakdown(evaluation: Mapping[str, Any]) -> str:
    """Where each model is good and where not: a chart and its numbers for each dimension."""
    names = [one["name"] for one in evaluation["results"] if one["kind"] == "model"]
    if not evaluation["breakdown"]:
        return (
            '<section><h2>Where it is good</h2><p class="quiet">All records are alike in form, size, crops and '
            "length of the answer: there is nothing to divide by.</p></section>"
        )
    made = "".join(_dimension(one, names) for one in evaluation["breakdown"])
    score = text(verdict.title(evaluation["main_score"]))
    return (
        "<section><h2>Where it is good</h2>"
        f'<p class="quiet">{score}, as the mean over the answers, by</p><div class="charts">{made}</div></section>'
    )


def _dimension(dimension: Mapping[str, Any], names: Sequence[str]) -> str:
    rows = [
        [str(one["group"]), f"{one['n']:,}", *(with_interval(one["results"].get(name)) for name in names)]
        for one in dimension["groups"]
    ]
    numbers = f"<details><summary>numbers</summary>{table(['group', 'n', *names], rows)}</details>"
    name = str(dimension["dimension"])
    return f"<div>{charts.interval_chart(name.capitalize(), dimension['groups'], names)}{numbers}</div>"


def curves(runs: Sequence[Mapping[str, Any]]) -> str:
    """The learning curves, of several runs one over the other."""
    names = list(dict.fromkeys(name for run in runs for name in run["curves"]))
    if not names:
        return '<section><h2>Learning curves</h2><p class="quiet">No metrics were found.</p></section>'
    made = []
    if len(runs) == 1:
        for title, together in _TOGETHER:
            shown = [name for name in together if name in names]
            if len(shown) > 1:
                lines = {curve_title(name): runs[0]["curves"][name] for name in shown}
                made.append(charts.line_chart(f"{title}: training and validation", lines))
                names = [name for name in names if name not in shown]
    for name in names:
        lines = {run["name"]: run["curves"][name] for run in runs if name in run["curves"]}
        made.append(charts.line_chart(curve_title(name), lines))
    notes = "".join(_which_step(run, several=len(runs) > 1) for run in runs)
    return f'<section><h2>Learning curves</h2>{notes}<div class="charts">{"".join(made)}</div></section>'


def _which_step(run: Mapping[str, Any], *, several: bool) -> str:
    """Which point of the curves the adapter is, where it was chosen by one of them."""
    adapter = run["adapter"]
    if not adapter.get("best_by"):
        return ""
    of = f" of {text(run['name'], 200)}" if several else ""
    by = "loss" if adapter["best_by"] == "loss" else text(verdict.title(adapter["best_by"]))
    return f'<p class="quiet">The adapter{of} is of step {adapter["steps"]:,}, the best by {by} on validation.</p>'


def differences(found: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    """The keys in which recipes differ."""
    if len(runs) < 2:
        return ""
    names = [run["name"] for run in runs]
    rows = [[one["key"], *(str(one["values"][name]) for name in names)] for one in found]
    body = table(["key", *names], rows) if rows else '<p class="quiet">The recipes are the same.</p>'
    return f"<section><h2>Where the recipes differ</h2>{body}</section>"


def made_of(runs: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Cost, data, environment and recipe of every run."""
    return "".join(_run(run, several=len(runs) > 1) for run in runs) + "".join(map(_answering, evaluations))


def _run(run: Mapping[str, Any], *, several: bool) -> str:
    of = f" of {text(run['name'], 200)}" if several else ""
    recipe = yaml.safe_dump(run["recipe"], sort_keys=False, allow_unicode=True) if run["recipe"] else ""
    parts = [
        f"<h2>Cost{of}</h2>"
        + (definitions(cost_lines(run["cost"])) if run["cost"] else _none("No metrics were found.")),
        f"<h2>Data{of}</h2>" + ("".join(map(_set, run["data"].items())) or _none("No manifest was found.")),
        f"<h2>Environment{of}</h2>"
        + (
            definitions((key, text(value)) for key, value in run["environment"].items())
            if run["environment"]
            else _none("No adapter record was found.")
        ),
        f"<h2>Recipe{of}</h2>"
        + (
            f"<details><summary>as it was resolved</summary><pre>{text(recipe, 20000)}</pre></details>"
            if recipe
            else _none("No recipe was found.")
        ),
    ]
    return "".join(f"<section>{part}</section>" for part in parts)


def _none(words: str) -> str:
    return f'<p class="quiet">{words}</p>'


def cost_lines(cost: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Cost in words; plain numbers, so that they are HTML as they are."""
    seconds = cost["seconds"]
    yield "steps", f"{cost['steps']:,}"
    if seconds is not None:
        yield "time", f"{seconds:,.0f} s" + (f" ({seconds / 3600:.1f} h)" if seconds >= 3600 else "")
    for key, name in (("tokens", "tokens trained on"), ("supervised_tokens", "of these supervised")):
        if cost[key] is not None:
            yield name, f"{cost[key]:,}"
    yield "tokens per second", f"{cost['tokens_per_s']:,.1f} (median)"
    if cost["peak_memory_gib"] is not None:
        yield "peak memory", f"{cost['peak_memory_gib']:.2f} GiB"
    if cost["resumed"]:
        yield "resumed", f"{cost['resumed']} times"
    if cost["out_of_memory"]:
        yield "packs cut for want of memory", f"{cost['out_of_memory']:,}"


def _set(item: tuple[str, Mapping[str, Any]]) -> str:
    path, one = item
    return definitions([("prepared set", f"<code>{text(path)}</code>"), *((k, text(v)) for k, v in data_lines(one))])


def data_lines(one: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """A manifest in words, as plain text."""
    yield "records", f"{one['records']:,}" + (f", {one['rejected']:,} rejected" if one["rejected"] else "")
    shown = f"shown {one['pictures_shown']:,} times"
    yield "pictures", shown if one["pictures"] is None else f"{one['pictures']:,}, {shown}"
    if one["tokens"]:
        yield (
            "tokens",
            f"{one['tokens']:,}, {one['image_tokens']:,} of images, {one['supervised_tokens']:,} supervised",
        )
    yield "hd_num", "each source's own" if one["hd_num"] is None else str(one["hd_num"])
    yield "made from", ", ".join(one["sources"])


def _answering(evaluation: Mapping[str, Any]) -> str:
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
    columns = ["model", "base", "adapter", "quantize", "answering took", "answer tokens"]
    head = definitions(
        [
            ("data", f"<code>{text(evaluation['data'])}</code>"),
            ("SHA-256 of its manifest or file", f"<code>{text(evaluation['content_sha256'])}</code>"),
            ("records", f"{evaluation['records']:,}"),
            ("file", f"<code>{text(evaluation['file'])}</code>"),
        ]
    )
    of = f" of {text(evaluation['name'], 200)}" if evaluation["name"] else ""
    return f"<section><h2>Evaluation{of}</h2>{head}{table(columns, rows, 4)}</section>"


def missing(found: Sequence[str]) -> str:
    """What could not be shown."""
    if not found:
        return ""
    items = "".join(f"<li>{text(one)}</li>" for one in found)
    return f'<section class="missing"><h2>Not in this report</h2><ul>{items}</ul></section>'
