"""Geometry of charts as inline SVG, drawn by `charts.html`: bars, curves over steps, scores with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ixtune.pages.kit import compact, line

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 36
_LETTER = 6.2  # pixels of a digit in the labels' size
_MAX_POINTS = 300
_MAX_CIRCLES = 40  # with more points, a curve is only a line
_ROW, _LINE = 20, 13  # pixels of the intervals: a group's label, and a result below it
COLORS = 6
"""Classes c0 to c5 of the style."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Bar of a chart.

    Attributes:
        label: Text below the bar, if there is room.
        value: Height; None where there is none to show.
        tip: Tooltip.
        marked: Whether to use the second color.
    """

    label: str
    value: float | None
    tip: str
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Chart ready for the template.

    Attributes:
        kind: Name of the macro that draws `parts`.
        title: Caption.
        height: Of the view box; its width is always the same.
        spoken: Description for a screen reader.
        parts: Shapes with their coordinates.
        note: Line under the chart.
        legend: Names in the order of their colors.
    """

    kind: str
    title: str
    height: float
    spoken: str
    parts: dict[str, Any]
    note: str = ""
    legend: tuple[str, ...] = ()
    width: int = _WIDTH


def bar_chart(title: str, unit: str, bars: Sequence[Bar], note: str = "") -> Chart:
    """Return bars side by side on a scale from 0.

    Args:
        title: Caption.
        unit: Unit of the horizontal axis.
        bars: From left to right.
        note: Line under the chart.
    """
    top = _round_up(max((bar.value or 0 for bar in bars), default=0))
    high, right = _HEIGHT - _TOP - _BOTTOM, 8
    wide = (_WIDTH - _LEFT - right) / max(1, len(bars))
    rules = [(_TOP + high * (1 - share), compact(top * share)) for share in (0, 0.5, 1)]
    drawn, labels = [], []
    free = _LEFT - 4.0  # where the next label may begin
    for index, bar in enumerate(bars):
        x, middle = _LEFT + index * wide, _LEFT + (index + 0.5) * wide
        tall = high * (bar.value or 0) / top
        if tall:  # a bar for a small count must stay visible
            tall = max(tall, 1.5)
        drawn.append({"bar": bar, "x": x, "left": x + wide * 0.08, "top": _TOP + high - tall, "height": tall})
        half = len(bar.label) * _LETTER / 2
        if middle - half >= free and middle + half <= _WIDTH:
            labels.append((middle, bar.label))
            free = middle + half + 7
    parts = {
        "rules": [(_LEFT, _WIDTH - right, y, label) for y, label in rules],
        "bars": drawn,
        "labels": labels,
        "hit": (_TOP, wide, high),
        "label_y": _TOP + high + 14,
        "unit": (unit, _WIDTH - right, _HEIGHT - 5),
    }
    spoken = f"{title}: {'; '.join(bar.tip for bar in bars)}"
    return Chart("bars", title, _HEIGHT, spoken, parts, note)


def line_chart(
    title: str, lines: Mapping[str, Sequence[tuple[int, float]]], seams: Mapping[int, str] | None = None
) -> Chart:
    """Return one or more curves over the steps, each with its own color and dashes.

    Args:
        title: Caption.
        lines: (step, value) of each curve by its name.
        seams: Steps to mark with a vertical line, with their labels.
    """
    points = [point for curve in lines.values() for point in curve]
    steps, values = [step for step, _ in points], [value for _, value in points]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = min(steps), max(steps)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(step: float) -> float:
        return _LEFT + wide * ((step - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return _TOP + tall * (1 - (value - low) / (high - low))

    curves = []
    for name, curve in lines.items():
        kept = _thinned(curve)
        tip = f"{name}: {kept[0][1]:.4g} at step {kept[0][0]:,}, {kept[-1][1]:.4g} at step {kept[-1][0]:,}"
        circles = [(x(step), y(value), f"{name}: {value:.4g} at step {step:,}") for step, value in kept]
        curves.append(
            {
                "tip": tip,
                "path": " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in kept),
                "circles": circles if len(kept) <= _MAX_CIRCLES else [],
            }
        )
    ends = ((first, "start"), (last, "end")) if last > first else ((first, "middle"),)
    parts = {
        "rules": [(_LEFT, _WIDTH - _RIGHT, y(tick), _label(tick)) for tick in ticks],
        "ends": [(kind, x(step), _HEIGHT - 20, f"{step:,}") for step, kind in ends],
        "axis": (_LEFT + wide / 2, _HEIGHT - 5),
        "curves": curves,
        "seams": [(x(step), _TOP, _TOP + tall, tip) for step, tip in (seams or {}).items() if first <= step <= last],
    }
    return Chart("curves", title, _HEIGHT, title, parts, legend=tuple(lines) if len(lines) > 1 else ())


def interval_chart(title: str, groups: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Chart:
    """Return a dot and a 95 % interval for each result in each group, on one scale from 0.

    Args:
        title: Caption.
        groups: Groups with `group`, `n` and `results` by name.
        names: Results in the order of their colors.
    """
    found = [one for group in groups for one in group["results"].values() if one]
    top = max(1.0, *(one["high"] for one in found)) if found else 1.0
    left, wide = 8, _WIDTH - 16
    labels, rules, ranges, y = [], [], [], 4.0
    for group in groups:
        y += _ROW
        label = str(group["group"])
        labels.append((left, left + wide, y - 6, label[:500], line(label, 44), f"n = {group['n']:,}"))
        for number, name in enumerate(names):
            one = group["results"].get(name)
            rules.append((left, left + wide, y + 4))
            if one:
                low, middle, high = (left + wide * min(max(one[key] / top, 0), 1) for key in ("low", "value", "high"))
                tip = f"{label[:200]}, {name}: {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
                ranges.append((number % COLORS, low, middle, high, y + 4, tip))
            y += _LINE
        y += 4
    y += 12
    scale = [
        (kind, left + wide * share, y, compact(top * share) if share else "0")
        for share, kind in ((0, "start"), (0.5, "middle"), (1, "end"))
    ]
    parts = {"labels": labels, "rules": rules, "ranges": ranges, "scale": scale}
    return Chart("intervals", title, y + 6, title, parts, legend=tuple(names))


def _round_up(value: float) -> float:
    """Return the next 1, 2, 4, 6 or 8 times a power of ten, so that the middle of the scale is a round number."""
    step = 1.0
    while step * 10 < value:
        step *= 10
    return next(step * factor for factor in (1, 2, 4, 6, 8, 10) if step * factor >= value)


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers around all values."""
    spread = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(spread / 3))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= spread)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _label(tick: float) -> str:
    return compact(tick) if tick >= 1e4 else f"{tick:.3g}"


def _thinned(curve: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """Return at most `_MAX_POINTS` of a curve, including the last."""
    every = math.ceil(len(curve) / _MAX_POINTS)
    return curve if every == 1 else [*curve[:-1:every], curve[-1]]
