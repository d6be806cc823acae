"""Render the upper half of the preview's page: numbers and charts from the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.data.images.header import NOTES as IMAGE_NOTES
from ixtune.data.prepared.manifest import PrepareOptions, options_of
from ixtune.data.record import NOTES as RECORD_NOTES
from ixtune.data.rejects import Reason
from ixtune.pages.charts import Bar, Chart, bar_chart
from ixtune.pages.kit import compact

_MEANINGS = {reason.value: reason.description for reason in Reason}
_CORRECTIONS = {
    "exif": "images are rotated according to their EXIF data",
    "alpha": "transparent pixels are put on white",
    "depth": "16-bit grays are scaled to 8 bits",
    "first-frame": "the first of several frames is used",
}
_OVER_LENGTH = {"reject": "longer ones are rejected", "lower": "hd_num is lowered for longer ones"}
_MAX_GRIDS = 12


def cards(manifests: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return title, large print and small print of the most important numbers."""
    records = next(iter(manifests.values()))["records"]
    tokens = {key: sum(one["tokens"][key] for one in manifests.values()) for key in ("total", "image", "supervised")}
    rows = sum(one["records"]["rows"] for one in manifests.values())
    images = sum(sum(one["grids"].values()) for one in manifests.values())
    lengths = [one["length"] for one in manifests.values() if one["records"]["rows"]]
    median = " and ".join(f"{length['median']:,}" for length in lengths)
    parts = ", ".join(f"{one['records']['rows']:,} {name}" for name, one in manifests.items() if name)
    rate = records["rejected"] / max(1, records["read"])
    low, high = min((one["min"] for one in lengths), default=0), max((one["max"] for one in lengths), default=0)

    def share(part: int) -> str:
        return f"{part / max(1, tokens['total']):.1%}"

    return [
        ("Records", f"{rows:,}", parts or f"{records['accepted']:,} accepted of {records['read']:,} read"),
        ("Rejected", f"{records['rejected']:,}", f"{rate:.1%} of {records['read']:,} read"),
        ("Images", f"{images:,}", f"{images / max(1, rows):.2g} per record"),
        ("Tokens", compact(tokens["total"]), f"{tokens['total']:,}, {share(tokens['image'])} from images"),
        ("Supervised", compact(tokens["supervised"]), f"{share(tokens['supervised'])} of all tokens"),
        ("Tokens per record", median or "none", f"median; {low:,} to {high:,}"),
    ]


def made_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, with their differences from the reference, the sources, and the rejects by reason."""
    chosen = options_of(manifest)
    over = _OVER_LENGTH.get(chosen.over_length, chosen.over_length)
    notes = manifest.get("statistics", {}).get("notes", {})
    meanings = IMAGE_NOTES | RECORD_NOTES
    reasons = manifest["records"].get("rejected_by_reason", {})
    return {
        "hd_num": chosen.hd_num if chosen.hd_num is not None else "each source's own",
        "departures": _departures(chosen),
        "limit": f"{chosen.max_tokens:,}; {over}" if chosen.max_tokens else "no limit",
        "images": "decoded completely" if chosen.verify else "only headers and ends of files were read",
        "tokenizer": str(manifest.get("tokenizer_sha256"))[:16],
        "notes": [(meanings.get(note, note), count) for note, count in notes.items()],
        "sources": [
            [
                str(one.get("path")),
                ", ".join(one.get("format", [])),
                *(f"{one[key]:,}" if isinstance(one.get(key), int) else "" for key in ("read", "accepted", "rows")),
            ]
            for one in manifest.get("sources", [])
        ],
        "reasons": [(code, _MEANINGS.get(code, ""), f"{count:,}") for code, count in reasons.items()],
    }


def _departures(chosen: PrepareOptions) -> list[str]:
    found = [f"{key}: {value}" for key, value in chosen.member.record().items()]
    found += [] if chosen.upscale else ["--no-upscale: small images keep their size"]
    return found + [f"{name}: {_CORRECTIONS.get(name, '')}" for name in chosen.corrections]


def statistics(manifests: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Chart]]]:
    """Return heading and charts of each set; what a manifest lacks is left out."""
    made = []
    for name, manifest in manifests.items():
        found = manifest.get("statistics", {})
        charts = [
            bar_chart(title, unit, _histogram(found[key]["bins"], whole, percent))
            for key, title, unit, whole, percent in (
                ("length", "Tokens per record", "tokens", True, False),
                ("crops", "Crops per image", "crops", True, False),
                ("aspect", "Image shape", "width / height", False, False),
                ("supervised_share", "Supervised share per record", "supervised / all tokens", False, True),
            )
            if found.get(key, {}).get("bins")
        ]
        if cost := found.get("image_tokens_by_hd_num"):
            charts.append(_cost(cost, options_of(manifest).hd_num))
        if grids := manifest.get("grids"):
            charts.append(_grids(grids))
        if charts:
            made.append((f"Statistics: {name}" if name else "Statistics", charts))
    return made


def _histogram(bins: Sequence[Sequence[Any]], whole: bool, percent: bool) -> list[Bar]:
    """Return bars of [lower, upper, count]; the upper edge of whole numbers is included, None is open."""

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


def _cost(cost: Mapping[str, int | None], chosen: int | None) -> Chart:
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
    return bar_chart("Image tokens of the set at other values of hd_num", "hd_num", bars, note)


def _grids(grids: Mapping[str, int]) -> Chart:
    bars = [
        Bar(grid.replace("x", "×"), count, f"{grid.replace('x', ' × ')}: {count:,}")
        for grid, count in list(grids.items())[:_MAX_GRIDS]
    ]
    note = f"And {len(grids) - _MAX_GRIDS} rarer ones." if len(grids) > _MAX_GRIDS else ""
    return bar_chart("Grids of crops", "rows × columns", bars, note)
