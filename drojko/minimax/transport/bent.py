r"""Losses of two lines under order-2 Wasserstein, for many rows: the kink is a short bend.

.. math:: \max(a x, b x) \quad\to\quad
          G(x, \sigma) = a x + a^2\sigma + (b - a)\,s(x + (a + b)\sigma), \qquad
          s(t) = \frac{(t + \mu)^2}{4\mu} \text{ for } |t| \le \mu, \text{ else } (t)_+

with the problem of `drojko.minimax.transport.many_rows`. s is above the kink, so that the objective
stays an upper bound; s' is the mass that goes to the steeper line, a plan of the set. With f the
density of t at 0 both sides are at most :math:`(b - a) f \mu^2 / 3` apart. A sample has too few
rows within mu of the kink: it takes a longer bend, and the shorter the larger it is. What is left
of balance is carried by the rows in the bend, all of them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from drojko.losses import Loss
from drojko.minimax.row_sums import RowSums
from drojko.minimax.samples import from_plain
from drojko.minimax.transport.bound import Ground
from drojko.minimax.transport.many_rows import Transported
from drojko.rows import Rows

__all__ = ["Bent"]

_LONG = 0.3  # of the deviation of x: the longest bend
_WIDE = 2.0  # of the mean of |x| at a constant model: a bend that most rows are in
_SHARE = 0.25  # of the accuracy aimed at, that the bend may cost
_IN_BEND, _LEAST = 10, 5  # rows a parameter in the bend of a sample, and of all rows at least
_MOST = 0.5  # of the mass, in the bend of a sample
_NEAR = 3.0  # bends within which rows may end up in it


class Bent(Transported):
    """The objective of a loss with ``slopes`` and a kink; ``goal`` is the relative gap."""

    def __init__(self, rows: Rows, loss: Loss, ground: Ground, goal: float):
        super().__init__(rows, loss, ground)
        self.goal, self.mu = goal, math.nan
        self.density, self.cost = 0.0, 0.0  # of x at its kink; what the bend may cost
        self.long = math.nan  # the longest bend
        self.whole: Bent = self  # of a sample
        self.low, self.high = getattr(loss, "slopes")  # noqa: B009
        self.gap, self.rise = self.high - self.low, self.high + self.low

    def sample(self, rows: Rows) -> Bent:
        """The same problem on some rows, with a bend that enough of them are in."""
        some = Bent(rows, self.loss, self.ground, self.goal)
        some.whole, some.mu = self, self.mu
        if rows.n < self.rows.n and self.density:
            enough = 0.5 * _IN_BEND * rows.size / (rows.n * self.density)
            some.mu = min(max(enough, self.mu), self.long)
        return some

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """The model of least mean loss, roughly; from it, how long bends may be."""
        rows, y, task = self.rows, self.rows.y, self.loss.task
        still = float(rows.total(rows.w @ y)) if task == "regression" else 0.0
        x = self._from_kink(np.full(len(y), still), y)[0]
        self.mu = max(_WIDE * self._mean(np.abs(x)), 1e-290)
        z, u = from_plain(rows, SimpleNamespace(task=task, line=self._line), self.ground.ridge)  # type: ignore[arg-type]
        x = self._from_kink(u, y)[0]
        middle = self._mean(x)
        self.mu = max(_LONG * math.sqrt(self._mean((x - middle) ** 2)), 1e-290)
        value, slope, _ = self._line(u, y)
        steep, square = self._mean(slope**2), self.ground.square(z)
        sigma = 0.5 * math.sqrt(self.budget * square / steep) if steep else 0.0
        whole = self.whole
        whole.long, whole.cost = self.mu, 3.0 * _SHARE * self.goal * self._mean(value)
        self._measured(x + self.rise * sigma)
        return z, (z[:0] if self.priced else np.array([sigma]))

    def _measured(self, x: np.ndarray) -> float:
        """The share of the mass in the bend, and from it how short that of all rows is."""
        whole, share = self.whole, self._mean((np.abs(x) <= self.mu).astype(float))
        whole.density, whole.mu = share / (2.0 * self.mu), self.mu
        if share:
            whole.mu = min(math.sqrt(whole.cost / (self.gap * whole.density)), self.mu)
        return share

    def _mean(self, values: np.ndarray) -> float:
        return float(self.rows.total(self.rows.w @ values))

    def _from_kink(self, u: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, Any]:
        return getattr(self.loss, "_from_kink")(u, y)  # noqa: B009

    def _line(self, u: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The plain loss with its bend: value, slope, curvature."""
        x, sign = self._from_kink(u, y)
        q, steep, value = self._bent(x)
        slope = sign * (self.low + self.gap * q)
        return self.low * x + self.gap * value, slope, self.gap * steep

    def _bent(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """s', s'' and s."""
        mu = self.mu
        q = np.clip(0.5 * (x / mu + 1.0), 0.0, 1.0)
        inside = (q > 0.0) & (q < 1.0)
        return q, inside * (0.5 / mu), np.where(inside, mu * q * q, np.maximum(x, 0.0))

    def at(self, y, w, u, levels, near, second) -> RowSums | None:
        """Sums of G; ``spent`` is E p²."""
        sigma = float(levels[0])
        if not sigma > 0.0:
            return None
        x, sign = self._from_kink(u, y)
        q, steep, value = self._bent(x + self.rise * sigma)
        p = self.low + self.gap * q
        gu = w * (sign * p)
        spent = self.low**2 * float(w.sum()) + self.gap * self.rise * float(w @ q)
        total = self.low * float(w @ x) + self.low**2 * sigma * float(w.sum())
        total += self.gap * float(w @ value)
        worth = float(w @ (p * x)) - float(gu @ u)
        if not math.isfinite(total):
            return None
        first = RowSums(total, gu, np.array([spent]), worth, spent, 1.0)
        if not second:
            return first
        bend = self.gap * w * steep
        hup, hpp = (self.rise * sign * bend)[:, None], self.rise**2 * float(bend.sum())
        return replace(first, huu=bend, hup=hup, hpp=np.array([[hpp]]))

    def carriers(self, u: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """The rows in the bend and near it, of all."""
        x = np.abs(self._from_kink(u, self.rows.y)[0] + self.rise * float(levels[0]))
        width = _NEAR * self.mu
        for _ in range(30):
            found = np.flatnonzero((x <= width) & (self.rows.w > 0))
            if float(self.rows.total(np.array(float(len(found))))) >= _IN_BEND * self.rows.size:
                break
            width *= 2.0
        return self.rows.everywhere(found)

    def flat(self, z: np.ndarray, p: np.ndarray) -> bool:
        """Whether bends hold too few rows to be smooth, or most: a model that is constant."""
        whole, x = self.whole, self._from_kink(self.rows.predict(z), self.rows.y)[0]
        if self._measured(x + self.rise * float(self.levels(z, p)[0])) > _MOST:
            return True
        return 2.0 * whole.density * whole.mu * whole.rows.n < _LEAST * whole.rows.size

    def sharpen(self, factor: float) -> bool:
        """A bend shorter by this factor, if it still holds enough rows."""
        self.mu *= factor
        return 2.0 * self.density * self.mu * self.rows.n >= _LEAST * self.rows.size
