r"""Smooth losses under an f-divergence, for many rows: levels join the parameters.

.. math:: \min_{z, \eta, \lambda}\; \eta + \lambda r
          + \lambda \sum_i w_i f^*\!\left(\frac{\ell_i(u_i) - \eta}{\lambda}\right)
          + \tfrac12 z^\top R z, \qquad u = Bz

(at a fixed lambda, without lambda r, in the penalised form), jointly convex. Any (z, eta, lambda)
gives an upper bound. Slopes s and a density q = f*' of the set, with c = E q s x zero on columns
without a penalty, give the lower one

.. math:: E\,q\,\inf_f(\ell(f) - s f) - \mathrm{price}(q) - \tfrac12 \sum_j c_j^2 / R_{jj} .
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from drojko.ambiguity import AmbiguitySet
from drojko.losses import Loss
from drojko.minimax.row_sums import Rest, RowSums
from drojko.minimax.samples import from_plain
from drojko.rows import Rows

__all__ = ["Divergent"]

_BLOCK = 1 << 14  # rows whose work arrays stay in cache
_KINK = 1e-16  # by which kinks of f* are smoothed
_ROUNDING = 1e-12  # by which a density may miss mass one


class Divergent:
    """The objective; ``ambiguity`` is an f-divergence with a smooth conjugate."""

    tight = True  # a density has mass one

    def __init__(self, rows: Rows, loss: Loss, ambiguity: AmbiguitySet, alpha: float = 0.0):
        self.rows, self.loss, self.alpha = rows, loss, alpha
        self.ambiguity: Any = ambiguity
        self.ridge = np.zeros(rows.size)
        self.ridge[: rows.d] = np.where(rows.dead, 0.0, alpha / rows.scale**2)
        self.ball = ambiguity.penalty is None
        self.radius = float(ambiguity.radius or 0.0)
        self.positive: tuple[int, ...] = (1,) if self.ball else ()

    def sample(self, rows: Rows) -> Divergent:
        """The same problem on some rows."""
        return Divergent(rows, self.loss, self.ambiguity, self.alpha)

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """The model of least mean loss, roughly, with its levels."""
        z, u = from_plain(self.rows, self.loss, self.ridge)
        return z, self.settled(u, np.zeros(1 + self.ball))

    def settled(self, u: np.ndarray, p: np.ndarray) -> np.ndarray:
        """The best levels."""
        losses = self.rows.whole(self.loss.line(u, self.rows.y)[0])
        if not np.isfinite(losses).all():
            return p
        dual = self.ambiguity.dual(losses, self.rows.whole(self.rows.w))
        return np.array([dual.shift, dual.penalty] if self.ball else [dual.shift])

    def levels(self, z: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Shift and multiplier."""
        return p if self.ball else np.append(p, self.ambiguity.penalty)

    def at(self, y, w, u, levels, near, second) -> RowSums | None:
        """Sums of lambda f*, block by block; ``spent`` is E f(q)."""
        (level, price), n = levels.tolist(), len(u)
        if not (0.0 < price < math.inf and math.isfinite(level)):
            return None
        gu, hpp, n_second = np.empty(n), np.zeros((2, 2)), n if second else 0
        huu, hup = np.empty(n_second), np.empty((n_second, 2))
        value = attained = mass = 0.0
        for start in range(0, n, _BLOCK):
            part = slice(start, min(start + _BLOCK, n))
            losses, slope, bend = self.loss.line(u[part], y[part])
            t = (losses - level) / price
            with np.errstate(over="ignore", invalid="ignore"):
                jet = self.ambiguity.conjugate_jet(t, _KINK) if np.isfinite(t).all() else None
            if jet is None:
                return None
            q = w[part] * jet[1]
            np.multiply(q, slope, out=gu[part])
            value += price * float(w[part] @ jet[0])
            attained += float(q @ losses)
            mass += float(q.sum())
            if second:
                steep = w[part] * jet[2] / price
                huu[part] = q * bend + steep * slope**2
                turn = np.stack([np.ones_like(t), t])
                hup[part] = -(steep * slope * turn).T
                hpp += (turn * steep) @ turn.T
        if not math.isfinite(value + attained):
            return None
        spent = (attained - level * mass - value) / price
        worth = attained - float(gu @ u)
        first = RowSums(value, gu, np.array([-mass, -spent]), worth, spent, mass)
        return replace(first, huu=huu, hup=hup, hpp=hpp) if second else first

    def rest(self, z: np.ndarray, p: np.ndarray, sums: RowSums) -> Rest:
        """Levels and ridge."""
        gp = np.array([1.0, self.radius])[: p.size]
        value = float(gp @ p) + 0.5 * float(self.ridge @ z**2)
        return Rest(value, self.ridge * z, gp, self.ridge)

    def dual(self, z: np.ndarray, p: np.ndarray, c: np.ndarray, sums: RowSums) -> float:
        """The bound; towards the reference until the density is in the set, with slope 0 there."""
        if abs(sums.mass - 1.0) > _ROUNDING:
            return -math.inf
        keep, price = 1.0 - 4.0 * _ROUNDING, 0.0
        if self.ball:
            keep *= min(1.0, self.radius / sums.spent) if sums.spent > 0 else 1.0
        else:
            price = float(self.ambiguity.penalty) * sums.spent * (1.0 + 4.0 * _ROUNDING)
        held = self.ridge > 0.0
        left = 0.5 * float((c[held] ** 2 / self.ridge[held]).sum())
        return keep * sums.worth - price - keep**2 * left

    def record(self, z: np.ndarray, p: np.ndarray, sums: RowSums) -> dict[str, float]:
        """Multiplier and divergence."""
        return {"penalty": float(self.levels(z, p)[1]), "transport_cost": sums.spent}
