"""One Newton's method for all linear problems: smoothed, primal-dual, with a proven gap.

Each step solves the joint system in (z, p); kinks take the primal-dual curvature of
`drojko.losses.smoothing`, so that few steps suffice at any smoothing mu. A stage ends once what is
left to gain is small against the *bias*, the gap that smoothing itself leaves; then mu falls, by
as much as the last stage was easy. What ends the run is a proof: the exact objective of the best
iterate against the best lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from drojko._driver import Status, run
from drojko.minimax.limits import Limits
from drojko.minimax.row_objective import (
    ROUNDING,
    Iterate,
    LinearFit,
    RowObjective,
    Terms,
    relative_gap,
)

__all__ = ["Newton", "Start", "State", "fit", "solve_symmetric"]

_LARGE, _SAMPLE = 50_000, 4_000  # rows from which on a sample is solved first, and its size
_STUCK = 6  # stages without progress after which a run has stalled
_LONG = 20  # steps after which a stage was entered too early
_CONSTANT = (
    "The optimum is a constant model: against this set no use of the columns pays. A smaller "
    "radius (a larger penalty or alpha of CVaR) gives a model that uses them."
)


@dataclass(frozen=True, eq=False)
class State(Iterate):
    """An iterate, the best one so far, and where the schedule stands."""

    upper: float = math.inf
    lower: float = -math.inf
    best_z: np.ndarray = field(default_factory=lambda: np.zeros(0))
    best_p: np.ndarray = field(default_factory=lambda: np.zeros(0))
    decrement: float = math.inf
    iteration: int = 0
    stage: int = 0  # steps in this stage
    factor: float = 0.3  # by which mu falls next
    usual: float = 0.3  # by which it falls after a stage of ordinary length
    returns: int = 0  # to a larger mu
    stuck: int = 0
    next_bound: int = 0  # iteration from which on bounds are worth another try
    ended: Status | None = None
    unbounded: str | None = None


class Start(NamedTuple):
    """Where to begin: a point, its extra variables if they are known, mu over the unit."""

    z: np.ndarray
    p: np.ndarray | None = None
    share: float = 1e-3


class Newton:
    """The solver of the driver; ``tol`` is the proven relative gap aimed at."""

    def __init__(self, objective: RowObjective, tol: float, prove: bool = True):
        self.objective, self.tol, self.prove = objective, tol, prove
        self.free = objective.rows.free

    # Starting -----------------------------------------------------------------------------------

    def init(self, problem: Start | None) -> State:
        """State at a given start, or at the objective's own one."""
        o = self.objective
        z, p = o.start()
        u, mu = o.rows.predict(z), o.first_smoothing * o.unit
        if o.unit <= 1e-280:
            state = State(z, p, u, 1e-290, Terms(0.0), upper=0.0, lower=0.0, best_z=z, best_p=p)
            return replace(state, ended=Status.CONVERGED, row=o.record(state))
        if problem is not None:
            z, mu = problem.z, min(problem.share * o.unit, mu)
            u = o.rows.predict(z)
            p = o.restart(u, p, mu) if problem.p is None else problem.p
        p, terms = self._evaluate(z, p, u, mu, {})
        cooling = o.cooling
        state = State(z, p, u, mu, terms, best_z=z, best_p=p, factor=cooling, usual=cooling)
        return state if problem is None else self._judged(state)  # steps improve on the own start

    def _judged(self, state: State) -> State:
        row = self.objective.record(state)
        return replace(state, upper=row["robust_risk"], row=row)

    def _evaluate(
        self, z: np.ndarray, p: np.ndarray, u: np.ndarray, mu: float, duals: Mapping[str, Any]
    ) -> tuple[np.ndarray, Terms]:
        """Tidied extra variables and the terms there, inside the domain."""
        o = self.objective
        p = o.tidy(z, u, p, mu)
        terms = o.terms(z, p, u, mu, duals)
        if terms.finite:
            return p, terms
        return self._settle(z, o.restart(u, p, mu), u, mu, duals, 40)

    def _settle(
        self,
        z: np.ndarray,
        p: np.ndarray,
        u: np.ndarray,
        mu: float,
        duals: Mapping[str, Any],
        steps: int,
    ) -> tuple[np.ndarray, Terms]:
        """Newton's method in p alone."""
        o = self.objective
        terms = o.terms(z, p, u, mu, duals)
        for _ in range(steps if p.size and terms.finite else 0):
            move = solve_symmetric(terms.Hpp, -terms.gp)
            decrement = -float(terms.gp @ move)
            if decrement <= 1e-3 * mu:
                break
            t = self._longest(p, move)
            for _ in range(10):
                new = o.terms(z, p + t * move, u, mu, duals)
                if new.value <= terms.value - 1e-4 * t * decrement + 1e-14 * abs(terms.value):
                    break
                t *= 0.4
            else:
                break
            p, terms = p + t * move, new
        return p, terms

    # Stepping -----------------------------------------------------------------------------------

    def step(self, state: State) -> State:
        """One joint step, bounds where they can decide, and the next mu where a stage ends."""
        if state.ended is not None:
            return state
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # steps are checked
            return self._step(state)

    def _step(self, state: State) -> State:
        state = replace(state, iteration=state.iteration + 1, stage=state.stage + 1)
        new, t = self._move(state)
        row = self.objective.record(new)
        row["stationarity"] = new.row["stationarity"]
        new = replace(new, row=row)
        if row["robust_risk"] <= new.upper:
            new = replace(new, upper=row["robust_risk"], best_z=new.z, best_p=new.p)
        # Steps towards smoothed kinks gain less and less, at least as fast as the last two did;
        # a smooth problem gets a step more, for its digits.
        rate = new.decrement / state.decrement if new.stage > 1 else 0.5
        rate = min(rate, 0.5) if t == 1.0 and new.terms.records else 1.0
        return self._schedule(new, t, rate * new.decrement)

    def _move(self, st: State) -> tuple[State, float]:
        """The iterate after a joint step of an accepted length t; 0 where there was none."""
        o, terms, k = self.objective, st.terms, len(st.p)
        gradient, hessian = self._system(terms, k)
        free = np.append(self.free, np.ones(k, dtype=bool))
        move = np.zeros(len(free))
        move[free] = solve_symmetric(hessian[np.ix_(free, free)], -gradient[free])
        decrement = max(-float(gradient @ move), 0.0)
        row = {"stationarity": float(np.linalg.norm(gradient)) / (1.0 + abs(terms.value))}
        st = replace(st, decrement=decrement, row=row)
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
            if k and not new.finite and trial < 4:
                base = p if new.finite else o.restart(u, st.p, st.mu)
                base = o.tidy(z, u, base, st.mu, refused=True)
                p, new = self._settle(z, base, u, st.mu, st.duals, 2)
            if new.value <= goal:
                break
            t *= 0.5 if t > 0.1 else 0.2
        else:
            again = o.terms(st.z, st.p, st.u, st.mu, {})
            return replace(st, stuck=st.stuck + 1, duals={}, terms=again), 0.0
        slow = terms.value - new.value <= rounding and t < 0.5
        # Duals far from the path mislead: after short steps they start afresh from the primal ones.
        duals = (
            {}
            if t < 0.01
            else {
                name: record.moved(new.records[name], t) for name, record in terms.records.items()
            }
        )
        st = replace(st, z=z, p=p, u=u, duals=duals, stuck=st.stuck + 1 if slow else 0)
        # Without kinks the terms of the line search are those of the new iterate.
        if o.accepted(st) or new.records:
            new = o.terms(z, p, u, st.mu, duals)
        return replace(st, terms=new), t

    def _system(self, terms: Terms, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and curvature in (z, p)."""
        rows = self.objective.rows
        size = rows.size
        gradient = np.append(rows.sum(terms.gu) + terms.gz, terms.gp)
        hessian = np.empty((size + k, size + k))
        hessian[:size, :size] = rows.gram(np.maximum(terms.huu, 0.0)) + terms.Hz
        if k:
            cross = rows.sum(terms.hup) if np.ndim(terms.hup) else 0.0
            hessian[:size, size:] = cross + terms.Hzp
            hessian[size:, :size] = hessian[:size, size:].T
            hessian[size:, size:] = terms.Hpp
        return gradient, hessian

    def _longest(self, p: np.ndarray, move: np.ndarray) -> float:
        """The step length, at most 1, that keeps the positive variables so."""
        falling = [j for j in self.objective.positive if move[j] < 0]
        return min([1.0, *(0.9 * p[j] / -move[j] for j in falling)])

    # The schedule -------------------------------------------------------------------------------

    def _schedule(self, st: State, t: float, left: float) -> State:
        o, tol = self.objective, self.tol
        size = max(abs(st.terms.value), ROUNDING * o.unit)
        st = replace(st, unbounded=o.unbounded(st))
        if st.unbounded is not None:
            return replace(st, ended=Status.CONVERGED)
        # How far the smoothed value lies from the exact one is of the order of the bias; duals far
        # from balance say less than that.
        excess = abs(st.terms.value - st.row["robust_risk"])
        bias = min(max(o.bias(st), excess), 3.0 * excess)
        settled = max(0.3 * bias, 0.1 * tol * size, 1e-15 * size)
        # Bounds that ask for balanced duals gain by steps at this mu, no more by a smaller one.
        patient = getattr(o, "patient", False)
        if bias <= tol * size and patient:
            settled = max(1e-6 * tol * size, 1e-15 * size)
        ready = st.decrement <= settled or st.stuck > 0
        decisive = bias <= 4.0 * tol * size or st.mu <= ROUNDING * o.unit
        decisive = decisive and left <= max((0.01 if patient else 1.0) * tol * size, settled)
        if st.iteration >= st.next_bound and (decisive or st.stuck):
            before, st = st.lower, self.bounded(st)
            if st.ended is not None:
                return st
            wait = 1 if st.lower > before else 3
            st = replace(st, next_bound=st.iteration + wait)
        early = (st.stage >= _LONG or (st.stuck > 0 and st.decrement > settled)) and st.returns < 6
        if early:
            # Cooled too fast: back to where the path is wide, and gently from there.
            mu = 5.0 * st.mu * (0.3 if st.stuck else 1.0)
            usual = max(st.usual, 0.5)
            st = replace(st, returns=st.returns + 1, usual=usual, duals={}, stuck=0)
        elif ready:
            if st.mu < 1e-15 * size or st.stuck > _STUCK:
                return replace(st, ended=Status.STALLED)
            factor = st.usual
            if st.stage <= 1 and t >= 0.9 and st.decrement <= 0.05 * bias:
                factor = max(0.3 * st.factor, 1e-2)
            elif st.stage <= 2 and t >= 0.9 and st.decrement <= 0.03 * bias:
                factor = 0.3 * st.usual
            elif st.stage > 3 or t < 0.9:
                factor = 0.5
            # No further than asked for: the bias falls at least like mu.
            mu = st.mu * min(max(factor, 0.2 * tol * size / max(bias, 1e-300)), 0.5)
            st = replace(st, factor=factor)
        else:
            return st
        p, terms = self._evaluate(st.z, st.p, st.u, mu, st.duals)
        return replace(st, stage=0, mu=mu, p=p, terms=terms)

    def bounded(self, st: State) -> State:
        """The state with bounds, ended where they meet."""
        floor = ROUNDING * self.objective.unit
        if not self.prove:
            return replace(st, ended=Status.CONVERGED)
        need = st.upper - 0.9 * self.tol * max(abs(st.upper), floor)
        _, lower = self.objective.bounds(st, need)
        st = replace(st, lower=max(st.lower, lower))
        done = relative_gap(st.upper, st.lower, self.objective.unit) <= self.tol
        return replace(st, ended=Status.CONVERGED) if done else st

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
    report: Any = None,
) -> LinearFit:
    """Run `Newton`; a fit of many rows begins on a sample of them.

    Parameters
    ----------
    objective : RowObjective
        With ``sample(index) -> RowObjective`` where a sample of its rows is a problem like it.
    limits : Limits
        "converged" is said where the proven relative gap is at most its tol.
    goal : float, default=None
        The relative gap aimed at; at most ``limits.tol``, which it is by default.
    start : Start, default=None
    report : callable, default=None
        ``report(coef, intercept)``, called before each callback with the iterate.
    """
    goal = limits.tol if goal is None else min(goal, limits.tol)
    if start is None:
        start = _from_sample(objective, limits)
    solver = Newton(objective, goal)

    def callback(state: State) -> bool:
        if limits.callback is None:
            return False
        if report is not None:
            report(*objective.rows.outward(state.z))
        return limits.callback(state.iteration, solver.record(state))

    outcome = run(
        solver,
        solver.init(start),
        max_iter=limits.max_iter,
        max_time=limits.time_left,
        callback=callback,
    )
    return _finish(objective, solver, outcome, limits.tol)


def _finish(objective: Any, solver: Newton, outcome: Any, tol: float) -> LinearFit:
    """Bounds where they are missing, the status that they allow, and the model."""
    st, status = outcome.state, outcome.status
    st = st if st.row else solver._judged(st)
    if st.lower == -math.inf and st.unbounded is None and status is not Status.INTERRUPTED:
        st = replace(solver.bounded(st), ended=st.ended)
    gap = relative_gap(st.upper, st.lower, objective.unit)
    if status in (Status.MAX_ITER, Status.STALLED, Status.CONVERGED):
        proven = gap <= tol
        status = (
            Status.CONVERGED
            if proven
            else (Status.STALLED if status is Status.CONVERGED else status)
        )
    word, message = str(status), f"Stopped after {outcome.n_iter} iterations. {status.advice}"
    if st.unbounded is not None:
        word, message = "unbounded", st.unbounded
    coef, intercept = objective.rows.outward(st.best_z)
    best, row = st, st.row
    if st.best_z is not st.z:
        best = replace(st, z=st.best_z, p=st.best_p, u=objective.rows.predict(st.best_z))
        row = objective.record(best)
    return LinearFit(
        coef, intercept, row["penalty"], st.upper, st.lower, word, message, outcome.n_iter,
        float(st.row.get("stationarity", math.nan)), outcome.columns(), st.best_p, objective.unit,
        None if st.unbounded else _constant(objective, best),
    )  # fmt: skip


def _constant(objective: Any, best: State) -> str | None:
    """A word where the model without its coefficients is as good."""
    rows = objective.rows
    some = rows.free[: rows.d].any()
    if not some or best.upper <= ROUNDING * objective.unit:
        return None
    z = np.where(np.arange(rows.size) < rows.d, 0.0, best.z)
    flat = replace(best, z=z, u=rows.predict(z))
    same = objective.record(flat)["robust_risk"] <= best.upper * (1.0 + 1e-6)
    return _CONSTANT if same else None


def _from_sample(objective: Any, limits: Limits) -> Start | None:
    """A start near the optimum: that of a sample of the rows, to 1e-3."""
    rows = objective.rows
    if rows.n < _LARGE or not hasattr(objective, "sample"):
        return None
    index = np.sort(np.random.default_rng(0).choice(rows.n, _SAMPLE, replace=False))
    some = objective.sample(index)
    if some is None:
        return None
    solver = Newton(some, 1e-3, prove=False)
    first = solver.init(None)
    if first.ended is not None:
        return None
    end = run(solver, first, max_iter=100, max_time=limits.time_left).state
    return Start(end.best_z, None, 1e-2 * max(abs(end.upper) / some.unit, 1e-8))


def solve_symmetric(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cholesky's solution, with as little added to the scaled diagonal as that takes."""
    diagonal = matrix.diagonal()
    unit = 1.0 / np.sqrt(np.maximum(diagonal, 1e-12 * max(diagonal.max(initial=0.0), 1e-280)))
    scaled, shift = matrix * unit[:, None] * unit, 1e-14
    while shift < 1e8:
        try:
            lifted = scaled + shift * np.eye(len(unit))
            factor = scipy.linalg.cho_factor(lifted, check_finite=False)
            x = unit * scipy.linalg.cho_solve(factor, unit * right, check_finite=False)
            if np.isfinite(x).all():
                return x
        except (np.linalg.LinAlgError, ValueError):
            pass
        shift *= 100.0
    return right * unit * unit
