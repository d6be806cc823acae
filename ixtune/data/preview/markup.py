"""HTML from texts that may hold anything."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from html import escape

MAX_TEXT = 2000
"""Characters of one text from the data; a page with a thousand records must still open on a phone."""


def text(value: object, limit: int = MAX_TEXT) -> str:
    """A value as HTML, inert in an element and in a quoted attribute; what is too long is cut, and says so."""
    words = str(value)
    if len(words) > limit:
        words = f"{words[:limit]}… ({len(words) - limit:,} more characters)"
    return escape(words)


def line(value: object, limit: int) -> str:
    """A value on one line as HTML, cut with an ellipsis."""
    words = " ".join(str(value)[: 4 * limit].split())
    return escape(words if len(words) <= limit else f"{words[: limit - 1]}…")


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms, which are plain text, and what they are, which is HTML already."""
    return f"<dl>{''.join(f'<div><dt>{escape(term)}</dt><dd>{value}</dd></div>' for term, value in pairs)}</dl>"


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], numbers_from: int = 1) -> str:
    """A small table of plain texts; columns from `numbers_from` on are set to the right."""

    def cells(tag: str, texts: Iterable[str]) -> str:
        kinds = (' class="number"' if index >= numbers_from else "" for index in itertools.count())
        return "".join(f"<{tag}{kind}>{text(cell)}</{tag}>" for kind, cell in zip(kinds, texts, strict=False))

    head = cells("th", columns)
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="small"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
