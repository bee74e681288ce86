"""Worst cases over transports of the atoms, as conic programs for linear models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from drojko.ambiguity import GroundCost, Wasserstein
from drojko.baselines._programs import Form, Table
from drojko.losses import Loss

__all__ = ["dual_norm", "order_one_form", "order_two_form"]

_DUAL = {1: "inf", 2: 2, math.inf: 1}


def dual_norm(theta: Any, cost: GroundCost, norm: float) -> Any:
    """Dual norm of theta for the ground norm ||sqrt(weights) v||_norm, a convex expression."""
    import cvxpy as cp

    return cp.norm(cp.multiply(np.sqrt(cost.inverse_weights), theta), _DUAL[norm])


def order_one_form(ambiguity: Wasserstein, cost: GroundCost, loss: Loss, table: Table) -> Form:
    r"""Inf { c r + E s : c >= Lip ||theta||_*, s >= loss, s >= loss(other label) - c kappa }.

    S. Shafieezadeh-Abadeh, D. Kuhn, P. Mohajerin Esfahani (2017), arXiv 1710.10016.
    """
    import cvxpy as cp

    ball = ambiguity.penalty is None
    size = cp.Parameter(nonneg=True)
    c = cp.Variable(nonneg=True) if ball else size
    norm = float(ambiguity.norm)
    constraints: list[Any] = []
    if table.n_classes > 2:
        present = np.unique(table.target[table.mass > 0])
        for own in present:
            for other in range(table.n_classes):
                if own != other:
                    difference = table.theta[:, other] - table.theta[:, int(own)]
                    constraints.append(dual_norm(difference, cost, norm) <= c)
    else:
        constraints.append(float(loss.lipschitz or 0.0) * dual_norm(table.theta, cost, norm) <= c)
    s = table.losses(loss)
    if math.isfinite(ambiguity.label_cost):
        if table.sign is not None:
            flipped = loss.conic(table.outputs, 1 - table.target) - c * ambiguity.label_cost
            s = cp.maximum(s, flipped)
        else:  # targets move at label_cost |y - y'|
            constraints.append(c * ambiguity.label_cost >= float(loss.lipschitz or 0.0))
    risk = table.mass @ s
    if ball:
        risk = risk + size * c
    return Form(risk, constraints, [(size, float)], multiplier=c, cost=cost)


def _raised(loss: Loss, u: Any, sigma: Any) -> Any:
    """Max over the loss's lines of slope * u + level + slope^2 * sigma."""
    import cvxpy as cp

    return cp.maximum(*[slope * u + level + slope**2 * sigma for slope, level in loss.lines])


def order_two_form(ambiguity: Wasserstein, cost: GroundCost, loss: Loss, table: Table) -> Form:
    r"""Squared: (sqrt(MSE) + r n)^2, n the dual norm; max-affine: raised by slope^2 n^2 / (4 c).

    With movable targets (regression) n^2 = ||theta||_*^2 + 1 / label_cost.
    """
    import cvxpy as cp

    vector = cp.multiply(np.sqrt(cost.inverse_weights), table.theta)
    kappa = ambiguity.label_cost
    if table.sign is None and math.isfinite(kappa):
        vector = cp.hstack([vector, 1.0 / math.sqrt(kappa)])
    ball = ambiguity.penalty is None
    size = cp.Parameter(nonneg=True)
    if loss.quadratic:
        errors = cp.multiply(np.sqrt(table.mass), table.u)
        if ball:
            return Form(
                cp.square(cp.norm2(errors) + size * cp.norm2(vector)),
                [],
                [(size, float)],
                cost=cost,
            )
        # c R / (c - n^2) = R / share with share <= 1 - n^2 / c
        share, inverse = cp.Variable(nonneg=True), cp.Parameter(nonneg=True)
        room = share + cp.sum_squares(inverse * vector) <= 1.0
        sizes = [(inverse, lambda penalty: 1.0 / math.sqrt(penalty))]
        return Form(cp.quad_over_lin(errors, share), [room], sizes, cost=cost)
    sigma = cp.Variable(nonneg=True)
    if ball:
        c = cp.Variable(nonneg=True)
        constraints = [cp.quad_over_lin(vector, 4.0 * c) <= sigma]
        sizes = [(size, lambda radius: radius**2)]
    else:
        c, root = size, cp.Parameter(nonneg=True)
        constraints = [cp.sum_squares(root * vector) <= sigma]
        sizes = [(size, float), (root, lambda penalty: 0.5 / math.sqrt(penalty))]
    s = _raised(loss, table.u, sigma)
    if table.sign is not None and math.isfinite(kappa):
        s = cp.maximum(s, _raised(loss, -table.u, sigma) - c * kappa)
    risk = table.mass @ s
    if ball:
        risk = risk + size * c
    return Form(risk, constraints, sizes, multiplier=c, cost=cost)
