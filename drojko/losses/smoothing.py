"""What a smoothed loss is made of, and bounds of a conjugate that is not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from drojko._numerics import Kink

__all__ = ["Kink", "Smoothed", "conjugate_bound", "smoothed_clip"]


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A loss at predictions: value, slope, curvature, dual slope, and the kinks behind them.

    ``dual_slope`` lies in the domain of the conjugate. ``record`` has
    ``moved(new, t) -> dual``, or is None where the loss is smooth and the dual slope its own;
    ``own`` says that it is not smoothed at all.
    """

    value: np.ndarray
    slope: np.ndarray
    second: np.ndarray
    dual_slope: np.ndarray
    record: Any = None
    own: bool = False


def smoothed_clip(r: np.ndarray, delta: float, mu: float) -> tuple[np.ndarray, ...]:
    """Huber loss, slope and curvature as the difference of two smoothed kinks at -+ delta.

    Its linear parts have a little curvature: Newton's method needs some.
    """
    low, high = Kink(r + delta, mu), Kink(r - delta, mu)

    def area(x: np.ndarray, root: np.ndarray) -> np.ndarray:
        return 0.25 * x * (x + root) + mu * mu * np.arcsinh(x / (2.0 * mu))

    ends = np.array([delta, -delta])
    zero = area(ends, np.sqrt(ends * ends + 4.0 * mu * mu))
    value = area(low.x, low.root) - area(high.x, high.root) - delta * r - (zero[0] - zero[1])
    slope = np.clip(low.value - high.value - delta, -delta, delta)
    return value, slope, np.maximum(low.slope - high.slope, 0.0)


def conjugate_bound(
    line: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]], start: np.ndarray
) -> np.ndarray:
    """Lower bounds of the infima of smooth convex functions of one variable each, or -inf.

    ``line(f)`` gives values, first and second derivatives. No convex function lies below the point
    where a falling and a rising tangent of it cross: that is the bound, after any number of steps.
    """
    f, reach, bound = start.copy(), np.ones_like(start), np.full_like(start, -np.inf)
    falling, rising = (tuple(np.full_like(f, np.nan) for _ in range(3)) for _ in range(2))
    with np.errstate(all="ignore"):
        for iteration in range(80):
            value, slope, second = line(f)
            for side, here in ((falling, slope <= 0), (rising, slope >= 0)):
                for kept, now in zip(side, (f, value, slope), strict=True):
                    np.copyto(kept, now, where=here & np.isfinite(value))
            (a, below, fall), (b, above, rise) = falling, rising
            x = (above - below - rise * (b - a)) / (fall - rise)
            crossing = below + fall * np.clip(x, 0.0, b - a)
            bound = np.where(rise > fall, crossing, below)
            least = np.fmin(below, above)
            if (least - bound <= 1e-13 * (np.abs(least) + np.abs(least).mean() + 1e-300)).all():
                break
            step = f - slope / second
            inside = (np.isnan(a) | (step > a)) & (np.isnan(b) | (step < b))
            inside &= (np.abs(step - f) <= 8.0 * reach) & (iteration % 4 < 3)
            far = np.where(np.isnan(b), f + reach, np.where(np.isnan(a), f - reach, 0.5 * (a + b)))
            reach *= 2.0
            f = np.where(inside, step, far)
    return np.where(np.isfinite(bound), bound, -np.inf)
