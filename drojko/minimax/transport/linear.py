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
from drojko.minimax.newton import ROUNDING, LinearFit, check_columns, fit
from drojko.minimax.samples import AMPLE, fit_many, from_sample
from drojko.minimax.transport.bound import Ground, lower_bound, plan_of
from drojko.minimax.transport.many_rows import Transported
from drojko.minimax.transport.objective import NormObjective, TransportRows
from drojko.minimax.transport.risk import RidgeData, RidgeRisk, ridge_robust_risk
from drojko.minimax.transport.squared import solve_squared
from drojko.rows import Rows, is_wide, rows_of
from drojko.rows.rotated import Rotation

__all__ = ["RidgeData", "RidgeRisk", "ridge_robust_risk", "solve_ridge", "turn"]

_CLOSE = 1e-3  # relative distance from the best model that nothing moves at which that is solved
ACCURACY = 1e-6  # relative, worked for whatever tol is
_GOAL = 0.005  # of the accuracy aimed at: what the bound asks for
_PLAIN = 0.4  # the same of many columns, where a step is dear and nobody counts digits
_MANY = 5_000  # rows that jump, of which a sample goes first and few digits are asked for
_BENT = 1e-4  # the accuracy of kinks that became bends, or tol where that is less


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """Data, set and accuracy of one fit; ``exact(coef, intercept, guess)`` is the worst case.

    ``aim`` is the relative accuracy worked for, ``share`` what of it the bound asks for, and
    ``limits.tol`` the accuracy that counts as converged.
    """

    data: RidgeData
    rows: Rows
    ground: Ground
    alpha: float
    limits: Limits
    aim: float
    exact: Callable[..., Any]
    share: float = _GOAL

    def risk(
        self, z: np.ndarray, guess: float | None = None, scores: Any = None
    ) -> tuple[Any, float]:
        """The exact worst case at z, and the objective; infinite where there is none."""
        try:
            known = () if scores is None else (scores,)
            risk = self.exact(*self.rows.outward(z), guess, *known)
        except UnboundedRiskError:
            return None, math.inf
        return risk, risk.value + self.ground.decay(z)

    def nominal(self, z: np.ndarray) -> float:
        """The plain risk and the ridge, below the objective."""
        y, u = torch.from_numpy(self.data.y), torch.from_numpy(self.rows.predict(z))
        return float(self.rows.w @ self.data.loss.value(u, y).numpy()) + self.ground.decay(z)

    def train(self, objective: NormObjective, lower: float = 0.0) -> LinearFit:
        """The common Newton's method; the better one of its model and one that nothing moves."""
        goal = self.share * self.aim
        if self.data.swaps is not None or self.data.box is not None:
            # Where places tie, digits beyond the aim take steps of their own.
            goal = 0.5 * max(self.aim, min(self.limits.tol, AMPLE) if self.rows.n >= _MANY else 0.0)
        sampled = from_sample if hasattr(objective, "sample") else None
        found = fit(objective, self.limits, goal=goal, sampled=sampled)
        z = self.rows.inward(found.coef, found.intercept)
        options = [(z, *self.risk(z, found.multiplier))]
        moved = self.ground.cost > 0.0
        if self.ground.moves and moved.any() and found.status != "unbounded":
            # Near the vertex Newton's method only approaches it; take it where it is no worse.
            still = np.where(moved, 0.0, z)
            worst = options[0][2] * (1.0 + _CLOSE) + ROUNDING * found.unit
            if self.data.swaps is None or self.nominal(still) <= worst:
                options.append((still, *self.risk(still)))
            if options[-1][2] <= worst and len(options) > 1:
                near = self.rows.inward(*still_model(self))
                options.append((near, *self.risk(near)))
        best = min(options[1:], key=lambda option: option[2], default=options[0])
        if best[2] > options[0][2] * (1.0 + 0.1 * self.aim):
            best = options[0]
        if found.status in ("stalled", "max_iter"):  # a vertex far off proves itself
            rows, loss = self.rows, self.data.loss
            plan = plan_of(rows, loss, rows.predict(best[0]), 0.0, 0.0, None, None)
            lower = max(lower, lower_bound(rows, loss, self.ground, plan, best[0]))
        return self.solution(*best, replace(found, lower=max(found.lower, lower)))

    def solution(self, z, risk, objective: float, found: LinearFit) -> LinearFit:
        """What was found, with another model and its worst case."""
        coef, intercept = self.rows.outward(z)
        return replace(
            found,
            coef=coef,
            intercept=intercept,
            multiplier=risk.penalty,
            objective=objective,
            lower=min(max(found.lower, 0.0), objective),
            risk=risk,
            unit=max(found.unit, _rounding(self.data) / ROUNDING),
            advice=None,
        ).judged(self.limits.tol)


def still_model(problem: LinearProblem) -> tuple[np.ndarray, float]:
    """The best model on columns that never move: its robust risk is the plain one."""
    data, free = problem.data, problem.data.inverse_cost == 0.0
    X: Any = data.X[:, free] if free.any() else np.zeros((len(data.y), 1))
    X = np.ascontiguousarray(X) if isinstance(X, np.ndarray) else X
    some = replace(data, X=X, inverse_cost=np.ones(X.shape[1]), label_cost=math.inf, swaps=None)
    found = solve_ridge(
        some,
        radius=0.0,
        alpha=problem.alpha,
        fit_intercept=problem.rows.intercept,
        limits=Limits(200, 1e-10, problem.limits.time_left),
    )
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
    limits: Limits | None = None,
    aim: float | None = None,
    warm_start: tuple[np.ndarray, float, float | None] | None = None,
    share: float = _GOAL,
) -> LinearFit:
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
    limits : Limits, of Newton steps; its tol is the largest relative gap that counts as converged,
        and the callback finds the model in its record. None: 500 steps, and 1e-6.
    aim : float, relative accuracy worked for; None: 1e-6, with many rows 1e-5, or the tol where
        that is less.
    warm_start : (coef, intercept, multiplier or None) to start from.
    share : float, of ``aim``, that is left open where Newton's method ends.

    Returns
    -------
    LinearFit
        ``risk`` holds the worst case, ``lower`` is at least 0.

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
    limits = limits or Limits(500, 1e-6)
    radius, penalty = _check(radius, penalty, alpha, limits.tol)
    if radius and data.box is not None:
        # More than all of the box costs buys nothing, and other sizes are those of the numbers.
        radius = min(radius, math.sqrt(data.box.most(data)))
    if radius == 0.0 and data.jumps:
        data = replace(data, swaps=None, box=None)
    if is_wide(data.X) and data.box is None:
        turned = turn(data, alpha, fit_intercept)
        if turned is not None:
            rotation, data = turned
            if warm_start is not None:
                warm_start = (*rotation.inward(*warm_start[:2]), *warm_start[2:])
            found = solve_ridge(
                data, radius=radius, penalty=penalty, alpha=alpha, fit_intercept=fit_intercept,
                limits=rotation.limits(limits), aim=aim, warm_start=warm_start, share=_PLAIN,
            )  # fmt: skip
            return rotation.back(found)
    rows = rows_of(data.X, data.y, data.weight, intercept=fit_intercept)
    aim = min(limits.tol, AMPLE if rows.ample else ACCURACY) if aim is None else aim
    ground = Ground.of(rows, data, radius, penalty, alpha)

    def exact(
        coef: np.ndarray, intercept: float, guess: float | None, scores: Any = None
    ) -> RidgeRisk:
        form = {"radius": radius, "penalty": penalty}
        return ridge_robust_risk(data, coef, intercept, **form, guess=guess, scores=scores)

    share = _PLAIN if rows.ample else share
    problem = LinearProblem(data, rows, ground, alpha, limits, aim, exact, share)
    if data.swaps is not None or data.box is not None:
        from drojko.minimax.transport.jumps.rows import JumpRows

        objective: NormObjective = JumpRows(rows, data.loss, ground, data, alpha)
        objective.prepare(limits)
    else:
        if data.loss.quadratic:
            check_columns(rows)
            return _solve_squares(problem)
        found = _many_rows(problem) if rows.large else None
        if found is None and rows.wide:
            found = _vertex(problem)
        if found is not None:
            return found
        objective = TransportRows(rows, data.loss, ground)
    check_columns(rows)
    if warm_start is not None:
        objective.begin(*_start(rows, *warm_start), 1e-2)
    solution = problem.train(objective)
    if getattr(objective, "refused", None) is not None and solution.status == Status.STALLED:
        raise objective.refused  # type: ignore[union-attr]
    return solution


def turn(data: RidgeData, alpha: float, intercept: bool) -> tuple[Rotation, RidgeData] | None:
    """The data in the space of their rows; None where columns differ in more than their costs."""
    cost = data.inverse_cost
    if not cost.all() or (alpha and np.ptp(cost)):
        return None
    equal = not np.ptp(cost)
    rotation = Rotation.of(data.X, data.weight, np.ones_like(cost) if equal else cost, intercept)
    if rotation is None:
        return None
    same = np.full(rotation.X.shape[1], cost[0] if equal else 1.0)
    return rotation, replace(data, X=rotation.X, inverse_cost=same)


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


def _many_rows(problem: LinearProblem) -> LinearFit | None:
    """A smooth optimum from a sample of many rows; None where it is another solver's."""
    loss, ground = problem.data.loss, problem.ground
    least = 0.25 * ground.offset / (ground.penalty or math.inf)  # sigma where only labels move
    if problem.data.flips or not ground.moves:
        return None
    goal = 0.9 * problem.aim
    if loss.kink_free(2.0 * least):
        objective = Transported(problem.rows, loss, ground)
    elif hasattr(loss, "slopes") and not problem.rows.wide:
        from drojko.minimax.transport.bent import Bent

        goal = 0.5 * max(problem.aim, min(problem.limits.tol, _BENT))
        objective = Bent(problem.rows, loss, ground, goal)
    else:
        return None
    classes = loss.task == "classification"
    found = fit_many(objective, problem.limits, classes=classes, goal=goal)
    if found is None:
        return None
    z = problem.rows.inward(found.coef, found.intercept)
    # The worst case keeps the scores, which nobody asks for after it.
    risk = problem.risk(z, found.multiplier, found.scores)
    return problem.solution(z, *risk, replace(found, scores=None))


def _start(
    rows: Rows, coef: np.ndarray, intercept: float, multiplier: float | None = None
) -> tuple[np.ndarray, float | None]:
    """A first point and its price."""
    coef = np.asarray(coef, dtype=np.float64)
    if coef.shape != (rows.d,) or not np.isfinite([*coef, intercept]).all():
        raise InvalidDataError(f"warm_start: expected {rows.d} finite coefficients")
    return rows.inward(coef, float(intercept)), multiplier


def _rounding(data: RidgeData) -> float:
    """A loss that is zero to rounding: that of targets which miss their last digits."""
    if data.loss.task != "regression":
        return 0.0
    y = torch.from_numpy(data.y)
    return float(data.loss.value(y + 8e-16 * y.abs().max(), y).max())


def _solve_squares(problem: LinearProblem) -> LinearFit:
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
    centred = data.y - rows.w @ data.y if rows.intercept else data.y
    unit = float(rows.w @ (centred * centred))
    return _at_once(problem, z, (risk, objective), bound, unit, start)


def _at_once(
    problem: LinearProblem, z: np.ndarray, found: Any, bound: float, unit: float, start: float
) -> LinearFit:
    """What took a single iteration."""
    risk, objective = found
    row = {
        "iteration": 1,
        "seconds": time.perf_counter() - start,
        "robust_risk": risk.value,
        "penalty": risk.penalty,
        "transport_cost": risk.transport_cost,
        "stationarity": 0.0,
    }
    coef, intercept = problem.rows.outward(z)
    if problem.limits.callback is not None:
        problem.limits.callback(1, {**row, "coef": coef, "intercept": intercept})
    whole = LinearFit(
        coef, intercept, risk.penalty, objective, bound, "converged", Status.CONVERGED.advice, 1,
        0.0, {name: np.array([value]) for name, value in row.items()}, unit,
    )  # fmt: skip
    return problem.solution(z, risk, objective, whole)


def _vertex(problem: LinearProblem) -> LinearFit | None:
    """The best model that nothing moves, where a bound proves it to be the best of all."""
    start, rows, loss, ground = time.perf_counter(), problem.rows, problem.data.loss, problem.ground
    if problem.data.flips or not ground.moves:
        return None
    z = rows.inward(*still_model(problem))
    found = problem.risk(z)
    plan = plan_of(rows, loss, rows.predict(z), 0.0, 0.0, None, None)
    bound = lower_bound(rows, loss, ground, plan, z, repair=False)
    if not found[1] - bound <= problem.limits.tol * abs(found[1]):
        return None
    return _at_once(problem, z, found, bound, found[1], start)
