r"""Exact minimax for linear models with scalar losses under order-2 Wasserstein.

.. math:: \min_{\theta, b} \; \sup_{W_2(P, P_n) \le r} E_P\,\ell(\theta'x + b, y)
          + \tfrac{\alpha}{2}\|\theta\|^2

The loss depends on x through one number, so the worst case is a one-dimensional problem per point,
solved globally (`drojko.losses`), and the whole problem is a smooth or piecewise smooth convex one
in d + 2 variables, solved by the common Newton's method (squared loss: `solve_squared`). The answer
comes with a proven optimality gap (`lower_bound`). Duality: Blanchet, Murthy 2019,
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

from drojko._driver import Limits, Status
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.minimax.many_rows import LEAST, fit_many
from drojko.minimax.newton import ROUNDING, LinearFit, fit, relative_gap
from drojko.minimax.transport.bound import Ground, lower_bound, plan_of
from drojko.minimax.transport.many_rows import Transported
from drojko.minimax.transport.objective import NormObjective, TransportRows
from drojko.minimax.transport.risk import RidgeData, RidgeRisk, ridge_robust_risk
from drojko.minimax.transport.squared import solve_squared
from drojko.rows import Rows

__all__ = ["RidgeData", "RidgeRisk", "RidgeSolution", "ridge_robust_risk", "solve_ridge"]

Callback = Callable[[int, dict[str, Any]], bool | None]

_CLOSE = 1e-3  # relative distance from the best model that nothing moves at which that is solved
_GOAL = 0.05  # of the accuracy aimed at: what the bound asks for


@dataclass(frozen=True)
class RidgeSolution:
    """A model and what is known about it.

    ``objective`` is the robust objective at (coef, intercept), exact: the value of ``risk`` plus
    alpha/2 |coef|². ``lower_bound`` is proven for every linear model (0: nothing better was
    proven), so ``objective - lower_bound`` bounds what a perfect solver could still gain.
    ``stationarity`` is the norm of the gradient over standardised columns, relative to 1 + the
    objective. ``risk`` holds the worst case. ``status`` is one of "converged" (`relative_gap` is
    at most the tolerance), "stalled", "max_iter", "max_time", "callback", "interrupted",
    "unbounded"; ``message`` says what to do.
    """

    coef: np.ndarray
    intercept: float
    objective: float
    lower_bound: float
    stationarity: float
    n_iter: int
    status: str
    message: str
    history: list[dict[str, float]]
    risk: Any
    unit: float = 0.0

    @property
    def penalty(self) -> float:
        """The multiplier of the radius, or the penalty."""
        return self.risk.penalty

    @property
    def gap(self) -> float:
        """Proven bound on objective minus its minimum; inf where no bound is known."""
        return self.objective - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """The gap over the objective or, where that is 0 to rounding, over ``unit``."""
        return relative_gap(self.objective, self.lower_bound, self.unit)


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """Data, set and accuracy of one fit; ``exact(coef, intercept, guess)`` is the worst case.

    ``aim`` is the relative accuracy worked for, ``limits.tol`` the one that counts as converged.
    """

    data: RidgeData
    rows: Rows
    ground: Ground
    alpha: float
    limits: Limits
    aim: float
    callback: Callback | None
    exact: Callable[..., Any]

    def risk(self, z: np.ndarray, guess: float | None = None) -> tuple[Any, float]:
        """The exact worst case at z, and the objective; infinite where there is none."""
        try:
            risk = self.exact(*self.rows.outward(z), guess)
        except UnboundedRiskError:
            return None, math.inf
        return risk, risk.value + self.ground.decay(z)

    def run(self, solver: Callable[..., Any]) -> Any:
        """``solver(limits, report)`` with a callback that finds the model in its record."""
        model: dict[str, Any] = {}

        def tell(count: int, row: dict[str, Any]) -> bool:
            known = {name: value for name, value in row.items() if name != "gap"}
            return self.callback is not None and bool(self.callback(count, {**known, **model}))

        def report(coef: np.ndarray, intercept: float) -> None:
            model.update(coef=coef, intercept=intercept)

        return solver(replace(self.limits, callback=tell), report)

    def train(self, objective: NormObjective, lower: float = 0.0) -> RidgeSolution:
        """The common Newton's method; the better one of its model and one that nothing moves."""
        goal = _GOAL * self.aim
        found = self.run(lambda limits, report: fit(objective, limits, goal=goal, report=report))
        z = self.rows.inward(found.coef, found.intercept)
        options = [(z, *self.risk(z, found.multiplier))]
        moved = self.ground.cost > 0.0
        if self.ground.moves and moved.any() and found.status != "unbounded":
            # Near the vertex Newton's method only approaches it; take it where it is no worse.
            still = np.where(moved, 0.0, z)
            options.append((still, *self.risk(still)))
            worst = options[0][2] * (1.0 + _CLOSE) + ROUNDING * found.unit
            if options[1][2] <= worst:
                near = self.rows.inward(*still_model(self))
                options.append((near, *self.risk(near)))
        best = min(options[1:], key=lambda option: option[2], default=options[0])
        if best[2] > options[0][2] * (1.0 + 0.1 * self.aim):
            best = options[0]
        return self.solution(*best, replace(found, lower=max(found.lower, lower)))

    def solution(self, z, risk, objective: float, found: LinearFit) -> RidgeSolution:
        """A solution whose status is "converged" exactly where its gap is at most ``tol``."""
        columns, status, message = found.history, found.status, found.message
        names = [name for name in columns if name != "gap"]
        rows = zip(*(columns[name].tolist() for name in names), strict=True)
        coef, intercept = self.rows.outward(z)
        solution = RidgeSolution(
            coef=coef,
            intercept=float(intercept),
            objective=objective,
            lower_bound=min(max(found.lower, 0.0), objective),
            stationarity=found.stationarity,
            n_iter=found.n_iter,
            status=status,
            message=message,
            history=[dict(zip(names, row, strict=True)) for row in rows],
            risk=risk,
            unit=max(found.unit, _rounding(self.data) / ROUNDING),
        )
        if status in (Status.CONVERGED, Status.STALLED, Status.MAX_ITER):
            ended = Status.MAX_ITER if status == Status.MAX_ITER else Status.STALLED
            close = solution.relative_gap <= self.limits.tol
            ended = Status.CONVERGED if close else ended
            if ended != status:
                message = f"Stopped after {found.n_iter} iterations. {ended.advice}"
            return replace(solution, status=str(ended), message=message)
        return solution


def still_model(problem: LinearProblem) -> tuple[np.ndarray, float]:
    """The best model on columns that never move: its robust risk is the plain one."""
    data, free = problem.data, problem.data.inverse_cost == 0.0
    X = data.X[:, free] if free.any() else np.zeros((len(data.y), 1))
    some = replace(
        data, X=np.ascontiguousarray(X), inverse_cost=np.ones(X.shape[1]), label_cost=math.inf
    )
    found = solve_ridge(
        some, radius=0.0, alpha=problem.alpha, fit_intercept=problem.rows.intercept, tol=1e-10,
        max_iter=200, max_time=problem.limits.time_left,
    )  # fmt: skip
    coef = np.zeros(data.X.shape[1])
    if free.any():
        coef[free] = found.coef
    return coef, found.intercept


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
    callback: Callback | None = None,
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
    radius, penalty = _check(radius, penalty, alpha, tol)
    limits, aim = Limits(max_iter, tol, max_time), min(tol, 1e-6) if aim is None else aim
    rows = Rows(data.X, data.y, data.weight, intercept=fit_intercept)
    ground = Ground.of(rows, data, radius, penalty, alpha)

    def exact(coef: np.ndarray, intercept: float, guess: float | None) -> RidgeRisk:
        return ridge_robust_risk(data, coef, intercept, radius=radius, penalty=penalty, guess=guess)

    problem = LinearProblem(data, rows, ground, alpha, limits, aim, callback, exact)
    if data.loss.quadratic:
        return _solve_squares(problem)
    found = _many_rows(problem) if rows.n >= LEAST else None
    if found is not None:
        return found
    objective = TransportRows(rows, data.loss, ground)
    if warm_start is not None:
        objective.begin(*_start(rows, warm_start), 1e-2)
    solution = problem.train(objective)
    if objective.refused is not None and solution.status == Status.STALLED:
        raise objective.refused
    return solution


def _check(
    radius: float | None, penalty: float | None, alpha: float, tol: float
) -> tuple[float | None, float | None]:
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
        return 0.0, None  # nothing moves
    return radius, penalty


def _many_rows(problem: LinearProblem) -> RidgeSolution | None:
    """A smooth optimum from a sample of many rows; None where it is another solver's."""
    loss, ground = problem.data.loss, problem.ground
    if problem.data.flips or not ground.moves or not loss.kink_free(0.0):
        return None
    found = problem.run(
        lambda limits, report: fit_many(
            Transported(problem.rows, loss, ground),
            limits,
            classes=loss.task == "classification",
            goal=0.5 * problem.aim,
            report=report,
        )
    )
    if found is None:
        return None
    z = problem.rows.inward(found.coef, found.intercept)
    return problem.solution(z, *problem.risk(z, found.multiplier), found)


def _start(rows: Rows, warm_start: Any) -> tuple[np.ndarray, float | None]:
    """A first point and its price from a solution or (coef, intercept)."""
    lam = None
    if isinstance(warm_start, RidgeSolution):
        coef, intercept, lam = warm_start.coef, warm_start.intercept, warm_start.penalty
    else:
        coef, intercept = warm_start
    coef = np.asarray(coef, dtype=np.float64)
    if coef.shape != (rows.d,) or not np.isfinite([*coef, intercept]).all():
        raise InvalidDataError(f"warm_start: expected {rows.d} finite coefficients")
    return rows.inward(coef, float(intercept)), lam


def _rounding(data: RidgeData) -> float:
    """A loss that is zero to rounding: that of targets which miss their last digits."""
    if data.loss.task != "regression":
        return 0.0
    y = torch.from_numpy(data.y)
    return float(data.loss.value(y + 8e-16 * y.abs().max(), y).max())


def _solve_squares(problem: LinearProblem) -> RidgeSolution:
    """A closed form up to a one-dimensional search: reported as a single iteration."""
    start, rows, data, ground = time.perf_counter(), problem.rows, problem.data, problem.ground
    z = solve_squared(rows, ground)
    risk, objective = problem.risk(z)
    norm, u = ground.square(z), rows.predict(z)
    sigma = 0.25 * norm / risk.penalty if norm > 0 else 0.0
    plan = plan_of(rows, data.loss, u, min(sigma, 0.25 - 1e-12), 0.0, None, None)
    need = objective - 0.5 * problem.aim * objective
    bound = lower_bound(rows, data.loss, ground, plan, z, need)
    if bound < need:
        # A perfect fit says nothing of the slopes' means, only of their second moment.
        half, slope = 0.5 * rows.w, np.full_like(u, 2.0 * math.sqrt(objective))
        plan = replace(plan, mass=np.stack([half, half]), slope=np.stack([slope, -slope]))
        plan = replace(plan, flips=[False, False])
        bound = max(bound, lower_bound(rows, data.loss, ground, plan, z, need))
    row = {
        "iteration": 1,
        "seconds": time.perf_counter() - start,
        "robust_risk": risk.value,
        "penalty": risk.penalty,
        "transport_cost": risk.transport_cost,
        "stationarity": 0.0,
    }
    coef, intercept = rows.outward(z)
    if problem.callback is not None:
        problem.callback(1, {**row, "coef": coef, "intercept": intercept})
    centred = data.y - rows.w @ data.y if rows.intercept else data.y
    found = LinearFit(
        coef, intercept, risk.penalty, objective, bound, "converged", Status.CONVERGED.advice, 1,
        0.0, {name: np.array([value]) for name, value in row.items()}, np.zeros(0),
        float(rows.w @ (centred * centred)),
    )  # fmt: skip
    return problem.solution(z, risk, objective, found)
