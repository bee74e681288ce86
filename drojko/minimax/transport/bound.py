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

from drojko.minimax.transport.data import RidgeData, Rows, blocks
from drojko.minimax.transport.jets import conjugate, jet

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
    masses, slopes, flips = [], [], []
    for rows in blocks(u.size, 16):
        part = None if duals is None else duals[:, :, rows].copy()
        atoms = jet(data.loss, u[rows], data.y[rows], sigma, mu, price, part).atoms
        shape, w = u[rows].shape, data.weight[rows]
        masses.append(np.stack([w * np.broadcast_to(a.weight, shape) for a in atoms]))
        slopes.append(np.stack([np.broadcast_to(np.float64(a.slope), shape) for a in atoms]))
        flips = [a.flip for a in atoms]
    return Plan(np.concatenate(masses, axis=1), np.concatenate(slopes, axis=1), flips)


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
    c, square, gain = np.zeros(z.size), 0.0, 0.0
    for part in rows.blocks():
        m, p = mass[:, part], slope[:, part]
        c += (m * p).sum(axis=0) @ rows.block(part)
        square += float((m * p * p).sum())
        for k, flip in enumerate(flips):
            y = 1.0 - data.y[part] if flip else data.y[part]
            gain += float(m[k] @ conjugate(data.loss, p[k], y))
    c[pinned] = 0.0  # by construction, up to rounding
    flipped = float(sum(mass[k].sum() for k, flip in enumerate(flips) if flip))
    label = data.label_cost * flipped if flipped else 0.0
    if penalty is not None:
        return gain - penalty * label + _penalty_term(rows, data, c, square, penalty, ridge)
    budget = (radius or 0.0) ** 2 - label
    if budget < 0:
        return -math.inf
    return _radius_term(rows, data, z, c, gain, math.sqrt(budget * square), ridge)


def _balance(rows, mass, slope, cols, fit_intercept):
    """Thin out the masses so that the slopes balance on the intercept and on `cols`.

    Masses are multiplied by 1 ± x'g, the sign being that of the slope, and then by a constant
    that makes all factors at most 1; None where no such factors in [0, 1] balance.
    """
    k = cols.size + int(fit_intercept)

    def features(part: slice) -> np.ndarray:
        B = np.ones((part.stop - part.start, k))
        if cols.size:
            B[:, : cols.size] = rows.block(part)[:, cols]
        return B

    moment, residual = np.zeros((k, k)), np.zeros(k)
    for part in rows.blocks():
        B, force = features(part), mass[:, part] * slope[:, part]
        moment += (B * np.abs(force).sum(axis=0)[:, None]).T @ B
        residual += force.sum(axis=0) @ B
    direction = np.linalg.lstsq(moment, -residual, rcond=1e-14)[0]
    out, top = np.empty_like(mass), 1.0
    left, size = np.zeros(k), np.zeros(k)
    for part in rows.blocks():
        B, p = features(part), slope[:, part]
        factor = 1.0 + np.sign(p) * (B @ direction)
        if not (factor >= 0).all():
            return None
        top = max(top, float(factor.max(initial=1.0)))
        out[:, part] = mass[:, part] * factor
        force = out[:, part] * p
        left += force.sum(axis=0) @ B
        size += np.abs(force).sum(axis=0) @ np.abs(B)
    # An unsolvable balance (say, collinear columns) must not pass for a solved one.
    if not (np.abs(left) <= 1e-9 * size + 1e-300).all():
        return None
    return np.where(slope != 0, out / top, mass)


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
