"""Line charts as inline SVG that takes its colours from the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

__all__ = ["Series", "line_chart", "template"]

_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BASE = 56, _WIDTH - 12, 10, _HEIGHT - 42


@cache
def template(name: str, **filters: Any) -> Any:
    """A template of the folder; what it shows is escaped."""
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("drojko", "auditing/templates")
    room = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    room.filters.update(filters)
    return room.get_template(name)


@dataclass(frozen=True)
class Series:
    """A named line; ``kind`` is the style of the page's classes c-kind and f-kind."""

    name: str
    kind: str
    y: np.ndarray


def line_chart(
    x: np.ndarray,
    series: list[Series],
    title: str,
    x_label: str,
    *,
    alt: str,
    top: float | None,
    level: float | None = None,
    band: tuple[float, float] | None = None,
    marks: np.ndarray | None = None,
) -> str:
    """A figure with one chart: lines over x, a marker of the chosen x, a legend.

    ``top`` cuts the axis: bounds far above everything else leave the picture, and say so.
    ``level`` is a horizontal line, ``band`` an interval of x, both where they are in the picture;
    ``marks`` are the places of the marker, None: those of x.
    """
    shown = [s for s in series if np.isfinite(s.y).any()]
    values = np.concatenate([s.y[np.isfinite(s.y)] for s in shown])
    if level is not None and math.isfinite(level):
        values = np.append(values, level)
    low, highest = float(values.min()), float(values.max())
    high = highest if top is None else min(highest, top)
    if high <= low:
        high = low + max(abs(low), 1.0) * 0.1
    left, right = float(x.min()), float(x.max())
    ticks_y = _ticks(low, high)
    ticks_x = sorted({t for t in _ticks(left, right) if left <= t <= right})
    ends_x = (left, right if right > left else left + 1.0)
    ends_y = (min(low, ticks_y[0]), max(high, ticks_y[-1]))

    def px(v: Any) -> list[str]:
        return [f"{at:.1f}" for at in np.interp(v, ends_x, (_LEFT, _RIGHT))]

    def py(v: Any) -> list[str]:
        return [f"{at:.1f}" for at in np.interp(v, ends_y, (_BASE, _TOP))]

    inside = np.interp(np.clip(band or (left, left), *ends_x), ends_x, (_LEFT, _RIGHT))
    lines = []
    for s in shown:
        known = np.isfinite(s.y)
        at = list(zip(px(x[known]), py(np.minimum(s.y[known], ends_y[1]))))
        dots = [point for point, y in zip(at, s.y[known]) if y <= ends_y[1]]
        points = [",".join(point) for point in at]
        lines.append({"name": s.name, "kind": s.kind, "points": points, "dots": dots})
    return template("chart.html").render(
        title=title,
        alt=alt,
        x_label=x_label,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_RIGHT,
        top=_TOP,
        base=_BASE,
        rows=list(zip([f"{t:g}" for t in ticks_y], py(ticks_y))),
        columns=list(zip([f"{t:g}" for t in ticks_x], px(ticks_x))),
        xs=px(x if marks is None else marks),
        level=None if level is None or not ends_y[0] <= level <= ends_y[1] else py([level])[0],
        band=[f"{inside[0]:.1f}", f"{np.ptp(inside):.1f}"] if np.ptp(inside) else None,
        lines=lines,
        cut=top is not None and highest > top,
    )


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at most low to at least high."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    return [round(t, 12) for t in locator.tick_values(low, high).tolist()]
