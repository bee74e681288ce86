r"""Exact Sinkhorn minimax for linear models with scalar losses.

.. math:: \min_{\theta, b, \lambda \ge 0} \; \lambda\rho
          + E\, G(\theta'x + b, s, \lambda\varepsilon) + \tfrac\alpha2 \|\theta\|^2, \qquad
          s^2 = \tfrac\varepsilon2\, \theta' W^{-1} \theta, \quad
          G(f, s, T) = T \log E_g\, e^{\ell(f + s g, y) / T}

is jointly convex and solved by the common Newton's method (`SinkhornRows`), from the solution of
the Wasserstein problem of the same size, which is the limit of epsilon to 0.
Source of the dual: J. Wang, R. Gao, Y. Xie, 2021, Sinkhorn Distributionally Robust Optimization,
arXiv 2109.11926.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from drojko.minimax.limits import Limits
from drojko.minimax.sinkhorn.objective import SinkhornRows
from drojko.minimax.sinkhorn.risk import SinkhornRisk, sinkhorn_risk
from drojko.minimax.transport.data import Ground, RidgeData
from drojko.minimax.transport.linear import Callback, LinearProblem, RidgeSolution, solve_ridge
from drojko.rows import Rows

__all__ = ["SinkhornRisk", "sinkhorn_risk", "solve_sinkhorn"]

_FIRST = 1e-4  # accuracy of the Wasserstein solution


def solve_sinkhorn(
    data: RidgeData,
    *,
    epsilon: float,
    radius: float | None = None,
    penalty: float | None = None,
    alpha: float = 0.0,
    fit_intercept: bool = True,
    tol: float = 1e-6,
    aim: float | None = None,
    max_iter: int = 200,
    max_time: float | None = None,
    warm_start: tuple[np.ndarray, float, float | None] | None = None,
    callback: Callback | None = None,
) -> RidgeSolution:
    """Minimise the Sinkhorn worst-case risk of a linear model.

    Time is linear in the number of rows.

    Parameters
    ----------
    data : RidgeData, with fixed labels
    epsilon : float
    radius, penalty : exactly one of them; the radius in squared units of X.
    alpha, fit_intercept, max_iter, max_time, callback : as in `solve_ridge`
    tol : float, largest relative gap, `RidgeSolution.relative_gap`, that counts as converged.
    aim : float, relative accuracy worked for; None: 1e-7, or `tol` where that is less.
    warm_start : (coef, intercept, multiplier or None)

    Raises
    ------
    UnboundedRiskError
        If the first model has no finite worst case (never in radius form).

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> data = RidgeData(X, np.array([0, 0, 1, 1]), loss=get_loss("logistic"))
    >>> solution = solve_sinkhorn(data, epsilon=0.1, radius=0.1)
    >>> solution.status, solution.gap < 1e-7
    ('converged', True)
    """
    limits, aim = Limits(max_iter, tol, max_time), min(tol, 1e-7) if aim is None else aim
    rows = Rows(data.X, data.y, data.weight, intercept=fit_intercept)
    # The noise is there at radius 0, too.
    ground = Ground.of(rows, data, 1.0, penalty, alpha)

    def exact(coef: np.ndarray, intercept: float, guess: float | None) -> SinkhornRisk:
        guess = guess if radius else None
        return sinkhorn_risk(
            data, coef, intercept, epsilon=epsilon, radius=radius, penalty=penalty, guess=guess
        )

    problem = LinearProblem(data, rows, ground, alpha, limits, aim, callback, exact)
    objective = SinkhornRows(rows, data.loss, ground, epsilon, radius or 0.0)
    lower = 0.0
    if warm_start is None:
        first, lower = _first(problem, epsilon, radius, penalty)
        still = not ground.square(rows.inward(first.coef, first.intercept)) > 0.0
        if radius and still and first.objective <= lower * (1.0 + 10.0 * _FIRST):
            first = _transport(problem, math.sqrt(radius), None, min(tol, 1e-6))
            still = not ground.square(rows.inward(first.coef, first.intercept)) > 0.0
        if first.status == "unbounded" or (radius and still and first.status == "converged"):
            return replace(first, risk=exact(first.coef, first.intercept, None))
        warm_start = first.coef, first.intercept, first.penalty
    coef, intercept, lam = warm_start
    z = rows.inward(np.asarray(coef, dtype=np.float64), float(intercept))
    objective.begin(z, lam, 1e-6 if ground.square(z) > 0.0 else 1e-1)
    return problem.train(objective, lower)


def _transport(
    problem: LinearProblem, radius: float | None, penalty: float | None, aim: float
) -> RidgeSolution:
    """The Wasserstein problem of a size."""
    return solve_ridge(
        problem.data,
        radius=radius,
        penalty=penalty,
        alpha=problem.alpha,
        fit_intercept=problem.rows.intercept,
        tol=aim,
        aim=aim,
        max_iter=100,
        max_time=problem.limits.time_left,
    )


def _first(
    problem: LinearProblem, epsilon: float, radius: float | None, penalty: float | None
) -> tuple[RidgeSolution, float]:
    """The Wasserstein solution, where that is constant the one of a smaller radius; its bound.

    By Jensen's inequality Sinkhorn's risk of any model is at least Wasserstein's at the same size.
    Of radius 0 the noise is what keeps coefficients small: a ball of its size does so, too.
    """
    if radius is None:
        found = _transport(problem, None, penalty, _FIRST)
        return found, found.lower_bound
    size = math.sqrt(radius or 0.25 * epsilon)
    found = _transport(problem, size, None, _FIRST)
    lower = found.lower_bound if radius else 0.0
    for shrink in (0.5, 0.1, 0.01):
        if found.status == "unbounded" or problem.data.squared_norm(found.coef) > 0.0:
            break
        found = _transport(problem, size * shrink, None, _FIRST)
    return found, lower
