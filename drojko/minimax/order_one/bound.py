r"""A proven lower bound of the order-1 minimum, from the multipliers of an interior point.

.. math:: F^* \ge L(x) + \min_{x' \in B} \nabla L(x)^\top (x' - x)

for the Lagrangian L, which is convex in x = (theta, b, lambda, u) and below F wherever the norms
are below lambda. The gradient is small but not zero, so B must hold a minimiser: radius lambda <= F
- inf loss bounds lambda and the norms, the ridge bounds coefficients of columns that cannot move,
and the mean loss of constant models, less what coefficients of that size change, the intercept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from drojko.minimax.order_one.system import State, System

__all__ = ["lower_bound"]

_DUAL = {1: math.inf, 2: 2, math.inf: 1}


def lower_bound(system: System, state: State, objective: float, least: float) -> float:
    """Lower bound of the minimum of a problem with one output; -inf where none is proven.

    Parameters
    ----------
    system : System
    state : State
        An iterate with its multipliers.
    objective : float
        A value of the objective that is attained.
    least : float
        Mean over the samples of the infimum of the loss.
    """
    cones = state.cones
    if system.n_outputs > 1 or not system.cones or cones is None or not math.isfinite(least):
        return -math.inf
    excess = max(objective - least, 0.0)
    top = float(system.fixed_lam or 0.0)
    if system.lam_free:
        top = max(excess / system.radius, system.floor, state.lam)
    smooth, _ = system.loss.smooth.derivatives(state.u)
    p = _shares(state.p)
    gW, gb, glam, rest = _gradient(system, state, p, smooth)
    value = _lagrangian(system, state, p)

    # Coefficients: inside the norm, or inside the ridge.
    W, mutable, scale = state.W[0], system.mutable, system.scale * system.slope
    order = _DUAL[system.q]
    value -= float(gW @ W) + float(np.linalg.norm(gW[mutable] / scale, ord=order)) * top
    reach = float(system.weight @ np.linalg.norm(system.X[:, mutable] / scale, ord=order, axis=1))
    reach *= top
    for j in np.setdiff1d(np.arange(len(W)), mutable):
        spread = float(system.weight @ np.abs(system.X[:, j]))
        if gW[j] == 0.0 and spread == 0.0:
            continue
        if not system.decay[j] > 0.0:
            return -math.inf
        size = math.sqrt(2.0 * excess / system.decay[j])
        value -= abs(gW[j]) * size
        reach += size * spread
    if system.lam_free:
        value += min(glam * (top - state.lam), glam * (system.floor - state.lam))
    if rest.size:
        value -= float((np.abs(rest) * (top + np.abs(cones.u))).sum())
    if system.intercept and gb != 0.0:
        value -= abs(gb) * _intercept(system, float(state.b[0]), objective + reach * system.slope)
    # Rounding of the sums above.
    return value - 1e-14 * (abs(value) + abs(objective)) * math.sqrt(len(system.weight))


def _shares(p: np.ndarray) -> np.ndarray:
    p = np.maximum(p, 0.0)
    return p / p.sum(axis=1, keepdims=True) if p.size else p


def _gradient(
    system: System, state: State, p: np.ndarray, smooth: np.ndarray
) -> tuple[np.ndarray, float, float, np.ndarray]:
    """Gradient of the Lagrangian in theta, b, lambda and the variables u of the norm."""
    loss, cones = system.loss, state.cones
    g = smooth + (0.0 if loss.linear is None else loss.linear)
    glam = system.radius
    if loss.n_pieces:
        g = g + p @ loss.slopes
        glam += float(system.weight @ (p * loss.prices).sum(axis=1))
    g = (system.weight[:, None] * loss.sign * g)[:, 0]
    gW = g @ system.X + system.decay * state.W[0]
    dv, dlam, _ = cones.force()  # type: ignore[union-attr]
    gW[system.mutable] += dv[0] * system.scale * system.slope
    return gW, float(g.sum()), glam + dlam, cones.rest()  # type: ignore[union-attr]


def _lagrangian(system: System, state: State, p: np.ndarray) -> float:
    loss, cones = system.loss, state.cones
    values = loss.smooth.value(state.u)
    if loss.linear is not None:
        values = values + (loss.linear * state.u).sum(axis=1)
    if loss.n_pieces:
        values = values + (p * loss.affine(state.u, state.lam)).sum(axis=1)
        if loss.curved:
            values = values - 0.5 * (p @ loss.slopes)[:, 0] ** 2
    total = float(system.weight @ values) + 0.5 * float((system.decay * state.W**2).sum())
    total += system.radius * state.lam if system.lam_free else 0.0
    return total - cones.products()  # type: ignore[union-attr]


def _intercept(system: System, b: float, most: float) -> float:
    """How far from b an intercept may be at which a constant model's mean loss is at most."""

    def risk(at: float) -> float:
        u = system.responses(np.zeros((1, system.X.shape[1])), np.array([at]))
        loss: Any = system.loss
        # At a high price labels stay, and that is the least that the loss can be.
        return float(system.weight @ loss.value(u, 1e100))

    far = 1.0 + abs(b)
    while not (risk(b - far) > most and risk(b + far) > most):
        far *= 2.0
        if far > 1e100:
            return math.inf
    return far
