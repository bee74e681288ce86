r"""A proven lower bound on the minimal Sinkhorn risk of a linear model, from tangents.

.. math:: G(f, s, T) \ge G_0 + G_f (f - f_0) + G_s (s - s_0) + G_T (T - T_0)

G is jointly convex and nonnegative, so a share in [0, 1] of its tangent at any point lies below it.
With T = lambda epsilon and s = kappa n(z) the sum over the rows is below the objective of every
model, and its minimum over z and lambda >= 0 is

.. math:: \mathrm{const} + \min_z \{c'z + \kappa E G_s\, n(z) + \tfrac12 z' R z\}

where epsilon E KL <= radius, as G_T = -KL. Tangents at a nearly optimal point nearly do that, and
nearly balance: the point moves a little to where they do, and rows are thinned out by the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from drojko.exceptions import UnboundedRiskError
from drojko.losses.tilts import Tilted
from drojko.minimax.transport.bound import balance, pinned_columns
from drojko.minimax.transport.data import Ground, RidgeData
from drojko.rows import Rows

__all__ = ["lower_bound"]

_EPS = float(np.finfo(np.float64).eps)


def lower_bound(
    rows: Rows,
    data: RidgeData,
    ground: Ground,
    z: np.ndarray,
    lam: float,
    need: float,
    spending: Callable[[np.ndarray, float, float], tuple[float, Tilted]],
    *,
    epsilon: float,
    radius: float | None,
    penalty: float | None,
) -> float:
    """Lower bound from tangents near z and the multiplier; 0 if nothing better was proven.

    ``spending(u, s, guess)``: the multiplier that spends the radius at predictions u and noise s,
    and the tilted laws there.
    """
    kappa, pinned = math.sqrt(0.5 * epsilon), pinned_columns(rows, ground)
    w, u = rows.w, rows.predict(z)
    s, still, best = kappa * math.sqrt(ground.square(z)), not (radius or penalty), 0.0
    for _ in range(8):
        try:
            if radius:
                lam, at = spending(u, s, lam)
                eta = 1.0 / (epsilon * lam)
            else:
                eta = 0.0 if still else 1.0 / (epsilon * lam)
                at = data.loss.tilt(u, data.y, s, eta)
        except UnboundedRiskError:
            break
        mass = w
        if pinned.any():
            thinned = balance(rows, w[None], at.mean[0][None], pinned)
            if thinned is None:
                break
            mass = thinned[0]
        spent = epsilon * float(mass @ at.divergence)
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
        if short <= 1.0 and not moved:
            break
    return best


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
