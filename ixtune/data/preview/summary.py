"""The upper half of the preview's page: what the manifest says, in numbers and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.data.images.header import NOTES as IMAGE_NOTES
from ixtune.data.prepared.manifest import Options, options_of
from ixtune.data.preview.charts import Bar, bar_chart, compact
from ixtune.data.preview.markup import definitions, table, text
from ixtune.data.record import NOTES as RECORD_NOTES
from ixtune.data.rejects import Reason

_MEANINGS = {reason.value: reason.description for reason in Reason}
_CORRECTIONS = {
    "exif": "images are turned as their EXIF data say",
    "alpha": "transparency is laid over white",
    "depth": "16-bit greys are scaled to 8 bits",
    "first-frame": "of several frames the first is taken",
}


def headline(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """The most important numbers in large print."""
    records = next(iter(manifests.values()))["records"]
    tokens = {key: sum(one["tokens"][key] for one in manifests.values()) for key in ("total", "image", "supervised")}
    rows = sum(one["records"]["rows"] for one in manifests.values())
    images = sum(sum(one["grids"].values()) for one in manifests.values())
    lengths = [one["length"] for one in manifests.values() if one["records"]["rows"]]
    median = " and ".join(f"{length['median']:,}" for length in lengths)
    parts = ", ".join(f"{one['records']['rows']:,} {name}" for name, one in manifests.items() if name)
    rate = records["rejected"] / max(1, records["read"])
    cards = [
        ("Records", f"{rows:,}", parts or f"{records['accepted']:,} accepted of {records['read']:,} read"),
        ("Rejected", f"{records['rejected']:,}", f"{rate:.1%} of {records['read']:,} read"),
        ("Pictures", f"{images:,}", f"{images / max(1, rows):.2g} a record"),
        ("Tokens", compact(tokens["total"]), f"{tokens['total']:,}, {_share(tokens['image'], tokens)} of images"),
        ("Supervised", compact(tokens["supervised"]), f"{_share(tokens['supervised'], tokens)} of all tokens"),
        (
            "Tokens a record",
            median or "none",
            f"median; {min((one['min'] for one in lengths), default=0):,} to "
            f"{max((one['max'] for one in lengths), default=0):,}",
        ),
    ]
    items = "".join(
        f'<div class="card"><h3>{text(title)}</h3><p class="large">{text(large)}</p>'
        f'<p class="quiet">{text(small)}</p></div>'
        for title, large, small in cards
    )
    return f'<section class="cards" aria-label="Headline numbers">{items}</section>'


def _share(part: int, tokens: Mapping[str, int]) -> str:
    return f"{part / max(1, tokens['total']):.1%}"


def made_of(manifest: Mapping[str, Any]) -> str:
    """The options, departures from the reference among them, the sources, and the rejects by reason."""
    chosen = options_of(manifest)
    departures = _departures(chosen)
    over = {"reject": "longer ones are rejected", "lower": "hd_num is lowered for longer ones"}
    pairs = [
        ("hd_num", text(chosen.hd_num if chosen.hd_num is not None else "each source's own")),
        (
            "departs from the reference",
            "".join(f'<span class="tag warn">{text(one)}</span> ' for one in departures) or "nowhere",
        ),
        (
            "most tokens of a record",
            text(f"{chosen.max_tokens:,}; {over.get(chosen.over_length, chosen.over_length)}")
            if chosen.max_tokens
            else "no limit",
        ),
        ("pictures", "decoded to the last pixel" if chosen.verify else "headers and ends of files were read"),
        ("tokenizer", f"<code>{text(str(manifest.get('tokenizer_sha256'))[:16])}</code>"),
    ]
    notes = manifest.get("statistics", {}).get("notes", {})
    if notes:
        meanings = IMAGE_NOTES | RECORD_NOTES
        told = "".join(f"<li>{text(meanings.get(note, note))}: {count:,}</li>" for note, count in notes.items())
        pairs.append(("of the images", f"<ul>{told}</ul>"))
    parts = [f"<section><h2>Made of</h2>{definitions(pairs)}"]
    sources = [
        [
            str(one.get("path")),
            ", ".join(one.get("format", [])),
            *(f"{one[key]:,}" if isinstance(one.get(key), int) else "" for key in ("read", "accepted", "rows")),
        ]
        for one in manifest.get("sources", [])
    ]
    parts.append(table(("source", "format", "read", "accepted", "in the set"), sources, numbers_from=2))
    reasons = manifest["records"].get("rejected_by_reason", {})
    if reasons:
        rows = [(code, _MEANINGS.get(code, ""), f"{count:,}") for code, count in reasons.items()]
        parts.append(table(("rejected because", "", "records"), rows, numbers_from=2))
    return "".join(parts) + "</section>"


def _departures(chosen: Options) -> list[str]:
    found = [] if chosen.upscale else ["--no-upscale: small images keep their size"]
    return found + [f"{name}: {_CORRECTIONS.get(name, '')}" for name in chosen.corrections]


def statistics(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """The histograms of each set; what a manifest lacks is left out."""
    parts = []
    for name, manifest in manifests.items():
        found = manifest.get("statistics", {})
        charts = [
            bar_chart(title, unit, _histogram(found[key]["bins"], whole, percent))
            for key, title, unit, whole, percent in (
                ("length", "Tokens of a record", "tokens", True, False),
                ("crops", "Crops of an image", "crops", True, False),
                ("aspect", "Shape of an image", "width / height", False, False),
                ("supervised_share", "Supervised share of a record", "supervised / all tokens", False, True),
            )
            if found.get(key, {}).get("bins")
        ]
        if cost := found.get("image_tokens_by_hd_num"):
            charts.append(_cost(cost, options_of(manifest).hd_num))
        if grids := manifest.get("grids"):
            charts.append(_grids(grids))
        if charts:
            parts.append(f"<h2>{text(f'Statistics: {name}' if name else 'Statistics')}</h2>")
            parts.append(f'<div class="charts">{"".join(charts)}</div>')
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _histogram(bins: Sequence[Sequence[Any]], whole: bool, percent: bool) -> list[Bar]:
    """Bars of [lower, upper, count]; the upper edge of whole numbers is included, None is open."""

    def edge(value: float) -> str:
        return f"{value * 100:g}%" if percent else f"{value:,g}"

    bars = []
    for lower, upper, count in bins:
        if upper is None:
            label, span = f"≥{edge(lower)}", f"{edge(lower)} or more"
        elif whole:
            label = edge(upper)
            span = f"{lower:,}" if lower == upper else f"{lower:,} to {upper:,}"
        else:
            label, span = f"<{edge(upper)}", f"{edge(lower)} to below {edge(upper)}"
        bars.append(Bar(label, count, f"{span}: {count:,}"))
    return bars


def _cost(cost: Mapping[str, int | None], chosen: int | None) -> str:
    bars = [
        Bar(
            hd_num,
            tokens,
            f"hd_num {hd_num}: " + ("an image has no layout" if tokens is None else f"{tokens:,} image tokens"),
            marked=int(hd_num) == chosen,
        )
        for hd_num, tokens in cost.items()
    ]
    note = f"This set has hd_num {chosen}." if chosen is not None else ""
    return bar_chart("Image tokens of the set, were it prepared at another hd_num", "hd_num", bars, note)


def _grids(grids: Mapping[str, int], shown: int = 12) -> str:
    bars = [
        Bar(grid.replace("x", "×"), count, f"{grid.replace('x', ' × ')}: {count:,}")
        for grid, count in list(grids.items())[:shown]
    ]
    note = f"And {len(grids) - shown} rarer ones." if len(grids) > shown else ""
    return bar_chart("Grids of crops", "rows × columns", bars, note)
