r"""Smooth linear problems of many rows: exact steps on a sample, then few reads of all rows.

.. math:: \min_{z, p}\; \sum_i w_i\,\varphi_i(u_i, p) + c(z, p), \qquad u = Bz

A sample of the rows has nearly the curvature of all of them. Newton's method solves the sample;
on all rows L-BFGS starts there with the sample's joint Hessian in (z, p) as its first metric, and
a handful of gradients gives what Newton's method takes as many Hessians for. An iteration is one
read of the rows, and keeps a number of single precision by row.

**Proof.** A lower bound asks for slopes of the rows that balance exactly, and gradients vanish
last. The rows of the sample carry what is left of them: their slopes become those at a point
nearby where the sums over all rows vanish. As slopes of worst cases at some point they stay inside
their domains, and that the point is not the iterate costs second order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drojko._driver import Status
from drojko.minimax.balance import balance_of
from drojko.minimax.row_sums import RowSums, Scores, inverse_of, over_all
from drojko.rows import Rows

__all__ = ["ManyRows", "State"]

_CARRIERS, _EACH = 4_000, 20  # rows that are enough of them, and rows a parameter
_MEMORY = 20  # pairs that the metric is corrected by
_VANISHED = 1e-3  # of a level's first value
_ROUGH = 0.1  # relative residual of steps by products: as many digits as a step gains


@dataclass(frozen=True, eq=False)
class State:
    """An iterate, the next step from it and half its decrease; ``pairs`` correct the metric."""

    z: np.ndarray
    p: np.ndarray
    value: float
    sums: RowSums
    gradient: np.ndarray
    metric: Any
    move: np.ndarray
    decrement: float
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    lower: float = -math.inf
    tried: float = math.inf  # decrement at the last bound
    stuck: bool = False


class ManyRows:
    """The solver of the driver.

    Sums of all rows are those of one read, and forget the rows; samples are small.

    Parameters
    ----------
    objective : object
        Smooth in (z, p), with ``rows`` and ``positive``, the entries of p that stay so.
        ``levels(z, p)`` is what phi depends on beside u; ``at(y, w, u, levels, near, second)``
        gives `RowSums` of rows, None where phi is infinite or has kinks; ``rest(z, p, sums)`` is c,
        a `Rest`; ``dual(z, p, c, sums)`` the lower bound of a plan with these sums whose slopes
        add up to c where it matters; ``settled(u, p)`` gives better p where that of other rows is
        no good, ``sample(rows)`` the same problem on some rows, ``start()`` a first (z, p), and
        ``record`` the "penalty" and "transport_cost" of the history. Where kinks became bends:
        ``frozen(y, w, u, levels)``, what is left of the problem once levels balance on their own,
        and the weights of its rows; ``carriers(u, levels)``, the rows in them; ``sharpen(factor)``
        makes the bends shorter (False: too short), and ``flat(z, p)`` says whether most rows are in
        one.
    tol : float
        Proven relative gap; of a sample, the decrement over the value.
    carriers : array of int, default=None
        Rows that carry the imbalance of the others. None, for a sample: nothing is proven.
    exact : bool, default=False
        The metric is the Hessian, anew in every step.
    """

    def __init__(
        self,
        objective: Any,
        tol: float,
        carriers: np.ndarray | None = None,
        *,
        exact: bool = False,
    ):
        self.objective, self.tol, self.carriers, self.exact = objective, tol, carriers, exact
        self.rows: Rows = objective.rows
        self.near: np.ndarray | None = None  # of all rows; of others sums have their own
        self._seen: tuple[Any, Any] = None, None  # the last z, and B z of all rows

    def init(self, problem: State) -> State:
        """The state that `begin` gave."""
        return problem

    def begin(
        self, z: np.ndarray, p: np.ndarray, metric: Any = None, pairs: tuple = ()
    ) -> State | None:
        """State at (z, p) with a metric (None: the Hessian); None where it is not defined."""
        second = metric is None
        sums = self._sums(z, p, None, second)
        if self.carriers is not None and (
            sums is None or abs(sums.gp[: p.size]).max(initial=0) > 2
        ):
            p = self.objective.settled(self.scores(z), p)
            sums = self._sums(z, p, None, second)
        self.least = _VANISHED * p[list(self.objective.positive)]
        return None if sums is None else self._at(z, p, metric, pairs, sums)

    def _sums(self, z: np.ndarray, p: np.ndarray, near: Any, second: bool) -> RowSums | None:
        o, rows, levels, sums = self.objective, self.rows, self.objective.levels(z, p), None
        if self.carriers is not None and not second:
            return self._read(z, levels)
        u = rows.predict(z)
        if self.carriers is not None:
            self._seen = z, u
        if np.isfinite(u).all():
            sums = o.at(rows.y, rows.w, u, levels, near, second)
        if sums is not None:
            size = np.abs(sums.gu)
            sums = replace(sums, steep=float(size.sum()), reach=float(size @ np.abs(u)))
        sums = over_all(rows, sums, levels.size)
        return None if sums is None else replace(sums, slope=rows.sum(sums.gu))

    def scores(self, z: np.ndarray) -> np.ndarray:
        """B z, which the last sums have left of their z."""
        return self._seen[1] if self._seen[0] is z else self.rows.predict(z)

    def known(self, s: State) -> Scores | None:
        """B z of the last state, where it is as good as X times coefficients."""
        if self._seen[0] is not s.z or not self.rows.raw:
            return None
        near, o = self.near if s.sums.near is None else s.sums.near, self.objective
        plan = o.plan(s.z, s.p, s.sums) if hasattr(o, "plan") else None
        return Scores(self._seen[1], near, *self.rows.outward(s.z), plan)

    def _read(self, z: np.ndarray, levels: np.ndarray) -> RowSums | None:
        """Sums of all rows in one read, which keeps what the next one is cheaper with."""
        o, rows, known = self.objective, self.rows, self.near is not None
        scores = np.empty(len(rows.y)) if self._seen[1] is None else self._seen[1]
        self._seen = None, scores
        if self.near is None:
            self.near = np.empty(len(rows.y), dtype=np.float32)
        kept, used = self.near, False

        def visit(part: slice, u: np.ndarray) -> tuple[Any, np.ndarray] | None:
            nonlocal used
            near, scores[part] = kept[part] if known else None, u
            w = np.ascontiguousarray(rows.w[part])  # products with a repeated number are slow
            found = o.at(rows.y[part], w, u, levels, near, False)
            if found is None:
                return None
            if found.near is not None:
                kept[part], used = found.near, True
            steep, ends = float(np.abs(found.gu).sum()), (found.worth, found.spent, found.mass)
            reach = math.sqrt(float(found.gu @ found.gu) * float(u @ u))  # no less, and no array
            return [found.value, *ends, steep, reach, found.turn, *found.gp], found.gu

        sums = rows.swept(z, visit)
        if not used:
            self.near = None
        if sums is None:
            return None
        self._seen = z, scores
        value, worth, spent, mass, steep, reach, turn, *gp = sums.totals.tolist()
        known = np.zeros(0), np.array(gp), worth, spent, mass, None, sums.slope, steep, reach
        return RowSums(value, *known, turn=turn)

    def _at(self, z, p, metric, pairs, sums: RowSums) -> State:
        rest = self.objective.rest(z, p, sums)
        gradient = np.append(sums.slope + rest.gz, sums.gp[: p.size] + rest.gp)
        gradient[: self.rows.size][~self.rows.free] = 0.0
        if metric is None:
            metric = inverse_of(self.rows, sums, rest, p.size, _ROUGH)
        move = -_inverse(metric, pairs, gradient)
        half = max(-0.5 * float(gradient @ move), 0.0)
        return State(z, p, sums.value + rest.value, sums, gradient, metric, move, half, pairs)

    def _longest(self, s: State) -> float:
        """The share of the next step, at most one, that leaves room to what stays positive."""
        dp = s.move[self.rows.size :]
        falling = [j for j in self.objective.positive if dp[j] < 0]
        return min([1.0, *(float(0.9 * s.p[j] / -dp[j]) for j in falling)])

    def _along(self, s: State, t: float) -> tuple[np.ndarray, np.ndarray]:
        size = self.rows.size
        return s.z + t * s.move[:size], s.p + t * s.move[size:]

    def ahead(self, s: State) -> tuple[np.ndarray, np.ndarray]:
        """The point after the next step, where nothing has been looked at."""
        return self._along(s, self._longest(s))

    def step(self, state: State) -> State:
        """One step, and a bound once it can decide."""
        s, t = state, self._longest(state)
        for _ in range(12):
            z, p = self._along(s, t)
            sums = self._sums(z, p, s.sums.near, self.exact)
            if sums is not None:
                value = sums.value + self.objective.rest(z, p, sums).value
                if value <= s.value - 2e-4 * t * s.decrement + 1e-15 * abs(s.value):
                    break
            t *= 0.5 if t > 0.1 else 0.2
        else:
            return self._bounded(replace(s, stuck=True))
        new = self._at(z, p, None if self.exact else s.metric, s.pairs, sums)
        if not self.finite(new):
            return replace(s, stuck=True)
        if self.exact:
            return self._bounded(replace(new, lower=s.lower, tried=s.tried))
        step, change = t * s.move, new.gradient - s.gradient
        pairs = s.pairs
        if step @ change > 1e-12 * np.linalg.norm(step) * np.linalg.norm(change):
            pairs = (*pairs, (step, change))[-_MEMORY:]
        move = -_inverse(s.metric, pairs, new.gradient)
        half = max(-0.5 * float(new.gradient @ move), 0.0)
        carried = {"lower": s.lower, "tried": s.tried}
        return self._bounded(replace(new, pairs=pairs, move=move, decrement=half, **carried))

    def _bounded(self, s: State) -> State:
        """The state with a bound, where that can be expected to prove the tolerance."""
        if self.carriers is None:
            return s
        # The second order of the carriers is as much larger as they are fewer; that of rows in
        # bends is all there is.
        goal = 0.25 * self.tol * abs(s.value)
        share = 1.0 if hasattr(self.objective, "carriers") else len(self.carriers) / self.rows.n
        if not (s.stuck or s.decrement <= min(goal * share, 0.1 * s.tried)):
            return s
        enough = math.ceil(min(2.0 * self.rows.n * s.decrement / goal, self.rows.n)) if goal else 0
        lower = self._lower(s, max(enough, _CARRIERS, _EACH * self.rows.size))
        s = replace(s, lower=max(s.lower, lower), tried=s.decrement)
        goal, gap = self.tol * abs(s.value), s.value - s.lower
        if not (
            goal < gap < math.inf and s.decrement < 0.1 * gap and hasattr(self.objective, "sharpen")
        ):
            return s
        # What is left is the price of the bend, which grows with its square.
        if not self.objective.sharpen(max(math.sqrt(0.3 * goal / gap), 0.1)):
            return replace(s, stuck=True)
        sums = self._read(s.z, self.objective.levels(s.z, s.p))
        return s if sums is None else replace(self._at(s.z, s.p, s.metric, (), sums), lower=s.lower)

    def _lower(self, s: State, count: float = math.inf) -> float:
        """The bound with the slopes of carriers, so many at most, moved until all sums balance."""
        o, index = self.objective, np.asarray(self.carriers)
        if hasattr(o, "carriers"):
            index = o.carriers(self.scores(s.z), o.levels(s.z, s.p))
        elif count < len(index):
            index = index[np.linspace(0, len(index) - 1, int(count)).astype(int)]
        settled = self._settled(s) if hasattr(o, "frozen") else s
        if settled is None:
            return -math.inf
        near = settled.sums.near if self.near is None else self.near
        return balance_of(o, self.rows, settled, index, self.scores(s.z), near).bound()

    def _settled(self, s: State) -> State | None:
        """The state at the best levels, which balance on their own."""
        o = self.objective
        p = o.settled(self.scores(s.z), s.p)
        sums = self._read(s.z, o.levels(s.z, p))
        if sums is None:
            return None
        rest = o.rest(s.z, p, sums)
        gradient = np.append(sums.slope + rest.gz, sums.gp[: p.size] + rest.gp)
        gradient[: self.rows.size][~self.rows.free] = 0.0
        return replace(s, p=p, sums=sums, gradient=gradient)

    def terminate(self, state: State) -> Status | None:
        """Converged on a proof (a sample: on a small decrement); without a step nothing is."""
        gap = state.decrement if self.carriers is None else state.value - state.lower
        if gap <= self.tol * abs(state.value):
            return Status.CONVERGED
        # A level that vanishes is on its way to a kink, where all losses are equal.
        vanished = (state.p[list(self.objective.positive)] < self.least).any()
        hopeless = state.decrement <= 1e-13 * abs(state.value) and self.carriers is not None
        return Status.STALLED if state.stuck or vanished or hopeless else None

    def finite(self, state: State) -> bool:
        """Whether the iterate is."""
        return bool(np.isfinite(state.move).all()) and math.isfinite(state.value)

    def record(self, state: State) -> dict[str, float]:
        """A row of the history."""
        norm = float(np.linalg.norm(state.gradient)) / (1.0 + abs(state.value))
        row = self.objective.record(state.z, state.p, state.sums)
        row = {"robust_risk": state.value, **row, "stationarity": norm}
        return row if self.carriers is None else {**row, "passes": float(self.rows.reads)}


def _inverse(metric: Callable, pairs: tuple, gradient: np.ndarray) -> np.ndarray:
    """The gradient times the inverse of the corrected metric: the two loops of L-BFGS."""
    q, shares = gradient.copy(), []
    for step, change in reversed(pairs):
        share = (step @ q) / (step @ change)
        shares.append(share)
        q -= share * change
    q = metric(q)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        q += step * (share - (change @ q) / (step @ change))
    return q
