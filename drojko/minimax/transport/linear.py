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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from drojko._driver import Outcome, Status, run
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.minimax.limits import Limits
from drojko.minimax.many_rows import fit_many
from drojko.minimax.newton import ROUNDING, relative_gap
from drojko.minimax.transport.bound import lower_bound, plan_of
from drojko.minimax.transport.data import Ground, RidgeData
from drojko.minimax.transport.many_rows import Transported
from drojko.minimax.transport.newton import Newton, State
from drojko.minimax.transport.risk import RidgeRisk, ridge_robust_risk
from drojko.minimax.transport.squared import solve_squared
from drojko.rows import Rows

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
    unit: float = 0.0

    @property
    def gap(self) -> float:
        """Proven bound on objective minus its minimum; inf where no bound is known."""
        return self.objective - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """The gap over the objective or, where that is 0 to rounding, over ``unit``."""
        return relative_gap(self.objective, self.lower_bound, self.unit)

    @classmethod
    def judged(
        cls, problem, z, risk, objective, bound, unit, status, message, **run
    ) -> RidgeSolution:
        """A solution whose status is "converged" exactly where its gap is at most ``tol``."""
        coef, intercept = problem.rows.outward(z)
        solution = cls(
            coef=coef,
            intercept=float(intercept),
            penalty=risk.penalty,
            objective=objective,
            lower_bound=min(bound, objective),
            robust_risk=risk.value,
            nominal_risk=risk.nominal,
            transport_cost=risk.transport_cost,
            status=str(status),
            message=message,
            risk=risk,
            unit=max(unit, _rounding(problem.data) / ROUNDING),
            **run,
        )
        if status in (Status.CONVERGED, Status.MAX_ITER):
            close = solution.relative_gap <= problem.settings.tol
            status = (
                Status.CONVERGED
                if close
                else (Status.STALLED if status == Status.CONVERGED else status)
            )
            message = status.advice if status is not Status.MAX_ITER else message
        return replace(solution, status=str(status), message=message)


@dataclass(frozen=True)
class _Settings:
    radius: float | None
    penalty: float | None
    alpha: float
    tol: float
    aim: float
    max_iter: int
    deadline: float
    callback: Callable[[int, dict[str, Any]], bool | None] | None

    @property
    def goal(self) -> float:
        return 0.05 * self.aim


def solve_ridge(
    data: RidgeData,
    *,
    radius: float | None = None,
    penalty: float | None = None,
    alpha: float = 0.0,
    fit_intercept: bool = True,
    tol: float = 1e-6,
    aim: float | None = None,
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
    tol : float, largest relative gap, `RidgeSolution.relative_gap`, that counts as converged.
    aim : float, relative accuracy worked for; None: 1e-6, or `tol` where that is less.
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
    settings = _check(radius, penalty, alpha, tol, aim, max_iter, max_time, callback)
    rows = Rows(data.X, data.y, data.weight, intercept=fit_intercept)
    ground = Ground.of(rows, data, settings.radius, settings.penalty, settings.alpha)
    problem = _Problem(rows, data, ground, settings)
    if data.loss.quadratic:
        return _solve_squares(problem)
    return _solve_many(problem) or _solve(problem, warm_start)


def _check(radius, penalty, alpha, tol, aim, max_iter, max_time, callback) -> _Settings:
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
    aim = min(tol, 1e-6) if aim is None else aim
    return _Settings(radius, penalty, float(alpha), tol, aim, max_iter, deadline, callback)


@dataclass(frozen=True, eq=False)
class _Problem:
    rows: Rows
    data: RidgeData
    ground: Ground
    settings: _Settings

    def risk(self, z: np.ndarray, guess: float | None = None) -> tuple[RidgeRisk, float]:
        """The exact robust risk at z, and the objective."""
        coef, intercept = self.rows.outward(z)
        settings = self.settings
        risk = ridge_robust_risk(
            self.data,
            coef,
            intercept,
            radius=settings.radius,
            penalty=settings.penalty,
            guess=guess,
        )
        return risk, risk.value + 0.5 * settings.alpha * float(coef @ coef)

    def bound(
        self, state: State, lam: float, sigma: float, need: float = math.inf, repair: bool = True
    ) -> float:
        """Lower bound from the state's plan; the smoothed plan knows how ties are to be split."""
        if need <= 0.0:
            return 0.0
        data = self.data
        price = (lam, data.label_cost) if data.flips and self.ground.moves else None
        duals, best = state.duals if state.mu > 0 else None, 0.0
        # Far from its kinks smoothing leaves a little mass on the wrong side.
        for mu, split in ((state.mu, duals), (0.0, None)):
            plan = plan_of(data, state.u, sigma, mu, price, split)
            found = lower_bound(self.rows, data, self.ground, plan, state.z, need, repair)
            best = max(best, found)
            if best >= need or state.mu == 0.0:
                break
        return best


def _solve_many(problem: _Problem) -> RidgeSolution | None:
    """A smooth optimum from a sample of many rows; None where it is another solver's."""
    data, settings = problem.data, problem.settings
    if data.flips or not problem.ground.moves or not data.loss.kink_free(0.0):
        return None
    model: dict[str, Any] = {}

    def tell(count: int, info: dict[str, Any]) -> bool:
        return settings.callback is not None and bool(settings.callback(count, {**info, **model}))

    left = settings.deadline - time.perf_counter()
    found = fit_many(
        Transported(problem.rows, data.loss, problem.ground),
        Limits(settings.max_iter, settings.tol, None if math.isinf(left) else left, tell),
        classes=data.loss.task == "classification",
        goal=0.5 * settings.aim,
        report=lambda coef, intercept: model.update(coef=coef, intercept=intercept),
    )
    if found is None:
        return None
    z, columns = problem.rows.inward(found.coef, found.intercept), found.history
    risk, objective = problem.risk(z, found.multiplier)
    history = [
        dict(zip(columns, row, strict=True))
        for row in zip(*(column.tolist() for column in columns.values()), strict=True)
    ]
    return RidgeSolution.judged(
        problem, z, risk, objective, max(found.lower, 0.0), found.unit, Status(found.status),
        found.message, stationarity=found.stationarity, n_iter=found.n_iter, history=history,
    )  # fmt: skip


def _solve(problem: _Problem, warm_start) -> RidgeSolution:
    rows, data, settings = problem.rows, problem.data, problem.settings
    outcome, start = _vertex(problem)
    state, solver = start, Newton(rows, data, problem.ground, goal=settings.goal)
    if outcome is not None and outcome.status == Status.INTERRUPTED:
        pass
    elif _is_optimal(problem, start):
        outcome = None
    else:
        # A perfect fit still has slopes.
        lip = data.loss.lipschitz or 1.0
        size = max(start.value, 1e-6 * (lip if math.isfinite(lip) else 1.0))
        outcome = _run(solver, (*_first(rows, warm_start, start), size), settings)
        state = outcome.best_state
    return _finish(problem, solver, start, outcome, state)


def _run(solver: Newton, problem, settings: _Settings) -> Outcome[State]:
    count = 0

    def call(state: State) -> bool:
        nonlocal count
        count += 1
        if settings.callback is None:
            return False
        coef, intercept = solver.rows.outward(state.z)
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


def _vertex(problem: _Problem) -> tuple[Outcome[State] | None, State]:
    """The best model that the adversary cannot touch: θ = 0 on movable columns."""
    rows, data, settings, ground = problem.rows, problem.data, problem.settings, problem.ground
    free = ground.cost == 0.0
    if ground.radius is None:
        free[: rows.d] = False
    still = replace(ground, radius=None, penalty=None)
    solver = Newton(rows, data, still, goal=settings.goal, free=free)
    b = 0.0
    if rows.intercept and data.loss.task == "regression":
        b = float(np.median(data.y))
    z = rows.inward(np.zeros(rows.d), b)
    f = torch.from_numpy(rows.predict(z))
    scale = float(data.weight @ data.loss.value(f, torch.from_numpy(data.y)).numpy())
    state = solver.init((z, None, scale))
    if scale == 0.0 or not solver.columns.size:
        return None, state
    outcome = run(solver, state, max_iter=200)
    return outcome, outcome.state


def _is_optimal(problem: _Problem, vertex: State) -> bool:
    """Whether the vertex is proven optimal, as it is when the radius is large."""
    objective = problem.risk(vertex.z)[1]
    if objective == 0.0:
        return True
    if problem.ground.radius is None or problem.data.flips or problem.data.label_norm:
        return False  # there the plan of an immovable model says nothing about labels
    aim = problem.settings.goal * objective
    return objective - problem.bound(vertex, math.inf, 0.0, objective - aim, repair=False) <= aim


def _first(rows: Rows, warm_start, vertex: State) -> tuple[np.ndarray, float | None]:
    if warm_start is None:
        return vertex.z, None
    if isinstance(warm_start, RidgeSolution):
        coef, intercept, lam = warm_start.coef, warm_start.intercept, warm_start.penalty
    else:
        (coef, intercept), lam = warm_start, None
    coef = np.asarray(coef, dtype=np.float64)
    if coef.shape != (rows.d,) or not np.isfinite([*coef, intercept]).all():
        raise InvalidDataError(f"warm_start: expected {rows.d} finite coefficients")
    usable = lam is not None and 0 < lam < math.inf
    return rows.inward(coef, float(intercept)), lam if usable else None


def _finish(problem: _Problem, solver: Newton, vertex: State, outcome, state) -> RidgeSolution:
    settings, ground, z = problem.settings, problem.ground, state.z
    solved = outcome is not None
    risk, objective = problem.risk(z, solver.lam(state) if solved else None)
    if solved:
        # Near θ = 0 Newton's method only approaches the vertex; take it where it is no worse.
        still = np.where(ground.cost > 0, 0.0, state.z)
        for other in (vertex.z, still):
            risk0, objective0 = problem.risk(other)
            if objective0 <= objective * (1 + 0.1 * settings.aim):
                z, risk, objective = other, risk0, objective0
    lam, sigma = (solver.lam(state), solver.sigma(state)) if solved else (math.inf, 0.0)
    need = objective - 0.5 * settings.aim * objective
    bound = problem.bound(state, lam, sigma, need)
    if (
        bound < need
        and vertex is not state
        and ground.radius is not None
        and not problem.data.flips
    ):
        bound = max(bound, problem.bound(vertex, math.inf, 0.0, need))
    status, message, n_iter, history = Status.CONVERGED, "", 0, []
    if solved:
        status, message = outcome.status, outcome.message
        n_iter, history = outcome.n_iter, outcome.history
        if state.diverged:
            status, message = "unbounded", _SEPARABLE
    return RidgeSolution.judged(
        problem, z, risk, objective, bound, vertex.value, status, message,
        stationarity=state.stationarity if solved else 0.0, n_iter=n_iter, history=history,
    )  # fmt: skip


def _rounding(data: RidgeData) -> float:
    """A loss that is zero to rounding: that of targets which miss their last digits."""
    if data.loss.task != "regression":
        return 0.0
    y = torch.from_numpy(data.y)
    return float(data.loss.value(y + 8e-16 * y.abs().max(), y).max())


def _solve_squares(problem: _Problem) -> RidgeSolution:
    start, rows, data, settings = time.perf_counter(), problem.rows, problem.data, problem.settings
    z = solve_squared(rows, data, problem.ground)
    risk, objective = problem.risk(z)
    norm, u = problem.ground.square(z), rows.predict(z)
    sigma = 0.25 * norm / risk.penalty if norm > 0 else 0.0
    plan = plan_of(data, u, min(sigma, 0.25 - 1e-12), 0.0, None, None)
    need = objective - 0.5 * settings.aim * objective
    bound = lower_bound(rows, data, problem.ground, plan, z, need)
    if bound < need:
        # A perfect fit says nothing of the slopes' means, only of their second moment.
        half, slope = 0.5 * data.weight, np.full_like(u, 2.0 * math.sqrt(objective))
        plan = replace(plan, mass=np.stack([half, half]), slope=np.stack([slope, -slope]))
        plan = replace(plan, flips=[False, False])
        bound = max(bound, lower_bound(rows, data, problem.ground, plan, z, need))
    # A closed form up to a one-dimensional search: reported as a single iteration.
    row = {
        "iteration": 1,
        "seconds": time.perf_counter() - start,
        "robust_risk": risk.value,
        "penalty": risk.penalty,
        "transport_cost": risk.transport_cost,
        "stationarity": 0.0,
    }
    centred = data.y - data.weight @ data.y if rows.intercept else data.y
    size = float(data.weight @ (centred * centred))
    solution = RidgeSolution.judged(
        problem, z, risk, objective, bound, size, Status.CONVERGED, "",
        stationarity=0.0, n_iter=1, history=[row],
    )  # fmt: skip
    if settings.callback is not None:
        model = {"coef": solution.coef, "intercept": solution.intercept}
        settings.callback(1, {**row, **model})
    return solution
