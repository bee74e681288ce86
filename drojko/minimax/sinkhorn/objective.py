r"""Sinkhorn's worst cases of linear models on the common solver, and a bound from tangents.

.. math:: G(f, N, \lambda) = T \log E_g\, e^{\ell(f + s g, y) / T}, \qquad
          s = \kappa \sqrt N,\; \kappa^2 = \epsilon / 2,\; T = \lambda\epsilon

The noise of Q_x enters through one Gaussian number, so that G and its derivatives are
one-dimensional (`drojko.losses.tilts`). It is jointly convex in (f, s, T), as T log E exp(l / T) is
the perspective of a convex nondecreasing function of the losses. More noise than the set has
smooths the vertex z = 0.

**Bound.** A share in [0, 1] of the tangent

.. math:: G(f, s, T) \ge G_0 + G_f (f - f_0) + G_s (s - s_0) + G_T (T - T_0)

at any point lies below G >= 0. With s = kappa n(z) the sum over the rows is below the objective of
every model, and its minimum over z and lambda >= 0 is

.. math:: \mathrm{const} + \min_z \{c'z + \kappa E G_s\, n(z) + \tfrac12 z' R z\}

where epsilon E KL <= radius, as G_T = -KL. Tangents at a nearly optimal point nearly do that, and
nearly balance: the point moves a little to where they do, and rows are thinned out by the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from drojko.exceptions import UnboundedRiskError
from drojko.losses import Loss
from drojko.losses.tilts import Tilted
from drojko.minimax.row_objective import Iterate
from drojko.minimax.transport.bound import balance, pinned_columns
from drojko.minimax.transport.data import Ground
from drojko.minimax.transport.objective import NormObjective, Sums
from drojko.rows import Rows

__all__ = ["SinkhornRows"]

_EPS = float(np.finfo(np.float64).eps)


class SinkhornRows(NormObjective):
    """Rows whose worst cases are tilted laws; the variable is lambda.

    The noise is there at radius 0, too: the ground always moves.
    """

    def __init__(self, rows: Rows, loss: Loss, ground: Ground, epsilon: float, radius: float):
        super().__init__(rows, loss, ground, radius)
        self.epsilon = epsilon

    def width(self, mu: float) -> float:
        """Noise that moves losses by mu, where a penalty allows that much."""
        width = mu / self.unit * self.spread / math.sqrt(0.5 * self.epsilon)
        if self.ground.penalty is not None and self.loss.growth:
            width = min(width, 0.5 * math.sqrt(self.ground.penalty / self.loss.growth))
        return width

    def tilted(self, u: np.ndarray, square: float, lam: float) -> tuple[Tilted, float] | None:
        """The laws at a price and their inverse temperature; None where there are none."""
        if self.loss.growth and lam <= self.loss.growth * square:
            return None
        eta, s = 1.0 / (self.epsilon * lam), math.sqrt(0.5 * self.epsilon * square)
        try:
            return self.loss.tilt(u, self.rows.y, s, eta), eta
        except UnboundedRiskError:
            return None

    def spending(self, u: np.ndarray, square: float, lam: float, mu: float) -> tuple[float, float]:
        """Epsilon E KL, of which the derivative is -Var l / (epsilon² lambda³) epsilon."""
        found = self.tilted(u, square, lam)
        if found is None:
            return math.inf, 0.0
        (at, eta), w = found, self.rows.w
        return self.epsilon * float(w @ at.divergence), -float(w @ at.cov[5]) * eta / lam**2

    def sums(
        self,
        u: np.ndarray,
        square: float,
        p: float,
        mu: float,
        duals: Mapping[str, Any],
        second: bool,
    ) -> Sums | None:
        """Moments of the tilted laws, and the chain rule through the noise's deviation."""
        lam = p if self.budget else self.ground.penalty or math.inf
        found = self.tilted(u, square, lam)
        if found is None:
            return None
        (at, eta), epsilon, w = found, self.epsilon, self.rows.w
        s = math.sqrt(0.5 * epsilon * square)
        rate = 0.25 * epsilon / s if s > 0.0 else 0.0  # ds / dN
        steep, spent = float(w @ at.mean[1]), epsilon * float(w @ at.divergence)
        out = Sums(float(w @ at.value), spent, w * at.mean[0], steep * rate)
        out.plan, out.curve = (at, s, lam, eta), out.n
        if self.budget:
            out.value += lam * self.budget
            out.p = self.budget - spent
        if second:
            ff, fs, ft, ss, st, tt = at.second(eta)
            out.uu, out.un = np.maximum(w * ff, 0.0), w * fs * rate
            out.nn = (float(w @ ss) - (steep / s if s else 0.0)) * rate**2
            out.up, out.np = epsilon * w * ft, epsilon * rate * float(w @ st)
            out.pp = epsilon**2 * float(w @ tt)
        return out

    def bounds(self, state: Iterate, need: float) -> tuple[float, float]:
        """From tangents near the iterate; 0 if nothing better was proven."""
        at, s, lam, eta = state.terms.detail[1].plan
        rows, ground, radius, u, best = self.rows, self.ground, self.budget, state.u, 0.0
        w, kappa, pinned = rows.w, math.sqrt(0.5 * self.epsilon), pinned_columns(rows, ground)
        for _ in range(8):
            mass = w
            if pinned.any():
                thinned = balance(rows, w[None], at.mean[0][None], pinned)
                if thinned is None:
                    break
                mass = thinned[0]
            spent = self.epsilon * float(mass @ at.divergence)
            if radius and spent > radius:
                mass, spent = mass * (radius / spent), radius
            slope, spread = mass * at.mean[0], float(mass @ at.mean[1])
            const = float(mass @ at.value) - float(slope @ u) - spread * s
            size = float(mass @ np.abs(at.value)) + float(np.abs(slope) @ np.abs(u)) + spread * s
            if radius:
                const += lam * spent
                size += lam * spent
            c = rows.sum(slope)
            c[pinned] = 0.0
            held, short = _held(ground, c, kappa * spread)
            best = max(best, const + held - 16.0 * _EPS * size)
            if best >= need:
                break
            # Next: better balanced, and a little more noise to hold c.
            off, moved = rows.sum(w * at.mean[0]), False
            if pinned.any() and np.abs(off[pinned]).max() > 1e-13 * float(w @ np.abs(at.mean[0])):
                shift = np.zeros(rows.size)
                curved = rows.gram(np.maximum(w * at.second(eta)[0], 0.0))[np.ix_(pinned, pinned)]
                shift[pinned] = np.linalg.lstsq(curved, -off[pinned], rcond=1e-14)[0]
                u, moved = u + rows.predict(shift), True
            if short > 1.0:
                s *= 1.0 + 2.0 * (short - 1.0) + 4.0 * _EPS
            elif not moved:
                break
            found = self.tilted(u, (s / kappa) ** 2, lam)
            if found is None:
                break
            at, eta = found
        return state.row["robust_risk"], best


def _held(ground: Ground, c: np.ndarray, strength: float) -> tuple[float, float]:
    """Minimum of c'z + strength n(z) + ridge over z, and by how much c is too long for -inf."""
    movable = (ground.cost > 0.0) & (c != 0.0)
    fixed = (ground.cost == 0.0) & (c != 0.0)
    left = -float((c[fixed] ** 2 / (2.0 * ground.ridge[fixed])).sum())
    cost, ridge, c = ground.cost[movable], ground.ridge[movable], c[movable]
    dual = math.sqrt(float((c * c / cost).sum()))
    if dual <= strength:
        return left, 1.0
    if not ridge.any():
        return -math.inf, dual / strength if strength > 0.0 else 1.0
    # The ball holds q cost / (ridge + q cost) of c, as much as it can, the ridge the rest.
    middle = math.log(float(ridge.max() / cost.max()))
    low, high = middle - 80.0, middle + 80.0
    for _ in range(100):
        q = math.exp(0.5 * (low + high))
        ball = q * cost / (ridge + q * cost)
        inside = float(((ball * c) ** 2 / cost).sum()) <= strength * strength
        low, high = (0.5 * (low + high), high) if inside else (low, 0.5 * (low + high))
    q = math.exp(low)
    rest = ridge / (ridge + q * cost) * c
    return left - float((rest**2 / (2.0 * ridge)).sum()), 1.0
