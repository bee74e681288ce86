r"""One Newton's method for all linear problems: smoothed, primal-dual, with a proven gap.

.. math:: \min_{z, p}\; \sum_i w_i\,\varphi_i(u_i, p) + c(z, p) + \tfrac12 z^\top R z,
          \qquad u = B z

z are the coefficients on standardised columns and the intercept, B the rows (`drojko.rows.Rows`),
p a few extra variables (multipliers, levels). Each step solves the joint system in (z, p); kinks
take the primal-dual curvature of `drojko.losses.smoothing`, so that few steps suffice at any
smoothing mu. A stage ends once what is left is of the size of the *bias*, the gap that smoothing
leaves; then mu falls, by as much as the stage was easy. The exact best value and a bound end it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

from drojko._driver import Limits, Outcome, Status, run
from drojko._numerics import endless
from drojko.exceptions import NonFiniteError, UnsupportedError
from drojko.minimax.problem import NOT_FINITE
from drojko.minimax.wide import by_products

__all__ = [
    "CONSTANT",
    "ENDLESS",
    "FAR",
    "MOST",
    "ROUNDING",
    "LinearFit",
    "Newton",
    "Start",
    "State",
    "Terms",
    "check_columns",
    "curvature",
    "factorised",
    "fit",
    "relative_gap",
    "solve_symmetric",
    "step_of",
    "telling",
]

ROUNDING = 1e-10  # share of ``unit`` below which a risk is zero to rounding
FAR = 1e4  # times ``unit`` that a value is below zero before it is asked whether it has an end
_LARGE = 50_000  # rows from which on a sample is solved first
MOST = 6000  # parameters of a matrix
_HALF = 0.3  # decrement over bias from which on a stage is left half solved
_FAILED = 100.0  # gap over what was promised, of duals that did not balance
_STUCK = 6  # stages without progress after which a run has stalled
_LONG = 20  # steps after which a stage was entered too early
ENDLESS = (
    "There is no minimum: the loss is not bounded below, and the objective falls without end along "
    "a direction. Take another loss, or alpha > 0 and fit_intercept=False."
)
CONSTANT = (
    "The optimum is a constant model: against this set no use of the columns pays. A smaller "
    "radius, which counts in the units of the columns where points move (a larger penalty or "
    "alpha of CVaR), gives a model that uses them."
)


@dataclass(frozen=True, eq=False)
class Terms:
    """The smoothed objective at (z, p); infinite outside its domain, where all else is empty.

    Attributes
    ----------
    value : float
    gu, huu : arrays of shape (n,)
        Derivatives in u with the weights in; huu >= 0.
    gz, Hz : arrays of shape (D,), and (D, D) or its diagonal (D,)
        Of what does not go through u.
    gp, Hpp, hup, Hzp : arrays of shape (k,), (k, k), (n, k), (D, k)
    records : mapping of name to kinks
        ``moved(new, t)`` gives their duals after a step of length t to those of ``new``; they come
        back in the next evaluation under the same name.
    detail : object
        What the objective needs of this evaluation for ``bias`` and ``lower``.
    """

    value: float
    gu: np.ndarray = field(default_factory=lambda: np.zeros(0))
    huu: np.ndarray = field(default_factory=lambda: np.zeros(0))
    gz: Any = 0.0
    Hz: Any = 0.0
    gp: np.ndarray = field(default_factory=lambda: np.zeros(0))
    Hpp: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    hup: Any = 0.0
    Hzp: Any = 0.0
    records: Mapping[str, Any] = field(default_factory=dict)
    detail: Any = None


@dataclass(eq=False)
class State:
    """An iterate, the best one so far, and where the schedule stands; steps change a copy.

    ``u`` are the predictions B z, ``row`` what is recorded of the iterate.
    """

    z: np.ndarray
    p: np.ndarray
    u: np.ndarray
    mu: float
    terms: Terms
    duals: Mapping[str, Any] = field(default_factory=dict)
    row: dict[str, float] = field(default_factory=dict)
    upper: float = math.inf
    lower: float = -math.inf
    best: tuple[np.ndarray, np.ndarray] = ()  # type: ignore[assignment]
    decrement: float = math.inf
    iteration: int = 0
    stage: int = 0  # steps in this stage
    factor: float = 0.3  # by which mu falls next
    usual: float = 0.3  # by which it falls after a stage of ordinary length
    returns: int = 0  # to a larger mu
    half: bool = False  # whether the last stage was left half solved
    careful: bool = False  # whether the one after such a stage took more than two steps
    stuck: int = 0
    next_bound: int = 0  # iteration from which on bounds are worth another try ...
    ratio: float = 0.0  # ... unless the gap that this times bias and decrement promises suffices
    ended: Status | None = None
    unbounded: str | None = None

    def after(self, **changes: Any) -> State:
        """A copy with other values."""
        new = copy.copy(self)
        new.__dict__.update(changes)
        return new


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A linear model with what is proven about it; all in the units of the data.

    Attributes
    ----------
    coef, intercept : array of shape (d,), float; of several outputs (K, d) and (K,)
    multiplier : float
        Of the radius, or the penalty.
    objective, lower : float
        Exact value of the model, and a proven lower bound of the minimum (-inf without one).
    status, message : str
        "converged" (`relative_gap` is at most the tolerance, or with several outputs unknown),
        "stalled", "max_iter", "max_time", "callback", "interrupted" or "unbounded", and a sentence.
    n_iter : int
    stationarity : float
        Norm of the gradient of the last smoothed objective, relative to 1 + its value.
    history : dict of arrays
    unit : float
        What counts as a loss of ordinary size.
    advice : str or None
        A word on the optimum for the user: a constant model, for instance.
    risk, scores : object
        The worst case and the predictions (`row_sums.Scores`), where the solver knows them.
    """

    coef: np.ndarray
    intercept: Any
    multiplier: float
    objective: float
    lower: float
    status: str
    message: str
    n_iter: int
    stationarity: float
    history: dict[str, np.ndarray]
    unit: float
    advice: str | None = None
    risk: Any = None
    scores: Any = None

    @property
    def gap(self) -> float:
        """Objective minus lower bound."""
        return self.objective - self.lower

    @property
    def relative_gap(self) -> float:
        """The gap relative to the objective; NaN where nothing is proven."""
        return relative_gap(self.objective, self.lower, self.unit)

    def judged(self, tol: float) -> LinearFit:
        """With the status "converged" exactly where the proven gap is at most ``tol``."""
        if self.status not in (Status.CONVERGED, Status.STALLED, Status.MAX_ITER):
            return self
        ended = Status.MAX_ITER if self.status == Status.MAX_ITER else Status.STALLED
        ended = Status.CONVERGED if self.relative_gap <= tol else ended
        if ended == self.status:
            return self
        message = f"Stopped after {self.n_iter} iterations. {ended.advice}"
        return replace(self, status=str(ended), message=message)


def relative_gap(objective: float, lower: float, unit: float) -> float:
    """Gap over the objective or, where that is 0 to rounding, over a loss of ordinary size.

    >>> relative_gap(2.0, 1.5, 1.0), relative_gap(1e-12, 0.0, 1.0)
    (0.25, 1e-12)
    """
    if not math.isfinite(lower):
        return math.nan
    size = abs(objective)
    if size <= ROUNDING * unit:
        size = unit
    return max(objective - lower, 0.0) / size if size > 0 else 0.0


class Start(NamedTuple):
    """Where to begin: a point, its extra variables if they are known, mu over the unit."""

    z: np.ndarray
    p: np.ndarray | None = None
    share: float = 1e-3


class Newton:
    """The solver of the driver; ``tol`` is the proven relative gap aimed at.

    An objective (`Reweighted` is one) has ``rows``; ``unit``, a typical loss at the start, at most
    1e-280 where that fits exactly; ``positive``, the entries of p that must stay so;
    ``first_smoothing`` over the unit, and ``cooling``, by which mu falls after a stage of ordinary
    length. It has methods ``start``, ``terms``, ``tidy`` and ``restart`` for better p and for p
    inside the domain, ``bias``, ``lower``, ``unbounded`` and ``record``; perhaps ``accepted``, True
    where the objective changed with a step and is evaluated again, and ``patient``, where bounds
    ask for balanced duals.
    """

    def __init__(self, objective: Any, tol: float, prove: bool = True):
        self.objective, self.tol, self.prove = objective, tol, prove

    # Starting -----------------------------------------------------------------------------------

    def init(self, problem: Start | None) -> State:
        """State at a given start, or at the objective's own one."""
        o = self.objective
        z, p = o.start()
        u, mu = o.rows.predict(z), o.first_smoothing * o.unit
        if o.unit <= 1e-280:
            fitted = State(z, p, u, 1e-290, Terms(0.0), upper=0.0, lower=0.0, best=(z, p))
            return fitted.after(ended=Status.CONVERGED, row=o.record(fitted, exact=True))
        if problem is not None:
            z, mu = problem.z, min(problem.share * o.unit, mu)
            u = o.rows.predict(z)
            p = o.restart(z, u, p, mu) if problem.p is None else problem.p
        p, terms = self._evaluate(z, p, u, mu, {})
        cooling = o.cooling
        state = State(z, p, u, mu, terms, best=(z, p), factor=cooling, usual=cooling)
        state.careful = cooling > 0.1  # kinks of kinks
        if problem is not None:  # steps improve on the own start
            state.row = o.record(state)
            state.upper = state.row["robust_risk"]
        return state

    def _evaluate(
        self, z: np.ndarray, p: np.ndarray, u: np.ndarray, mu: float, duals: Mapping[str, Any]
    ) -> tuple[np.ndarray, Terms]:
        """Tidied extra variables and the terms there, inside the domain."""
        o = self.objective
        p = o.tidy(z, u, p, mu)
        terms = o.terms(z, p, u, mu, duals)
        if not math.isfinite(terms.value):
            p = o.restart(z, u, p, mu)
            terms = o.terms(z, p, u, mu, duals)
        return p, terms

    # Stepping -----------------------------------------------------------------------------------

    def step(self, state: State) -> State:
        """One joint step, bounds where they can decide, and the next mu where a stage ends."""
        if state.ended is not None:
            return state
        st = state.after(iteration=state.iteration + 1, stage=state.stage + 1)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # steps are checked
            t = self._move(st)
            st.row = {**self.objective.record(st), "stationarity": st.row["stationarity"]}
            if st.row["robust_risk"] <= st.upper:
                st.upper, st.best = st.row["robust_risk"], (st.z, st.p)
            # Steps towards smoothed kinks gain less and less; a smooth problem gets a step more.
            rate = st.decrement / state.decrement if st.stage > 1 else 0.5
            rate = min(rate, 0.5) if t == 1.0 and st.terms.records else 1.0
            self._schedule(st, t, rate * st.decrement)
        return st

    def _move(self, st: State) -> float:
        """A joint step of an accepted length, which is returned; 0 where there was none."""
        o, terms, k = self.objective, st.terms, len(st.p)
        gradient, second = self._gradient(terms), (terms.hup, terms.Hpp, terms.Hz, terms.Hzp)
        move = step_of(o.rows, -gradient, terms.huu, *second)
        st.decrement = decrement = max(-float(gradient @ move), 0.0)
        st.row = {"stationarity": float(np.linalg.norm(gradient)) / (1.0 + abs(terms.value))}
        size = len(st.z)
        dz, dp = move[:size], move[size:]
        du = o.rows.predict(dz)
        rounding = 2e-15 * (abs(terms.value) + 1e-3 * o.unit)
        t = self._longest(st.p, dp)
        for trial in range(40):
            z, u, p = st.z + t * dz, st.u + t * du, st.p + t * dp
            goal = terms.value - 1e-4 * t * decrement + rounding
            p = o.tidy(z, u, p, st.mu)
            new = o.terms(z, p, u, st.mu, st.duals, second=not terms.records)
            if k and trial < 4 and not math.isfinite(new.value):
                p = o.restart(z, u, p, st.mu)
                new = o.terms(z, p, u, st.mu, st.duals, second=not terms.records)
            if new.value <= goal:
                break
            t *= 0.5 if t > 0.1 else 0.2
        else:
            st.stuck, st.duals = st.stuck + 1, {}
            st.terms = o.terms(st.z, st.p, st.u, st.mu, {})
            return 0.0
        slow = terms.value - new.value <= rounding and t < 0.5
        # Duals far from the path mislead: after short steps they start afresh.
        kinks = terms.records if t >= 0.01 else {}
        st.duals = {name: kink.moved(new.records[name], t) for name, kink in kinks.items()}
        st.z, st.p, st.u, st.stuck = z, p, u, st.stuck + 1 if slow else 0
        # Without kinks the terms of the line search are those of the new iterate.
        changed = hasattr(o, "accepted") and o.accepted(st)
        st.terms = o.terms(z, p, u, st.mu, st.duals) if changed or new.records else new
        return t

    def _gradient(self, terms: Terms) -> np.ndarray:
        """In (z, p)."""
        if not math.isfinite(terms.value):
            raise NonFiniteError(NOT_FINITE)
        return np.append(self.objective.rows.sum(terms.gu) + terms.gz, terms.gp)

    def _system(self, t: Terms, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and curvature in (z, p)."""
        return self._gradient(t), curvature(self.objective.rows, t.huu, t.hup, t.Hpp, t.Hz, t.Hzp)

    def _longest(self, p: np.ndarray, move: np.ndarray) -> float:
        """The step length, at most 1, that keeps the positive variables so."""
        falling = [j for j in self.objective.positive if move[j] < 0]
        return min([1.0, *(0.9 * float(p[j] / -move[j]) for j in falling)])

    # The schedule -------------------------------------------------------------------------------

    def _endless(self, st: State) -> str | None:
        """Whether a loss without a least value falls along the ray of the best iterate."""
        o, (z, p) = self.objective, st.best
        if not st.upper < -FAR * o.unit:
            return None

        def value(t: float, z: np.ndarray) -> float:
            at = st.after(z=t * z, p=t * p, u=o.rows.predict(t * z))
            return o.record(at, exact=True)["robust_risk"]

        rays = (z, np.where(np.arange(len(z)) < o.rows.d, 0.0, z))
        return ENDLESS if any(endless(partial(value, z=ray)) for ray in rays) else None

    def _schedule(self, st: State, t: float, left: float) -> None:
        """Bounds, the end, or the next mu; ``left``: what this stage may still gain."""
        o, tol, before = self.objective, self.tol, st.mu
        size = max(abs(st.terms.value), ROUNDING * o.unit)
        st.unbounded = o.unbounded(st) or self._endless(st)
        if st.unbounded is not None:
            st.ended = Status.CONVERGED
            return
        bias = self._bias(st)
        # Half solved is enough until a bound can decide, where steps are not cut short.
        share = 2.0 if bias > 4.0 * tol * size and t >= 0.9 else 0.3
        settled = max(share * bias, 0.1 * tol * size, 1e-15 * size)
        # Bounds that ask for balanced duals gain by steps at this mu, no more by a smaller one.
        patient = getattr(o, "patient", False)
        unbalanced = st.ratio > _FAILED and not patient
        patient |= unbalanced
        if bias <= tol * size and patient:
            settled = max(1e-6 * tol * size, 1e-15 * size)
        ready = st.decrement <= settled or st.stuck > 0
        decisive = bias <= 4.0 * tol * size or st.mu <= ROUNDING * o.unit
        decisive = decisive and left <= max((0.01 if patient else 1.0) * tol * size, settled)
        if st.ratio and not unbalanced:  # as far from the proof as the last time
            decisive = st.ratio * (bias + left) <= tol * size or st.iteration >= st.next_bound
        if decisive or (st.stuck and st.iteration >= st.next_bound):
            found = self.bounded(st)
            if st.ended is not None:
                return
            st.next_bound = st.iteration + 3
            st.ratio = (st.upper - found) / max(bias + left, 1e-300)
        lost = st.stage >= (3 if t < 0.02 else _LONG) or (st.stuck > 0 and st.decrement > settled)
        if lost and st.returns < 6:
            st.mu = 5.0 * st.mu * (0.3 if st.stuck else 1.0)
            st.usual, st.returns = max(st.usual, 0.5), st.returns + 1
            st.duals, st.stuck = {}, 0
        elif ready:
            if st.mu < 1e-15 * size or st.stuck > _STUCK:
                st.ended = Status.STALLED
                return
            factor, half = st.usual, st.decrement > _HALF * bias
            st.careful |= st.half and (st.stage > 2 or t < 0.9)
            if st.stage <= 1 and t >= 0.9 and st.decrement <= 0.05 * bias:
                factor = max(0.3 * st.factor, 1e-2)
            elif st.stage <= 2 and t >= 0.9 and st.decrement <= 0.03 * bias:
                factor = 0.3 * st.usual
            elif st.stage > 3 or t < 0.9:
                factor = 0.5
            elif half and st.careful:
                factor = math.sqrt(st.usual)
            # No further than asked for: the bias falls at least like mu.
            st.mu *= min(max(factor, 0.2 * tol * size / max(bias, 1e-300)), 0.5)
            st.factor, st.half = factor, half
        else:
            return
        st.stage = 0
        self._renew(st, before)

    def _renew(self, st: State, before: float) -> None:  # before: mu until now
        st.p, st.terms = self._evaluate(st.z, st.p, st.u, st.mu, st.duals)

    def _bias(self, st: State) -> float:  # duals far from balance say less
        far = abs(st.terms.value - st.row["robust_risk"])
        return min(max(self.objective.bias(st), far), 3.0 * far)

    def bounded(self, st: State) -> float:
        """Try for a bound, which is returned and ends the run where it meets the best value."""
        if not self.prove:
            st.ended = Status.CONVERGED
            return -math.inf
        unit = self.objective.unit
        need = st.upper - 0.9 * self.tol * max(abs(st.upper), ROUNDING * unit)
        found = self.objective.lower(st, need)
        st.lower = max(st.lower, found)
        if relative_gap(st.upper, st.lower, unit) <= self.tol:
            st.ended = Status.CONVERGED
        return found

    # Ending -------------------------------------------------------------------------------------

    def terminate(self, state: State) -> Status | None:
        """Converged on a proof, stalled where nothing moves any more."""
        return state.ended

    def finite(self, state: State) -> bool:
        """Whether the iterate is."""
        return bool(np.isfinite(state.z).all()) and math.isfinite(state.upper if state.row else 0.0)

    def record(self, state: State) -> dict[str, float]:
        """A row of the history, with the proven gap so far (NaN before there is one)."""
        gap = relative_gap(state.upper, state.lower, self.objective.unit)
        return {**state.row, "gap": gap}


def fit(
    objective: Any,
    limits: Limits,
    *,
    goal: float | None = None,
    start: Start | None = None,
    sampled: Callable[[Any, Limits], Start | None] | None = None,
) -> LinearFit:
    """Run `Newton`.

    Parameters
    ----------
    objective : object
        As in `Newton`.
    limits : Limits
        "converged" is said where the proven relative gap is at most its tol; the callback finds
        the model in its record, as "coef" and "intercept".
    goal : float, default=None
        The relative gap aimed at; at most ``limits.tol``, which it is by default.
    start : Start, default=None
    sampled : callable, default=None
        (objective, limits) -> where a fit of many rows begins; perhaps None.
    """
    goal = limits.tol if goal is None else min(goal, limits.tol)
    if start is None and sampled is not None and objective.rows.n >= _LARGE:
        start = sampled(objective, limits)
    solver = getattr(objective, "solver", Newton)(objective, goal)
    outcome = run(
        solver,
        solver.init(start),
        max_iter=limits.max_iter,
        max_time=limits.time_left,
        callback=telling(limits, solver.record, lambda st: objective.rows.outward(st.z)),
    )
    return _finish(objective, solver, outcome).judged(limits.tol)


def check_columns(rows: Any) -> None:
    """Raise where Newton's matrix has no room."""
    if rows.size > MOST:
        raise UnsupportedError(
            f"Newton's method on {rows.d} columns needs a matrix of as many rows and columns, more "
            f"than {MOST}: take a smooth loss (logistic) against Wasserstein of order 2 without "
            "label flips, KL, ChiSquare or CressieRead, which do without it, or fewer columns"
        )


def telling(
    limits: Limits, record: Callable[[Any], dict[str, Any]], model: Callable[[Any], tuple[Any, Any]]
) -> Callable[[Any], bool] | None:
    """The callback of a run: what is recorded of a state, and the model there."""
    ask, count = limits.callback, itertools.count(1)
    if ask is None:
        return None

    def tell(state: Any) -> bool:
        coef, intercept = model(state)
        return bool(ask(next(count), {**record(state), "coef": coef, "intercept": intercept}))

    return tell


def _finish(objective: Any, solver: Newton, outcome: Outcome[State]) -> LinearFit:
    """Bounds where they are missing, and the model."""
    st, rows = outcome.state.after(), objective.rows
    best = st
    if st.best[0] is not st.z:
        best = st.after(z=st.best[0], p=st.best[1], u=rows.predict(st.best[0]))
    row = objective.record(best, exact=True)
    st.upper = row["robust_risk"]
    if st.lower == -math.inf and st.unbounded is None and outcome.status != Status.INTERRUPTED:
        solver.bounded(st)
    word, message, advice = str(outcome.status), outcome.message, None
    if st.unbounded is not None:
        word, message = "unbounded", st.unbounded
    elif rows.free[: rows.d].any() and st.upper > ROUNDING * objective.unit:
        # Whether the model without its coefficients is as good.
        z = np.where(np.arange(rows.size) < rows.d, 0.0, best.z)
        flat = objective.record(best.after(z=z, u=rows.predict(z)), exact=True)
        advice = CONSTANT if flat["robust_risk"] <= st.upper * (1.0 + 1e-6) else None
    coef, intercept = rows.outward(best.z)
    return LinearFit(
        coef,
        intercept,
        row["penalty"],
        st.upper,
        min(st.lower, st.upper),  # rounding
        word,
        message,
        outcome.n_iter,
        float(st.row.get("stationarity", math.nan)),
        outcome.columns(),
        objective.unit,
        advice,
    )


def curvature(
    rows: Any, huu: np.ndarray, hup: Any, Hpp: np.ndarray, Hz: Any, Hzp: Any = 0.0
) -> np.ndarray:
    """Second derivatives in (z, p), of `Terms`."""
    size, k = rows.size, len(Hpp)
    out = np.empty((size + k, size + k))
    out[:size, :size] = rows.gram(np.maximum(huu, 0.0))
    if np.ndim(Hz) == 1:
        out.flat[: size * (size + k) : size + k + 1] += Hz
    else:
        out[:size, :size] += Hz
    if k:
        out[:size, size:] = (rows.sum(hup) if np.ndim(hup) else 0.0) + Hzp
        out[size:, :size] = out[:size, size:].T
        out[size:, size:] = Hpp
    return out


def step_of(rows: Any, right: np.ndarray, huu: np.ndarray, hup: Any, *rest: Any) -> np.ndarray:
    """The solution with the `curvature`; of too many columns by products."""
    if rows.size > MOST:
        return by_products(rows, huu, hup, *rest)(right)
    return solve_symmetric(curvature(rows, huu, hup, *rest), right)


def factorised(matrix: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Cholesky's solution, with as little added to the scaled diagonal as that takes.

    A row and column of zeros, as a dead column has, leaves a right side of 0 at 0.
    """
    diagonal = matrix.diagonal()
    unit = 1.0 / np.sqrt(np.maximum(diagonal, 1e-12 * max(diagonal.max(initial=0.0), 1e-280)))
    shift = 1e-14
    while len(unit) and shift < 1e8:
        scaled = matrix * unit[:, None]
        scaled *= unit
        scaled.flat[:: len(unit) + 1] += shift
        # LAPACK in place, without a copy in the other order.
        factor, failed = dpotrf(scaled.T, clean=False, overwrite_a=True)
        if not failed and np.isfinite(factor.diagonal()).all():
            return lambda right: unit * dpotrs(factor, unit * right)[0]
        shift *= 100.0
    return lambda right: right * unit * unit


def solve_symmetric(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solution of a positive semidefinite system, or of one near it."""
    return factorised(matrix)(right)
