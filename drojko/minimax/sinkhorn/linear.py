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
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from drojko._driver import Status, run
from drojko.exceptions import UnboundedRiskError
from drojko.losses import Squared
from drojko.losses.tilts import Tilted
from drojko.minimax.transport.data import RidgeData, Rows
from drojko.minimax.transport.linear import solve_ridge

__all__ = ["SinkhornRisk", "SinkhornSolution", "sinkhorn_risk", "solve_sinkhorn"]


@dataclass(frozen=True)
class SinkhornRisk:
    """The exact worst case of one linear model.

    ``value`` is the robust risk, ``attained`` what the tilted laws attain inside the set (radius
    form) or net of the penalty, ``risk`` their mean loss, ``divergence`` epsilon E KL, which they
    spend, ``nominal`` the mean loss without noise, ``deviation`` the noise's deviation s in units
    of predictions, ``spread`` (n,) what the mean of is taken for the dual value.
    """

    value: float
    attained: float
    risk: float
    divergence: float
    nominal: float
    penalty: float
    deviation: float
    spread: np.ndarray


def sinkhorn_risk(
    data: RidgeData,
    coef: np.ndarray,
    intercept: float,
    *,
    epsilon: float,
    radius: float | None = None,
    penalty: float | None = None,
    guess: float | None = None,
) -> SinkhornRisk:
    r"""Worst-case risk of the linear model ``coef'x + intercept``, exact.

    Parameters
    ----------
    data : RidgeData, with fixed labels
    coef, intercept : array of shape (d,), float
    epsilon : float
    radius, penalty : exactly one of them.
    guess : float, a first guess of the multiplier of a radius.

    Raises
    ------
    UnboundedRiskError
        Squared loss at a penalty not above the squared dual norm of ``coef``.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> data = RidgeData(np.array([[1.0], [3.0]]), np.array([0.0, 0.0]), loss=get_loss("squared"))
    >>> found = sinkhorn_risk(data, np.array([1.0]), 0.0, epsilon=0.5, penalty=2.0)
    >>> round(found.value, 9), round(2 / (2 - 1) * 5 - 2 * 0.5 / 2 * math.log(1 - 1 / 2), 9)
    (10.34657359, 10.34657359)
    """
    f = data.predictions(coef, intercept)
    square = data.squared_norm(coef)
    s = math.sqrt(0.5 * epsilon * square)
    w = data.weight
    nominal = float(w @ data.loss.tilt(f, data.y, 0.0, 0.0).value)
    if (penalty is None and not radius) or s == 0.0:
        plain = data.loss.tilt(f, data.y, s, 0.0)
        value = float(w @ plain.value)
        lam = penalty if penalty is not None else (0.0 if radius else math.inf)
        return SinkhornRisk(value, value, value, 0.0, nominal, lam, s, plain.value)
    if penalty is None:
        lam, found = _multiplier(data, f, s, square, epsilon, float(radius or 0.0), guess)
    else:
        _check_growth(data, square, penalty)
        lam, found = penalty, data.loss.tilt(f, data.y, s, 1.0 / (epsilon * penalty))
    spent = epsilon * float(w @ found.divergence)
    risk = float(w @ found.mean[2])
    value = float(w @ found.value)
    if penalty is not None:
        return SinkhornRisk(value, value, risk, spent, nominal, lam, s, found.value)
    budget = float(radius or 0.0)
    value += lam * budget
    if spent > budget:
        # Rounding: a mixture with Q spends no more than its share, as KL is convex.
        plain = float(w @ data.loss.tilt(f, data.y, s, 0.0).value)
        share = budget / spent
        risk, spent = share * risk + (1.0 - share) * plain, budget
    return SinkhornRisk(
        max(value, risk), min(risk, value), risk, spent, nominal, lam, s, found.value
    )


def _check_growth(data: RidgeData, square: float, penalty: float) -> None:
    if isinstance(data.loss, Squared) and penalty <= square:
        raise UnboundedRiskError(
            f"squared loss: the worst case is infinite for penalty={penalty:.6g}; it is finite for "
            f"penalty > {square:.6g}, the squared dual norm of the coefficients"
        )


def _multiplier(data, f, s, square, epsilon, radius, guess) -> tuple[float, Tilted]:
    """Root of epsilon E KL = radius: nonincreasing in the multiplier; Newton on logarithms."""
    w = data.weight
    least = square if isinstance(data.loss, Squared) else 0.0

    def at(extra: float):
        lam = least + extra
        found = data.loss.tilt(f, data.y, s, 1.0 / (epsilon * lam))
        spent = epsilon * float(w @ found.divergence)
        # d KL / d lambda = -epsilon Var l / (epsilon lambda)^3
        slope = -float(w @ found.cov[5]) / (epsilon * lam**3)
        return lam, found, spent, slope

    if guess is None or not least < guess < math.inf:
        slopes = data.loss.tilt(f, data.y, s, 0.0).mean[0]
        steep = float(w @ slopes**2) + 1e-8 * float(w @ slopes**2 + 1e-300)
        guess = least + math.sqrt(square * max(steep, 1e-300) / (4.0 * radius))
    extra = max(guess - least, 1e-12 * guess)
    low, high = 0.0, math.inf
    for _ in range(200):
        lam, found, spent, slope = at(extra)
        if abs(spent - radius) <= 1e-14 * radius:
            break
        if spent > radius:
            low = extra
        else:
            high = extra
        step = math.nan
        if spent > 0.0 and slope < 0.0:
            step = extra * math.exp(
                max(-3.0, min(3.0, -math.log(spent / radius) * spent / (slope * extra)))
            )
        if not low < step < high:
            step = 2.0 * extra if math.isinf(high) else (
                math.sqrt(low * high) if low > 0 else 0.25 * high
            )  # fmt: skip
        if abs(step - extra) <= 1e-15 * extra or high - low <= 1e-15 * extra:
            break
        extra = step
    return lam, found


@dataclass(frozen=True)
class SinkhornSolution:
    """A model, its robust objective and how the run ended.

    ``objective`` is ``risk.value`` plus alpha/2 |coef|^2; ``decrement`` bounds, to second order,
    what is left to gain. ``status`` is one of "converged", "max_iter", "max_time", "callback" and
    "interrupted".
    """

    coef: np.ndarray
    intercept: float
    penalty: float
    objective: float
    decrement: float
    stationarity: float
    n_iter: int
    status: str
    message: str
    history: list[dict[str, float]]
    risk: SinkhornRisk


@dataclass(frozen=True)
class _State:
    z: np.ndarray
    b: float
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
    tol: float = 1e-9,
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
    tol : float, relative accuracy of the objective aimed at.
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
    began = time.perf_counter()
    rows = Rows(data, centred=fit_intercept)
    form = {"radius": radius, "penalty": penalty}
    vertex = _vertex(rows, data, alpha, fit_intercept) if radius else None
    first = warm_start or _first(data, epsilon, form, alpha, fit_intercept)
    coef, intercept, lam = first
    solver = _Newton(rows, data, epsilon, radius, penalty, alpha, fit_intercept, tol)
    square = data.squared_norm(coef)
    if square == 0.0 and radius:
        outcome = None
    else:
        if radius:
            f, s = data.predictions(coef, intercept), math.sqrt(0.5 * epsilon * square)
            lam, _ = _multiplier(data, f, s, square, epsilon, radius, lam)
        start = (*rows.inward(coef, intercept), lam or 0.0)
        count = 0

        def call(state: _State) -> bool:
            nonlocal count
            count += 1
            if callback is None:
                return False
            coef, intercept = rows.outward(state.z, state.b)
            return bool(
                callback(count, {**solver.record(state), "coef": coef, "intercept": intercept})
            )

        left = None if max_time is None else max(0.0, max_time - (time.perf_counter() - began))
        outcome = run(
            solver, solver.init(start), max_iter=max_iter, max_time=left, callback=call,
            best=lambda state: state.value,
        )  # fmt: skip
    size = {"epsilon": epsilon, **form}
    options = []
    if outcome is not None:
        state = outcome.best_state
        coef, intercept = rows.outward(state.z, state.b)
        guess = state.lam if radius else None
        options.append((coef, intercept, sinkhorn_risk(data, coef, intercept, guess=guess, **size)))
        if radius:  # the same one with what can be moved left out
            coef, intercept = rows.outward(np.where(rows.cost > 0.0, 0.0, state.z), state.b)
            options.append((coef, intercept, sinkhorn_risk(data, coef, intercept, **size)))
    if vertex is not None:
        options.append((*vertex, sinkhorn_risk(data, *vertex, **size)))
    elif outcome is None:
        options.append((coef, intercept, sinkhorn_risk(data, coef, intercept, **size)))
    objectives = [o[2].value + 0.5 * alpha * float(o[0] @ o[0]) for o in options]
    # Near a model that nobody can touch, Newton's method only approaches it: prefer that one.
    chosen = int(np.argmin(objectives[1:])) + 1 if len(options) > 1 else 0
    if objectives[0] < objectives[chosen] * (1.0 - 1e-9):
        chosen = 0
    coef, intercept, risk = options[chosen]
    last = outcome.best_state if outcome is not None and chosen == 0 else None
    status = outcome.status if outcome is not None else Status.CONVERGED
    if outcome is not None and chosen and status is Status.MAX_ITER:
        status = Status.CONVERGED
    n_iter = outcome.n_iter if outcome is not None else 0
    return SinkhornSolution(
        coef=coef,
        intercept=float(intercept),
        penalty=risk.penalty,
        objective=objectives[chosen],
        decrement=last.decrement if last is not None else 0.0,
        stationarity=last.slope if last is not None else 0.0,
        n_iter=n_iter,
        status=str(status),
        message=f"Stopped after {n_iter} iterations. {status.advice}",
        history=outcome.history if outcome is not None else [],
        risk=risk,
    )


def _first(data, epsilon, form, alpha, fit_intercept) -> tuple[np.ndarray, float, float | None]:
    """The Wasserstein solution; where that is constant, the one of a smaller radius.

    Of radius 0 the noise is what keeps coefficients small: a ball of its size does so, too.
    """
    radius, penalty = form["radius"], form["penalty"]
    size = None if radius is None else math.sqrt(radius or 0.25 * epsilon)
    for shrink in (1.0, 0.5, 0.1, 0.01):
        found = solve_ridge(
            data,
            radius=None if size is None else size * shrink,
            penalty=penalty,
            alpha=alpha,
            fit_intercept=fit_intercept,
            tol=1e-4,
            max_iter=100,
        )
        if size is None or data.squared_norm(found.coef) > 0:
            break
    usable = found.penalty if 0 < found.penalty < math.inf else None
    return found.coef, found.intercept, usable


def _vertex(rows: Rows, data: RidgeData, alpha, fit_intercept) -> tuple[np.ndarray, float] | None:
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
    """Newton's method with backtracking on (z, b, lambda), z in standardised columns."""

    def __init__(self, rows, data, epsilon, radius, penalty, alpha, fit_intercept, tol) -> None:
        self.rows, self.data, self.epsilon = rows, data, epsilon
        self.radius, self.penalty = radius, penalty
        self.alpha, self.fit_intercept, self.tol = alpha, fit_intercept, tol
        self.squared = isinstance(data.loss, Squared)
        self.alive = ~rows.dead
        self.decay = alpha * rows.inverse_scale**2
        self.growing = math.inf

    def init(self, problem: Any) -> _State:
        z, b, lam = problem
        return self._at(np.where(self.alive, z, 0.0), b, self._lam(lam))

    def _lam(self, lam: float) -> float:
        return float(self.penalty) if self.penalty is not None else lam

    def _square(self, z) -> float:
        return float(self.rows.cost @ (z * z))

    def finite(self, state: _State) -> bool:
        return math.isfinite(state.value) and bool(np.isfinite(state.gradient).all())

    def _tilted(self, z, b, lam):
        square = self._square(z)
        s = math.sqrt(0.5 * self.epsilon * square)
        eta = 1.0 / (self.epsilon * lam) if self.radius or self.penalty is not None else 0.0
        if self.squared and eta > 0.0 and lam <= square:
            return None, s, eta, math.inf
        found = self.data.loss.tilt(self.rows.predict(z, b), self.data.y, s, eta)
        value = float(self.data.weight @ found.value) + 0.5 * float(self.decay @ (z * z))
        if self.radius:
            value += lam * self.radius
        return found, s, eta, value

    def _at(self, z, b, lam, stalled: int = 0, known=None) -> _State:
        rows, w, d = self.rows, self.data.weight, len(z)
        found, s, eta, value = known or self._tilted(z, b, lam)
        if found is None:
            least = self._square(z)
            raise UnboundedRiskError(
                f"squared loss: the worst case is infinite for penalty={lam:.6g}; it is finite for "
                f"penalty > {least:.6g}, the squared dual norm of the first coefficients"
            )
        ff, fs, ft, ss, st, tt = found.second(eta)
        heat = np.zeros(d)
        if s > 0.0:
            heat = 0.5 * self.epsilon * rows.cost * z / s
        columns = np.stack([w * found.mean[0], w * fs, w * ft], axis=1)
        curve = w * ff
        sums, hessian, edge = np.zeros((d, 3)), np.zeros((d, d)), np.zeros(d)
        for block in rows.blocks():
            x = rows.block(block)
            sums += x.T @ columns[block]
            hessian += (x * curve[block, None]).T @ x
            edge += x.T @ curve[block]
        slope_s, mean_ss, mean_st = (float(w @ v) for v in (found.mean[1], ss, st))
        gradient_z = sums[:, 0] + slope_s * heat + self.decay * z
        cross = np.outer(sums[:, 1], heat)
        hessian += cross + cross.T + (mean_ss - (slope_s / s if s else 0.0)) * np.outer(heat, heat)
        around = slope_s * 0.5 * self.epsilon * rows.cost / s if s else np.zeros(d)
        hessian[np.diag_indices(d)] += around + self.decay
        spent = self.epsilon * float(w @ found.divergence)
        size = d + 2
        H, g = np.zeros((size, size)), np.zeros(size)
        H[:d, :d], g[:d] = hessian, gradient_z
        H[:d, d] = H[d, :d] = edge + float(w @ fs) * heat
        H[d, d], g[d] = float(curve.sum()), float(columns[:, 0].sum())
        H[:d, d + 1] = H[d + 1, :d] = self.epsilon * (sums[:, 2] + mean_st * heat)
        H[d, d + 1] = H[d + 1, d] = self.epsilon * float(columns[:, 2].sum())
        H[d + 1, d + 1] = self.epsilon**2 * float(w @ tt)
        g[d + 1] = (self.radius or 0.0) - spent
        free = np.append(self.alive, [self.fit_intercept, bool(self.radius)])
        g = np.where(free, g, 0.0)
        if not (np.isfinite(g).all() and np.isfinite(H).all()):
            # Where coefficients and multiplier vanish together: next to the constant model.
            none = np.zeros(size)
            return _State(z, b, lam, value, spent, none, none, 0.0, 99)
        step = np.zeros(size)
        step[free] = _solve(H[np.ix_(free, free)], -g[free])
        decrement = -float(g @ step)
        return _State(z, b, lam, value, spent, g, step, max(decrement, 0.0), stalled)

    def step(self, state: _State) -> _State:
        d = len(state.z)
        dz, db, dl = state.step[:d], float(state.step[d]), float(state.step[d + 1])
        t = 1.0
        if dl < 0:
            t = min(1.0, 0.9 * state.lam / -dl)
        accuracy = 1e-15 * (1.0 + abs(state.value))
        for _ in range(40):
            z, b, lam = state.z + t * dz, state.b + t * db, self._lam(state.lam + t * dl)
            known = self._tilted(z, b, lam)
            if known[3] <= state.value - 1e-4 * t * state.decrement + accuracy:
                gained = state.value - known[3]
                small = gained <= 1e-14 * abs(state.value)
                return self._at(z, b, lam, state.stalled + 1 if small else 0, known)
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
