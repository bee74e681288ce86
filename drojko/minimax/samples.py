"""Problems of many rows from samples of them: larger and larger ones, then all rows.

A first point, its curvature and the rows that carry a proof come from samples. See
`drojko.minimax.many_rows` for what is done with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from drojko._driver import Limits, Status, nested, run
from drojko.losses import Loss
from drojko.minimax.many_rows import ManyRows, State
from drojko.minimax.newton import LinearFit, Newton, Start, telling
from drojko.minimax.row_sums import Rest, RowSums
from drojko.rows import Rows
from drojko.rows.strata import drawn, without_repeats

__all__ = ["AMPLE", "fit_many", "from_plain", "from_sample"]

#: A relative gap far below what samples of so many rows tell apart.
AMPLE = 1e-5
#: Rows a parameter of the sample that is solved first, and of the second one.
_FIRST, _SECOND = 20, 100
_SHARE, _ROOM = 9, 2**23  # the last one is such a part of the rows, of so many entries at most
_CHEAP = 20  # flops of a sample's Hessian over those of a product with all rows
_NARROW = 40  # parameters that count at least, where samples are cheap
#: Decrement over value from which on a step more solves a sample; of the last one, closer.
_NEAR, _NEARER = 1e-2, 1e-3
_MOST = 30  # iterations, where half a dozen are usual
_PLAIN = 4_000  # rows of a sample for Newton's method
_PART, _ROUNDS, _TOP = 25, 3, 1_000  # where the largest loss counts: a part of the rows, ...
_SHORT = 2e-4  # the smoothing after it, over the objective


def fit_many(
    objective: Any,
    limits: Limits,
    *,
    classes: bool,
    goal: float | None = None,
) -> LinearFit | None:
    """The optimum of a problem of many rows with a proven gap, or None: other solvers find it.

    None where rows are too few for a sample of them, where a sample has no smooth optimum, and
    where the gap is not proven after a few dozen iterations.

    Parameters
    ----------
    objective : object
        As in `ManyRows`.
    limits : Limits
        Of the iterations on all rows; the callback finds the model in its record.
    classes : bool
        Whether y holds classes 0 and 1, to be sampled apart.
    goal : float, default=None
        The relative gap aimed at; at most ``limits.tol``, which it is by default.
    """
    rows = objective.rows
    if not rows.large:
        return None
    goal = limits.tol if goal is None else min(goal, limits.tol)

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # steps are checked
        if rows.wide:
            solver = ManyRows(objective, goal, np.arange(rows.n), exact=True)
            first = solver.begin(*objective.start())
        else:
            found = _sampled(objective, goal, classes)
            if found is None:
                return None
            solver, first = found
        if first is None or not solver.finite(first):
            return None
        most = min(limits.max_iter, _MOST)
        outcome = run(
            solver,
            first,
            max_iter=most,
            max_time=limits.time_left,
            callback=telling(limits, solver.record, lambda state: rows.outward(state.z)),
        )
    unproven = outcome.status in (Status.STALLED, Status.MAX_ITER)
    if unproven and (outcome.status is Status.STALLED or most < limits.max_iter):
        return None
    s = outcome.state
    coef, intercept = rows.outward(s.z)
    row = solver.record(s)
    return LinearFit(
        coef,
        intercept,
        row["penalty"],
        s.value,
        s.lower,
        str(outcome.status),
        outcome.message,
        outcome.n_iter,
        row["stationarity"],
        outcome.columns(),
        abs(s.value),
        risk=objective.levels(s.z, s.p),
        scores=solver.known(s),
    )


def _sampled(objective: Any, goal: float, classes: bool) -> tuple[ManyRows, State | None] | None:
    """The solver on all rows and its first state, from samples; None where they have no optimum."""
    rows, size = objective.rows, objective.rows.size
    sizes = [min(each * max(size, _NARROW), rows.n // 4) for each in (_FIRST, _SECOND)]
    last = min(rows.n // _SHARE, _CHEAP * rows.n // (2 * size), _ROOM // size)
    if last >= 2 * sizes[1]:
        sizes.append(last)
    index, largest = drawn(rows, sizes[-1], classes)
    problem, solver, state = objective, None, None
    for count in sizes:
        some = largest if count == sizes[-1] else drawn(largest, count, classes)[1]
        problem = objective.sample(some.own())
        point = problem.start() if solver is None or state is None else solver.ahead(state)
        exact = count * size <= _CHEAP * rows.n
        solver = ManyRows(problem, _NEARER if some is largest else _NEAR, exact=exact)
        # The last one begins with the curvature of the one before: that of its solution is wanted.
        metric = state.metric if state is not None and exact and some is largest else None
        state = _solved(solver, point, metric)
    if solver is None or state is None:
        return None
    z, p = solver.ahead(state)
    if hasattr(problem, "flat") and problem.flat(z, p):
        return None
    own = rows.own()
    whole = ManyRows(
        objective if own is rows else objective.sample(own), goal, without_repeats(index)
    )
    return whole, whole.begin(z, p, state.metric, state.pairs)


def _solved(
    solver: ManyRows, point: Any, metric: Any = None, most: int | None = None
) -> State | None:
    """The solution of a sample, or None; with ``most`` whatever so many steps give."""
    first = solver.begin(point[0], point[1], metric)
    if first is None or not solver.finite(first):
        return None
    if solver.terminate(first) is not None:
        return first
    outcome = nested(solver, first, max_iter=most or _MOST)
    return outcome.state if most or outcome.status is Status.CONVERGED else None


class _Mean:
    """The mean loss with its ridge."""

    positive: tuple[int, ...] = ()

    def __init__(self, rows: Rows, loss: Loss, ridge: np.ndarray):
        self.rows, self.loss, self.ridge = rows, loss, ridge

    def levels(self, z: np.ndarray, p: np.ndarray) -> np.ndarray:
        return p

    def at(self, y, w, u, levels, near, second) -> RowSums:
        value, slope, bend = self.loss.line(u, y)
        none = np.zeros(0)
        gu, mean = w * slope, float(w @ value)
        second = {"huu": w * bend, "hup": none[None], "hpp": none[None]}
        return RowSums(mean, gu, none, 0.0, 0.0, 1.0, **second)

    def rest(self, z: np.ndarray, p: np.ndarray, sums: RowSums) -> Rest:
        value = 0.5 * float(self.ridge @ z**2)
        return Rest(value, self.ridge * z, np.zeros(0), self.ridge)

    def record(self, z: np.ndarray, p: np.ndarray, sums: RowSums) -> dict[str, float]:
        return {}


def from_plain(rows: Rows, loss: Loss, ridge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A model of small mean loss, after a few steps, and its predictions.

    At a constant model worst cases have kinks: the joint problems start here instead.
    """
    z = np.zeros(rows.size)
    if rows.intercept and loss.task == "regression":
        z[-1] = float(rows.total(rows.w @ rows.y))
    most = 1 if rows.wide else 12  # of which the first are far from any joint optimum
    mean = _Mean(rows, loss, ridge)
    solver = ManyRows(mean, 1e-2, exact=rows.wide)
    state = _solved(solver, (z, np.zeros(0)), most=most)
    if state is None:
        return z, rows.predict(z)
    if rows.wide:
        z, p = solver.ahead(state)
        u = rows.predict(z)
        sums = mean.at(rows.y, rows.w, u, p, None, False)
        if sums.value + mean.rest(z, p, sums).value < state.value:
            return z, u
    return state.z, rows.predict(state.z)


def from_sample(objective: Any, limits: Limits) -> Start | None:
    """A start of Newton's method near the optimum: that of a sample of the rows, to 1e-3.

    The objective's ``sample(index, weights)`` is a problem like it on some rows, or None.

    Where the largest loss counts it is larger, and gets the rows that are worst for its model.
    """
    rows = objective.rows
    largest = getattr(objective, "needs_largest", False)
    count = max(_PLAIN, rows.n // _PART) if largest else _PLAIN
    index = np.sort(np.random.default_rng(0).choice(rows.n, count, replace=False))
    weight, start = rows.w[index] * (rows.n / count), None
    for _ in range(_ROUNDS if largest else 1):
        some = objective.sample(index, weight)
        if some is None:
            return None
        solver = Newton(some, 1e-3, prove=False)
        first = solver.init(start)
        if first.ended is not None:
            return None
        end = nested(solver, first, max_iter=100, max_time=limits.time_left).state
        size = max(abs(end.upper) / some.unit, 1e-8)
        start = Start(end.best[0], None, (_SHORT if largest else 1e-2) * size)
        if largest:
            worst = objective.exact(rows.predict(start.z))
            top = np.argpartition(-worst, _TOP)[:_TOP]
            new = np.setdiff1d(top[rows.w[top] > 0], index)
            if not new.size:
                break
            order = np.argsort(np.append(index, new))
            weight = np.append(weight, rows.w[new])[order]
            index = np.append(index, new)[order]
    return start
