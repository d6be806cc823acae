"""Write the report as one self-contained HTML file, whatever the data contain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.pages.kit import render
from ixtune.report import answers, sections, verdict
from ixtune.report.images import Album


def page(figures: Mapping[str, Any], contents: Sequence[Mapping[str, Any]]) -> str:
    """Return the whole page.

    Args:
        figures: From `figures.figures`.
        contents: The evaluations with their answers, as many as `figures` has.
    """
    runs, evaluations = figures["runs"], figures["evaluations"]
    album = Album()
    parts = [
        {
            **one,
            "score": verdict.title(one["main_score"]),
            "cards": sections.cards(one),
            "breakdown": sections.breakdown(one),
            "examples": answers.examples(one, content, album),
            "listing": answers.listing(content),
            "models": sections.models(one),
        }
        for one, content in zip(evaluations, contents, strict=True)
    ]
    return render(
        __package__,
        "report.html",
        style=("page.css", "report.css"),
        script=("listing.js",),
        name=" and ".join(run["title"] for run in runs),
        about=[run["about"] for run in runs if run["about"]],
        version=figures["ixtune_version"],
        missing=figures["missing"],
        comparable=figures["comparable"],
        evaluations=parts,
        scores=sections.scores(evaluations),
        differences=sections.differences(figures["recipe_differences"], runs),
        chosen_steps=sections.chosen_steps(runs),
        extensions=sections.extensions(runs),
        curves=sections.curves(runs),
        runs=[sections.details(run) for run in runs],
    )
