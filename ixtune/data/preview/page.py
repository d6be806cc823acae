"""Render the preview's page: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.data.preview import summary, tables
from ixtune.pages.kit import render


def page(
    name: str,
    manifests: Mapping[str, Mapping[str, Any]],
    records: Sequence[tables.Listed],
    rejects: Sequence[Mapping[str, Any]],
) -> str:
    """Return the whole page.

    Args:
        name: Title of the set.
        manifests: Manifest of the only set under "", or manifests by split.
        records: The rows of its table.
        rejects: The first rows of rejects.jsonl.
    """
    first = next(iter(manifests.values()))
    total = sum(one["records"]["rows"] for one in manifests.values())
    return render(
        __package__,
        "preview.html",
        style=("page.css",),
        script=("listing.js", "preview.js"),
        name=name,
        version=first.get("ixtune_version"),
        cards=summary.cards(manifests),
        made_of=summary.made_of(first),
        statistics=summary.statistics(manifests),
        records=tables.records(records, total),
        rejects=tables.rejects(rejects, first["records"]["rejected"]),
    )
