r"""A proven lower bound on the minimal robust risk, from the slopes of an adversary's plan.

A plan gives point i masses W_ik and loss slopes p_ik. Against this adversary every (θ, b) pays

.. math:: L + c'\theta + b\,E p + R\,n(\theta) + \tfrac{\alpha}{2}\|\theta\|^2, \qquad
          L = \sum_{ik} W_{ik} \inf_f \{\ell(f, y_i) - p_{ik} f\}, \quad c = E\,p x,

with R = sqrt((r² - cost of flipped labels) E p²) in the radius form (and n² E p²/(4λ) instead of
R n in the penalty form). This is ℓ(f) ≥ p f - ℓ*(p) and the best displacement of size allowed by
the budget. Its minimum over (θ, b) is the bound. It is -inf unless E p = 0 and c is dominated by
R, so the plan is first repaired: some of its mass is given the slope 0, where the infimum is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drojko.minimax.ridge_data import RidgeData, Rows
from drojko.minimax.ridge_jets import conjugate, jet

__all__ = ["Plan", "lower_bound", "plan_of"]


@dataclass
class Plan:
    """Masses and slopes, both of shape (k, n), and which of the k parts flip labels."""

    mass: np.ndarray
    slope: np.ndarray
    flips: list[bool]


def plan_of(
    data: RidgeData,
    u: np.ndarray,
    sigma: float,
    mu: float,
    price: tuple[float, float] | None,
    duals: np.ndarray | None,
) -> Plan:
    """The smoothed worst case at predictions `u`; the arguments are those of `ridge_jets.jet`."""
    j = jet(data.loss, u, data.y, sigma, mu, price, None if duals is None else duals.copy())
    mass = [data.weight * np.broadcast_to(a.weight, u.shape) for a in j.atoms]
    slope = [np.broadcast_to(np.asarray(a.slope, dtype=np.float64), u.shape) for a in j.atoms]
    return Plan(np.stack(mass), np.stack(slope), [a.flip for a in j.atoms])


def lower_bound(
    rows: Rows,
    data: RidgeData,
    plan: Plan,
    z: np.ndarray,
    *,
    radius: float | None,
    penalty: float | None,
    alpha: float,
    fit_intercept: bool,
) -> float:
    """Lower bound on the minimum of the robust objective; 0, as for any loss, if nothing better.

    `plan` and the coefficients `z` (in the coordinates of `rows`) only suggest an adversary: the
    bound holds whatever they are, and is tight when they are nearly optimal.
    """
    form = {"radius": radius, "penalty": penalty, "alpha": alpha}
    return max(_lower_bound(rows, data, plan, z, **form, fit_intercept=fit_intercept), 0.0)


def _lower_bound(rows, data, plan, z, *, radius, penalty, alpha, fit_intercept) -> float:
    mass, slope, flips = plan.mass, plan.slope, plan.flips
    ridge = alpha * rows.inverse_scale**2
    pinned = (ridge == 0.0) & ~rows.dead  # columns in which c must vanish exactly
    if radius is not None or penalty is not None:
        pinned &= rows.cost == 0.0
    cols = np.flatnonzero(pinned)
    if cols.size or fit_intercept:
        mass = _balance(rows, mass, slope, cols, fit_intercept)
        if mass is None:
            return -math.inf
    push = (mass * slope).sum(axis=0)
    c = np.zeros(z.size)
    for part in rows.blocks():
        c += push[part] @ rows.block(part)
    c[pinned] = 0.0  # by construction, up to rounding
    square = float((mass * slope * slope).sum())
    gain = 0.0
    for k, flip in enumerate(flips):
        y = 1.0 - data.y if flip else data.y
        gain += float(mass[k] @ conjugate(data.loss, slope[k], y))
    flipped = float(sum(mass[k].sum() for k, flip in enumerate(flips) if flip))
    label = data.label_cost * flipped if flipped else 0.0
    if penalty is not None:
        return gain - penalty * label + _penalty_term(rows, data, c, square, penalty, ridge)
    budget = (radius or 0.0) ** 2 - label
    if budget < 0:
        return -math.inf
    return _radius_term(rows, data, z, c, gain, math.sqrt(budget * square), ridge)


def _balance(rows, mass, slope, cols, fit_intercept):
    """Thin out the masses so that the slopes balance on the intercept and on `cols`."""
    k = cols.size + int(fit_intercept)
    force, size = (mass * slope).sum(axis=0), (mass * np.abs(slope)).sum(axis=0)
    moment, residual = np.zeros((k, k)), np.zeros(k)
    features = []
    for part in rows.blocks():
        B = np.ones((part.stop - part.start, k))
        if cols.size:
            B[:, : cols.size] = rows.block(part)[:, cols]
        moment += (B * size[part][:, None]).T @ B
        residual += force[part] @ B
        features.append(part)
    direction = np.linalg.lstsq(moment, -residual, rcond=1e-14)[0]
    tilt = np.empty(force.size)
    for part in features:
        B = np.ones((part.stop - part.start, k))
        if cols.size:
            B[:, : cols.size] = rows.block(part)[:, cols]
        tilt[part] = B @ direction
    factor = 1.0 + np.sign(slope) * tilt
    used = factor[(mass > 0) & (slope != 0)]
    if used.size and (used.min() < 0 or not np.isfinite(used).all()):
        return None
    factor /= max(used.max(initial=1.0), 1.0)
    out = np.where(slope != 0, mass * factor, mass)
    left = np.abs((out * slope).sum())
    # An unsolvable balance (collinear columns) must not pass for a solved one.
    return out if left <= 1e-9 * (out * np.abs(slope)).sum() or not fit_intercept else None


def _radius_term(rows, data, z, c, gain, strength, ridge) -> float:
    """Minimum over θ of gain + c'θ + strength * n(θ) + ridge, after thinning if need be."""
    offset = data.label_norm
    movable = rows.cost > 0
    dual = math.sqrt(float((c[movable] ** 2 / rows.cost[movable]).sum()))
    if not ridge.any():
        if dual == 0.0:
            return gain + strength * math.sqrt(offset)
        # Keeping the share s of the plan scales dual by s and strength by sqrt(s).
        s = min(1.0, (strength / dual) ** 2)
        left = max(s * strength**2 - (s * dual) ** 2, 0.0)
        return s * gain + math.sqrt(offset * left)
    # c = c1 + c2: c1 is carried by the ball (dual norm at most its strength), c2 by the ridge.
    norm = math.sqrt(float(rows.cost @ (z * z)) + offset)
    if norm > 0:
        c1 = np.where(movable, -strength * rows.cost * z / norm, 0.0)
    else:
        c1 = np.where(movable, c, 0.0) * (min(1.0, strength / dual) if dual > 0 else 0.0)
    rest = c - c1
    spare = strength**2 - float((c1[movable] ** 2 / rows.cost[movable]).sum())
    positive = ridge > 0
    cost = float((rest[positive] ** 2 / (2.0 * ridge[positive])).sum())
    if np.any(rest[~positive & ~rows.dead]):
        return -math.inf
    return gain - cost + math.sqrt(max(spare, 0.0) * offset)


def _penalty_term(rows, data, c, square, penalty, ridge) -> float:
    """Minimum over θ of c'θ + n² E p² / (4λ) + ridge."""
    curve = rows.cost * square / (2.0 * penalty) + ridge
    alive = c != 0
    if np.any(curve[alive] <= 0):
        return -math.inf
    return data.label_norm * square / (4.0 * penalty) - float(
        (c[alive] ** 2 / (2.0 * curve[alive])).sum()
    )
