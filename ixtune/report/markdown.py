"""Write the report as Markdown, without images and the table of all answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from ixtune.report import verdict
from ixtune.report.sections import cost_lines, data_lines, loss_of, with_interval

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!&~])")
_MOST = 400  # characters of a text from the data


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the text of report.md."""
    return "\n".join(_lines(figures)) + "\n"


def plain(value: object) -> str:
    """Return a text from the data on one line, escaped for Markdown and table cells."""
    words = " ".join(str(value).split())
    words = words if len(words) <= _MOST else f"{words[: _MOST - 1]}…"
    return _SPECIAL.sub(r"\\\1", words)


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    runs, evaluations = figures["runs"], figures["evaluations"]
    yield f"# {plain(' and '.join(run['title'] for run in runs))}"
    yield from (f"\n{plain(run['about'])}" for run in runs if run["about"])
    yield f"\nA report by ixtune {plain(figures['ixtune_version'])}."
    if figures["missing"]:
        yield "\n## Not in this report\n"
        yield from (f"- {plain(one)}" for one in figures["missing"])
    if not figures["comparable"]:
        yield "\nThe runs were evaluated on different data: compare with care."
    for one in evaluations:
        yield from _evaluation(one)
    if len(runs) > 1:
        names = [run["name"] for run in runs]
        yield "\n## Where the recipes differ\n"
        rows = [[one["key"], *(one["values"][name] for name in names)] for one in figures["recipe_differences"]]
        yield from _table(["key", *names], rows) if rows else ["The recipes are the same."]
    for run in runs:
        yield from _run(run, f" of {plain(run['name'])}" if len(runs) > 1 else "")


def _evaluation(one: Mapping[str, Any]) -> Iterator[str]:
    of = f" of {plain(one['name'])}" if one["name"] else ""
    yield f"\n## Scores{of}\n"
    yield from (f"- {plain(found['text'])}" for found in one["verdicts"])
    yield from (f"- {plain(note)}" for note in one["notes"])
    names = list(dict.fromkeys(score for result in one["results"] for score in result["scores"]))
    measured = any(map(loss_of, one["results"]))
    rows = [
        [
            result["name"],
            *(with_interval(result["scores"].get(name)) for name in names),
            *([loss_of(result)] if measured else []),
        ]
        for result in one["results"]
    ]
    yield f"\n{one['records']:,} records of {plain(one['data'])}; 95 % intervals in brackets.\n"
    yield from _table(["answers of", *map(verdict.title, names), *(["loss"] if measured else [])], rows)
    models = [result["name"] for result in one["results"] if result["kind"] == "model"]
    for dimension in one["breakdown"]:
        yield f"\n### By {plain(dimension['dimension'])}\n"
        yield from _table(
            ["group", "n", *models],
            [
                [group["group"], f"{group['n']:,}", *(with_interval(group["results"].get(name)) for name in models)]
                for group in dimension["groups"]
            ],
        )
    for key, heading, count in (
        ("regressions", "Worst regressions", one["worse"]),
        ("gains", "Best gains", one["better"]),
    ):
        if len(models) > 1:
            yield f"\n### {heading}\n\n{len(one[key])} of {count:,}. {plain(verdict.only_last(models))}\n"
            yield from _table(
                ["id", "question", "reference", models[0], models[-1]],
                [
                    [
                        example["id"],
                        example["question"],
                        " / ".join(map(str, example["references"])),
                        *(example["answers"].get(name, "") for name in (models[0], models[-1])),
                    ]
                    for example in one[key]
                ],
            )


def _run(run: Mapping[str, Any], of: str) -> Iterator[str]:
    for heading, pairs in (
        ("Cost", list(cost_lines(run["cost"])) if run["cost"] else []),
        ("Data", [(f"{path}: {key}", found) for path, one in run["data"].items() for key, found in data_lines(one)]),
        ("Environment", list(run["environment"].items())),
    ):
        yield f"\n## {heading}{of}\n"
        yield from _table(["what", "value"], pairs) if pairs else ["Not found."]
    yield f"\n## Recipe{of}\n"
    if run["recipe"]:
        # indented, so that backticks in a value do not end the block
        yield from (f"    {line}" for line in yaml.safe_dump(run["recipe"], sort_keys=False).splitlines())
    else:
        yield "Not found."


def _table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield _cells(columns)
    yield _cells(["---"] * len(columns), escape=False)
    yield from map(_cells, rows)


def _cells(cells: Sequence[object], *, escape: bool = True) -> str:
    return "| " + " | ".join(plain(cell) if escape else str(cell) for cell in cells) + " |"
