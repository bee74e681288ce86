"""Optima of convex decision problems as conic programs: they share no code with the package."""

import cvxpy as cp
import numpy as np

from drojko.ambiguity import KL, ChiSquare, CVaR, TotalVariation, Wasserstein


def minimum(objective, constraints):
    """Optimal value of a program; an inaccurate solution is a failure."""
    problem = cp.Problem(cp.Minimize(objective), constraints)
    value = problem.solve(solver=cp.CLARABEL)
    assert problem.status == "optimal"
    return float(value)


def reweighted(losses, ambiguity):
    """Dual of a reweighting set on equally weighted losses (METHOD 3): objective, constraints."""
    n = losses.size
    if isinstance(ambiguity, CVaR):
        t = cp.Variable()
        return t + cp.sum(cp.pos(losses - t)) / (n * ambiguity.alpha), []
    if isinstance(ambiguity, TotalVariation):
        t, r = cp.Variable(), ambiguity.radius
        return r * cp.max(losses) + (1 - r) * t + cp.sum(cp.pos(losses - t)) / n, []
    if isinstance(ambiguity, ChiSquare):
        eta = cp.Variable()
        tail = cp.norm(cp.pos(losses - eta)) / np.sqrt(n)
        return eta + np.sqrt(1 + ambiguity.radius) * tail, []
    if isinstance(ambiguity, KL):
        s, lam, u, level = cp.Variable(), cp.Variable(nonneg=True), cp.Variable(n), cp.Variable(n)
        cone = cp.ExpCone(level - s, lam * np.ones(n), u)
        return s + lam * ambiguity.radius, [cone, losses <= level, cp.sum(u) / n <= lam]
    raise ValueError(ambiguity)


def max_affine_order_two(pieces, ambiguity):
    """Dual of max_i of affine pieces: (values at the samples (n,), squared norm of the slope)."""
    lam = cp.Variable(pos=True)
    price = lam if ambiguity.penalty is None else ambiguity.penalty
    lifted = [
        values + (square * cp.inv_pos(price) / 4 if ambiguity.penalty is None
                  else square / (4 * price))
        for values, square in pieces
    ]  # fmt: skip
    top = lifted[0]
    for other in lifted[1:]:
        top = cp.maximum(top, other)
    value = cp.sum(top) / pieces[0][0].size
    if ambiguity.penalty is None:
        return value + lam * ambiguity.radius**2, []
    return value, []


def newsvendor_optimum(z, ambiguity, h, b):
    q = cp.Variable()
    pieces = [(h * (q - z), h**2), (b * (z - q), b**2)]
    if isinstance(ambiguity, Wasserstein):
        objective, constraints = max_affine_order_two(pieces, ambiguity)
    else:
        losses = cp.maximum(pieces[0][0], pieces[1][0])
        objective, constraints = reweighted(losses, ambiguity)
    return minimum(objective, [*constraints, q >= 0])


def portfolio_optimum(z, ambiguity, tail, mean_weight=0.0, long_only=True):
    n, d = z.shape
    theta, t = cp.Variable(d), cp.Variable()
    loss = -z @ theta
    constraints = [cp.sum(theta) == 1] + ([theta >= 0] if long_only else [])
    if isinstance(ambiguity, Wasserstein):  # METHOD 4.7, p = 2; the penalised form alike
        assert mean_weight == 0.0
        objective = t + cp.sum(cp.pos(loss - t)) / (n * tail)
        if ambiguity.penalty is None:
            objective = objective + ambiguity.radius * tail**-0.5 * cp.norm(theta)
        else:
            objective = objective + cp.sum_squares(theta) / (4 * ambiguity.penalty * tail)
        return minimum(objective, constraints)
    losses = t + cp.pos(loss - t) / tail + mean_weight * loss
    objective, more = reweighted(losses, ambiguity)
    return minimum(objective, constraints + more)


def least_squares_optimum(A, b, radius):
    x = cp.Variable(A.shape[1])
    residual = cp.norm(A @ x - b) / np.sqrt(len(A))
    return minimum(residual + radius * cp.norm(cp.hstack([x, -1.0])), []) ** 2
