"""The report's page: one HTML file that needs nothing but itself, whatever stands in the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ixtune.data.preview.frame import document, shared
from ixtune.data.preview.markup import text
from ixtune.report import answers, sections
from ixtune.report.images import Album


def page(figures: Mapping[str, Any], contents: Sequence[Mapping[str, Any]]) -> str:
    """The whole page.

    Args:
        figures: Of `figures.figures`.
        contents: The evaluations with their answers, as many as `figures` has.
    """
    runs, evaluations = figures["runs"], figures["evaluations"]
    name = " and ".join(run["title"] for run in runs)
    about = "".join(f'<p class="quiet" dir="auto">{text(run["about"], 1000)}</p>' for run in runs if run["about"])
    head = (
        f'<header><h1 dir="auto">{text(name, 200)}</h1>{about}<p class="quiet">Did it get better? A report by ixtune '
        f"{text(figures['ixtune_version'])}.</p></header>"
    )
    parts = [head, sections.missing(figures["missing"])]
    several = len(evaluations) > 1
    for one in evaluations:
        parts += [f'<h2 dir="auto">{text(one["name"], 200)}</h2>' if several else "", sections.headline(one)]
    if evaluations:
        parts.append(sections.scores(evaluations, comparable=figures["comparable"]))
    parts += [sections.differences(figures["recipe_differences"], runs), sections.curves(runs)]
    album = Album()
    for one, content in zip(evaluations, contents, strict=True):
        if several:
            parts.append(f'<h2 class="part" dir="auto">{text(one["name"], 200)}</h2>')
        parts += [sections.breakdown(one), answers.examples(one, content, album), answers.listing(content)]
    parts.append(sections.made_of(runs, evaluations))
    style = f"{shared('page.css')}\n{files(__package__).joinpath('report.css').read_text('utf-8')}"
    return document(f"{text(name, 200)}: report", parts, style, shared("listing.js"))
