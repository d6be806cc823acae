"""Charts as inline SVG: curves over steps, and scores with their intervals. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ixtune.data.preview.charts import compact

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 36
_MOST_POINTS = 300
_ROW, _LINE = 20, 13  # of the intervals: height of a group's label, and of a result below it
COLOURS = 6
"""Classes c0 to c5 of the style."""


def line_chart(title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """A figure of one or more curves over the steps, each with its own colour and dashes.

    Args:
        title: The caption.
        lines: (step, value) of each curve by its name.
    """
    points = [point for line in lines.values() for point in line]
    steps, values = [step for step, _ in points], [value for _, value in points]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = min(steps), max(steps)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(step: float) -> float:
        return _LEFT + wide * ((step - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return _TOP + tall * (1 - (value - low) / (high - low))

    parts = []
    for tick in ticks:
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}">{_label(tick)}</text>')
    for step, kind in ((first, "start"), (last, "end")) if last > first else ((first, "middle"),):
        parts.append(f'<text class="{kind}" x="{x(step):.1f}" y="{_HEIGHT - 20}">{step:,}</text>')
    parts.append(f'<text class="middle" x="{_LEFT + wide / 2:.1f}" y="{_HEIGHT - 5}">step</text>')
    for number, (name, line) in enumerate(lines.items()):
        kept = _thinned(line)
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in kept)
        tip = f"{name}: {kept[0][1]:.4g} at step {kept[0][0]:,}, {kept[-1][1]:.4g} at step {kept[-1][0]:,}"
        parts.append(f'<g class="curve c{number % COLOURS}"><title>{escape(tip)}</title><polyline points="{path}"/>')
        if len(kept) <= 40:
            parts += [
                f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.4"><title>'
                f"{escape(f'{name}: {value:.4g} at step {step:,}')}</title></circle>"
                for step, value in kept
            ]
        parts.append("</g>")
    return _figure(title, "".join(parts), _HEIGHT, legend(lines) if len(lines) > 1 else "")


def interval_chart(title: str, groups: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A figure with a dot and a 95 % interval for each result in each group, on one scale from 0.

    Args:
        title: The caption.
        groups: As `groups.breakdown` gives them.
        names: The results, in the order of their colours.
    """
    found = [one for group in groups for one in group["results"].values() if one]
    top = max(1.0, *(one["high"] for one in found)) if found else 1.0
    left, wide = 8, _WIDTH - 16
    parts, y = [], 4.0
    for group in groups:
        y += _ROW
        label, count = str(group["group"]), f"n = {group['n']:,}"
        parts.append(
            f'<text x="{left}" y="{y - 6:.0f}"><title>{escape(label[:500])}</title>{escape(_cut(label, 44))}</text>'
            f'<text class="end" x="{left + wide}" y="{y - 6:.0f}">{count}</text>'
        )
        for number, name in enumerate(names):
            one = group["results"].get(name)
            parts.append(f'<line class="rule" x1="{left}" x2="{left + wide}" y1="{y + 4:.1f}" y2="{y + 4:.1f}"/>')
            if one:
                ends = [left + wide * min(max(one[key] / top, 0), 1) for key in ("low", "value", "high")]
                tip = f"{label[:200]}, {name}: {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
                parts.append(
                    f'<g class="range c{number % COLOURS}"><title>{escape(tip)}</title>'
                    f'<line x1="{ends[0]:.1f}" x2="{ends[2]:.1f}" y1="{y + 4:.1f}" y2="{y + 4:.1f}"/>'
                    f'<circle cx="{ends[1]:.1f}" cy="{y + 4:.1f}" r="4.5"/></g>'
                )
            y += _LINE
        y += 4
    y += 12
    parts += [
        f'<text class="{kind}" x="{left + wide * share:.0f}" y="{y:.0f}">{compact(top * share) if share else 0}</text>'
        for share, kind in ((0, "start"), (0.5, "middle"), (1, "end"))
    ]
    return _figure(title, "".join(parts), y + 6, legend(names, "solid"))


def legend(names: Sequence[str] | Mapping[str, Any], kind: str = "") -> str:
    """Names beside their colours."""
    marks = "".join(
        f'<span><svg class="mark c{number % COLOURS}" viewBox="0 0 22 8" aria-hidden="true">'
        f'<line x1="0" x2="22" y1="4" y2="4"/></svg>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend {kind}">{marks}</p>'


def _figure(title: str, parts: str, height: float, foot: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{parts}</svg>{foot}</figure>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers around all values."""
    spread = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(spread / 3))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= spread)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _label(tick: float) -> str:
    return compact(tick) if tick >= 1e4 else f"{tick:.3g}"


def _thinned(line: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most `_MOST_POINTS` of a curve, the last one among them."""
    every = math.ceil(len(line) / _MOST_POINTS)
    return line if every == 1 else [*line[:-1:every], line[-1]]


def _cut(words: str, most: int) -> str:
    flat = " ".join(words.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"
