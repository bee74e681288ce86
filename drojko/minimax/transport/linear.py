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
from typing import Any

import numpy as np
import torch

from drojko._driver import Outcome, Status, run
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.losses import Squared
from drojko.minimax.transport.bound import Plan, lower_bound, plan_of
from drojko.minimax.transport.data import RidgeData, Rows
from drojko.minimax.transport.newton import Newton, State
from drojko.minimax.transport.risk import RidgeRisk, ridge_robust_risk
from drojko.minimax.transport.squared import solve_squared

__all__ = ["RidgeData", "RidgeRisk", "RidgeSolution", "ridge_robust_risk", "solve_ridge"]

_SEPARABLE = (
    "The classes can be separated, so without alpha or a radius the risk falls to zero along a "
    "ray and no minimum exists: add alpha > 0 or a radius > 0 (on columns that may move)."
)


@dataclass(frozen=True)
class RidgeSolution:
    """A model and what is known about it.

    ``objective`` is the robust objective at (coef, intercept), exact: ``robust_risk`` plus
    alpha/2 |coef|². ``lower_bound`` is proven for every linear model (0: nothing better was
    proven), so ``objective - lower_bound`` bounds what a perfect solver could still gain.
    ``stationarity`` is the largest entry of the gradient over standardised columns, relative to
    the root mean square slope of the loss. ``risk`` holds the worst-case plan. ``status`` is one of
    "converged", "max_iter", "max_time", "callback", "interrupted", "unbounded"; ``message`` says
    what to do.
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
    callback: Callable[[int, dict[str, Any]], bool | None] | None

    @property
    def goal(self) -> float:
        return 0.05 * self.tol

    @property
    def form(self) -> dict[str, float | None]:
        return {"radius": self.radius or None, "penalty": self.penalty}

    @property
    def bound(self) -> dict[str, Any]:
        return {**self.form, "alpha": self.alpha, "fit_intercept": self.fit_intercept}


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
    callback: Callable[[int, dict[str, Any]], bool | None] | None = None,
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
    outcome, start = _vertex(rows, data, settings)
    state, solver = start, _newton(rows, data, settings)
    if outcome is not None and outcome.status == Status.INTERRUPTED:
        pass
    elif _is_optimal(rows, data, settings, start):
        outcome = None
    else:
        size = max(start.value, 1e-6 * solver.rms_slope(start))
        outcome = _run(solver, (*_first(rows, warm_start, start), size), settings)
        state = outcome.best_state
    return _finish(rows, data, settings, solver, start, outcome, state)


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
        **settings.bound,
        goal=settings.goal,
    )


def _run(solver: Newton, problem, settings: _Settings) -> Outcome[State]:
    count = 0

    def call(state: State) -> bool:
        nonlocal count
        count += 1
        if settings.callback is None:
            return False
        coef, intercept = solver.rows.outward(state.z, state.b)
        model = {"coef": coef, "intercept": intercept}
        return bool(settings.callback(count, {**solver.record(state), **model}))

    left = settings.deadline - time.perf_counter()
    return run(
        solver,
        solver.init(problem),
        max_iter=settings.max_iter,
        max_time=None if math.isinf(left) else max(left, 0.0),
        callback=call,
    )


def _vertex(
    rows: Rows, data: RidgeData, settings: _Settings
) -> tuple[Outcome[State] | None, State]:
    """The best model that the adversary cannot touch: θ = 0 on movable columns."""
    solver = Newton(
        rows,
        data,
        radius=None,
        penalty=None,
        alpha=settings.alpha,
        fit_intercept=settings.fit_intercept,
        goal=settings.goal,
        free=rows.cost == 0.0 if settings.form["radius"] else np.zeros(rows.cost.size, bool),
    )
    b = 0.0
    if settings.fit_intercept and data.loss.task == "regression":
        b = float(np.median(data.y))
    z = np.zeros(rows.cost.size)
    f = torch.from_numpy(rows.predict(z, b))
    scale = float(data.weight @ data.loss.value(f, torch.from_numpy(data.y)).numpy())
    state = solver.init((z, b, None, scale))
    if scale == 0.0 or not (solver.columns.size or settings.fit_intercept):
        return None, state
    outcome = run(solver, state, max_iter=200)
    return outcome, outcome.state


def _is_optimal(rows: Rows, data: RidgeData, settings: _Settings, vertex: State) -> bool:
    """Whether the vertex is proven optimal, as it is when the radius is large."""
    coef, intercept = rows.outward(vertex.z, vertex.b)
    objective = _risk(data, settings, coef, intercept)[1]
    if objective == 0.0:
        return True
    if settings.form["radius"] is None or data.flips or data.label_norm:
        return False  # there the plan of an immovable model says nothing about labels
    lower = _bound(rows, data, settings, vertex, math.inf, 0.0)
    return objective - lower <= settings.goal * objective


def _first(rows, warm_start, vertex: State) -> tuple[np.ndarray, float, float | None]:
    if warm_start is None:
        return vertex.z, vertex.b, None
    if isinstance(warm_start, RidgeSolution):
        coef, intercept, lam = warm_start.coef, warm_start.intercept, warm_start.penalty
    else:
        (coef, intercept), lam = warm_start, None
    coef = np.asarray(coef, dtype=np.float64)
    if coef.shape != vertex.z.shape or not np.isfinite([*coef, intercept]).all():
        raise InvalidDataError(f"warm_start: expected {vertex.z.size} finite coefficients")
    usable = lam is not None and 0 < lam < math.inf
    return (*rows.inward(coef, float(intercept)), lam if usable else None)


def _risk(data, settings, coef, intercept, guess=None) -> tuple[RidgeRisk, float]:
    risk = ridge_robust_risk(
        data, coef, intercept, radius=settings.radius, penalty=settings.penalty, guess=guess
    )
    return risk, risk.value + 0.5 * settings.alpha * float(coef @ coef)


def _finish(rows, data, settings, solver, vertex, outcome, state) -> RidgeSolution:
    coef, intercept = rows.outward(state.z, state.b)
    solved = outcome is not None
    risk, objective = _risk(data, settings, coef, intercept, solver.lam(state) if solved else None)
    if solved:
        # Near θ = 0 Newton's method only approaches the vertex; take it where it is no worse.
        still = np.where(rows.cost > 0, 0.0, state.z)
        for z, b in ((vertex.z, vertex.b), (still, state.b)):
            other = rows.outward(z, b)
            risk0, objective0 = _risk(data, settings, *other)
            if objective0 <= objective * (1 + 0.1 * settings.tol):
                (coef, intercept), risk, objective = other, risk0, objective0
    lam, sigma = (solver.lam(state), solver.sigma(state)) if solved else (math.inf, 0.0)
    bound = _bound(rows, data, settings, state, lam, sigma)
    status, message, n_iter, history = Status.CONVERGED, Status.CONVERGED.advice, 0, []
    if solved:
        status, message = outcome.status, outcome.message
        n_iter, history = outcome.n_iter, outcome.history
        if state.diverged:
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
        stationarity=state.stationarity if solved else 0.0,
        n_iter=n_iter,
        status=str(status),
        message=message,
        history=history,
        risk=risk,
    )


def _bound(rows, data, settings, state, lam, sigma) -> float:
    """Lower bound from the state's plan; the smoothed plan knows how ties are to be split."""
    robust = settings.form["radius"] is not None or settings.penalty is not None
    price = (lam, data.label_cost) if data.flips and robust else None
    duals = state.duals if state.mu > 0 else None
    plan = plan_of(data, state.u, sigma, state.mu, price, duals)
    return lower_bound(rows, data, plan, state.z, **settings.bound)


def _solve_squares(rows: Rows, data: RidgeData, settings: _Settings) -> RidgeSolution:
    start = time.perf_counter()
    z, b, _, dual = solve_squared(rows, data, **settings.bound)
    coef, intercept = rows.outward(z, b)
    risk, objective = _risk(data, settings, coef, intercept)
    norm = data.squared_norm(coef)
    if dual is None:
        sigma = 0.25 * norm / risk.penalty if norm > 0 else 0.0
        plan = plan_of(data, rows.predict(z, b), min(sigma, 0.25 - 1e-12), 0.0, None, None)
    else:
        # A perfect fit: slopes with the mean of the dual solution, spread to use the budget.
        mean = -2.0 * rows.predict(dual, 0.0)
        budget = 4.0 * (settings.radius or 0.0) ** 2 * norm
        spread = math.sqrt(max(budget - float(data.weight @ (mean * mean)), 0.0))
        mass = 0.5 * np.stack([data.weight, data.weight])
        plan = Plan(mass, np.stack([mean + spread, mean - spread]), [False, False])
    bound = lower_bound(rows, data, plan, z, **settings.bound)
    # A closed form up to a one-dimensional search: reported as a single iteration.
    row = {
        "iteration": 1,
        "seconds": time.perf_counter() - start,
        "robust_risk": risk.value,
        "penalty": risk.penalty,
        "transport_cost": risk.transport_cost,
        "stationarity": 0.0,
    }
    status = Status.CONVERGED
    if settings.callback is not None:
        settings.callback(1, {**row, "coef": coef, "intercept": intercept})
    return RidgeSolution(
        coef=coef,
        intercept=intercept,
        penalty=risk.penalty,
        objective=objective,
        lower_bound=min(bound, objective),
        robust_risk=risk.value,
        nominal_risk=risk.nominal,
        transport_cost=risk.transport_cost,
        stationarity=0.0,
        n_iter=1,
        status=str(status),
        message=status.advice,
        history=[row],
        risk=risk,
    )
