r"""Smooth losses under order-2 Wasserstein, for many rows.

.. math:: \min_{z, \sigma}\; \frac{r^2 n^2(z)}{4\sigma} + \sum_i w_i\,G_i(u_i, \sigma)
          + \tfrac12 z^\top R z, \qquad G(u, \sigma) = \max_p\; p u + p^2\sigma - \ell^*(p)

with n²(z) = sum_j cost_j z_j² + offset; at a fixed penalty lambda, sigma is n²/(4 lambda) and the
first term is gone. Slopes p with E p x = c give, whatever z is,

.. math:: E\,\inf_f(\ell(f) - p f) + c'z + r\sqrt{E p^2}\;n(z) + \tfrac12 z^\top R z ,

whose minimum over z is a lower bound: slopes are moved until c is what it is at the optimum, a
share of -cost z that the ball holds and -R z.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from drojko.losses import Loss
from drojko.losses.jets import jet
from drojko.minimax.row_sums import Rest, RowSums
from drojko.minimax.samples import from_plain
from drojko.minimax.transport.bound import Ground
from drojko.rows import Rows, normalised

__all__ = ["Transported"]

_BLOCK = 1 << 14  # rows whose work arrays stay in cache
_FEW = 5_000  # rows that say how far a first point goes


class Transported:
    """The objective, on a ground where something moves."""

    tight = False  # bounds hold at any price

    def __init__(self, rows: Rows, loss: Loss, ground: Ground):
        self.rows, self.loss, self.ground = rows, loss, ground
        self.priced = ground.penalty is not None
        self.penalty, self.budget = ground.penalty or math.inf, (ground.radius or 0.0) ** 2
        self.positive: tuple[int, ...] = () if self.priced else (0,)

    def sample(self, rows: Rows) -> Transported:
        """The same problem on some rows."""
        return Transported(rows, self.loss, self.ground)

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """The model of least mean loss, roughly, no steeper than kinks allow."""
        z, u = from_plain(self.rows, self.loss, self.ground.ridge)
        if self.priced:
            while not self.loss.kink_free(2.0 * self._sigma(z, z[:0])):
                z = 0.5 * z
            return z, z[:0]
        if not self.rows.wide:
            return z, self._spread(z, u)
        # The plain optimum of many columns is far too steep for the ball: some rows say how far.
        still = np.where(np.arange(z.size) < self.rows.d, 0.0, z)
        some = np.flatnonzero(self.rows.w)
        some = some[:: -(-len(some) // _FEW)]
        y, w = self.rows.y[some], normalised(self.rows.w[some])
        middle, options = self.rows.predict(still), []
        for share in 0.5 ** np.arange(12.0):
            new, v = still + share * (z - still), middle[some] + share * (u - middle)[some]
            p = self._sigma_of(new, v, y, w)
            sums = self.at(y, w, v, p, None, False)
            if sums is not None:
                options.append((sums.value + self.rest(new, p, sums).value, share))
        share = min(options)[1] if options else 0.0  # a plain model without slopes has no sigma
        z = still + share * (z - still)
        return z, self._spread(z, middle + share * (u - middle))

    def _spread(self, z: np.ndarray, u: np.ndarray) -> np.ndarray:
        """About the best sigma, below kinks."""
        return self._sigma_of(z, u, self.rows.y, self.rows.w)

    def _sigma_of(self, z: np.ndarray, u: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        slope = self.loss.line(u, y)[1]
        steep = float(self.rows.total(w @ slope**2))
        sigma = 0.5 * math.sqrt(self.budget * self.ground.square(z) / steep)
        while not self.loss.kink_free(2.0 * sigma):
            sigma *= 0.5
        return np.array([sigma])

    def settled(self, u: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Sigma as it is."""
        return p

    def levels(self, z: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Sigma."""
        return p if p.size else np.array([self._sigma(z, p)])

    def at(self, y, w, u, levels, near, second) -> RowSums | None:
        """Sums of G, block by block; ``spent`` is E p²."""
        sigma, n = float(levels[0]), len(u)
        if not (sigma > 0.0 and self.loss.kink_free(sigma)):
            return None
        slope, root = np.empty(n), np.empty(n, dtype=np.float32)
        bend, value, worth, turn = np.empty(n if second else 0), 0.0, 0.0, 0.0
        for start in range(0, n, _BLOCK):
            part = slice(start, min(start + _BLOCK, n))
            last = None if near is None else near[part]
            G, least, p, bends, at = worst(self.loss, u[part], y[part], sigma, last)
            if at is None:
                root = None
            elif root is not None:
                root[part] = at
            if second:
                bend[part] = bends
            slope[part] = p
            p = w[part] * p
            p *= bends
            turn += 4.0 * float(p @ slope[part])
            worth += float(w[part] @ least)
            value += math.nan if G is None else float(w[part] @ G)
        gu = w * slope
        spent = float(gu @ slope)
        if root is not None:
            value = worth + sigma * spent + float(gu @ u)
        if not math.isfinite(value):
            return None
        first = RowSums(value, gu, np.array([spent]), worth, spent, 1.0, root, turn=turn)
        if not second:
            return first
        huu = w * bend
        hup = 2.0 * slope * huu
        return replace(first, huu=huu, hup=hup[:, None], hpp=np.array([[turn]]))

    def rest(self, z: np.ndarray, p: np.ndarray, sums: RowSums) -> Rest:
        """Ball and ridge; of a penalty, what sigma passes on to z."""
        cost, ridge = self.ground.cost, self.ground.ridge
        value, square = self.ground.decay(z), self.ground.square(z)
        rate = 0.5 * sums.spent / self.penalty if self.priced else 0.5 * self.budget / p[0]
        gz, Hz = (rate * cost + ridge) * z, rate * cost + ridge
        if self.priced:
            low = None
            if sums.hup is not None:
                pull = 0.5 / self.penalty * cost * z
                V = np.stack([self.rows.sum(sums.hup[:, 0]), pull], axis=1)
                low = V, np.array([[0.0, 1.0], [1.0, sums.hpp[0, 0]]])
            return Rest(value, gz, np.zeros(0), Hz, low=low)
        sigma = float(p[0])
        value += 0.25 * self.budget * square / sigma
        gp = np.array([-0.25 * self.budget * square / sigma**2])
        Hzp = (-rate / sigma * cost * z)[:, None]
        return Rest(value, gz, gp, Hz, Hzp, 0.5 * self.budget * square / sigma**3)

    def _sigma(self, z: np.ndarray, p: np.ndarray) -> float:
        return 0.25 * self.ground.square(z) / self.penalty if self.priced else float(p[0])

    def dual(self, z: np.ndarray, p: np.ndarray, c: np.ndarray, sums: RowSums) -> float:
        """Minimum over z of worth + c'z + what the adversary adds + ridge."""
        cost, ridge, offset = self.ground.cost, self.ground.ridge, self.ground.offset
        if self.priced:
            curve = 0.5 * sums.spent / self.penalty * cost + ridge
            held = curve > 0.0
            left = 0.5 * float((c[held] ** 2 / curve[held]).sum())
            return sums.worth - left + 0.25 * offset * sums.spent / self.penalty
        movable = cost > 0.0
        ball = (c + ridge * z)[movable]  # the ridge holds the rest
        norm, strength = float((ball**2 / cost[movable]).sum()), self.budget * sums.spent
        # Slope 0 for a share of the mass where the ball is held too loosely.
        keep = min(1.0, strength / norm * (1.0 - 1e-15)) if norm > 0.0 else 1.0
        spare = max(keep * strength - keep**2 * norm, 0.0)
        return keep * sums.worth - keep**2 * self.ground.decay(z) + math.sqrt(spare * offset)

    def plan(
        self, z: np.ndarray, p: np.ndarray, sums: RowSums
    ) -> tuple[float, float, float, float] | None:
        """What the worst cases at this price come to; see `Scores`."""
        sigma, square = self._sigma(z, p), self.ground.square(z)
        if not sigma * square > 0.0:
            return None
        cost, bend = 4.0 * sigma**2 * sums.spent / square, sigma**2 * sums.turn / square
        return 0.25 * square / sigma, sums.value + sigma * sums.spent, cost, bend

    def record(self, z: np.ndarray, p: np.ndarray, sums: RowSums) -> dict[str, float]:
        """The price of a unit of cost, and the mean cost of the worst case."""
        sigma, square = self._sigma(z, p), self.ground.square(z)
        cost = 4.0 * sigma**2 * sums.spent / square if square > 0.0 else 0.0
        return {"penalty": 0.25 * square / sigma, "transport_cost": cost}


def worst(
    loss: Loss, u: np.ndarray, y: np.ndarray, sigma: float, near: np.ndarray | None
) -> tuple[Any, np.ndarray, np.ndarray, Any, Any]:
    """Of each row G, inf_f l(f) - p f, p and its derivative in u where G is attained.

    And what the next call may start ``near``. G is the second plus (u + sigma p) p, and left out
    where there is a start; the other derivatives follow: p² in sigma, and 2 p and 4 p² times the
    curvature. Without a start, which is None then, u may be far from zero: the sum would cancel.
    """
    nearby = getattr(loss, "_worst_near", None)
    if nearby is not None:
        return None, *nearby(u, y, sigma, near, True)
    at = jet(loss, u, y, sigma, 0.0)
    p = np.asarray(at.u)
    return at.value, at.value - (u + sigma * p) * p, p, np.asarray(at.uu), None
