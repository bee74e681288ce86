"""Line charts as inline SVG that takes its colours from the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import numpy as np

__all__ = ["Series", "line_chart"]

_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 40


@dataclass(frozen=True)
class Series:
    """A named line; ``kind`` is the style of the page's classes c-kind and f-kind."""

    name: str
    kind: str
    y: np.ndarray


def line_chart(
    x: np.ndarray, series: list[Series], title: str, x_label: str, *, alt: str, top: float | None
) -> str:
    """A figure with one chart: lines over x, a marker of the chosen x, a legend.

    ``top`` cuts the axis: bounds far above everything else leave the picture, and say so.
    """
    shown = [s for s in series if np.isfinite(s.y).any()]
    values = np.concatenate([s.y[np.isfinite(s.y)] for s in shown])
    low, high = float(values.min()), float(values.max())
    cut = top is not None and high > top
    high = min(high, top) if top is not None else high
    if high <= low:
        high = low + max(abs(low), 1.0) * 0.1
    ticks_y, ticks_x = _ticks(low, high), _ticks(float(x.min()), float(x.max()))
    low, high = min(low, ticks_y[0]), max(high, ticks_y[-1])
    left, right = float(x.min()), float(x.max())
    right = right if right > left else left + 1.0

    def px(v: float) -> float:
        return _LEFT + (v - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def py(v: float) -> float:
        return _HEIGHT - _BOTTOM - (v - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks_y:
        y = f"{py(tick):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy=".32em" text-anchor="end">{tick:g}</text>')
    base = _HEIGHT - _BOTTOM
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>'
    )
    for tick in ticks_x:
        if left <= tick <= right:
            parts.append(
                f'<text x="{px(tick):.1f}" y="{base + 16}" text-anchor="middle">{tick:g}</text>'
            )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    xs = " ".join(f"{px(float(v)):.1f}" for v in x)
    at = f"{px(float(x[-1])):.1f}"
    parts.append(
        f'<line class="marker" data-xs="{xs}" x1="{at}" x2="{at}" y1="{_TOP}" y2="{base}"/>'
    )
    for s in shown:
        parts.append(_polyline(s, x, px, py, high))
    legend = "".join(
        f'<span><svg viewBox="0 0 28 10" aria-hidden="true"><line class="series c-{s.kind}" x1="0" '
        f'x2="28" y1="5" y2="5"/></svg>{escape(s.name)}</span>'
        for s in shown
    )
    note = '<p class="quiet">A bound beyond the top leaves the picture; see the table.</p>'
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="{escape(alt, quote=True)}">{"".join(parts)}</svg>'
        f'<div class="legend">{legend}</div>{note if cut else ""}</figure>'
    )


def _polyline(s: Series, x: np.ndarray, px, py, high: float) -> str:
    """Connected points inside the picture; the last one above the top ends at the top."""
    points, dots = [], []
    for v, y in zip(x.tolist(), s.y.tolist()):
        if not math.isfinite(y):
            continue
        points.append(f"{px(v):.1f},{py(min(y, high)):.1f}")
        if y <= high:
            dots.append(f'<circle class="f-{s.kind}" cx="{px(v):.1f}" cy="{py(y):.1f}" r="2.6"/>')
    return f'<polyline class="series c-{s.kind}" points="{" ".join(points)}"/>' + "".join(dots)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at most low to at least high."""
    span = max(high - low, 1e-12 * max(abs(high), 1.0), 1e-300)
    raw = span / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]
