"""The preview's page: one HTML file that needs nothing but itself, whatever stands in the data.

Everything from the data is escaped. Should an escape be forgotten once, the page's policy still lets no script run
but its own, and no address be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.data.preview import summary, tables
from ixtune.data.preview.frame import document, shared
from ixtune.data.preview.markup import text

_VIEWER = """<dialog id="viewer" aria-labelledby="viewer-title"><header>
<h2 id="viewer-title" dir="auto"></h2>
<button type="button" data-step="-1" aria-label="previous image">←</button>
<button type="button" data-step="1" aria-label="next image">→</button>
<a data-file>PNG</a>
<button type="button" data-close aria-label="close">✕</button>
</header><div class="stage" tabindex="-1" autofocus></div></dialog>"""


def page(
    name: str,
    manifests: Mapping[str, Mapping[str, Any]],
    records: Sequence[tables.Listed],
    rejects: Sequence[Mapping[str, Any]],
) -> str:
    """The whole page.

    Args:
        name: What to call the set.
        manifests: Of the one set under "", or of the sets by split.
        records: The rows of its table.
        rejects: The first rows of rejects.jsonl.
    """
    first = next(iter(manifests.values()))
    total = sum(one["records"]["rows"] for one in manifests.values())
    body = (
        f'<header><h1 dir="auto">{text(name, 200)}</h1><p class="quiet">What <code>ixtune preview</code> '
        f"saw in a set that ixtune {text(first.get('ixtune_version'))} prepared.</p></header>",
        summary.headline(manifests),
        summary.made_of(first),
        summary.statistics(manifests),
        tables.records(records, total),
        tables.rejects(rejects, first["records"]["rejected"]),
        _VIEWER,
    )
    return document(f"{text(name, 200)}: preview", body, shared("page.css"), shared("listing.js", "page.js"))
