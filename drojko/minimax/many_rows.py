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
from drojko.minimax.newton import factorised
from drojko.minimax.wide import by_products
from drojko.rows import Rows

__all__ = ["ManyRows", "Rest", "RowSums", "State"]

_CARRIERS, _EACH = 4_000, 20  # rows that are enough of them, and rows a parameter
_MEMORY = 20  # pairs that the metric is corrected by
_VANISHED = 1e-3  # of a level's first value
_BALANCE = 1e-12  # of slopes, over their sum: rounding
_HELD = 1e-7  # the same where a ball or a ridge holds them
_LIGHT = 0.1  # of what holds them, in steps
_ROUGH = 0.1  # relative residual of steps by products: as many digits as a step gains


@dataclass(frozen=True, eq=False)
class RowSums:
    r"""Sums over rows of phi and its derivatives in u and p, weights in.

    ``worth`` is the sum of :math:`\inf_f \ell(f) - s f` over the plan that attains phi, ``spent``
    what the plan costs and ``mass`` its mass, in whichever way the objective's bound counts;
    ``near`` makes the next evaluation nearby cheaper, if anything does. Second derivatives are
    there on request. ``slope`` is B' gu, ``steep`` and ``reach`` the sums of |gu| and of |gu u|;
    sums of all rows have these in the place of gu.
    """

    value: float
    gu: np.ndarray
    gp: np.ndarray
    worth: float
    spent: float
    mass: float
    near: Any = None
    slope: np.ndarray = None  # type: ignore[assignment]
    steep: float = 0.0
    reach: float = 0.0
    huu: np.ndarray = None  # type: ignore[assignment]
    hup: np.ndarray = None  # type: ignore[assignment]
    hpp: np.ndarray = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Rest:
    """What does not go through single rows: value, gradients, second derivatives.

    Those in z are a diagonal Hz (D,) and perhaps V M V', ``low`` = (V, M) of few columns.
    """

    value: float
    gz: np.ndarray
    gp: np.ndarray
    Hz: np.ndarray
    Hzp: Any = 0.0
    Hpp: Any = 0.0
    low: tuple[np.ndarray, np.ndarray] | None = None


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
            p = self.objective.settled(self.rows.predict(z), p)
            sums = self._sums(z, p, None, second)
        self.least = _VANISHED * p[list(self.objective.positive)]
        return None if sums is None else self._at(z, p, metric, pairs, sums)

    def _sums(self, z: np.ndarray, p: np.ndarray, near: Any, second: bool) -> RowSums | None:
        o, rows, levels, sums = self.objective, self.rows, self.objective.levels(z, p), None
        if self.carriers is not None and not second:
            return self._read(z, levels)
        u = rows.predict(z)
        if np.isfinite(u).all():
            sums = o.at(rows.y, rows.w, u, levels, near, second)
        if sums is not None:
            size = np.abs(sums.gu)
            sums = replace(sums, steep=float(size.sum()), reach=float(size @ np.abs(u)))
        sums = over_all(rows, sums, levels.size)
        return None if sums is None else replace(sums, slope=rows.sum(sums.gu))

    def _read(self, z: np.ndarray, levels: np.ndarray) -> RowSums | None:
        """Sums of all rows in one read, which keeps what the next one is cheaper with."""
        o, rows, known = self.objective, self.rows, self.near is not None
        if self.near is None:
            self.near = np.empty(len(rows.y), dtype=np.float32)
        kept, used = self.near, False

        def visit(part: slice, u: np.ndarray) -> tuple[Any, np.ndarray] | None:
            nonlocal used
            near = kept[part] if known else None
            w = np.ascontiguousarray(rows.w[part])  # products with a repeated number are slow
            found = o.at(rows.y[part], w, u, levels, near, False)
            if found is None:
                return None
            if found.near is not None:
                kept[part], used = found.near, True
            size, ends = np.abs(found.gu), (found.worth, found.spent, found.mass)
            return [found.value, *ends, size.sum(), size @ np.abs(u), *found.gp], found.gu

        sums = rows.swept(z, visit)
        if not used:
            self.near = None
        if sums is None:
            return None
        value, worth, spent, mass, steep, reach, *gp = sums.totals.tolist()
        none = np.zeros(0)
        return RowSums(
            value, none, np.array(gp), worth, spent, mass, None, sums.slope, steep, reach
        )

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
        o, few, k = self.objective, self.rows, s.p.size
        index: Any = self.carriers
        bends = hasattr(o, "carriers")
        if bends:
            index = o.carriers(few.predict(s.z), o.levels(s.z, s.p))
        elif count < len(index):
            index = index[np.linspace(0, len(index) - 1, int(count)).astype(int)]
        if len(index) < few.n:
            few = few.take(index)
        settles = hasattr(o, "frozen")
        if settles:
            settled = self._settled(s)
            if settled is None:
                return -math.inf
            s, k = settled, 0
        u = few.predict(s.z)
        here = self.rows.here(index)
        y, w = self.rows.y[here], self.rows.w[here]
        near = s.sums.near if self.near is None else self.near
        near = near[here] if near is not None and len(near) == len(self.rows.y) else None
        levels, size = o.levels(s.z, s.p), self.rows.size
        if settles:
            o, w = o.frozen(y, w, u, levels)
        many = 0 if settles else levels.size
        own = new = over_all(few, o.at(y, w, u, levels, near, True), many)
        if own is None or new is None:
            return -math.inf
        rest, must = self.objective.rest(s.z, s.p, s.sums), np.ones(size + k, dtype=bool)
        light, close, most = None, 1e-3, 12
        held = self.rows.free & (rest.Hz > 0.0)
        loose = few.wide and bool(held[: few.d][self.rows.free[: few.d]].all())
        if bends or loose:
            # Rows in bends are equally far from their kinks: some sums they cannot move, and these
            # need not balance where ball or ridge holds a part. Many columns had better not.
            light, must[:size], must[size:] = _lightly(rest), ~held, loose and o.tight
        if loose:
            close, most = _ROUGH, 2
        factor = inverse_of(few, own, light, k, close)
        base = np.append(few.sum(own.gu), own.gp[:k])
        scale = np.append(np.full(size, s.sums.steep), np.abs(s.sums.gp[:k]))
        gradient = s.gradient[: size + k]
        left, move = gradient, np.zeros(size + k)
        shifted, v = levels.copy(), u
        for _ in range(most):
            if (np.abs(left) <= 0.01 * np.where(must, _BALANCE, _HELD) * scale).all():
                break
            move = move - _inverse(factor, (), left)
            shifted[:k] = levels[:k] + move[size:]
            v = u + few.predict(move[:size])
            new = over_all(few, o.at(y, w, v, shifted, near, bends or loose), many)
            if new is None:
                return -math.inf
            if bends:  # rows enter and leave them
                factor = inverse_of(few, new, light, k)
            left = gradient + np.append(few.sum(new.gu), new.gp[:k]) - base
            left[:size][~self.rows.free] = 0.0
        some = np.flatnonzero(must & np.append(self.rows.free, np.ones(k, dtype=bool)))
        if loose and some.size:
            # The intercept and levels, whose sums have to be exact, ask for no product.
            step = np.zeros(size + k)
            for _ in range(8):
                if (np.abs(left) <= 0.01 * _BALANCE * scale)[some].all():
                    break
                hup, hpp = new.hup[:, :k].sum(axis=0), new.hpp[:k, :k]
                corner = np.block([[np.array([[new.huu.sum()]]), hup[None]], [hup[:, None], hpp]])
                at = some - size + 1
                step[some] = -factorised(corner[np.ix_(at, at)])(left[some])
                shifted[:k] += step[size:]
                v = v + step[size - 1]
                new = over_all(few, o.at(y, w, v, shifted, near, True), many)
                if new is None:
                    return -math.inf
                sums = np.append(new.gu.sum() - own.gu.sum(), new.gp[:k] - own.gp[:k])
                left[size - 1 :] = gradient[size - 1 :] + sums
            left = gradient + np.append(few.sum(new.gu), new.gp[:k]) - base
            left[:size][~self.rows.free] = 0.0
        if (np.abs(left) > _BALANCE * scale)[must].any():
            return -math.inf
        sums = replace(
            s.sums,
            worth=s.sums.worth + new.worth - own.worth,
            spent=s.sums.spent + new.spent - own.spent,
            mass=s.sums.mass + new.mass - own.mass,
        )
        o = self.objective
        c = left[:size] - rest.gz
        # Rounding, outwards: of the sums, and of a balance that is not exact.
        drift = 2.0 * float(np.abs(left[:size])[must[:size]] @ np.abs(s.z)[must[:size]])
        rounding = 1e-15 * (abs(s.value) + s.sums.reach)
        return o.dual(s.z, s.p, c, sums) - drift - rounding

    def _settled(self, s: State) -> State | None:
        """The state at the best levels, which balance on their own."""
        o = self.objective
        p = o.settled(self.rows.predict(s.z), s.p)
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


def over_all(rows: Rows, sums: RowSums | None, k: int) -> RowSums | None:
    """Sums over all rows from those over own ones; None where some are not defined."""
    own = np.zeros(7 + k + k * k)
    if sums is None:
        own[0] = 1.0
    else:
        own[1:7] = sums.value, sums.worth, sums.spent, sums.mass, sums.steep, sums.reach
        own[7 : 7 + k] = sums.gp
        own[7 + k :] = 0.0 if sums.hpp is None else sums.hpp.ravel()
    undefined, value, worth, spent, mass, steep, reach, *rest = rows.total(own).tolist()
    if sums is None or undefined:
        return None
    gp, hpp = np.array(rest[:k]), np.array(rest[k:]).reshape(k, k)
    hpp = hpp if sums.hpp is not None else sums.hpp
    known = {"value": value, "worth": worth, "spent": spent, "mass": mass}
    return replace(sums, **known, gp=gp, hpp=hpp, steep=steep, reach=reach)


def _lightly(rest: Rest) -> Rest:
    """A share of it: what holds steps where rows do not."""
    low = rest.low and (rest.low[0], _LIGHT * rest.low[1])
    parts = {name: _LIGHT * getattr(rest, name) for name in ("Hz", "Hzp", "Hpp")}
    return replace(rest, low=low, **parts)


def inverse_of(
    rows: Rows, sums: RowSums, rest: Rest | None, k: int, close: float = 1e-3
) -> Callable[[np.ndarray], np.ndarray]:
    """Solutions with the second derivatives in (z, p): by Cholesky, of many columns by products.

    These to a relative residual ``close``.
    """
    if rows.wide:
        return by_products(rows, sums, rest, k, close)
    return factorised(_hessian(rows, sums, rest, k))


def _hessian(rows: Rows, sums: RowSums, rest: Rest | None, k: int) -> np.ndarray:
    """Second derivatives in (z, p); without ``rest`` those of the rows alone."""
    size = rows.size
    out = np.zeros((size + k, size + k))
    out[:size, :size] = rows.gram(np.maximum(sums.huu, 0.0))
    if k:
        out[:size, size:] = rows.sum(sums.hup[:, :k])
        out[size:, size:] = sums.hpp[:k, :k]
    if rest is not None:
        out.flat[: size * (size + k) : size + k + 1] += rest.Hz
        if rest.low is not None:
            V, inner = rest.low
            out[:size, :size] += V @ inner @ V.T
        out[:size, size:] += rest.Hzp
        out[size:, size:] += rest.Hpp
    out[size:, :size] = out[:size, size:].T
    return out


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
