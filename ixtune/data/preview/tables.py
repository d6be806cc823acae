"""The lower half of the preview's page: the records and the rejects, to be sorted and filtered."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ixtune.data.prepared.store import layout_of
from ixtune.data.preview.choice import Extreme
from ixtune.data.preview.drawing import bill, bill_of_record, padding_share, steps_of
from ixtune.data.preview.markup import MAX_TEXT, line, text
from ixtune.data.text.template import PLACEHOLDER
from ixtune.layout import PatchLayout

_MAX_LINE = 110  # characters of the question and of the answer that stand for a folded conversation
_MAX_NAME = 120  # of an id, a path, a cell
_MAX_CELL_LINES = 4  # images told one by one in a cell


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawn image.

    Attributes:
        file: The PNG, relative to the page.
        grid: The placed image with its crop grid, as WebP.
        size: Its width and height.
        view: The global view, as WebP.
    """

    file: str
    grid: bytes
    size: tuple[int, int]
    view: bytes


@dataclass(frozen=True, slots=True)
class Listed:
    """One record of the table.

    Attributes:
        split: Of which set, if there are several.
        number: Its place in that set, counted from 1.
        row: Its columns.
        drawings: Of some of its images the drawing, or why there is none.
        extremes: What it is the most of.
    """

    split: str
    number: int
    row: Mapping[str, Any]
    drawings: Mapping[int, Drawing | str]
    extremes: tuple[Extreme, ...] = ()

    @property
    def anchor(self) -> str:
        """Its name in the page."""
        return f"record-{self.split or 'set'}-{self.number}"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a listing: its heading, whether it holds numbers, and its class."""

    title: str
    number: bool = False
    kind: str = ""


def records(listed: Sequence[Listed], total: int) -> str:
    """The records with their filters; `total` is how many there are in the set."""
    split = any(one.split for one in listed)
    columns = [
        _Column("#", True),
        *([_Column("Set")] if split else []),
        _Column("Crops", kind="shots"),
        _Column("Record", kind="name"),
        _Column("Source", kind="name"),
        _Column("Place"),
        _Column("Pictures", True),
        _Column("Size", True),
        _Column("Grid", True),
        _Column("Padding", True),
        _Column("Tokens", True),
        _Column("Image", True),
        _Column("Text", True),
        _Column("Supervised", True),
        _Column("Conversation", kind="talk"),
    ]
    counts = sorted({len(one.row["pictures"]) for one in listed})
    grids = sorted({_grid(stored) for one in listed for stored in one.row["pictures"]}, key=_by_crops)
    filters = [
        _search("id, source, question or answer"),
        '<label>Tokens from <input type="number" min="0" data-filter="min:tokens"></label>',
        '<label>to <input type="number" min="0" data-filter="max:tokens"></label>',
        _select("Pictures", "is:images", [(str(count), str(count)) for count in counts]),
        _select("Grid", "has:grids", [(grid, grid.replace("x", " × ")) for grid in grids]),
    ]
    if split:
        names = dict.fromkeys(one.split for one in listed)
        filters.append(_select("Set", "is:split", [(name, name) for name in names]))
    told = "" if len(listed) == total else f" These are {len(listed):,} of {total:,} records, spread over the set."
    extremes = "".join(
        f'<li><a href="#{text(one.anchor)}">{text(extreme.title)}</a>{f" of {text(one.split)}" if one.split else ""}: '
        f"{text(extreme.value)}, record {line(one.row['id'], 60)}</li>"
        for one, extreme in sorted(
            ((one, extreme) for one in listed for extreme in one.extremes), key=lambda pair: pair[1].title
        )
    )
    return (
        '<section data-listing="records"><h2>Records</h2>'
        f'<p class="quiet">Select an image to see its crops, its global view and its token bill.{text(told)}</p>'
        f'<ul class="extremes">{extremes}</ul>'
        f"{_listing(columns, filters, (_record(one, split) for one in listed), len(listed))}</section>"
    )


def rejects(rows: Sequence[Mapping[str, Any]], total: int) -> str:
    """The first rejects with their filters; `total` is how many there are."""
    if not total:
        return ""
    columns = [
        _Column("Source", kind="name"),
        _Column("Place"),
        _Column("Record", kind="name"),
        _Column("Reason"),
        _Column("Found", kind="wide"),
        _Column("How to mend it", kind="wide"),
    ]
    reasons = sorted({str(row.get("reason")) for row in rows})
    filters = [
        _search("source, record or what was found"),
        _select("Reason", "is:reason", [(reason, reason) for reason in reasons]),
    ]
    told = "" if len(rows) == total else f" These are the first {len(rows):,}; rejects.jsonl has all {total:,}."
    return (
        f'<section data-listing="rejects"><h2>Rejected</h2><p class="quiet">{total:,} records were not taken.{told}</p>'
        f"{_listing(columns, filters, map(_reject, rows), len(rows))}</section>"
    )


def _listing(columns: Sequence[_Column], filters: Sequence[str], rows: Iterable[str], count: int) -> str:
    """A table whose headings sort and whose filters hide rows, once the page's script runs."""
    head = "".join(
        f'<th scope="col" class="{column.kind}{" number" if column.number else ""}" aria-sort="none">'
        f'<button type="button">{escape(column.title)}</button></th>'
        for column in columns
    )
    return (
        f'<form class="filters">{"".join(filters)}<output aria-live="polite">{count:,} of {count:,} shown</output>'
        '<button type="button" data-clear>Clear</button></form>'
        f'<table class="listing"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _search(what: str) -> str:
    return f'<label class="search">Search <input type="search" data-filter="text" placeholder="{escape(what)}"></label>'


def _select(title: str, rule: str, values: Iterable[tuple[str, str]]) -> str:
    options = "".join(f'<option value="{text(value)}">{text(shown)}</option>' for value, shown in values)
    return f'<label>{title} <select data-filter="{rule}"><option value="">any</option>{options}</select></label>'


def _cell(title: str, content: str, value: object = None, kind: str = "", search: bool = False) -> str:
    """A cell; `content` is HTML, `value` what it is sorted by where that is another."""
    sort = "" if value is None else f' data-value="{text(value)}"'
    return f'<td data-label="{title}" class="{kind}"{sort}{" data-search" if search else ""}>{content}</td>'


def _record(one: Listed, split: bool) -> str:
    row, images = one.row, one.row["pictures"]
    layouts = [layout_of(stored) for stored in images]
    image = sum(stored["tokens"] for stored in images)
    tags = "".join(f' <span class="tag">{text(extreme.title)}</span>' for extreme in one.extremes)
    cells = [
        _cell("#", f"{one.number:,}", one.number, "number"),
        *([_cell("Set", text(one.split))] if split else []),
        _cell("Crops", _shots(one, layouts), len(one.drawings), "shots"),
        _cell("Record", f'<b dir="auto">{line(row["id"], _MAX_NAME)}</b>{tags}', row["id"], "name", search=True),
        _cell("Source", _path(row["source"]), row["source"], "name", search=True),
        _cell("Place", line(row["place"], _MAX_NAME)),
        _cell("Pictures", f"{len(images)}", len(images), "number"),
        _cell("Size", _lines(f"{one.width:,} × {one.height:,}" for one in layouts), _pixels(layouts), "number"),
        _cell("Grid", _lines(f"{one.rows} × {one.cols}" for one in layouts), _crops(layouts), "number"),
        _cell("Padding", _lines(f"{padding_share(one):.0%}" for one in layouts), _padding(layouts), "number"),
        _cell("Tokens", f"<b>{row['length']:,}</b>", row["length"], "number"),
        _cell("Image", f"{image:,}", image, "number"),
        _cell("Text", f"{len(row['token_ids']):,}", len(row["token_ids"]), "number"),
        _cell("Supervised", f"{row['supervised_tokens']:,}", row["supervised_tokens"], "number"),
        _cell("Conversation", _conversation(row), None, "talk", search=True),
    ]
    grids = " ".join(sorted({_grid(stored) for stored in images}))
    return (
        f'<tr id="{text(one.anchor)}" data-tokens="{row["length"]}" data-pictures="{len(images)}" '
        f'data-grids="{grids}" data-split="{text(one.split)}">{"".join(cells)}</tr>'
    )


def _reject(row: Mapping[str, Any]) -> str:
    place = next((f"{unit} {row[unit]}" for unit in ("line", "row", "member") if unit in row), "")
    reason = str(row.get("reason"))
    name = row.get("id")
    called = "" if name is None else f'<b dir="auto">{line(name, _MAX_NAME)}</b>'
    cells = [
        _cell("Source", _path(str(row.get("source"))), row.get("source"), "name", search=True),
        _cell("Place", line(place, _MAX_NAME)),
        _cell("Record", called, None, "name", search=True),
        _cell("Reason", f"<code>{text(reason)}</code>", None),
        _cell("Found", f'<span dir="auto">{text(row.get("found"), 600)}</span>', None, "wide", search=True),
        _cell("How to mend it", f'<span dir="auto">{text(row.get("mend"), 600)}</span>', None, "wide"),
    ]
    return f'<tr data-reason="{text(reason)}">{"".join(cells)}</tr>'


def _shots(one: Listed, layouts: Sequence[PatchLayout]) -> str:
    parts = []
    for index, drawing in one.drawings.items():
        stored, layout = one.row["pictures"][index], layouts[index]
        path = f'<p class="path" dir="auto">{text(stored["path"], 400)}</p>'
        if isinstance(drawing, str):
            parts.append(f'<p class="problem">cannot be drawn: {text(drawing, 300)}</p>{path}')
            continue
        width, height = drawing.size
        spoken = f"image {index + 1} of record {one.number} with its crop grid, {layout.rows} by {layout.cols}"
        parts.append(
            f'<figure class="shot"><a href="{text(drawing.file)}"><img class="grid" alt="{spoken}" width="{width}" '
            f'height="{height}" src="{_data(drawing.grid)}"></a><div class="more"><img class="view" width="336" '
            f'height="336" alt="global view" src="{_data(drawing.view)}">'
            '<p class="quiet">Global view: all of it, padding included, as 336 × 336</p>'
            f"{_bill(one.row, layout)}{path}<p>{text(steps_of(layout).replace(' x ', ' × ').replace('->', '→'))}</p>"
            "</div></figure>"
        )
    hidden = len(layouts) - len(one.drawings)
    if hidden:
        parts.append(f'<p class="quiet">{"not drawn" if not one.drawings else f"{hidden} more, not drawn"}</p>')
    return "".join(parts)


def _bill(row: Mapping[str, Any], layout: PatchLayout) -> str:
    def lines(entries: Iterable[tuple[str, int]]) -> str:
        return "".join(f'<tr><td>{name}</td><td class="number">{count:,}</td></tr>' for name, count in entries)

    parts = (bill(layout), [("tokens of this image", layout.tokens)], bill_of_record(row))
    return f'<table class="bill">{"".join(f"<tbody>{lines(part)}</tbody>" for part in parts)}</table>'


def _conversation(row: Mapping[str, Any]) -> str:
    turns = row["turns"]
    asked = next((turn["text"] for turn in turns if turn["role"] == "user"), "")
    answered = next((turn["text"] for turn in turns if turn["role"] == "assistant"), "")
    left, image, parts = MAX_TEXT, 0, []
    for turn in turns:
        pieces = str(turn["text"])[:left].split(PLACEHOLDER)
        words = text(pieces[0])
        for piece in pieces[1:]:
            image += 1
            words += f'<span class="tag">image {image}</span>{text(piece)}'
        cut = len(turn["text"]) - left
        if cut > 0:
            words += f'<span class="quiet">… {cut:,} more characters</span>'
        left = max(0, left - len(turn["text"]))
        parts.append(f'<p class="role">{text(turn["role"])}</p><p class="turn" dir="auto">{words}</p>')
        if not left:
            parts.append('<p class="quiet">What follows is left out here.</p>' if turn is not turns[-1] else "")
            break
    if len(row["references"]) > 1:
        parts.append(f'<p class="role">also right</p><p class="turn">{text(" | ".join(row["references"]), 500)}</p>')
    question = line(asked.replace(PLACEHOLDER, " "), _MAX_LINE)
    return (
        f'<details><summary><span class="asked" dir="auto">{question}</span> '
        f'<span class="answered" dir="auto">{line(answered, _MAX_LINE)}</span></summary>{"".join(parts)}</details>'
    )


def _lines(words: Iterable[str]) -> str:
    shown = list(words)
    rest = len(shown) - _MAX_CELL_LINES
    if rest > 1:
        shown[_MAX_CELL_LINES:] = [f"{rest} more"]
    return "<br>".join(map(escape, shown))


def _data(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _grid(stored: Mapping[str, Any]) -> str:
    return f"{stored['rows']}x{stored['cols']}"


def _by_crops(grid: str) -> tuple[int, ...]:
    rows, cols = map(int, grid.split("x"))
    return rows * cols, rows


def _path(path: str) -> str:
    """The end of a path, the file and its folder; all of it as a tooltip."""
    end = "/".join(path.rsplit("/", 2)[-2:])
    return f'<span dir="auto" title="{text(path, 400)}">{line(end, _MAX_NAME)}</span>'


def _pixels(layouts: Sequence[PatchLayout]) -> int:
    return max((one.width * one.height for one in layouts), default=0)


def _crops(layouts: Sequence[PatchLayout]) -> int:
    return sum(one.crops for one in layouts)


def _padding(layouts: Sequence[PatchLayout]) -> str:
    return f"{max(map(padding_share, layouts), default=0):.4f}"
