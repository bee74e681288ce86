r"""Exact minimax for linear models under order-1 Wasserstein.

.. math:: \min_{\theta, b} \inf_{\lambda \ge L\|\theta\|_*} \lambda r
          + E \max_{y'} \{\ell(\theta'x + b, y') - \lambda\kappa [y' \ne y]\}
          + \tfrac\alpha2\|\theta\|^2

L is the Lipschitz constant of the loss, with more than two classes the norm is the largest of
those of differences of rows. Solved by an interior-point method (`lipschitz_newton`).

S. Shafieezadeh-Abadeh, D. Kuhn, P. Mohajerin Esfahani, 2019, Regularization via Mass
Transportation, arXiv 1710.10016; J. Blanchet, K. Murthy, 2019, arXiv 1604.01446.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from drojko._driver import Outcome, Status, run
from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.losses import Loss
from drojko.minimax.newton import relative_gap
from drojko.minimax.order_one.bound import lower_bound
from drojko.minimax.order_one.interior import InteriorPoint
from drojko.minimax.order_one.system import State, System
from drojko.minimax.order_one.units import Units

__all__ = ["LipschitzSolution", "slope_bound", "solve_lipschitz"]

#: Largest number of unknowns of a Newton system.
MOST_UNKNOWNS = 6000

_DUAL = {1: math.inf, 2: 2, math.inf: 1}


@dataclass(frozen=True)
class LipschitzSolution:
    """A linear model and how its training ended.

    ``coef`` (K, d) and ``intercept`` (K,), K = 1 for two classes and regression. ``objective`` is
    the robust objective, alpha's term included; ``relative_gap`` is a proven bound of (objective -
    minimum) / objective, NaN where nothing is proven (several outputs); ``stationarity`` the
    largest entry of the gradient of the Lagrangian over standardised columns. ``penalty`` is the
    multiplier of the radius.
    """

    coef: np.ndarray
    intercept: np.ndarray
    penalty: float
    objective: float
    relative_gap: float
    stationarity: float
    n_iter: int
    status: str
    message: str
    history: list[dict[str, float]]


def slope_bound(loss: Loss) -> float:
    r"""L such that the worst slope of the loss in x is :math:`L \max_e \|\theta_e\|_*`.

    With more than two classes theta_e are differences of rows, and L = 1.

    Raises
    ------
    UnboundedRiskError
        For the squared loss: under order 1 every radius > 0 gives an infinite worst case.
    UnsupportedError
        Where no Lipschitz constant is known.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> slope_bound(get_loss("quantile", q=0.9))
    0.9
    """
    if loss.lipschitz is None or not (loss.scalar or loss.has_pairs):
        raise UnsupportedError(
            "order=1 needs a loss with a known Lipschitz constant: use logistic, hinge, absolute, "
            "huber or quantile, or order=2"
        )
    if math.isinf(loss.lipschitz):
        raise UnboundedRiskError(
            f"order=1: the {loss.name} loss grows faster than distance, so its worst case is "
            "infinite for every radius > 0 (and every penalty): use order=2, or the loss 'huber'"
        )
    return float(loss.lipschitz) if loss.scalar else 1.0


def solve_lipschitz(
    X: np.ndarray,
    y: np.ndarray,
    *,
    loss: Loss,
    weight: np.ndarray | None = None,
    n_outputs: int = 1,
    radius: float | None = None,
    penalty: float | None = None,
    norm: float = 2,
    inverse_weights: np.ndarray | None = None,
    label_cost: float = math.inf,
    alpha: float = 0.0,
    fit_intercept: bool = True,
    tol: float = 1e-6,
    max_iter: int = 200,
    max_time: float | None = None,
    warm_start: tuple[np.ndarray, np.ndarray] | None = None,
    callback: Callable[[int, dict[str, Any]], bool | None] | None = None,
) -> LipschitzSolution:
    r"""Minimise the order-1 worst-case risk of a linear model, exactly.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    y : ndarray of shape (n,)
        Class indices, or targets of a regression.
    loss : Loss
        Lipschitz and convex: maxima of affine functions, or smooth.
    weight : ndarray of shape (n,), default=None
        Masses; only proportions matter.
    n_outputs : int
        Rows of coefficients: 1, or the number of classes.
    radius, penalty : float
        Exactly one of them; W1 <= radius in the units of X.
    norm : {1, 2, inf}
        Norm of the ground cost.
    inverse_weights : ndarray of shape (d,), default=None
        1 / weights of the columns; 0 where a column cannot move.
    label_cost : float
        Distance between two labels; in regression per unit of y.
    alpha, fit_intercept, tol, max_iter, max_time, warm_start, callback
        As in `solve_ridge`; ``callback(iteration, info)`` gets coef and intercept in ``info``.

    Raises
    ------
    UnboundedRiskError
        Squared loss, or a penalty below the price of moving targets.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> found = solve_lipschitz(X, y, loss=get_loss("hinge"), radius=0.1)
    >>> found.status, round(found.objective, 6), found.coef.round(6).tolist()
    ('converged', 0.2, [[2.0]])
    """
    if (radius is None) == (penalty is None):
        raise InvalidDataError("give exactly one of radius and penalty")
    began = time.perf_counter()
    units = Units.of(X, y, loss, weight, fit_intercept, alpha)
    inverse = np.ones(X.shape[1]) if inverse_weights is None else np.asarray(inverse_weights)
    if penalty is not None and math.isinf(penalty):
        radius, penalty = 0.0, None
    still = radius == 0.0
    system = _system(
        units, y, n_outputs, radius, penalty, norm, inverse, label_cost, fit_intercept, still
    )
    unknowns = n_outputs * (system.X.shape[1] + 1)
    if unknowns > MOST_UNKNOWNS:
        raise UnsupportedError(
            f"order=1 solves Newton systems of {unknowns} unknowns here, more than "
            f"{MOST_UNKNOWNS}: reduce the number of columns, or use order=2"
        )
    zero = np.zeros((n_outputs, X.shape[1]))
    plain = system.loss.value(system.responses(zero, np.zeros(n_outputs)), system.fixed_lam or 0.0)
    solver = InteriorPoint(system, 0.01 * min(tol, 1e-6), float(system.weight @ plain))
    first = units.inward(*_first(units, y, loss, n_outputs, warm_start, fit_intercept))
    count = 0

    def report(state: State) -> bool:
        nonlocal count
        count += 1
        if callback is None:
            return False
        coef, intercept = units.outward(state.W, state.b)
        info = {
            "robust_risk": state.objective * units.loss_unit,
            "penalty": math.inf if still else state.lam * units.loss_unit,
            "transport_cost": radius if radius is not None else math.nan,
            "stationarity": state.residual,
            "seconds": time.perf_counter() - began,
            "coef": coef,
            "intercept": intercept,
        }
        return bool(callback(count, info))

    outcome = run(
        solver,
        solver.init(first),
        max_iter=max_iter,
        max_time=max_time,
        callback=report,
    )
    least = -math.inf
    if n_outputs == 1:
        least = float(units.weight @ units.loss.least(np.zeros(len(y)), _target(units, y)))
    return _finish(system, units, outcome, loss, radius, still, least, solver.unit, tol)


def _target(units: Units, y: np.ndarray) -> np.ndarray:
    """Targets in the units of the problem; labels as they are."""
    if units.loss.task != "regression":
        return np.asarray(y)
    return (np.asarray(y) - units.middle) / units.target_unit


def _system(
    units, y, n_outputs, radius, penalty, norm, inverse, label_cost, intercept, still
) -> System:
    target, loss = _target(units, y), units.loss
    cost = label_cost
    slope, floor = 0.0, 0.0
    if not still:
        slope = slope_bound(loss)
    if loss.task == "regression":
        cost = label_cost * units.target_unit
        floor = slope / cost
    factor = np.sqrt(inverse) * units.inverse_scale
    mutable = np.flatnonzero(factor > 0)
    pieces = loss.pieces(target, n_outputs, math.inf if still else cost)
    flips = pieces.prices.any()
    bounded = bool(not still and (mutable.size > 0 or flips or floor > 0))
    lam = None if penalty is None else penalty / units.loss_unit
    if lam is not None and bounded and floor > lam:
        raise UnboundedRiskError(
            f"penalty={penalty:g}: moving targets alone makes the worst case infinite below "
            f"penalty = {floor * units.loss_unit:.6g}; raise the penalty or label_cost"
        )
    if lam is not None and not lam > 0 and bounded:
        raise UnboundedRiskError(
            f"penalty = {penalty!r}: the worst case of every model but a constant one is "
            "infinite; give a penalty > 0"
        )
    return System(
        X=units.X,
        weight=units.weight,
        loss=pieces,
        n_outputs=n_outputs,
        scale=factor[mutable],
        mutable=mutable,
        q=_DUAL[norm],
        decay=units.decay,
        intercept=intercept,
        radius=0.0 if radius is None or not bounded else float(radius),
        floor=floor,
        fixed_lam=lam if bounded else None,
        slope=slope,
        cones=bool(bounded and not (lam is not None and mutable.size == 0)),
        lam_free=bounded and lam is None,
    )


def _first(units, y, loss, n_outputs, warm_start, fit_intercept):
    if warm_start is not None:
        return np.array(warm_start[0], dtype=float), np.array(warm_start[1], dtype=float)
    coef, intercept = np.zeros((n_outputs, units.X.shape[1])), np.zeros(n_outputs)
    if loss.task == "regression" and fit_intercept:
        intercept += units.middle
    elif fit_intercept:
        mass = np.bincount(y, weights=units.weight, minlength=max(2, n_outputs))
        logs = np.log(np.maximum(mass, 1e-12))
        intercept = logs - logs.mean() if n_outputs > 1 else logs[1:] - logs[:1]
        if loss.scalar or not loss.calibrated:
            intercept = np.clip(intercept, -1.0, 1.0)
    return coef, intercept


_SEPARABLE = (
    "The classes can be separated by columns that cannot move, or without a radius, so the risk "
    "falls to zero as the coefficients grow and no minimum exists: add alpha > 0 or a radius > 0 "
    "on columns that may move."
)


def _objective(system: System, W: np.ndarray, b: np.ndarray, lam: float) -> tuple[float, float]:
    """Objective at (W, b) and the best lambda for it."""
    u = system.responses(W, b)
    least = max(system.floor, 0.0)
    if system.cones and system.mutable.size:
        order = {1: 1, 2: 2, math.inf: math.inf}[system.q]
        v = system.vectors(W)
        least = max(least, float(np.linalg.norm(v, ord=order, axis=1).max(initial=0.0)))
    if system.fixed_lam is not None:
        lam = system.fixed_lam if least <= system.fixed_lam * (1 + 1e-9) else math.inf
    elif system.lam_free:
        lam = max(lam, least) if system.loss.prices.any() else least
    if math.isinf(lam):
        return math.inf, lam
    value = float(system.weight @ system.loss.value(u, lam))
    value += 0.5 * float((system.decay * W**2).sum())
    return value + (system.radius * lam if system.lam_free else 0.0), lam


def _finish(
    system,
    units,
    outcome: Outcome[State],
    loss,
    radius,
    still,
    least: float,
    unit: float,
    tol: float,
):
    state = outcome.state
    W, b = state.W, state.b
    objective, lam = _objective(system, W, b, state.lam)
    if system.cones and system.mutable.size:
        W, b, objective, lam = _rounded(system, W, b, objective, lam)
    status, message = outcome.status, outcome.message
    gap = relative_gap(objective, lower_bound(system, state, objective, least), unit)
    if status in (Status.CONVERGED, Status.MAX_ITER):
        if gap <= tol and status is not Status.CONVERGED:
            status, message = Status.CONVERGED, Status.CONVERGED.advice
        elif gap > tol and status is Status.CONVERGED:
            status, message = Status.STALLED, Status.STALLED.advice
        diverging = not system.cones and not loss.attained and not system.decay.any()
        if diverging and objective < 1e-6:
            status, message = "unbounded", _SEPARABLE
    coef, intercept = units.outward(W, b)
    names = {"objective": "robust_risk", "lam": "penalty"}
    history = []
    for row in outcome.history:
        new = {names.get(k, k): v for k, v in row.items()}
        new["robust_risk"] *= units.loss_unit
        new["penalty"] = math.inf if still else new["penalty"] * units.loss_unit
        new["transport_cost"] = math.nan if radius is None else float(radius)
        history.append(new)
    return LipschitzSolution(
        coef=coef,
        intercept=intercept,
        penalty=math.inf if still else lam * units.loss_unit,
        objective=objective * units.loss_unit,
        relative_gap=gap,
        stationarity=state.residual,
        n_iter=outcome.n_iter,
        status=str(status),
        message=message,
        history=history,
    )


def _rounded(system, W, b, objective, lam):
    """Coefficients that an exact solution has at zero, where that costs nothing."""
    if len(W) > 1:  # only differences of rows matter
        W, b = W - W.mean(axis=0), b - b.mean()
    scaled = np.zeros_like(W)
    scaled[:, system.mutable] = np.abs(W[:, system.mutable]) * system.scale
    size = scaled.max(initial=0.0)
    movable = np.zeros(W.shape, bool)
    movable[:, system.mutable] = True
    for share in (math.inf, 1e-3, 1e-5, 1e-7):
        small = movable & (scaled <= share * size)
        trial = np.where(small, 0.0, W)
        value, at = _objective(system, trial, b, lam)
        if value <= objective + 2e-9 * abs(objective):
            return trial, b, value, at
    return W, b, objective, lam
