r"""Worst cases of linear models of many classes, in the space of class probabilities.

.. math:: J(p) = c^\top f + h(p) + \tfrac1{4\lambda} c^\top G c,
          \qquad c = p - e_y,\; G = WC^{-1}W^\top

is what a row that moves by :math:`C^{-1}W^\top c / 2\lambda` gains: h is the entropy for the
cross-entropy, and the margin at the vertices for the multi-class hinge.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["Curve", "Moves", "SoftmaxMoves", "VertexMoves", "own_row", "squares_of"]

_ENTRIES = 1 << 15  # of a block of rows that stays in cache
_SWEEPS, _NEWTONS = 12, 12  # fixed-point steps before those of Newton's method, and of those
_MANY, _LONG = 24, 60  # classes from which on fixed-point steps are the cheap ones, and how many
_SOLVES = 1 << 20  # entries of the systems that are solved at a time
_APART, _SURE = 1e-4, 1e-8  # of probabilities of two basins, which are settled so far
_EVEN, _BEHIND = math.log(2.0), 1.0  # what J of a basin may be above that of its vertex
_TERMS = 2  # of the series for the response of many classes, after the first
_FAINT = 1e-6  # share of a vertex that does not compete
_STEEP = 1e-2  # of the curvature of J where a basin ends
#: Changes of f, (n, K), and of G / 2 lambda to those of the derivatives in f and of the sum of
#: w (p - e_y)(p - e_y)'.
Curve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
ONE_BASIN = 4.0  # times 2 lambda: the largest |w_j - w_k|^2 at which J is concave


def squares_of(gram: np.ndarray) -> np.ndarray:
    """Squared norms of w_j - w_k, of shape (K, K)."""
    diagonal = gram.diagonal()
    return np.maximum(diagonal + diagonal[:, None] - 2.0 * gram, 0.0)


def own_row(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """f_y of each row."""
    return f[np.arange(len(f)), y]


def _blocks(n: int, k: int) -> Iterator[slice]:
    size = max(_ENTRIES // max(k, 1), 16)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _minus_own(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    c = p.copy()
    c[np.arange(len(c)), y] -= 1.0
    return c


def _within(p: np.ndarray, y: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """Probabilities without those of some classes, which go to the row's own."""
    if kept is None or kept.all():
        return p
    p = p * kept
    p[np.arange(len(p)), y] += 1.0 - p.sum(axis=1)
    return p


class Moves(ABC):
    """Worst cases of rows at one model and penalty; where several compete, they share.

    Attributes
    ----------
    y : array of shape (n,)
    half : float
        1 / 2 lambda.
    competing : bool
        Whether a row has several, so that their smoothing counts.
    """

    y: np.ndarray
    half: float
    competing: bool

    def looked_around(self) -> Moves:
        """With worst cases that were not followed from a model nearby."""
        return self

    @abstractmethod
    def values(self, mu: float) -> np.ndarray:
        """J of each row: of its best move for mu = 0, smoothed by mu log-sum-exp(J / mu)."""

    @abstractmethod
    def sums(self, w: np.ndarray, mu: float) -> tuple[float, np.ndarray, np.ndarray]:
        """The sum of w J, its derivatives in f, shape (n, K), and twice that in G / 2 lambda."""

    @abstractmethod
    def curve(self, w: np.ndarray, mu: float) -> Curve:
        """What changes of f and G / 2 lambda change in these derivatives, at shares that stay.

        Positive semidefinite, as is what `contest` adds.
        """

    @abstractmethod
    def contest(self, w: np.ndarray, mu: float) -> Curve:
        """What the same changes change by way of the shares."""

    @abstractmethod
    def rises(self, df: np.ndarray, dE: np.ndarray) -> np.ndarray:
        """What they add to J of each move, to first order."""

    @abstractmethod
    def raised(self, rises: np.ndarray) -> Moves:
        """These moves, each with so much more of J."""

    @abstractmethod
    def slope(self, w: np.ndarray, mu: float, rises: np.ndarray) -> float:
        """What the sum of w J, smoothed, rises by along such rises."""

    @abstractmethod
    def rivals(self, mu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Moves that compete: their rows (m,), p - e_y (m, K), and shares (m,)."""

    @abstractmethod
    def plan(
        self, w: np.ndarray, mu: float, kept: np.ndarray | None = None
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """The sum of w h(p), w (p - e_y) row by row, and the sum of w (p - e_y)(p - e_y)'.

        What p gives to classes that are not ``kept``, a mask, stays with the row's own.
        """

    @abstractmethod
    def bend(self, w: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
        """About the second derivative in a change of all f, shape (K, K), and what rows add."""

    @abstractmethod
    def best(self) -> np.ndarray:
        """Class probabilities of the best move of each row, shape (n, K)."""


@dataclass(frozen=True, eq=False)
class _Settled:
    """Fixed points p of some rows, what they are mapped to, and J at the move of p."""

    p: np.ndarray
    image: np.ndarray
    value: np.ndarray

    def of(self, rows: np.ndarray) -> _Settled:
        return _Settled(self.p[rows], self.image[rows], self.value[rows])

    def put(self, rows: np.ndarray, part: _Settled) -> None:
        self.p[rows], self.image[rows], self.value[rows] = part.p, part.image, part.value

    def and_also(self, more: _Settled) -> _Settled:
        return _Settled(*map(np.concatenate, zip(vars(self).values(), vars(more).values())))


class SoftmaxMoves(Moves):
    """Of the cross-entropy: p = softmax(f + G (p - e_y) / 2 lambda), from sample and vertices.

    The iteration raises J at every step, because the loss is convex and the step maximises its
    linearisation minus the cost; Newton's steps finish it.

    Parameters
    ----------
    f, y, gram, half
        Logits (n, K), classes (n,), G and 1 / 2 lambda.
    near : SoftmaxMoves, default=None
        Those of a model nearby, which are followed; None: they are looked for.
    done : float
        How far p may be from a fixed point.
    """

    def __init__(
        self,
        f: np.ndarray,
        y: np.ndarray,
        gram: np.ndarray,
        half: float,
        near: Any = None,
        done: float = 1e-9,
    ) -> None:
        self.f, self.y, self.half, self.scaled = f, y, half, half * gram
        self.squares = half * squares_of(gram)
        self.concave = bool(self.squares.max(initial=0.0) < ONE_BASIN)
        if not self.concave:  # copies are told from basins
            done = min(done, _SURE)
        self.done = done
        rows, start = np.arange(len(f)), None
        if near is not None:
            start = near.at.image
            rows, start = (near.rows, start) if not self.concave else (rows, start[: len(f)])
        own = rows if len(rows) > len(f) else slice(None)
        self._keep(rows, _settled(f[own], y[own], self.scaled, start, done))
        if near is None and not self.concave:
            self._look_around()

    def _keep(self, rows: np.ndarray, at: _Settled) -> None:
        """Moves, the first of each row before all others, without copies and what is far behind."""
        n = len(self.f)
        self.rows, self.at, self.competing = rows, at, len(rows) > n
        if not self.competing:
            return
        top = at.value[:n].copy()
        np.maximum.at(top, rows[n:], at.value[n:])
        order = np.argsort(rows, kind="stable")
        place = np.empty(len(rows), dtype=int)
        place[order] = np.arange(len(rows))
        keep = at.value > top[rows] - _BEHIND
        keep[:n] = True
        for back in range(1, int(np.bincount(rows).max())):  # pairs that are so far apart in order
            here, there = order[back:], order[:-back]
            same = (rows[here] == rows[there]) & keep[there]
            here, there = here[same], there[same]
            copies = np.abs(at.p[here] - at.p[there]).max(axis=1, initial=0.0) <= _APART
            keep[here[copies]] = False
        self.rows, self.at = rows[keep], at.of(keep)
        self.competing = len(self.rows) > n

    def looked_around(self) -> SoftmaxMoves:
        """With basins that none of these moves is in, where there may be some."""
        found = copy.copy(self)
        if not self.concave:
            found._look_around()
        return found

    def _look_around(self) -> None:
        """Basins beside those that are known, entered from the vertices of far classes."""
        f, y, far = self.f, self.y, self.squares >= ONE_BASIN
        apart = np.flatnonzero(far[y].any(axis=1))
        # What the far classes can give between them, by Jensen, and an even chance of them: most
        # rows have nowhere else to look.
        scores = (f - own_row(f, y)[:, None] + 0.5 * self.squares[y])[apart]
        scores[~far[y[apart]]] = -math.inf
        top = scores.max(axis=1, initial=-math.inf)
        bound = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        known = self.values(0.0)[apart]
        open_ = bound > known - _EVEN
        apart, scores, floor = apart[open_], scores[open_], np.maximum(top, known)[open_]
        row, vertex = np.nonzero(scores > floor[:, None] - _BEHIND)
        rows = np.concatenate([apart, apart[row]])
        start = np.concatenate([_softmax(f[apart]), np.eye(f.shape[1])[vertex]])
        found = _settled(f[rows], y[rows], self.scaled, start, self.done)
        self._keep(np.concatenate([self.rows, rows]), self.at.and_also(found))

    def _shares(self, mu: float) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the moves in their rows, and the smoothed values of these."""
        n, value = len(self.y), self.at.value
        if not self.competing:
            return np.ones(n), value
        top = value[:n].copy()
        np.maximum.at(top, self.rows[n:], value[n:])
        ahead = value - top[self.rows]
        part = np.exp(ahead / mu) if mu else (ahead >= 0.0).astype(float)
        total = np.bincount(self.rows, part, minlength=n)
        return part / total[self.rows], top + mu * np.log(total)

    def _by_row(self, parts: np.ndarray) -> np.ndarray:
        """Sums over the moves of each row."""
        n = len(self.y)
        out = parts[:n].copy()
        np.add.at(out, self.rows[n:], parts[n:])
        return out

    def values(self, mu: float) -> np.ndarray:
        """See `Moves`."""
        return self._shares(mu)[1]

    def sums(self, w: np.ndarray, mu: float) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Moves`; derivatives of J at moves that are held, which is exact at fixed points."""
        share, value = self._shares(mu)
        y, mass = self.y[self.rows], (w[self.rows] * share)[:, None]
        c, there = _minus_own(self.at.p, y), _minus_own(self.at.image, y)
        there *= mass
        cross, inner = there.T @ c, c.T @ (c * mass)
        return float(w @ value), self._by_row(there), cross + cross.T - inner

    def curve(self, w: np.ndarray, mu: float) -> Curve:
        """See `Moves`; of many classes a little less than it is."""
        p, scaled = self.at.image, self.scaled
        mass = (w[self.rows] * self._shares(mu)[0])[:, None]
        c = _minus_own(p, self.y[self.rows])

        def spread(g: np.ndarray) -> np.ndarray:
            g = p * g
            return g - p * g.sum(axis=1, keepdims=True)

        moved = self._response(p) if len(scaled) <= _MANY else None

        def answer(g: np.ndarray) -> np.ndarray:
            """(H^-1 - G / 2 lambda)^-1 g with H = diag(p) - p p'."""
            if moved is not None:
                return np.einsum("ijk,ik->ij", moved, g)
            step = total = spread(g)
            for _ in range(_TERMS):
                step = spread(step @ scaled)
                total = total + step
            return total

        def act(df: np.ndarray, dE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            g = c @ dE
            g += df[self.rows] if self.competing else df
            dp = answer(g) * mass
            cross = dp.T @ c
            return self._by_row(dp) if self.competing else dp, cross + cross.T

        return act

    def _shared(self) -> np.ndarray:
        """Those that share a row."""
        if not self.competing:
            return np.arange(0)
        return np.flatnonzero(np.bincount(self.rows, minlength=len(self.y))[self.rows] > 1)

    def contest(self, w: np.ndarray, mu: float) -> Curve:
        """See `Moves`."""
        some, n = self._shared(), len(self.y)
        rows, share = self.rows[some], self._shares(mu)[0][some]
        c, mass = _minus_own(self.at.image[some], self.y[rows]), w[rows] * share / (mu or math.inf)

        def act(df: np.ndarray, dE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rise = (c * (df[rows] + 0.5 * (c @ dE))).sum(axis=1)
            mean = np.bincount(rows, share * rise, minlength=n)[rows]
            change = c * (mass * (rise - mean))[:, None]
            pull = np.zeros_like(df)
            np.add.at(pull, rows, change)
            return pull, change.T @ c

        return act

    def rises(self, df: np.ndarray, dE: np.ndarray) -> np.ndarray:
        """See `Moves`."""
        y = self.y[self.rows]
        c, there = _minus_own(self.at.p, y), _minus_own(self.at.image, y)
        turned = c @ dE
        return (there * (df[self.rows] + turned)).sum(axis=1) - 0.5 * (c * turned).sum(axis=1)

    def raised(self, rises: np.ndarray) -> SoftmaxMoves:
        """See `Moves`."""
        new = copy.copy(self)
        new.at = replace(self.at, value=self.at.value + rises)
        return new

    def slope(self, w: np.ndarray, mu: float, rises: np.ndarray) -> float:
        """See `Moves`."""
        return float((w[self.rows] * self._shares(mu)[0]) @ rises)

    def rivals(self, mu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Moves`."""
        some = self._shared()
        rows = self.rows[some]
        return rows, _minus_own(self.at.image[some], self.y[rows]), self._shares(mu)[0][some]

    def _response(self, p: np.ndarray) -> np.ndarray:
        """(H^-1 - G / 2 lambda)^-1 of each move, (m, K, K), bounded where a basin ends."""
        k, scaled = p.shape[1], self.scaled
        out = np.empty((len(p), k, k))
        # The trace of H G / 2 lambda: below 1 there is no end of a basin near.
        near = np.full(len(p), not self.concave)
        near &= p @ scaled.diagonal() - ((p @ scaled) * p).sum(axis=1) > 0.9
        some = p[~near]
        spread = some[:, :, None] * (np.eye(k) - some[:, None, :])
        out[~near] = np.linalg.solve(np.eye(k) - spread @ scaled, spread)
        # H = B B', so that it is B (1 - B'GB / 2 lambda)^-1 B'.
        root = np.sqrt(p[near])
        B = root[:, :, None] * (np.eye(k) - root[:, :, None] * root[:, None, :])
        values, vectors = np.linalg.eigh(B.transpose(0, 2, 1) @ scaled @ B)
        turned = (B @ vectors) / np.sqrt(np.maximum(1.0 - values, _STEEP))[:, None, :]
        out[near] = turned @ turned.transpose(0, 2, 1)
        return out

    def plan(
        self, w: np.ndarray, mu: float, kept: np.ndarray | None = None
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Moves`."""
        y, mass = self.y[self.rows], w[self.rows] * self._shares(mu)[0]
        p = _within(self.at.image, y, kept)
        worth = -float(mass @ (p * np.log(np.maximum(p, 1e-300))).sum(axis=1))
        c = _minus_own(p, y)
        pull = mass[:, None] * c
        return worth, self._by_row(pull), c.T @ pull

    def bend(self, w: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
        """See `Moves`."""
        p, mass = self.at.image, w[self.rows] * self._shares(mu)[0]
        total = np.diag(mass @ p) - p.T @ (p * mass[:, None])
        return total, np.maximum(self._by_row(mass * (1.0 - (p * p).sum(axis=1))), 0.0)

    def best(self) -> np.ndarray:
        """See `Moves`."""
        order = np.argsort(self.at.value, kind="stable")  # the last one that is written stays
        p = np.empty_like(self.at.p[: len(self.y)])
        p[self.rows[order]] = self.at.p[order]
        return p


def _softmax(f: np.ndarray) -> np.ndarray:
    p = np.exp(f - f.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def _image(
    f: np.ndarray, y: np.ndarray, p: np.ndarray, pulled: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities at the move of p, which changes logits by ``pulled``, and J there."""
    moved = f + pulled
    top = moved.max(axis=1)
    image = np.exp(moved - top[:, None])
    total = image.sum(axis=1)
    image /= total[:, None]
    spent = np.einsum("ij,ij->i", p, pulled) - own_row(pulled, y)
    return image, top + np.log(total) - own_row(moved, y) - 0.5 * spent


def _settled(
    f: np.ndarray, y: np.ndarray, scaled: np.ndarray, start: np.ndarray | None, done: float
) -> _Settled:
    """Fixed points near a start (None: the row as it is), block by block."""
    n, k = f.shape
    out = _Settled(np.empty((n, k)), np.empty((n, k)), np.empty(n))
    sweeps = _LONG if k > _MANY else _SWEEPS
    for part in _blocks(n, k):
        some, own = f[part], y[part]
        if start is None:
            p = _softmax(some)
        else:
            p = start[part]
        rows, held = np.arange(part.start, part.stop), scaled[own]
        open_ = np.ones(len(rows), dtype=bool)
        for sweep in range(sweeps):
            image, value = _image(some, own, p, p @ scaled - held)
            # A row ends when it is settled, whatever its neighbours in a block are.
            ended = open_ & (np.abs(image - p).max(axis=1) <= done)
            if sweep == sweeps - 1:
                ended = open_
            if ended.any():
                index = rows[ended]
                out.p[index], out.image[index] = p[ended], image[ended]
                out.value[index] = value[ended]
                open_ = open_ & ~ended
                left = np.count_nonzero(open_)
                if not left:
                    break
                if 2 * left <= len(open_):
                    rows, some, own, held = rows[open_], some[open_], own[open_], held[open_]
                    image, open_ = image[open_], np.ones(left, dtype=bool)
            p = image
    _newton(out, f, y, scaled, done)
    return out


def _newton(at: _Settled, f: np.ndarray, y: np.ndarray, scaled: np.ndarray, done: float) -> None:
    """Newton's steps towards p = image(p) where sweeps did not settle, in place."""
    rows = np.arange(len(f))
    chunk = max(_SOLVES // len(scaled) ** 2, 1)
    for _ in range(_NEWTONS):
        rows = rows[np.abs(at.image[rows] - at.p[rows]).max(axis=1, initial=0.0) > done]
        for first in range(0, rows.size, chunk):
            some = rows[first : first + chunk]
            here, there, own = at.p[some], at.image[some], y[some]
            # d image / d p = (diag(image) - image image') G / 2 lambda
            slope = there[:, :, None] * (scaled - (there @ scaled)[:, None, :])
            try:
                step = np.linalg.solve(np.eye(len(scaled)) - slope, (there - here)[:, :, None])[
                    :, :, 0
                ]
            except np.linalg.LinAlgError:
                step = there - here
            trial = here + step
            image, value = _image(f[some], own, trial, trial @ scaled - scaled[own])
            # Where Newton does not raise J, the fixed-point step does; rounding is no decrease.
            enough = at.value[some] - 1e-13 * (1.0 + np.abs(at.value[some]))
            bad = ~((value >= enough) & np.isfinite(value))
            if bad.any():
                trial[bad] = there[bad]
                image[bad], value[bad] = _image(
                    f[some[bad]], own[bad], trial[bad], trial[bad] @ scaled - scaled[own[bad]]
                )
            at.p[some], at.image[some], at.value[some] = trial, image, value


class VertexMoves(Moves):
    """Of the multi-class hinge, whose maximisers are vertices p = e_j: arguments as above."""

    def __init__(
        self,
        f: np.ndarray,
        y: np.ndarray,
        gram: np.ndarray,
        half: float,
        near: Any = None,
        done: float = 0.0,
    ) -> None:
        self.y, self.half, self.k, self.competing = y, half, len(gram), True
        self.scores = f - own_row(f, y)[:, None] + 1.0 + 0.5 * half * squares_of(gram)[y]
        self.scores[np.arange(len(f)), y] = 0.0

    def _smoothed(self, mu: float) -> tuple[np.ndarray, np.ndarray]:
        top = self.scores.max(axis=1)
        if not mu:
            return top, self.best()
        share = np.exp((self.scores - top[:, None]) / mu)
        total = share.sum(axis=1)
        return top + mu * np.log(total), share / total[:, None]

    def values(self, mu: float) -> np.ndarray:
        """See `Moves`."""
        return self._smoothed(mu)[0]

    def sums(self, w: np.ndarray, mu: float) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Moves`."""
        _, pull, second = self.plan(w, mu)
        return float(w @ self.values(mu)), pull, second

    def curve(self, w: np.ndarray, mu: float) -> Curve:
        """See `Moves`: vertices stay."""

        def act(df: np.ndarray, dE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros_like(df), np.zeros_like(dE)

        return act

    def contest(self, w: np.ndarray, mu: float) -> Curve:
        """See `Moves`."""
        share = self._smoothed(mu)[1]

        def act(df: np.ndarray, dE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rise = self.rises(df, dE)
            rise -= (share * rise).sum(axis=1, keepdims=True)
            pull = share * rise * (w / (mu or 1.0))[:, None]
            return pull, self._second(pull)

        return act

    def rises(self, df: np.ndarray, dE: np.ndarray) -> np.ndarray:
        """See `Moves`."""
        diagonal = dE.diagonal()
        rise = df - own_row(df, self.y)[:, None]
        return rise + (0.5 * (diagonal + diagonal[:, None]) - dE)[self.y]

    def raised(self, rises: np.ndarray) -> VertexMoves:
        """See `Moves`."""
        new = copy.copy(self)
        new.scores = self.scores + rises
        return new

    def slope(self, w: np.ndarray, mu: float, rises: np.ndarray) -> float:
        """See `Moves`."""
        return float(w @ (self._smoothed(mu)[1] * rises).sum(axis=1))

    def rivals(self, mu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Moves`."""
        share = self._smoothed(mu)[1]
        rows, vertex = np.nonzero((share > _FAINT) & (share.max(axis=1) < 1.0 - _FAINT)[:, None])
        return rows, _minus_own(np.eye(self.k)[vertex], self.y[rows]), share[rows, vertex]

    def plan(
        self, w: np.ndarray, mu: float, kept: np.ndarray | None = None
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Moves`."""
        mass = w[:, None] * _within(self._smoothed(mu)[1], self.y, kept)
        pull = mass.copy()
        pull[np.arange(len(w)), self.y] -= w
        others = mass.sum() - own_row(mass, self.y).sum()
        return float(others), pull, self._second(mass)

    def _second(self, mass: np.ndarray) -> np.ndarray:
        """The sum of mass_ij (e_j - e_y)(e_j - e_y)'."""
        pairs = np.zeros((self.k, self.k))  # (y, j): what moves from class y towards j
        for j in range(self.k):
            pairs[:, j] = np.bincount(self.y, mass[:, j], minlength=self.k)
        np.fill_diagonal(pairs, 0.0)
        return np.diag(pairs.sum(axis=0) + pairs.sum(axis=1)) - pairs - pairs.T

    def bend(self, w: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
        """See `Moves`."""
        share = self._smoothed(mu)[1]
        return self.plan(w, mu)[2], w * (1.0 - (share * share).sum(axis=1))

    def best(self) -> np.ndarray:
        """See `Moves`."""
        p = np.zeros_like(self.scores)
        p[np.arange(len(p)), self.scores.argmax(axis=1)] = 1.0
        return p
