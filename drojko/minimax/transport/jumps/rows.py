r"""Worst cases of rows that jump, or move within bounds, as a problem of the common solver.

.. math:: \varphi_i = \mu \log\sum_a e^{V_{ia}/\mu}, \qquad
          V_{ia} = p_a f_{ia} + K_i(p_a) - \ell^*(p_a) - \lambda\,fee_{ia}

over the options a of a row (`Options`): labels, categories, and slopes of the loss. Each V is
convex and smooth in (z, lambda), its gradient p times where the row is moved, and minus what that
costs. Categories whose scores tie do so in many rows at once: their maxima are smoothed on their
own (`Tops`). The vertex z = 0 of a ball is smoothed by a coordinate of fixed slope.

The bound: the shares of the options are a plan of the set, and no model does better against the
rows where it puts them than the dual of the plain risk there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drojko._driver import Limits, nested
from drojko.inner.reach import Reach
from drojko.losses import Loss
from drojko.minimax.newton import State, Terms, solve_symmetric
from drojko.minimax.transport.bound import Ground, Plan, lower_bound
from drojko.minimax.transport.jumps.places import Options, Places
from drojko.minimax.transport.jumps.solver import PathNewton
from drojko.minimax.transport.jumps.tops import SIGNS, Tops
from drojko.minimax.transport.objective import NormObjective, Point, Sums
from drojko.minimax.transport.risk import RidgeData
from drojko.rows import Rows

__all__ = ["JumpRows"]

_ROUGH = 1e-3  # how far a sample is solved
_WIDE = 0.01  # of the unit: mu after that, at which its optimum is near that of all rows
_NEAR = 20.0  # widths below the best option at which another one has no share
_LITTLE = 1e-7  # of a row's mass: options with less do not bend
_MANY, _SAMPLE = 5_000, 2_000  # rows from which on a sample is solved first, and its size


@dataclass(eq=False)
class _Found:
    """Options with a share, the shares times weights, and what the smoothing of all is worth."""

    options: Options
    mass: np.ndarray
    reach: Reach
    tops: Tops
    value: float
    top: float  # without the smoothing of the rows' own maxima
    bias: float
    spent: float


class JumpRows(NormObjective):
    """Rows whose labels, categories or numbers within bounds change; the variable is lambda."""

    first_smoothing = 0.03  # at larger ones most rows have many options
    solver = PathNewton
    spent_to = 0.5

    def __init__(self, rows: Rows, loss: Loss, ground: Ground, data: RidgeData, alpha: float):
        super().__init__(rows, loss, ground, (ground.radius or 0.0) ** 2)
        self.data, self.alpha = data, alpha
        self.matrix = rows.block(slice(None))
        self.flips = math.isfinite(ground.flip_cost)
        inverse = np.where(rows.dead, 0.0, data.inverse_cost)
        self.moves = np.flatnonzero(inverse > 0.0)
        self.root = np.sqrt(ground.cost[self.moves])
        self.room = (None, None) if data.box is None else data.box.around(data.X, inverse)
        groups = data.swaps
        columns = [] if groups is None else [c.numpy() for c in groups.swaps.columns]
        values = [] if groups is None else [v.numpy() for v in groups.swaps.values]
        self.columns, self.values = columns, values
        # Scores of the categories from the parameters of their columns.
        self.maps = [
            np.where(rows.dead[c], 0.0, v / rows.scale[c])
            for c, v in zip(columns, values, strict=True)
        ]
        self.own: Any = None if groups is None else groups.own.numpy()
        self.single = False

    def prepare(self, limits: Limits) -> None:
        """Begin where the best model of a sample is."""
        rows = self.rows
        if rows.n < _MANY or self.first is not None:
            return
        index = np.sort(np.random.default_rng(0).choice(rows.n, _SAMPLE, replace=False))
        some = self.sample(index, rows.w[index] * (rows.n / _SAMPLE))
        solver = PathNewton(some, _ROUGH, prove=False)
        first = solver.init(None)
        if first.ended is not None:
            return
        end = nested(solver, first, max_iter=100, max_time=limits.time_left).state
        coef = some.rows.outward(end.z)
        self.begin(rows.inward(*coef), some.price(end.p, math.nan), max(end.mu / some.unit, _WIDE))

    def sample(self, index: np.ndarray, w: np.ndarray) -> JumpRows:
        """The same problem on some rows."""
        data, groups = self.data, self.data.swaps
        some = replace(
            data, X=data.X[index], y=data.y[index], weight=w,
            swaps=None if groups is None else groups.take(index),
        )  # fmt: skip
        return JumpRows(self.rows.take(index, w), self.loss, self.ground, some, self.alpha)

    def width(self, mu: float) -> float:
        """Only a ball makes the vertex sharp."""
        radius = self.ground.radius
        return mu / self.unit * self.spread / radius if radius is not None else 0.0

    def multiplier(self, z: np.ndarray, mu: float, guess: float | None = None) -> np.ndarray:
        """A price that is known, or one that is roughly right."""
        if guess is not None and self.budget and 0.0 < guess < math.inf:
            return np.array([guess / self.rate])
        return super().multiplier(z, mu, guess)

    def _single(self, square: float, lam: float) -> bool:
        """Whether worst cases over the numbers are concave problems."""
        bend = self.loss.curvature
        lines = bool(self.loss.lines)
        return not lines and bend is not None and 0.5 * square / lam * bend < 0.98

    # Options ------------------------------------------------------------------------------------

    def _scores(self, z: np.ndarray) -> list[np.ndarray]:
        """Of the categories of each group."""
        return [images @ z[c] for c, images in zip(self.columns, self.maps, strict=True)]

    def _find(self, at: Point, lam: float) -> _Found:
        """The options at a point, and their shares."""
        z, mu, w, y = at.z, at.mu, self.rows.w, self.rows.y
        extra = max(at.square - self.ground.square(z), 0.0)
        low, high = self.room
        reach = Reach(self.root * z[self.moves], lam, low, high, extra)
        tops = Tops.of(self._scores(z), mu * self.spread / self.unit)
        kappa = lam / at.square if at.square > 0.0 else math.inf
        slack, parts = _NEAR * mu, []
        fees = [(y, 0.0)] + ([(1.0 - y, self.ground.flip_cost)] if self.flips else [])
        for labels, fee in fees:
            args = lam, self.data.swaps, tops, kappa, slack
            places = Places.of(self.loss, at.u, labels, fee, *args)
            parts.append(Options.at(self.loss, places, reach, self.single))
        options = parts[0] if len(parts) == 1 else parts[0].joined(parts[1])
        top = np.full(len(y), -np.inf)
        np.maximum.at(top, options.row, options.value)
        options = options.take(np.flatnonzero(options.value >= top[options.row] - slack))
        row, value = options.row, options.value
        share = np.exp((value - top[row]) / mu) if mu > 0.0 else np.ones(len(row))
        total = np.bincount(row, share, len(y))
        share /= total[row]
        mass = w[row] * share
        whole = float(w @ (top + mu * np.log(total)))
        bias = max(whole - float(mass @ value), 0.0)
        if extra:
            bias += float(mass @ options.p**2) * 0.25 * extra / lam
        if self.columns:
            blunt = (options.mask * tops.bias[options.down]).sum(1)
            bias += float(mass @ (np.abs(options.p) * blunt))
        spent, best = float(mass @ options.cost), float(w @ top)
        return _Found(options, mass, reach, tops, whole, best, bias, spent)

    def sums(self, at: Point) -> Sums | None:
        """Value and what is spent."""
        lam = at.p if self.budget else float(self.ground.penalty or math.inf)
        if not lam > 0.0:
            return None
        found = self._find(at, lam)
        out = Sums(found.value + self.budget * lam, found.spent, np.zeros(0), bias=found.bias)
        out.extra = found
        return out

    # The protocol -------------------------------------------------------------------------------

    def terms(
        self,
        z: np.ndarray,
        p: np.ndarray,
        u: np.ndarray,
        mu: float,
        duals: Mapping[str, Any],
        second: bool = True,
    ) -> Terms:
        """See `Terms`; all derivatives are in (z, p)."""
        square, size = self.square(z, mu), len(z)
        if not np.isfinite(u).all():
            return Terms(math.inf)
        sums = self.sums(Point(u, square, self._level(p), z, mu))
        if sums is None or not math.isfinite(sums.value):
            return Terms(math.inf)
        found: _Found = sums.extra
        value = sums.value + self.ground.decay(z)
        gradient = self._gradient(found)
        gradient[:size] += self.ground.ridge * z
        gp = np.array([self.rate * (self.budget - found.spent)])[: p.size]
        terms = Terms(value, np.zeros(self.rows.n), gz=gradient, gp=gp, detail=(u, sums))
        return self._curved(found, mu, p, terms) if second else terms

    def curved(self, state: State, terms: Terms) -> Terms:
        """Terms at a state with their second derivatives."""
        return self._curved(terms.detail[1].extra, state.mu, state.p, terms)

    def _curved(self, found: _Found, mu: float, p: np.ndarray, terms: Terms) -> Terms:
        bends, size = self._bends(found, mu), self.rows.size
        Hz = bends[:size, :size] + np.diag(self.ground.ridge)
        terms = replace(terms, huu=np.zeros(self.rows.n), Hz=Hz)
        if not p.size:
            return terms
        pp = max(float(bends[size, size]), 1e-3 * self.budget / found.reach.price)
        return replace(
            terms, Hpp=np.array([[self.rate**2 * pp]]), Hzp=self.rate * bends[:size, size:]
        )

    def record(self, state: State, exact: bool = False) -> dict[str, float]:
        """The exact objective, or that of smoothed maxima over categories alone, which is above."""
        if exact or state.terms.detail is None or state.terms.detail[0] is not state.u:
            return super().record(state, exact)
        sums: Sums = state.terms.detail[1]
        lam = sums.extra.reach.price
        value = sums.extra.top + self.budget * lam + self.ground.decay(state.z)
        return {"robust_risk": value, "penalty": lam, "transport_cost": sums.spent}

    def _moved(self, found: _Found, index: Any, free: float = 1.0) -> np.ndarray:
        """Where options put their rows, (m, D), free moves times ``free``."""
        some = found.options.take(index)
        out = self.matrix[some.row]
        for g, (columns, images) in enumerate(zip(self.columns, self.maps, strict=True)):
            swapped = np.flatnonzero(some.mask[:, g])
            tops = np.stack([found.tops.share[k][g] @ images for k in (0, 1)])
            step = tops[some.down[swapped]] - images[self.own[some.row[swapped], g]]
            out[np.ix_(swapped, columns)] += step
        move, loose = found.reach.take(some.row).move(some.p)
        out[:, self.moves] += np.where(loose, free, 1.0) * move * self.root
        return out

    def _gradient(self, found: _Found) -> np.ndarray:
        """In z."""
        some = found.options
        pull = found.mass * some.p
        out = self.matrix.T @ np.bincount(some.row, pull, self.rows.n)
        for g, (columns, images) in enumerate(zip(self.columns, self.maps, strict=True)):
            on = pull * some.mask[:, g]
            own = np.bincount(self.own[some.row, g], on, len(images))
            tops = [float(on[some.down == k].sum()) * found.tops.share[k][g] for k in (0, 1)]
            out[columns] += (tops[0] + tops[1] - own) @ images
        if found.reach.low is None:  # moves are p times one vector
            step = found.reach.slope * (0.5 / found.reach.price)
            out[self.moves] += float(pull @ some.p) * step * self.root
        else:
            out[self.moves] += (pull @ found.reach.take(some.row).move(some.p)[0]) * self.root
        return out

    def _bends(self, found: _Found, mu: float) -> np.ndarray:
        """Second derivatives in (z, lambda)."""
        some, mass, reach, size = found.options, found.mass, found.reach, self.rows.size
        lam, out = reach.price, np.zeros((size + 1, size + 1))
        large = mass > _LITTLE * self.rows.w[some.row]
        bent = np.flatnonzero(large & (some.bend > 0.0))
        if bent.size:  # slopes that change
            weight = np.sqrt(mass[bent] * some.bend[bent])
            line = np.empty((len(bent), size + 1))
            line[:, :size] = self._moved(found, bent, 2.0)
            line[:, size] = -some.p[bent] * some.rate[bent] / lam
            line *= weight[:, None]
            out += line.T @ line
        # Moves that change.
        square = mass * some.p**2
        if reach.low is None:
            each, step = np.full(len(self.moves), square.sum()), 0.5 * reach.slope / lam
            drift = float(square.sum()) * step
        else:
            move, loose = reach.take(some.row).move(some.p)
            each, drift = square @ loose, (mass * some.p) @ (move * loose)
        out[self.moves, self.moves] += each * self.root**2 * (0.5 / lam)
        out[self.moves, size] -= drift * self.root / lam
        out[size, self.moves] -= drift * self.root / lam
        out[size, size] += float(square @ some.rate) / lam**2
        self._bend_tops(out, found)
        # Shares that change.
        count = np.bincount(some.row[large], minlength=self.rows.n)
        several = np.flatnonzero(large & (count[some.row] > 1))
        if several.size and mu > 0.0:
            part, row = mass[several], some.row[several]
            pull = np.empty((len(several), size + 1))
            pull[:, :size] = self._moved(found, several) * some.p[several, None]
            pull[:, size] = -some.cost[several]
            rows, index = np.unique(row, return_inverse=True)
            mean = np.zeros((len(rows), size + 1))
            np.add.at(mean, index, pull * part[:, None])
            mean /= self.rows.w[rows][:, None]
            pull -= mean[index]
            pull *= np.sqrt(part / mu)[:, None]
            out += pull.T @ pull
        return out

    def _bend_tops(self, out: np.ndarray, found: _Found) -> None:
        """Add the second derivatives of the smoothed maxima over categories."""
        some, pull = found.options, found.mass * found.options.p
        for k, sign in enumerate(SIGNS):
            for g, (columns, images) in enumerate(zip(self.columns, self.maps, strict=True)):
                weight = sign * float(pull[some.mask[:, g] & (some.down == k)].sum())
                if weight > 0.0:
                    out[np.ix_(columns, columns)] += weight * found.tops.bend(k, g, images)

    def tidy(self, z: np.ndarray, u: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """See `NormObjective`."""
        fresh = mu != self.mu
        p = super().tidy(z, u, p, mu)
        if fresh:
            square = self.square(z, mu)
            self.single = self._single(square, self.price(p, square))
        return p

    def accepted(self, state: State) -> bool:
        """Whether vertex or second maximisers come or go."""
        before, square = self.single, self.square(state.z, state.mu)
        self.single = self._single(square, self.price(state.p, square))
        return super().accepted(state) or self.single != before

    # The bound ----------------------------------------------------------------------------------

    def _ahead(self, state: State) -> tuple[_Found, np.ndarray]:
        """The plan after a Newton's step, linearised as that is: its slopes nearly balance."""
        found: _Found = state.terms.detail[1].extra
        terms, size, mu, some = state.terms, len(state.z), state.mu, found.options
        gradient, hessian = np.append(terms.gz, terms.gp), np.zeros((size + len(state.p),) * 2)
        hessian[:size, :size] = terms.Hz
        if len(state.p):
            hessian[:size, size:], hessian[size:, size:] = terms.Hzp, terms.Hpp
            hessian[size:, :size] = terms.Hzp.T
        step = solve_symmetric(hessian, -gradient)
        dz, dl = step[:size], self.rate * float(step[size]) if len(state.p) else 0.0
        lam = found.reach.price
        z, new_lam = state.z + dz, max(lam + dl, 0.1 * lam)
        gain = some.p * (self._moved(found, slice(None)) @ dz) - some.cost * dl
        mean = np.bincount(some.row, found.mass * gain, self.rows.n)
        mean /= np.maximum(self.rows.w, 1e-300)
        mass = found.mass * np.maximum(1.0 + (gain - mean[some.row]) / mu, 0.0)
        total = np.bincount(some.row, mass, self.rows.n)
        mass *= (self.rows.w / np.maximum(total, 1e-300))[some.row]
        p = some.p
        if some.bend.any():
            turn = self._moved(found, slice(None), 2.0) @ dz - some.p * some.rate * (dl / lam)
            low, high = self.loss.domain(some.y)
            p = np.clip(p + some.bend * turn, low, high)
        tops = found.tops.ahead(
            [images @ dz[c] for c, images in zip(self.columns, self.maps, strict=True)]
        )
        reach = replace(found.reach, slope=self.root * z[self.moves], price=new_lam)
        ahead = replace(found, options=replace(some, p=p), mass=mass, reach=reach, tops=tops)
        return ahead, z

    def lower(self, state: State, need: float) -> float:
        """Of the plain risk where the plan puts the rows."""
        if state.decrement <= self.unit:
            return self._bound(*self._ahead(state))
        return self._bound(state.terms.detail[1].extra, state.z)

    def _bound(self, found: _Found, z: np.ndarray) -> float:
        some, data, rows = found.options, self.data, self.rows
        move, _ = found.reach.take(some.row).move(some.p)
        cost = np.einsum("ij,ij->i", move, move) + some.paid
        mass = found.mass.copy()
        total, stay = float(mass @ cost), np.zeros(0, dtype=int)
        X, y, slope = self._moved(found, slice(None)), some.y, some.p
        if self.budget and total > self.budget * (1.0 - 1e-12):
            share = self.budget * (1.0 - 1e-12) / total
            left, mass = (
                (1.0 - share) * mass * (cost > 0.0),
                np.where(cost > 0.0, share, 1.0) * mass,
            )
            rest = np.bincount(some.row, left, rows.n)
            stay = np.flatnonzero(rest > 0.0)
            X, y = np.concatenate([X, self.matrix[stay]]), np.append(y, rows.y[stay])
            u = self.matrix[stay] @ z
            slope = np.append(slope, self.loss.line(u, rows.y[stay])[1])
            mass = np.append(mass, rest[stay])
        real = mass > 0.0
        X = X[real, : rows.d] * rows.scale + rows.mean
        whole = replace(
            data, X=X, y=y[real], weight=mass[real], swaps=None, box=None, label_cost=math.inf
        )
        there = Rows(X, whole.y, whole.weight, intercept=rows.intercept)
        ground = Ground.of(there, whole, None, None, self.alpha)
        bend = np.append(some.second, np.zeros(len(stay)))[real]
        plan = Plan(there.w[None], slope[real][None], [False], bend)
        z = there.inward(*rows.outward(z))
        toll = float(found.mass @ cost) * (self.ground.penalty or 0.0)
        return max(lower_bound(there, self.loss, ground, plan, z, repair=False) - toll, 0.0)
