r"""Smooth losses under the conditional value at risk, for many rows: the kink is a short bend.

.. math:: \min_{z, \eta}\; \eta + \frac1\alpha \sum_i w_i\,s(\ell_i(u_i) - \eta)
          + \tfrac12 z^\top R z, \qquad
          s(x) = \frac{(x + \mu)^2}{4\mu} \text{ for } |x| \le \mu, \text{ else } (x)_+

s is above the kink, so that the objective stays an upper bound. Its slopes are a density of the
set, and with f the density of the losses at the level both sides are at most
:math:`f\mu^2/3\alpha` apart. A sample has too few rows within mu of the kink: it takes a long bend.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from drojko._numerics import root
from drojko.ambiguity import AmbiguitySet
from drojko.losses import Loss
from drojko.minimax.reweighting.many_rows import Divergent
from drojko.minimax.row_sums import RowSums
from drojko.rows import Rows

__all__ = ["Tailed"]

_LONG = 0.2  # of the losses' deviation: the bend of a sample
_SHARE = 0.25  # of the accuracy aimed at, that the bend may cost
_MOST = 0.6  # of the mass, in the bend of a sample
_BLOCK = 1 << 14  # rows whose work arrays stay in cache
_ROUNDING = 1e-12  # by which a density may miss mass one


class Tailed(Divergent):
    """The objective; ``cap`` of the density is 1 / alpha, ``goal`` the relative gap.

    The bend is a sample's, where it comes from one.
    """

    def __init__(
        self,
        rows: Rows,
        loss: Loss,
        ambiguity: AmbiguitySet,
        cap: float,
        alpha: float,
        goal: float,
    ):
        super().__init__(rows, loss, ambiguity, alpha)
        self.tail, self.goal = 1.0 / cap, goal
        self.mu = self.long = math.nan  # the bend, and that of samples
        self.whole: Tailed | None = None  # of a sample
        self.ball, self.positive = False, ()

    def sample(self, rows: Rows) -> Tailed:
        """The same problem on some rows, which says how sharp the kink may be on all."""
        some = Tailed(rows, self.loss, self.ambiguity, 1.0 / self.tail, self.alpha, self.goal)
        some.whole, some.mu = self, self.long
        return some

    def settled(self, u: np.ndarray, p: np.ndarray) -> np.ndarray:
        """The level with a density of mass one."""
        losses, w = self._losses(u), self.rows.w
        if not np.isfinite(losses).all():
            return p
        if math.isnan(self.mu):
            dual = self.ambiguity.dual(losses, w)
            p, mean = np.array([dual.shift]), float(w @ losses)
            spread = math.sqrt(float(w @ (losses - mean) ** 2))
            self.mu = max(_LONG * spread, 1e-12 * abs(mean), 1e-290)
            if self.whole is not None:
                self.whole.long = self.mu
                near = float(w[np.abs(losses - dual.shift) <= self.mu].sum()) / (2.0 * self.mu)
                cost = 3.0 * self.tail * _SHARE * self.goal * abs(dual.value)
                self.whole.mu = min(math.sqrt(cost / near) if near else self.mu, self.mu)

        def lack(step: float) -> tuple[float, float]:
            mass = slope = 0.0
            level, mu = p[0] + self.mu * step, self.mu
            for start in range(0, len(losses), _BLOCK):
                part = slice(start, start + _BLOCK)
                x = 0.5 * ((losses[part] - level) / mu + 1.0)
                mass += float(w[part] @ np.clip(x, 0.0, 1.0))
                slope += float(w[part] @ ((x > 0.0) & (x < 1.0)))
            return 1.0 - mass / self.tail, 0.5 * slope / self.tail

        return p + self.mu * root(lack, 0.0)

    def _losses(self, u: np.ndarray) -> np.ndarray:
        out = np.empty_like(u)
        for start in range(0, len(u), _BLOCK):
            part = slice(start, start + _BLOCK)
            out[part] = self.loss.line(u[part], self.rows.y[part])[0]
        return out

    def levels(self, z: np.ndarray, p: np.ndarray) -> np.ndarray:
        """The level."""
        return p

    def at(self, y, w, u, levels, near, second) -> RowSums | None:
        """Sums of s / alpha."""
        losses, slope, bend = self.loss.line(u, y)
        x = losses - levels[0]
        if not np.isfinite(x).all():
            return None
        q, steep, value = self._bent(x)
        mass = w * q
        total, gu = float(mass.sum()), mass * slope
        worth = float(mass @ losses) - float(gu @ u)
        first = RowSums(float(w @ value), gu, np.array([-total]), worth, 0.0, total)
        if not second:
            return first
        steep = w * steep
        hup = -(steep * slope)[:, None]
        hpp = np.array([[float(steep.sum())]])
        return replace(first, huu=mass * bend + steep * slope**2, hup=hup, hpp=hpp)

    def _bent(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Density, its slope and the value s / alpha."""
        mu, alpha = self.mu, self.tail
        share = np.clip(0.5 * (x / mu + 1.0), 0.0, 1.0)
        inside = (share > 0.0) & (share < 1.0)
        value = np.where(inside, mu * share * share, np.maximum(x, 0.0))
        return share / alpha, inside * (0.5 / (mu * alpha)), value / alpha

    def frozen(
        self, y: np.ndarray, w: np.ndarray, u: np.ndarray, levels: np.ndarray
    ) -> tuple[Divergent, np.ndarray]:
        """The mean loss under the density at u, whose slopes alone may move, and its weights."""
        q = self._bent(self.loss.line(u, y)[0] - levels[0])[0]
        return _Fixed(self.rows, self.loss, self.ambiguity), w * q

    def flat(self, z: np.ndarray, p: np.ndarray) -> bool:
        """Whether losses are so equal that most of them are in the bend: a sample says little."""
        inside = np.abs(self._losses(self.rows.predict(z)) - p[0]) < self.mu
        return float(self.rows.w @ inside) > _MOST

    def sharpen(self, factor: float) -> bool:
        """A bend shorter by this factor."""
        self.mu *= factor
        return True

    def dual(self, z: np.ndarray, p: np.ndarray, c: np.ndarray, sums: RowSums) -> float:
        """The bound, of a density of mass one."""
        if abs(sums.mass - 1.0) > _ROUNDING:
            return -math.inf
        keep = 1.0 - 4.0 * _ROUNDING
        held = self.ridge > 0.0
        left = 0.5 * float((c[held] ** 2 / self.ridge[held]).sum())
        return keep * sums.worth - keep**2 * left

    def record(self, z: np.ndarray, p: np.ndarray, sums: RowSums) -> dict[str, float]:
        """Mean excess over the level, and the bound of the ratio minus 1."""
        return {"penalty": self.tail * sums.value, "transport_cost": 1.0 / self.tail - 1.0}


class _Fixed(Divergent):
    """A mean loss under weights that stay."""

    def at(self, y, w, u, levels, near, second) -> RowSums | None:
        losses, slope, bend = self.loss.line(u, y)
        worth, none = float(w @ (losses - slope * u)), np.zeros(0)
        second_ = {"huu": w * bend, "hup": none[None], "hpp": none[None]}
        return RowSums(0.0, w * slope, none, worth, 0.0, float(w.sum()), **second_)
