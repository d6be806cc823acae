"""Bar charts as inline SVG: no script, colours from the page's style, every bar's numbers in its tooltip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 12, 36
_LETTER = 6.2  # pixels of a digit in the labels' size
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        label: Below it, if there is room.
        value: Its height; None where there is none to show.
        tip: What its tooltip says.
        marked: Drawn in the second colour.
    """

    label: str
    value: float | None
    tip: str
    marked: bool = False


def compact(value: float) -> str:
    """A number in at most five characters: 950, 1.2k, 34M."""
    for size, unit in _UNITS:
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def bar_chart(title: str, unit: str, bars: Sequence[Bar], note: str = "") -> str:
    """A figure with one bar beside the other, its caption, and a scale from 0.

    Args:
        title: The caption.
        unit: What the horizontal axis counts.
        bars: From left to right.
        note: A line under the chart.
    """
    top = _round_up(max((bar.value or 0 for bar in bars), default=0))
    high, wide = _HEIGHT - _TOP - _BOTTOM, (_WIDTH - _LEFT - _RIGHT) / max(1, len(bars))
    parts = []
    for share in (0, 0.5, 1):
        y = _TOP + high * (1 - share)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:g}">{compact(top * share)}</text>')
    free = _LEFT - 4.0  # where the next label may begin
    for index, bar in enumerate(bars):
        x, middle = _LEFT + index * wide, _LEFT + (index + 0.5) * wide
        tall = high * (bar.value or 0) / top
        if tall:  # a bar of few is seen all the same
            tall = max(tall, 1.5)
        parts.append(
            f'<g><title>{escape(bar.tip)}</title><rect class="hit" x="{x:.1f}" y="{_TOP}" width="{wide:.1f}" '
            f'height="{high}"/><rect class="{"bar marked" if bar.marked else "bar"}" x="{x + wide * 0.08:.1f}" '
            f'y="{_TOP + high - tall:.1f}" width="{wide * 0.84:.1f}" height="{tall:.1f}"/></g>'
        )
        half = len(bar.label) * _LETTER / 2
        if middle - half >= free and middle + half <= _WIDTH:
            parts.append(f'<text class="middle" x="{middle:.1f}" y="{_TOP + high + 14}">{escape(bar.label)}</text>')
            free = middle + half + 7
    parts.append(f'<text class="end quiet" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}">{escape(unit)}</text>')
    spoken = "; ".join(bar.tip for bar in bars)
    foot = f'<p class="quiet">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{title}: {spoken}")}">'
        f"{''.join(parts)}</svg>{foot}</figure>"
    )


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten, so that the scale's middle is a round number."""
    step = 1.0
    while step * 10 < value:
        step *= 10
    return next(step * factor for factor in (1, 2, 4, 6, 8, 10) if step * factor >= value)
