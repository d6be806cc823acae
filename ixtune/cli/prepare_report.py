"""Print the report of `ixtune prepare`: counts, rejects, tokens, small histograms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ixtune.cli.console import aside, ending, table

if TYPE_CHECKING:
    from rich.table import Table

    from ixtune.data.prepare import PrepareReport
    from ixtune.data.prepared.manifest import PrepareOptions
    from ixtune.data.prepared.statistics import Statistics
    from ixtune.data.shared_prefixes import Saving

_GRIDS_SHOWN = 12
_BAR = 16
# the entries of the manifest that users need
_HD_NUMS_SHOWN = ("4", "9", "16", "25", "36", "49", "55")


def print_report(report: PrepareReport, options: PrepareOptions) -> None:
    """Print how many records of each source were accepted, and what the sets hold."""
    from rich.columns import Columns

    from ixtune.data.prepared.manifest import MANIFEST
    from ixtune.data.prepared.store import REJECTS

    out = aside()
    if len(report.sources) > 1:
        rows = []
        for one in report.sources:
            counts = (one.read, one.accepted, one.read - one.accepted, one.rows)
            rows.append([one.opened.source.name, *(f"{count:,}" for count in counts)])
        out.print(table(None, ("source", "read", "accepted", "rejected", "rows in the set"), rows), "")
    out.print(table(None, ("records", ""), _counts(report)), "")
    for name, statistics in report.sets.items():
        content = statistics.as_manifest()
        out.print(table(None, (name or "set", ""), _contents(statistics, content)), "")
        if name != "validation":
            unicode = out.encoding.lower().startswith("utf")
            out.print(Columns(_histograms(content["statistics"], unicode), padding=(0, 4)), "")
            if content["grids"]:
                out.print(_costs(content, options), "")
    for one in report.sources:
        if one.accepted and not one.with_images:
            out.print(
                f"WARNING  no record of {one.opened.source.name} has an image: text only", markup=False, style="bold"
            )
    out.print(
        f"check    {report.read:,} records read, {report.accepted:,} accepted, {report.rejected:,} rejected",
        markup=False,
    )
    names = [str(report.out / name) if name else str(report.out) for name in report.sets]
    lines = [f"written  {' and '.join(names)}: Arrow files, {MANIFEST}, {REJECTS}"]
    if saved := _saving(report):
        lines.append(f"shared   {saved.describe()}")
    ending(lines, "\n".join(names))


def as_json(report: PrepareReport) -> str:
    """Return the report as JSON; statistics are those of the manifest of each set."""
    result = {
        "out": str(report.out),
        "read": report.read,
        "accepted": report.accepted,
        "rejected": report.rejected,
        "rejected_by_reason": report.rejected_by_reason,
        "sources": [
            {
                "path": one.opened.source.name,
                "detected": one.opened.detected,
                "read": one.read,
                "accepted": one.accepted,
                "with_images": one.with_images,
                "rows": one.rows,
            }
            for one in report.sources
        ],
        "sets": {str(report.out / name): statistics.as_manifest() for name, statistics in report.sets.items()},
        "shared": asdict(saved) if (saved := _saving(report)) else None,
    }
    return json.dumps(result, indent=2, ensure_ascii=False)


def _saving(report: PrepareReport) -> Saving | None:
    """Count the tokens that training on the set saves by sharing prefixes."""
    from ixtune.data.prepared import store
    from ixtune.data.shared_prefixes import saving

    (name,) = [name for name in report.sets if name != "validation"]
    return saving(store.load(report.out / name))


def _counts(report: PrepareReport) -> list[list[str]]:
    from ixtune.data.rejects import Reason

    meanings = {reason.value: reason.description for reason in Reason}
    rows = [
        ["read", f"{report.read:,}"],
        ["accepted", f"{report.accepted:,}"],
        ["rejected", f"{report.rejected:,}"],
    ]
    return rows + [[f"  {code}", f"{n:,}  {meanings[code]}"] for code, n in report.rejected_by_reason.items()]


def _contents(statistics: Statistics, content: dict[str, Any]) -> list[list[str]]:
    from ixtune.data.images.header import NOTES as IMAGE_NOTES
    from ixtune.data.record import NOTES as RECORD_NOTES

    meanings = IMAGE_NOTES | RECORD_NOTES
    length, tokens = content["length"], content["tokens"]
    grids = list(content["grids"].items())
    shown = [f"{grid} {count:,}" for grid, count in grids[:_GRIDS_SHOWN]]
    if len(grids) > _GRIDS_SHOWN:
        shown.append(f"and {len(grids) - _GRIDS_SHOWN} more")
    rows = [
        ["rows", f"{statistics.rows:,}"],
        ["tokens per record", f"{length['min']:,} to {length['max']:,}, median {length['median']:,}"],
        [
            "tokens",
            f"{tokens['total']:,}: {tokens['image']:,} image, {tokens['text']:,} text, "
            f"{tokens['supervised']:,} of these supervised",
        ],
        ["grids (rows x cols)", ", ".join(shown) or "no images"],
    ]
    if statistics.lowered:
        rows.append(["hd_num lowered", f"{statistics.lowered:,} records, to fit --max-tokens"])
    rows += [[f"  {code}", f"{count:,}  {meanings[code]}"] for code, count in content["statistics"]["notes"].items()]
    return rows


def _histograms(statistics: dict[str, Any], unicode: bool) -> list[Table]:
    charts = [
        ("tokens per record", [(_whole(low, high), count) for low, high, count in statistics["length"]["bins"]]),
        ("crops per image", [(_whole(low, high), count) for low, high, count in statistics["crops"]["bins"]]),
        ("width / height", [(_range(low, high), count) for low, high, count in statistics["aspect"]["bins"]]),
        (
            "supervised share",
            [(f"{low:.1%} to {high:.1%}", count) for low, high, count in statistics["supervised_share"]["bins"]],
        ),
    ]
    return [_histogram(title, bins, unicode) for title, bins in charts if any(count for _, count in bins)]


def _histogram(title: str, bins: Sequence[tuple[str, int]], unicode: bool) -> Table:
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="", box=None, show_header=False, pad_edge=False)
    made.add_column(justify="right")
    made.add_column(width=_BAR, no_wrap=True)
    made.add_column(justify="right")
    most = max(count for _, count in bins)
    full = [index for index, (_, count) in enumerate(bins) if count]
    for label, count in bins[full[0] : full[-1] + 1]:
        length = max(1, round(_BAR * count / most)) if count else 0
        made.add_row(label, ("█" if unicode else "#") * length, f"{count:,}")
    return made


def _costs(content: dict[str, Any], options: PrepareOptions) -> Table:
    """Return a table of the image tokens that other values of hd_num would take."""
    images = sum(content["grids"].values())
    now = content["tokens"]["image"]
    rows = []
    costs = content["statistics"]["image_tokens_by_hd_num"]
    shown = sorted({*_HD_NUMS_SHOWN, str(options.hd_num)} & costs.keys(), key=int)
    for hd_num, tokens in ((hd_num, costs[hd_num]) for hd_num in shown):
        mark = "  <- chosen" if str(options.hd_num) == hd_num else ""
        if tokens is None:
            rows.append([hd_num, "some image has no layout", "", mark])
        else:
            rows.append([hd_num, f"{tokens:,}", f"{tokens / images:,.0f}", f"x {tokens / now:.2f}{mark}"])
    return table("image tokens at other values of hd_num", ("hd_num", "image tokens", "per image", "relative"), rows)


def _whole(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,} and more"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _range(low: float, high: float | None) -> str:
    if high is None:
        return f"from {low:g}"
    return f"below {high:g}" if low == 0 else f"{low:g} to {high:g}"
