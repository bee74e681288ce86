r"""Worst cases of a loss of one output whose inputs move within boxes: a search on a line.

.. math:: \max_\delta\; \ell(f + g^\top\delta, y) - \lambda\|\delta\|^2
          = \max_p\; p f + K(p) - \ell^*(p, y), \qquad
          K(p) = \max_{low \le \delta \le high} p\,g^\top\delta - \lambda\|\delta\|^2

over slopes p of a convex loss. At p the box's move is :math:`\delta_j = p g_j / 2\lambda`, clipped,
so that a maximiser has :math:`p = \ell'(f + s(p), y)`, with s(p) = K'(p) nondecreasing. Pieces of a
loss of lines are tried one by one. Of a smooth one T(p) = l'(f + s(p)) is nondecreasing: its steps
from both ends of the slopes enclose all maximisers, and where more than one may be left, an
interval [a, b] of slopes holds nothing above the maximum of K's chord, a value of the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from drojko.losses import Loss

__all__ = [
    "Reach", "piece_slopes", "reachable", "slope_ends", "stationary", "worst_slope",
]  # fmt: skip

_STEPS = 60  # of a search for a stationary slope
_PLAIN = 25  # that enclose it
_SPLITS = 80
_CLOSE = 1e-14  # relative to the value


@dataclass(frozen=True, eq=False)
class Reach:
    """How far rows go at a slope: g (r,), lambda, boxes (n, r) of moves, or None without bounds.

    ``extra`` is the square of the slope along one more coordinate, which nothing bounds.
    """

    slope: np.ndarray
    price: float
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    extra: float = 0.0

    def take(self, rows: np.ndarray) -> Reach:
        """Of some rows, with repeats."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=self.low[rows], high=self.high[rows])

    @property
    def square(self) -> float:
        """The squared slope."""
        return float(self.slope @ self.slope) + self.extra

    @property
    def rate(self) -> float:
        """The largest derivative of s."""
        return 0.5 * self.square / self.price

    def last(self, side: float) -> np.ndarray | float:
        """Size of the slopes from which on, upwards or downwards, no further bound is met."""
        if self.low is None or self.high is None:
            return 0.0
        ends = np.where(side * self.slope > 0.0, self.high, -self.low)
        ends = np.where(np.isfinite(ends) & (self.slope != 0.0), ends, 0.0)
        size = np.where(self.slope != 0.0, np.abs(self.slope), 1.0)
        return 2.0 * self.price * (ends / size).max(axis=1, initial=0.0)

    def move(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves (n, r) at slopes (n,), and which of them no bound holds."""
        wanted = p[:, None] * (self.slope * (0.5 / self.price))
        if self.low is None or self.high is None:
            return wanted, np.ones(wanted.shape, dtype=bool)
        move = np.clip(wanted, self.low, self.high)
        return move, move == wanted

    def at(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How the output moves at slopes (n,), the derivative of that, and what it costs."""
        if self.low is None:
            rate = np.full_like(p, self.rate)
            return p * rate, rate, p * p * (0.25 * self.square / self.price**2)
        move, free = self.move(p)
        more = 0.5 * self.extra / self.price
        rate = free @ (self.slope * self.slope) * (0.5 / self.price) + more
        cost = np.einsum("ij,ij->i", move, move) + p * p * (0.5 * more / self.price)
        return move @ self.slope + p * more, rate, cost


def reachable(loss: Loss) -> bool:
    """Whether the search is exact: a convex loss of lines, or a smooth one."""
    smooth = loss.curvature is not None and math.isfinite(loss.curvature)
    return loss.scalar and loss.convex and loss.structured and (bool(loss.lines) or smooth)


def piece_slopes(loss: Loss, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Slopes in the output of the lines of a loss, and their values at 0, each of shape (n,)."""
    if loss.task == "classification":
        sign, offset = 2.0 * y - 1.0, np.zeros(len(y))
    else:
        sign, offset = np.ones(len(y)), -y
    return [(slope * sign, slope * offset + level) for slope, level in loss.lines]


def slope_ends(loss: Loss, f: np.ndarray, y: np.ndarray, reach: Reach) -> list[np.ndarray]:
    """Slopes below and above all maximisers."""
    ends = []
    for side, end in zip((-1.0, 1.0), loss.domain(y), strict=True):
        p = np.array(end, dtype=np.float64)
        wide = np.flatnonzero(np.isinf(p))
        if wide.size:
            some, at, answer = reach.take(wide), f[wide], y[wide]
            own = loss.line(at, answer)[1]
            # Beyond the last of the bounds that are met, T only flattens.
            size = np.abs(own) + np.maximum(np.maximum(np.abs(own), some.last(side)), 1e-300)
            for _ in range(400):
                trial = own + side * size
                out = side * (loss.line(at + some.at(trial)[0], answer)[1] - trial) > 0.0
                if not out.any():
                    break
                size = np.where(out, 2.0 * size, size)
            p[wide] = own + side * size
        ends.append(p)
    return ends


def stationary(
    loss: Loss, f: np.ndarray, y: np.ndarray, reach: Reach, start: np.ndarray, far: bool = False
) -> np.ndarray:
    """Slopes p = l'(f + s(p)) of a smooth loss, maximisers near ``start``, an end of the slopes.

    ``far``: a Newton's step may go as far as it likes, as there is one maximiser.
    """
    p, rows = start.copy(), np.arange(len(f))
    some, at, answer, x = reach, f, y, p.copy()
    low, high = np.full_like(x, -np.inf), np.full_like(x, np.inf)
    for _ in range(_STEPS):
        s, rate, _ = some.at(x)
        _, t, second = loss.line(at + s, answer)
        room, plain = 1.0 - rate * second, t - x
        low, high = np.where(plain >= 0.0, x, low), np.where(plain <= 0.0, x, high)
        step = plain / np.maximum(room, 1e-12)
        # Farther than a few of the steps that only climb, it could jump to another basin.
        good = (room > 0.0) & (far | (np.abs(step) <= 20.0 * np.abs(plain)))
        new = np.where(good, x + step, t)
        both = np.isfinite(low) & np.isfinite(high)
        out = both & ~((new >= low) & (new <= high))
        new[out] = 0.5 * (low[out] + high[out])
        moving = np.abs(new - x) > 1e-14 * (np.abs(x) + 1e-3)
        p[rows] = x = new
        if not moving.any():
            break
        if moving.sum() * 2 < len(moving):
            rows, x, low, high = rows[moving], x[moving], low[moving], high[moving]
            some, at, answer = some.take(moving), at[moving], answer[moving]
    return p


def worst_slope(
    loss: Loss, f: np.ndarray, y: np.ndarray, reach: Reach
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes at global maximisers, shape (n,), and what they attain."""
    y = y.astype(np.float64)
    if loss.lines:
        best, slope = np.full(len(f), -np.inf), np.zeros(len(f))
        for p, level in piece_slopes(loss, y):
            s, _, cost = reach.at(p)
            value = p * (f + s) + level - reach.price * cost
            slope, best = np.where(value > best, p, slope), np.maximum(value, best)
        return slope, best
    low, high = slope_ends(loss, f, y, reach)
    if reach.rate * float(loss.curvature or 0.0) < 0.999:
        p = stationary(loss, f, y, reach, loss.line(f, y)[1], far=True)
        return p, _attained(loss, f, y, reach, p)
    for _ in range(_PLAIN):
        low = loss.line(f + reach.at(low)[0], y)[1]
        high = loss.line(f + reach.at(high)[0], y)[1]
    options = [stationary(loss, f, y, reach, end) for end in (low, high)]
    values = [_attained(loss, f, y, reach, p) for p in options]
    p, best = np.where(values[0] >= values[1], *options), np.maximum(*values)
    size = 1.0 + np.abs(high) + np.abs(low)
    wide = reach.rate * (high - low) ** 2 > _CLOSE * (1.0 + np.abs(best))
    open_ = np.flatnonzero(wide)
    if open_.size:
        left, right = low[open_] - 1e-15 * size[open_], high[open_] + 1e-15 * size[open_]
        _enclose(loss, f, y, reach, open_, np.minimum(left, p[open_]),
                 np.maximum(right, p[open_]), p, best)  # fmt: skip
    return p, best


def _attained(loss: Loss, f: np.ndarray, y: np.ndarray, reach: Reach, p: np.ndarray) -> np.ndarray:
    s, _, cost = reach.at(p)
    return loss.line(f + s, y)[0] - reach.price * cost


def _enclose(
    loss: Loss, f: np.ndarray, y: np.ndarray, reach: Reach, rows: np.ndarray,
    low: np.ndarray, high: np.ndarray, p: np.ndarray, best: np.ndarray,
) -> None:  # fmt: skip
    """Improve ``p`` and ``best`` in place until no interval of slopes can hold more."""

    def convex(at: np.ndarray, index: np.ndarray) -> np.ndarray:
        s, _, cost = reach.take(index).at(at)
        return at * s - reach.price * cost

    middle = p[rows]  # split where it is best so far
    rows = np.concatenate([rows, rows])
    low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    at_low, at_high = convex(low, rows), convex(high, rows)
    for _ in range(_SPLITS):
        width = high - low
        chord = np.where(width > 0.0, (at_high - at_low) / np.where(width > 0.0, width, 1.0), 0.0)
        top, slope, _ = loss.line(f[rows] + chord, y[rows])
        most = at_low - low * chord + top
        keep = most > best[rows] + _CLOSE * (1.0 + np.abs(best[rows]))
        keep &= reach.rate * width * width > 0.1 * _CLOSE
        if not keep.any():
            return
        rows, low, high, at_low, at_high, slope = (
            part[keep] for part in (rows, low, high, at_low, at_high, slope)
        )
        margin = 0.2 * (high - low)
        middle = np.clip(slope, low + margin, high - margin)
        found = _attained(loss, f[rows], y[rows], reach.take(rows), middle)
        order = np.argsort(found, kind="stable")
        wins = order[found[order] > best[rows[order]]]
        best[rows[wins]], p[rows[wins]] = found[wins], middle[wins]  # the last one is the largest
        at_middle = convex(middle, rows)
        rows = np.concatenate([rows, rows])
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
        at_low = np.concatenate([at_low, at_middle])
        at_high = np.concatenate([at_middle, at_high])
