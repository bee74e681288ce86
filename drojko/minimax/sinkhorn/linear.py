r"""Exact Sinkhorn minimax for linear models with scalar losses.

.. math:: \min_{\theta, b, \lambda \ge 0} \; \lambda\rho
          + E\, G(\theta'x + b, s, \lambda\varepsilon) + \tfrac\alpha2 \|\theta\|^2, \qquad
          s^2 = \tfrac\varepsilon2\, \theta' W^{-1} \theta, \quad
          G(f, s, T) = T \log E_g\, e^{\ell(f + s g, y) / T}

The noise of Q_x enters through one Gaussian number, so that G and its derivatives are
one-dimensional (`drojko.inner.sinkhorn.tilt`); the problem is jointly convex, since
T log E exp(l / T) is the perspective of a convex nondecreasing function of the losses, and is
solved by Newton's method.
Source of the dual: J. Wang, R. Gao, Y. Xie, 2021, Sinkhorn Distributionally Robust Optimization,
arXiv 2109.11926.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from drojko._driver import Status, run
from drojko.exceptions import UnboundedRiskError
from drojko.losses.tilts import Tilted
from drojko.minimax.limits import Limits
from drojko.minimax.newton import ROUNDING, relative_gap
from drojko.minimax.sinkhorn.bound import lower_bound
from drojko.minimax.sinkhorn.risk import SinkhornRisk, check_growth, multiplier, sinkhorn_risk
from drojko.minimax.transport.data import Ground, RidgeData
from drojko.minimax.transport.linear import RidgeSolution, solve_ridge
from drojko.rows import Rows

__all__ = ["SinkhornRisk", "SinkhornSolution", "sinkhorn_risk", "solve_sinkhorn"]

_FAR = 1e100  # no optimum has parameters beyond


@dataclass(frozen=True)
class SinkhornSolution:
    """A model, its robust objective and how the run ended.

    ``objective`` is ``risk.value`` plus alpha/2 |coef|^2, ``lower_bound`` proven for every linear
    model; ``decrement`` bounds, to second order, what is left to gain. ``status`` is "converged"
    where `relative_gap` is at most the tolerance, otherwise one of "stalled", "max_iter",
    "max_time", "callback" and "interrupted".
    """

    coef: np.ndarray
    intercept: float
    penalty: float
    objective: float
    lower_bound: float
    unit: float
    decrement: float
    stationarity: float
    n_iter: int
    status: str
    message: str
    history: list[dict[str, float]]
    risk: SinkhornRisk

    @property
    def relative_gap(self) -> float:
        """What a perfect solver could still gain, at most, over the objective."""
        return relative_gap(self.objective, self.lower_bound, self.unit)


@dataclass(frozen=True)
class _State:
    z: np.ndarray
    lam: float
    value: float
    divergence: float
    gradient: np.ndarray
    step: np.ndarray
    decrement: float
    stalled: int = 0

    @property
    def slope(self) -> float:
        return float(np.linalg.norm(self.gradient)) / (1.0 + abs(self.value))


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
    callback: Callable[[int, dict[str, Any]], bool | None] | None = None,
) -> SinkhornSolution:
    """Minimise the Sinkhorn worst-case risk of a linear model.

    Started at the solution of the Wasserstein problem of the same size, which is the limit of
    epsilon to 0. Time is linear in the number of rows.

    Parameters
    ----------
    data : RidgeData, with fixed labels
    epsilon : float
    radius, penalty : exactly one of them; the radius in squared units of X.
    alpha, fit_intercept, max_iter, max_time, callback : as in `solve_ridge`
    tol : float, largest relative gap, `SinkhornSolution.relative_gap`, that counts as converged.
    aim : float, relative accuracy worked for; None: 1e-9, or `tol` where that is less.
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
    >>> solution.status, solution.decrement < 1e-9
    ('converged', True)
    """
    limits = Limits(max_iter, tol, max_time)
    rows = Rows(data.X, data.y, data.weight, intercept=fit_intercept)
    # The noise is there at radius 0, too.
    ground = Ground.of(rows, data, 1.0, None, alpha)
    first, lower = None, 0.0
    if warm_start is None:
        first, lower = _first(data, epsilon, radius, penalty, alpha, fit_intercept)
        warm_start = first.coef, first.intercept, first.penalty
    problem = _Problem(rows, data, ground, epsilon, radius, penalty)
    coef, intercept, lam = warm_start
    found = _Found(problem, lower)
    if radius:
        found.offer(rows.inward(*_vertex(data, alpha, fit_intercept)))
    z = rows.inward(coef, intercept)
    outcome = None
    if data.squared_norm(coef) > 0.0 or not radius:
        solver = _Newton(problem, ground, min(tol, 1e-9) if aim is None else aim)
        count = 0

        def call(state: _State) -> bool:
            nonlocal count
            count += 1
            if callback is None:
                return False
            coef, intercept = rows.outward(state.z)
            return bool(
                callback(count, {**solver.record(state), "coef": coef, "intercept": intercept})
            )

        outcome = run(
            solver, solver.init((z, problem.multiplier(z, lam, ground))), max_iter=max_iter,
            max_time=limits.time_left, callback=call, best=lambda state: state.value,
        )  # fmt: skip
        best = outcome.best_state
        found.offer(best.z, best.lam)
    status = outcome.status if outcome is not None else Status.CONVERGED
    unbounded = first if first is not None and first.status == "unbounded" else None
    if status in (Status.CONVERGED, Status.MAX_ITER) and unbounded is None:
        if outcome is not None:
            found.prove(solver, ground, best, min(tol, 1e-6))
        unit = _unit(data, fit_intercept)
        _by_stages(problem, found, z, unit, limits, alpha)
        close = relative_gap(found.objective, found.lower, unit) <= tol
        ended = Status.STALLED if status is Status.CONVERGED else status
        status = Status.CONVERGED if close else ended
    message = f"Stopped after {outcome.n_iter if outcome else 0} iterations. {status.advice}"
    coef, intercept = rows.outward(found.z)
    last = best if outcome is not None and found.z is best.z else None
    return SinkhornSolution(
        coef=coef,
        intercept=float(intercept),
        penalty=found.risk.penalty,
        objective=found.objective,
        lower_bound=min(found.lower, found.objective),
        unit=_unit(data, fit_intercept),
        decrement=last.decrement if last is not None else 0.0,
        stationarity=last.slope if last is not None else 0.0,
        n_iter=outcome.n_iter if outcome is not None else 0,
        status=str(status) if unbounded is None else unbounded.status,
        message=message if unbounded is None else unbounded.message,
        history=outcome.history if outcome is not None else [],
        risk=found.risk,
    )


@dataclass(frozen=True, eq=False)
class _Problem:
    rows: Rows
    data: RidgeData
    ground: Ground
    epsilon: float
    radius: float | None
    penalty: float | None

    def risk(self, z: np.ndarray, guess: float | None = None) -> SinkhornRisk:
        """The exact risk at z."""
        return sinkhorn_risk(
            self.data, *self.rows.outward(z), epsilon=self.epsilon, radius=self.radius,
            penalty=self.penalty, guess=guess,
        )  # fmt: skip

    def spending(
        self, u: np.ndarray, s: float, guess: float | None, close: float = 1e-9
    ) -> tuple[float, Tilted]:
        """The multiplier that nearly spends the radius at predictions u and noise s; the laws."""
        square = 2.0 * s * s / self.epsilon
        radius = float(self.radius or 0.0)
        return multiplier(self.data, u, s, square, self.epsilon, radius, guess, close)

    def multiplier(self, z: np.ndarray, guess: float | None, ground: Ground) -> float:
        """The multiplier at z: that of the radius, the penalty, or 0 where nothing is tilted."""
        if not self.radius:
            return self.penalty or 0.0
        s = math.sqrt(0.5 * self.epsilon * ground.square(z))
        return self.spending(self.rows.predict(z), s, guess or None, 1e-3)[0]


class _Found:
    """The best model so far, and the best lower bound."""

    def __init__(self, problem: _Problem, lower: float) -> None:
        self.problem, self.lower, self.objective = problem, lower, math.inf
        self.z: np.ndarray = np.zeros(0)
        self.risk: SinkhornRisk = None  # type: ignore[assignment]

    def offer(self, z: np.ndarray, guess: float | None = None) -> None:
        """Take z, or z without what can be moved, where it is better.

        Near a model that nobody can touch Newton's method only approaches it: prefer that one.
        """
        problem = self.problem
        for at, lam in ((np.where(problem.ground.cost > 0.0, 0.0, z), None), (z, guess)):
            try:
                risk = problem.risk(at, lam if problem.radius else None)
            except UnboundedRiskError:
                continue
            objective = risk.value + problem.ground.decay(at)
            if objective < self.objective * (1.0 - 1e-9) or math.isinf(self.objective):
                self.z, self.risk, self.objective = at, risk, objective

    def proven(self, tol: float) -> bool:
        """Whether the bound needs no more work."""
        return self.lower >= self.objective * (1.0 - 0.5 * tol)

    def prove(self, solver: _Newton, ground: Ground, state: _State, tol: float) -> None:
        """Tangents at the state, after the steps that make a bound of first order sharp."""
        if self.proven(tol):
            return
        for _ in range(4):
            if state.decrement <= 1e-18 * abs(state.value) or state.stalled >= 3:
                break
            state = solver.step(state)
        problem, need = self.problem, self.objective * (1.0 - 0.5 * tol)
        bound = lower_bound(
            problem.rows, problem.data, ground, state.z, state.lam, need, problem.spending,
            epsilon=problem.epsilon, radius=problem.radius, penalty=problem.penalty,
        )  # fmt: skip
        self.lower = max(self.lower, bound)


def _by_stages(
    problem: _Problem,
    found: _Found,
    z: np.ndarray,
    unit: float,
    limits: Limits,
    alpha: float,
) -> None:
    """Prove what is not proven yet: W2's bound to more digits, then noise that fades away.

    By Jensen's inequality Sinkhorn's risk of any model is at least W2's at the same size. More
    noise than the set has smooths the kinks of the loss and the vertex z = 0.
    """
    tol = min(limits.tol, 1e-6)
    if found.proven(tol):
        return
    if not problem.ground.cost @ found.z**2:
        form = (problem.radius, problem.penalty, alpha, problem.rows.intercept)
        found.lower = max(found.lower, _transport(problem.data, *form, 1e-6).lower_bound)
    lip = problem.data.loss.lipschitz or math.inf
    slope = lip if math.isfinite(lip) else 2.0 * math.sqrt(unit)
    width, lam = unit / (slope * math.sqrt(0.5 * problem.epsilon)), None
    if problem.penalty is not None and problem.data.loss.growth:
        width = min(width, 5.0 * math.sqrt(problem.penalty))
    for stage in range(1, 11):
        if found.proven(tol) or limits.time_left == 0.0:
            return
        ground = replace(problem.ground, offset=(width * 0.1**stage) ** 2)
        solver = _Newton(problem, ground, 1e-6)
        try:
            lam = problem.multiplier(z, lam, ground)
            outcome = run(solver, solver.init((z, lam)), max_iter=50, best=lambda s: s.value)
        except UnboundedRiskError:
            continue
        z, lam = outcome.best_state.z, outcome.best_state.lam
        if stage >= 3:
            found.offer(z, lam)
            found.prove(solver, ground, outcome.best_state, tol)


def _unit(data: RidgeData, fit_intercept: bool) -> float:
    """A loss of ordinary size, that of a constant model; at least rounding, over `ROUNDING`."""
    y, w = data.y, data.weight
    middle = float(np.median(y)) if fit_intercept and data.loss.task == "regression" else 0.0
    unit = float(w @ _plain(data.loss, np.full_like(y, middle), y))
    if data.loss.task == "regression":
        near = y + 8e-16 * np.abs(y).max()
        unit = max(unit, float(_plain(data.loss, near, y).max()) / ROUNDING)
    return unit


def _plain(loss, f: np.ndarray, y: np.ndarray) -> np.ndarray:
    return loss.tilt(f, y, 0.0, 0.0).value


def _transport(
    data, radius, penalty, alpha, fit_intercept, aim: float, shrink: float = 1.0
) -> RidgeSolution:
    """The Wasserstein problem of the same size."""
    return solve_ridge(
        data,
        radius=None if radius is None else math.sqrt(radius) * shrink,
        penalty=penalty,
        alpha=alpha,
        fit_intercept=fit_intercept,
        tol=aim,
        aim=aim,
        max_iter=100,
    )


def _first(data, epsilon, radius, penalty, alpha, fit_intercept) -> tuple[RidgeSolution, float]:
    """The Wasserstein solution, where that is constant the one of a smaller radius; its bound.

    Of radius 0 the noise is what keeps coefficients small: a ball of its size does so, too.
    """
    lower, size = 0.0, 0.25 * epsilon if radius == 0.0 else radius
    for shrink in (1.0, 0.5, 0.1, 0.01):
        found = _transport(data, size, penalty, alpha, fit_intercept, 1e-4, shrink)
        if shrink == 1.0 and radius != 0.0:
            lower = found.lower_bound
        if radius is None or data.squared_norm(found.coef) > 0:
            break
    usable = found.penalty if 0 < found.penalty < math.inf else 0.0
    return replace(found, penalty=usable), lower


def _vertex(data: RidgeData, alpha, fit_intercept) -> tuple[np.ndarray, float]:
    """The best model on columns that never move; their robust risk is the plain one."""
    free = data.inverse_cost == 0.0
    X = data.X[:, free] if free.any() else np.zeros((len(data.y), 1))
    still = replace(data, X=np.ascontiguousarray(X), inverse_cost=np.ones(X.shape[1]))
    found = solve_ridge(
        still, radius=0.0, alpha=alpha, fit_intercept=fit_intercept, tol=1e-10, max_iter=200
    )
    coef = np.zeros(data.X.shape[1])
    if free.any():
        coef[free] = found.coef
    return coef, found.intercept


class _Newton:
    """Newton's method with backtracking on (z, lambda), z on standardised columns."""

    def __init__(self, problem: _Problem, ground: Ground, tol: float) -> None:
        self.rows, self.data, self.ground = problem.rows, problem.data, ground
        self.epsilon, self.radius, self.penalty = problem.epsilon, problem.radius, problem.penalty
        self.tol = tol

    def init(self, problem: Any) -> _State:
        z, lam = problem
        return self._at(z, self._lam(lam))

    def _lam(self, lam: float) -> float:
        return float(self.penalty) if self.penalty is not None else lam

    def finite(self, state: _State) -> bool:
        return math.isfinite(state.value) and bool(np.isfinite(state.gradient).all())

    def _tilted(self, z, lam):
        square = self.ground.square(z)
        if not np.abs(z).max() < _FAR:
            return None, math.inf, 0.0, math.inf
        s = math.sqrt(0.5 * self.epsilon * square)
        eta = 1.0 / (self.epsilon * lam) if self.radius or self.penalty is not None else 0.0
        if eta > 0.0 and self.data.loss.growth and lam <= self.data.loss.growth * square:
            return None, s, eta, math.inf
        found = self.data.loss.tilt(self.rows.predict(z), self.data.y, s, eta)
        value = float(self.data.weight @ found.value) + self.ground.decay(z)
        if self.radius:
            value += lam * self.radius
        return found, s, eta, value

    def _at(self, z, lam, stalled: int = 0, known=None) -> _State:
        rows, w, size = self.rows, self.data.weight, self.rows.size
        found, s, eta, value = known or self._tilted(z, lam)
        if found is None:
            check_growth(self.data, self.ground.square(z), lam)
            raise UnboundedRiskError("the coefficients grow without end: rescale the columns")
        ff, fs, ft, ss, st, tt = found.second(eta)
        cost, ridge = self.ground.cost, self.ground.ridge
        heat = 0.5 * self.epsilon * cost * z / s if s > 0.0 else np.zeros(size)
        sums = rows.sum(np.stack([w * found.mean[0], w * fs, w * ft], axis=1))
        slope_s, mean_ss, mean_st = (float(w @ v) for v in (found.mean[1], ss, st))
        spent = self.epsilon * float(w @ found.divergence)
        H, g = np.zeros((size + 1, size + 1)), np.zeros(size + 1)
        g[:size] = sums[:, 0] + slope_s * heat + ridge * z
        g[size] = (self.radius or 0.0) - spent
        cross = np.outer(sums[:, 1], heat)
        hessian = rows.gram(np.maximum(w * ff, 0.0)) + cross + cross.T
        hessian += (mean_ss - (slope_s / s if s else 0.0)) * np.outer(heat, heat)
        around = slope_s * 0.5 * self.epsilon * cost / s if s else 0.0
        hessian[np.diag_indices(size)] += around + ridge
        H[:size, :size] = hessian
        H[:size, size] = H[size, :size] = self.epsilon * (sums[:, 2] + mean_st * heat)
        H[size, size] = self.epsilon**2 * float(w @ tt)
        free = np.append(rows.free, bool(self.radius))
        g = np.where(free, g, 0.0)
        if not (np.isfinite(g).all() and np.isfinite(H).all()):
            # Where coefficients and multiplier vanish together: next to the constant model.
            none = np.zeros(size + 1)
            return _State(z, lam, value, spent, none, none, 0.0, 99)
        step = np.zeros(size + 1)
        step[free] = _solve(H[np.ix_(free, free)], -g[free])
        decrement = -float(g @ step)
        return _State(z, lam, value, spent, g, step, max(decrement, 0.0), stalled)

    @np.errstate(over="ignore", invalid="ignore")  # steps that go too far are rejected
    def step(self, state: _State) -> _State:
        dz, dl = state.step[:-1], float(state.step[-1])
        t = 1.0
        if dl < 0:
            t = min(1.0, 0.9 * state.lam / -dl)
        accuracy = 1e-15 * (1.0 + abs(state.value))
        for _ in range(40):
            z, lam = state.z + t * dz, self._lam(state.lam + t * dl)
            known = self._tilted(z, lam)
            if known[3] <= state.value - 1e-4 * t * state.decrement + accuracy:
                gained = state.value - known[3]
                small = gained <= 1e-14 * abs(state.value)
                return self._at(z, lam, state.stalled + 1 if small else 0, known)
            t *= 0.5 if t > 1e-3 else 0.1
        return replace(state, stalled=99)

    def terminate(self, state: _State) -> Status | None:
        done = state.decrement <= self.tol * 1e-3 * abs(state.value) + 1e-300
        return Status.CONVERGED if done or state.stalled >= 3 else None

    def record(self, state: _State) -> dict[str, float]:
        return {
            "robust_risk": state.value,
            "penalty": state.lam if self.radius or self.penalty is not None else math.inf,
            "transport_cost": state.divergence,
            "stationarity": state.slope,
        }


@np.errstate(over="ignore", invalid="ignore")
def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a scaled positive semidefinite system; a little of the identity where singular."""
    root = 1.0 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    scaled = matrix * root[:, None] * root
    if not np.isfinite(scaled).all():  # a flat direction with a slope: as far as numbers go
        return np.zeros_like(right)
    for extra in (1e-14, 1e-11, 1e-8, 1e-5, 1e-2):
        try:
            factor = cho_factor(scaled + extra * np.eye(len(root)))
        except np.linalg.LinAlgError:
            continue
        found = root * cho_solve(factor, root * right)
        if np.isfinite(found).all():
            return found
    return right * root**2
