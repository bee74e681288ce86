r"""Exact minimax for linear models with scalar losses under order-2 Wasserstein.

.. math:: \min_{\theta, b} \; \sup_{W_2(P, P_n) \le r} E_P\,\ell(\theta'x + b, y)
          + \tfrac{\alpha}{2}\|\theta\|^2

The loss depends on x through one number, so the worst case is a one-dimensional problem per point,
solved globally (`drojko.losses`), and the whole problem is a smooth or piecewise smooth convex one
in d + 2 variables, solved by Newton's method (`ridge_newton`; squared loss: `ridge_squared`). The
answer comes with a proven optimality gap (`ridge_bound`). Duality: Blanchet, Murthy 2019,
arXiv 1604.01446; logistic and SVM cases: Shafieezadeh-Abadeh, Kuhn, Mohajerin Esfahani 2019,
arXiv 1710.10016 (order 1); smooth order-2 case: Sinha, Namkoong, Duchi 2018, arXiv 1710.10571.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from drojko._driver import Outcome, Status, run
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.losses import Squared
from drojko.minimax.ridge_bound import lower_bound
from drojko.minimax.ridge_data import RidgeData, Rows
from drojko.minimax.ridge_jets import kink_free
from drojko.minimax.ridge_newton import Newton, State
from drojko.minimax.ridge_risk import RidgeRisk, ridge_robust_risk
from drojko.minimax.ridge_squared import solve_squared

__all__ = ["RidgeData", "RidgeRisk", "RidgeSolution", "ridge_robust_risk", "solve_ridge"]

_SEPARABLE = (
    "The classes can be separated, so without alpha or a radius the risk falls to zero along a "
    "ray and no minimum exists: add alpha > 0 or a radius > 0 (on columns that may move)."
)


@dataclass(frozen=True)
class RidgeSolution:
    """A model and what is known about it.

    ``objective`` is the robust objective at (coef, intercept), exact: ``robust_risk`` plus
    alpha/2 |coef|². ``lower_bound`` is proven for every linear model (-inf: none proven), so
    ``objective - lower_bound`` bounds what a perfect solver could still gain. ``stationarity`` is
    the largest entry of the gradient over standardised columns, relative to the root mean square
    slope of the loss. ``risk`` holds the worst-case plan. ``status`` is one of "converged",
    "max_iter", "max_time", "callback", "interrupted", "unbounded"; ``message`` says what to do.
    """

    coef: np.ndarray
    intercept: float
    penalty: float
    objective: float
    lower_bound: float
    robust_risk: float
    nominal_risk: float
    transport_cost: float
    stationarity: float
    n_iter: int
    status: str
    message: str
    history: list[dict[str, float]]
    risk: RidgeRisk

    @property
    def gap(self) -> float:
        """Proven bound on objective minus its minimum; inf where no bound is known."""
        return self.objective - self.lower_bound


@dataclass(frozen=True)
class _Settings:
    radius: float | None
    penalty: float | None
    alpha: float
    fit_intercept: bool
    tol: float
    max_iter: int
    deadline: float
    callback: Callable[[int, dict[str, float]], bool | None] | None

    @property
    def form(self) -> dict[str, float | None]:
        return {"radius": self.radius or None, "penalty": self.penalty}


def solve_ridge(
    data: RidgeData,
    *,
    radius: float | None = None,
    penalty: float | None = None,
    alpha: float = 0.0,
    fit_intercept: bool = True,
    tol: float = 1e-6,
    max_iter: int = 500,
    max_time: float | None = None,
    warm_start: RidgeSolution | tuple[np.ndarray, float] | None = None,
    callback: Callable[[int, dict[str, float]], bool | None] | None = None,
) -> RidgeSolution:
    r"""Minimise the worst-case risk of a linear model, exactly.

    .. math:: \min_{\theta, b} \min_{\lambda \ge 0} \lambda r^2
        + E \sup_{x'} \{\ell(\theta'x' + b, y) - \lambda c(x, x')\} + \tfrac{\alpha}{2}\|\theta\|^2

    or, in the penalty form, the same at a fixed λ without λ r². Time is linear in the number of
    rows; X is read in blocks and never copied.

    Parameters
    ----------
    data : RidgeData
    radius, penalty : exactly one of them; the radius is in the units of X (W2 <= radius).
    alpha : float, L2 penalty on the coefficients, never on the intercept.
    fit_intercept : bool
    tol : float, relative accuracy of the objective aimed at (a smooth loss ends far below it).
    max_iter : int, Newton steps.
    max_time : float, seconds.
    warm_start : a solution or (coef, intercept) to start from.
    callback : ``callback(iteration, info)``; True stops.

    Returns
    -------
    RidgeSolution

    Raises
    ------
    UnboundedRiskError
        If no model has a finite worst case (squared loss, penalty <= 1 / label_cost).

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> data = RidgeData(X, np.array([0, 0, 1, 1]), loss=get_loss("hinge"))
    >>> solution = solve_ridge(data, radius=0.25)
    >>> solution.status, solution.gap < 1e-6
    ('converged', True)
    """
    settings = _check(radius, penalty, alpha, fit_intercept, tol, max_iter, max_time, callback)
    rows = Rows(data, centred=fit_intercept)
    if isinstance(data.loss, Squared):
        return _solve_squares(rows, data, settings)
    vertex, vertex_b, scale = _vertex(rows, data, settings)
    if scale == 0.0 or _vertex_is_optimal(rows, data, settings, vertex, vertex_b):
        outcome, state = None, None
        coef, intercept = rows.outward(vertex, vertex_b)
    else:
        start = _start(rows, warm_start, vertex, vertex_b)
        solver = _newton(rows, data, settings)
        outcome = _run(solver, (*start, scale), settings)
        state = outcome.best_state
        coef, intercept = rows.outward(state.z, state.b)
    return _finish(rows, data, settings, solver_state=state, outcome=outcome, coef=coef,
                   intercept=intercept, vertex=(vertex, vertex_b))


def _check(radius, penalty, alpha, fit_intercept, tol, max_iter, max_time, callback) -> _Settings:
    if (radius is None) == (penalty is None):
        raise InvalidDataError("give exactly one of radius and penalty")
    if radius is not None and not 0 <= radius < math.inf:
        raise InvalidDataError(f"radius = {radius!r}, expected a finite number >= 0")
    if penalty is not None and not penalty > 0:
        raise UnboundedRiskError(
            f"penalty = {penalty!r}: the worst case of every model but a constant one is "
            "infinite; give a penalty > 0"
        )
    if not (0 <= alpha < math.inf and tol > 0):
        raise InvalidDataError(f"alpha = {alpha!r}, tol = {tol!r}: expected alpha >= 0, tol > 0")
    if penalty is not None and math.isinf(penalty):
        radius, penalty = 0.0, None  # nothing moves
    deadline = math.inf if max_time is None else time.perf_counter() + max_time
    return _Settings(
        radius, penalty, float(alpha), fit_intercept, tol, max_iter, deadline, callback
    )


def _newton(rows: Rows, data: RidgeData, settings: _Settings) -> Newton:
    return Newton(
        rows,
        data,
        **settings.form,
        alpha=settings.alpha,
        fit_intercept=settings.fit_intercept,
        goal=0.05 * settings.tol,
    )


def _run(solver: Newton, problem, settings: _Settings) -> Outcome[State]:
    count = 0

    def call(state: State) -> bool:
        nonlocal count
        count += 1
        if settings.callback is None:
            return False
        return bool(settings.callback(count, solver.record(state)))

    left = settings.deadline - time.perf_counter()
    return run(
        solver,
        solver.init(problem),
        max_iter=settings.max_iter,
        max_time=None if math.isinf(left) else max(left, 0.0),
        callback=call,
    )


def _vertex(rows: Rows, data: RidgeData, settings: _Settings) -> tuple[np.ndarray, float, float]:
    """The best model that the adversary cannot touch (θ = 0 on movable columns), and its risk."""
    solver = Newton(
        rows,
        data,
        radius=None,
        penalty=None,
        alpha=settings.alpha,
        fit_intercept=settings.fit_intercept,
        goal=1e-3 * settings.tol,
        free=rows.cost == 0.0 if settings.form["radius"] else np.zeros(rows.cost.size, bool),
    )
    b = 0.0
    if settings.fit_intercept and data.loss.task == "regression":
        b = float(np.median(data.y))
    z = np.zeros(rows.cost.size)
    w = data.weight
    f = rows.predict(z, b)
    import torch

    scale = float(w @ data.loss.value(torch.from_numpy(f), torch.from_numpy(data.y)).numpy())
    if scale == 0.0 or not (solver.columns.size or settings.fit_intercept):
        return z, b, scale
    outcome = run(solver, solver.init((z, b, None, scale)), max_iter=200)
    s = outcome.state
    return s.z, s.b, max(s.value, 1e-3 * scale) if s.value > 1e-14 * scale else scale


def _vertex_is_optimal(rows, data, settings, z, b) -> bool:
    """Exact test for differentiable losses: |E p x|_* <= radius * sqrt(E p²) at the vertex."""
    radius = settings.form["radius"]
    if radius is None or data.flips or data.label_norm or not kink_free(data.loss, math.inf):
        return False
    import torch

    u = rows.predict(z, b)
    p = data.loss.gradient(torch.from_numpy(u), torch.from_numpy(data.y)).numpy()
    pull = data.weight * p
    c = np.zeros(z.size)
    for part in rows.blocks():
        c += pull[part] @ rows.block(part)
    movable = rows.cost > 0
    dual = math.sqrt(float((c[movable] ** 2 / rows.cost[movable]).sum()))
    return dual <= radius * math.sqrt(float(pull @ p))


def _start(rows, warm_start, z, b) -> tuple[np.ndarray, float, float | None]:
    if warm_start is None:
        return z, b, None
    if isinstance(warm_start, RidgeSolution):
        coef, intercept, lam = warm_start.coef, warm_start.intercept, warm_start.penalty
    else:
        (coef, intercept), lam = warm_start, None
    coef = np.asarray(coef, dtype=np.float64)
    if coef.shape != z.shape or not (np.isfinite(coef).all() and math.isfinite(intercept)):
        raise InvalidDataError(f"warm_start: expected {z.size} finite coefficients")
    usable = lam is not None and 0 < lam < math.inf
    return (*rows.inward(coef, float(intercept)), lam if usable else None)


def _evaluate(data, settings, coef, intercept, guess=None) -> tuple[RidgeRisk, float]:
    radius = settings.radius if settings.penalty is None else None
    risk = ridge_robust_risk(
        data, coef, intercept, radius=radius, penalty=settings.penalty, guess=guess
    )
    return risk, risk.value + 0.5 * settings.alpha * float(coef @ coef)


def _finish(rows, data, settings, *, solver_state, outcome, coef, intercept, vertex):
    guess = solver_state.lam if solver_state is not None else None
    risk, objective = _evaluate(data, settings, coef, intercept, guess)
    if solver_state is not None:
        # Near θ = 0 Newton's method only approaches the vertex; take it where it is no worse.
        for z, b in (vertex, (np.where(rows.cost > 0, 0.0, solver_state.z), solver_state.b)):
            other = rows.outward(z, b)
            risk0, objective0 = _evaluate(data, settings, *other)
            if objective0 <= objective * (1 + 0.1 * settings.tol):
                (coef, intercept), risk, objective = other, risk0, objective0
    bound = _bound(rows, data, settings, solver_state, coef, intercept, risk)
    if outcome is None:
        status, message, n_iter, history = Status.CONVERGED, Status.CONVERGED.advice, 0, []
        stationarity = 0.0
    else:
        status, message, n_iter, history = (
            str(outcome.status), outcome.message, outcome.n_iter, outcome.history,
        )
        stationarity = solver_state.stationarity
        if solver_state.diverged:
            status, message = "unbounded", _SEPARABLE
    return RidgeSolution(
        coef=coef,
        intercept=float(intercept),
        penalty=risk.penalty,
        objective=objective,
        lower_bound=min(bound, objective),
        robust_risk=risk.value,
        nominal_risk=risk.nominal,
        transport_cost=risk.transport_cost,
        stationarity=stationarity,
        n_iter=n_iter,
        status=str(status),
        message=message,
        history=history,
        risk=risk,
    )


def _bound(rows, data, settings, state, coef, intercept, risk) -> float:
    z, b = rows.inward(coef, intercept)
    u = rows.predict(z, b)
    lam, mu = risk.penalty, 0.0
    norm = data.squared_norm(coef)
    if state is not None:
        # The smoothed plan: it knows how ties are to be split.
        lam, mu, norm = state.lam, state.mu, norm + state.eps**2
        u = state.u
    if settings.form["radius"] is None and settings.penalty is None:
        kappa = math.inf
    else:
        kappa = lam / norm if norm > 0 else math.inf
    return lower_bound(
        rows, data, z, u, lam, kappa, mu, **settings.form,
        alpha=settings.alpha, fit_intercept=settings.fit_intercept,
    )


def _solve_squares(rows: Rows, data: RidgeData, settings: _Settings) -> RidgeSolution:
    z, b, count = solve_squared(
        rows, data, **settings.form, alpha=settings.alpha, fit_intercept=settings.fit_intercept
    )
    coef, intercept = rows.outward(z, b)
    risk, objective = _evaluate(data, settings, coef, intercept)
    return RidgeSolution(
        coef=coef,
        intercept=intercept,
        penalty=risk.penalty,
        objective=objective,
        lower_bound=-math.inf,
        robust_risk=risk.value,
        nominal_risk=risk.nominal,
        transport_cost=risk.transport_cost,
        stationarity=0.0,
        n_iter=count,
        status="converged",
        message=Status.CONVERGED.advice,
        history=[],
        risk=risk,
    )
