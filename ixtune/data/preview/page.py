"""The preview's page: one HTML file that needs nothing but itself, whatever stands in the data.

Everything from the data is escaped. Should an escape be forgotten once, the page's policy still lets no script run
but its own, and no address be asked.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ixtune.data.preview import summary, tables
from ixtune.data.preview.markup import text

_VIEWER = """<dialog id="viewer" aria-labelledby="viewer-title"><header>
<h2 id="viewer-title" dir="auto"></h2>
<button type="button" data-step="-1" aria-label="previous picture">←</button>
<button type="button" data-step="1" aria-label="next picture">→</button>
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
    style, script = (files(__package__).joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
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
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(name, 200)}: preview</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{chr(10).join(body)}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _hash(content: str) -> str:
    """How a content policy names an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
