"""Render the lower half of the preview's page: sortable, filterable tables of the records and the rejects."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ixtune.data.prepared.store import layout_of, name_of_image
from ixtune.data.preview.choice import Extreme
from ixtune.data.preview.drawing import padding_share, steps_of, token_counts, token_counts_of_record
from ixtune.data.text.conversation_rules import PLACEHOLDER
from ixtune.pages.kit import MAX_TEXT

_MAX_CELL_LINES = 4  # images listed one by one in a cell
_NUMBERS = ("Images", "Size", "Grid", "Padding", "Tokens", "Image", "Text", "Supervised")


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn image.

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
    """A record in the table.

    Attributes:
        split: Name of its set, if there are several.
        number: Its position in that set, counted from 1.
        row: Its columns.
        drawings: Drawings of some of its images, or the reason why there is none.
        extremes: Names of the values in which it is extreme.
    """

    split: str
    number: int
    row: Mapping[str, Any]
    drawings: Mapping[int, Drawing | str]
    extremes: tuple[Extreme, ...] = ()

    @property
    def anchor(self) -> str:
        """Anchor name in the page."""
        return f"record-{self.split or 'set'}-{self.number}"


def records(listed: Sequence[Listed], total: int) -> dict[str, Any]:
    """Return columns, filters and rows of the records; `total` is the number of records in the set."""
    names = dict.fromkeys(one.split for one in listed if one.split)
    columns = [("#", "number"), *([("Set", "")] if names else []), ("Crops", "shots"), ("Record", "name")]
    columns += [("Source", "name"), ("Place", ""), *((name, "number") for name in _NUMBERS), ("Conversation", "talk")]
    counts = sorted({len(one.row["pictures"]) for one in listed})
    grids = sorted({_grid(stored) for one in listed for stored in one.row["pictures"]}, key=_by_crops)
    extremes = sorted(((extreme.title, one, extreme.value) for one in listed for extreme in one.extremes), key=_title)
    return {
        "total": total,
        "columns": columns,
        "counts": [(count, count) for count in counts],
        "grids": [(grid, grid.replace("x", " × ")) for grid in grids],
        "splits": [(name, name) for name in names],
        "extremes": [
            {"title": title, "anchor": one.anchor, "split": one.split, "value": value, "id": one.row["id"]}
            for title, one, value in extremes
        ],
        "rows": [_record(one) for one in listed],
    }


def rejects(rows: Sequence[Mapping[str, Any]], total: int) -> dict[str, Any]:
    """Return the first rejects with their filter; `total` is the number of all."""
    reasons = sorted({str(row.get("reason")) for row in rows})
    return {"total": total, "reasons": [(reason, reason) for reason in reasons], "rows": [_reject(row) for row in rows]}


def _record(one: Listed) -> dict[str, Any]:
    row, images = one.row, one.row["pictures"]
    layouts = [layout_of(stored) for stored in images]
    hidden = len(layouts) - len(one.drawings)
    return {
        "anchor": one.anchor,
        "split": one.split,
        "number": one.number,
        "id": row["id"],
        "tags": [extreme.title for extreme in one.extremes],
        "source": row["source"],
        "place": row["place"],
        "images": len(images),
        "grids": " ".join(sorted({_grid(stored) for stored in images})),
        "shots": [_shot(row, index, drawing) for index, drawing in one.drawings.items()],
        "hidden": "" if not hidden else f"{hidden} more, not drawn" if one.drawings else "not drawn",
        "sizes": _shortened(f"{layout.width:,} × {layout.height:,}" for layout in layouts),
        "pixels": max((layout.width * layout.height for layout in layouts), default=0),
        "layouts": _shortened(f"{layout.rows} × {layout.cols}" for layout in layouts),
        "crops": sum(layout.crops for layout in layouts),
        "padding": _shortened(f"{padding_share(layout):.0%}" for layout in layouts),
        "most_padding": f"{max(map(padding_share, layouts), default=0):.4f}",
        "tokens": row["length"],
        "image_tokens": sum(stored["tokens"] for stored in images),
        "text_tokens": len(row["token_ids"]),
        "supervised": row["supervised_tokens"],
        "conversation": _conversation(row),
    }


def _reject(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "source": str(row.get("source")),
        "place": next((f"{unit} {row[unit]}" for unit in ("line", "row", "member") if unit in row), ""),
        "id": row.get("id"),
        "reason": str(row.get("reason")),
        "found": row.get("found"),
        "hint": row.get("mend"),
    }


def _shot(row: Mapping[str, Any], index: int, drawing: Drawing | str) -> dict[str, Any]:
    path, layout = name_of_image(row["pictures"][index]), layout_of(row["pictures"][index])
    if isinstance(drawing, str):
        return {"problem": drawing, "path": path}
    return {
        "problem": "",
        "path": path,
        "number": index + 1,
        "crop": layout.member.crop,
        "rows": layout.rows,
        "cols": layout.cols,
        "file": drawing.file,
        "size": drawing.size,
        "grid": _data_uri(drawing.grid),
        "view": _data_uri(drawing.view),
        "bill": (token_counts(layout), [("tokens of this image", layout.tokens)], token_counts_of_record(row)),
        "steps": steps_of(layout).replace(" x ", " × ").replace("->", "→"),
    }


def _conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the turns, at most `MAX_TEXT` characters of them, each in pieces between its images."""
    turns = row["turns"]
    left, image, shown = MAX_TEXT, 0, []
    for turn in turns:
        words, *rest = str(turn["text"])[:left].split(PLACEHOLDER)
        pieces = [(0, words), *((image + number, piece) for number, piece in enumerate(rest, 1))]
        image += len(rest)
        shown.append({"role": turn["role"], "pieces": pieces, "cut": max(0, len(turn["text"]) - left)})
        left = max(0, left - len(turn["text"]))
        if not left:
            break
    return {
        "asked": next((turn["text"] for turn in turns if turn["role"] == "user"), "").replace(PLACEHOLDER, " "),
        "answered": next((turn["text"] for turn in turns if turn["role"] == "assistant"), ""),
        "turns": shown,
        "is_cut": len(shown) < len(turns),
        "references": row["references"],
    }


def _shortened(words: Iterable[str]) -> list[str]:
    shown = list(words)
    rest = len(shown) - _MAX_CELL_LINES
    if rest > 1:
        shown[_MAX_CELL_LINES:] = [f"{rest} more"]
    return shown


def _data_uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _grid(stored: Mapping[str, Any]) -> str:
    return f"{stored['rows']}x{stored['cols']}"


def _by_crops(grid: str) -> tuple[int, ...]:
    rows, cols = map(int, grid.split("x"))
    return rows * cols, rows


def _title(extreme: tuple[str, Listed, str]) -> str:
    return extreme[0]
