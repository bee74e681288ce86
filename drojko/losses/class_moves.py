r"""Worst cases of linear models of many classes, in the space of class probabilities.

.. math:: J(p) = c^\top f + h(p) + \tfrac1{4\lambda} c^\top G c,
          \qquad c = p - e_y,\; G = WC^{-1}W^\top

is what a row that moves by :math:`C^{-1}W^\top c / 2\lambda` gains: h is the entropy for the
cross-entropy, and the margin at the vertices for the multi-class hinge.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Moves", "SoftmaxMoves", "VertexMoves", "own_row", "squares_of"]

_ENTRIES = 1 << 15  # of a block of rows that stays in cache
_SWEEPS, _NEWTONS = 12, 12  # fixed-point steps before those of Newton's method, and of those
_MANY, _LONG = 24, 60  # classes from which on fixed-point steps are the cheap ones, and how many
_SOLVES = 1 << 20  # entries of the systems that are solved at a time
_APART, _SURE = 1e-4, 1e-8  # of probabilities of two basins, which are settled so far
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
    """

    y: np.ndarray
    half: float

    @abstractmethod
    def values(self, mu: float) -> np.ndarray:
        """J of each row: of its best move for mu = 0, smoothed by mu log-sum-exp(J / mu)."""

    @abstractmethod
    def sums(self, w: np.ndarray, mu: float) -> tuple[float, np.ndarray, np.ndarray]:
        """The sum of w J, its derivatives in f, shape (n, K), and twice that in G, (K, K)."""

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


class SoftmaxMoves(Moves):
    """Of the cross-entropy: p = softmax(f + G (p - e_y) / 2 lambda), from sample and vertex.

    The iteration raises J at every step, because the loss is convex and the step maximises its
    linearisation minus the cost; Newton's steps finish it.

    Parameters
    ----------
    f, y, gram, half
        Logits (n, K), classes (n,), G and 1 / 2 lambda.
    near : SoftmaxMoves, default=None
        Those of a model nearby: where iterations start.
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
        self.f, self.y, self.half, self.gram = f, y, half, gram
        scaled = half * gram
        squares = half * squares_of(gram)
        start = None if near is None else near.stay.image
        self.stay = _settled(f, y, scaled, start, done)
        self.rows = np.zeros(0, dtype=int)
        self.other = self.stay.of(self.rows)
        # A class farther than this may be a basin of its own, entered from its side.
        far: np.ndarray = squares >= ONE_BASIN
        apart = np.flatnonzero(far[y].any(axis=1))
        if not apart.size:
            return
        # What the far classes can give between them, by Jensen, and an even chance of them: most
        # rows have nowhere else to look.
        scores = (f - own_row(f, y)[:, None] + 0.5 * squares[y])[apart]
        scores[~far[y[apart]]] = -math.inf
        top = scores.max(axis=1)
        bound = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        open_ = bound > self.stay.value[apart] - math.log(2.0)
        apart, scores = apart[open_], scores[open_]
        done = min(done, _SURE)
        if apart.size:
            self.stay.put(apart, _settled(f[apart], y[apart], scaled, None, done))
        vertex = np.zeros((apart.size, f.shape[1]))
        vertex[np.arange(apart.size), scores.argmax(axis=1)] = 1.0
        other = _settled(f[apart], y[apart], scaled, vertex, done)
        two = np.abs(other.p - self.stay.p[apart]).max(axis=1, initial=0.0) > _APART
        self.rows, self.other = apart[two], other.of(two)

    def _shares(self, mu: float) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the second moves, and what the smoothed value adds to the first."""
        ahead = self.other.value - self.stay.value[self.rows]
        if not mu:
            return (ahead > 0.0).astype(float), np.maximum(ahead, 0.0)
        odds = np.clip(ahead / mu, -700.0, 700.0)
        return 1.0 / (1.0 + np.exp(-odds)), np.maximum(ahead, 0.0) + mu * np.log1p(
            np.exp(-np.abs(odds))
        )

    def _parts(self, w: np.ndarray, mu: float) -> Iterator[tuple[Any, _Settled, np.ndarray]]:
        share, _ = self._shares(mu)
        mass = w.copy()
        mass[self.rows] *= 1.0 - share
        yield slice(None), self.stay, mass
        if self.rows.size:
            yield self.rows, self.other, w[self.rows] * share

    def values(self, mu: float) -> np.ndarray:
        """See `Moves`."""
        out = self.stay.value.copy()
        out[self.rows] += self._shares(mu)[1]
        return out

    def sums(self, w: np.ndarray, mu: float) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Moves`; derivatives of J at moves that are held, which is exact at fixed points."""
        pull = np.zeros_like(self.f)
        cross, inner = np.zeros_like(self.gram), np.zeros_like(self.gram)
        for rows, found, mass in self._parts(w, mu):
            y = self.y[rows]
            c, there = _minus_own(found.p, y), _minus_own(found.image, y)
            there *= mass[:, None]
            pull[rows] += there
            cross += there.T @ c
            inner += c.T @ (c * mass[:, None])
        second = cross + cross.T - inner
        return float(w @ self.values(mu)), pull, self.half * second

    def plan(
        self, w: np.ndarray, mu: float, kept: np.ndarray | None = None
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Moves`."""
        worth, pull, second = 0.0, np.zeros_like(self.f), np.zeros_like(self.gram)
        for rows, found, mass in self._parts(w, mu):
            p = _within(found.image, self.y[rows], kept)
            worth -= float(mass @ (p * np.log(np.maximum(p, 1e-300))).sum(axis=1))
            c = _minus_own(p, self.y[rows])
            pull[rows] += mass[:, None] * c
            second += c.T @ (c * mass[:, None])
        return worth, pull, second

    def bend(self, w: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
        """See `Moves`."""
        total, each = np.zeros_like(self.gram), np.zeros(len(self.f))
        for rows, found, mass in self._parts(w, mu):
            p = found.image
            total += np.diag(mass @ p) - p.T @ (p * mass[:, None])
            each[rows] += mass * (1.0 - (p * p).sum(axis=1))
        if self.rows.size and mu:  # moves that compete: s (1 - s) / mu in their difference
            share, _ = self._shares(mu)
            mass = w[self.rows] * share * (1.0 - share) / mu
            apart = self.other.image - self.stay.image[self.rows]
            total += apart.T @ (apart * mass[:, None])
            each[self.rows] += mass * (apart * apart).sum(axis=1)
        return total, np.maximum(each, 0.0)

    def best(self) -> np.ndarray:
        """See `Moves`."""
        p = self.stay.p.copy()
        ahead = self.other.value > self.stay.value[self.rows]
        p[self.rows[ahead]] = self.other.p[ahead]
        return p


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
            p = np.exp(some - some.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
        else:
            p = start[part]
        rows, held = np.arange(part.start, part.stop), scaled[own]
        for sweep in range(sweeps):
            image, value = _image(some, own, p, p @ scaled - held)
            open_ = np.abs(image - p).max(axis=1) > done
            left = np.count_nonzero(open_)
            if left and 2 * left > len(open_) and sweep < sweeps - 1:
                p = image
                continue
            ended = ~open_
            if sweep == sweeps - 1:
                ended[:] = True
            out.p[rows[ended]], out.image[rows[ended]] = p[ended], image[ended]
            out.value[rows[ended]] = value[ended]
            if ended.all():
                break
            rows, some, own, held = rows[open_], some[open_], own[open_], held[open_]
            p = image[open_]
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
        self.y, self.half, self.k = y, half, len(gram)
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
        return float(w @ self.values(mu)), pull, self.half * second

    def plan(
        self, w: np.ndarray, mu: float, kept: np.ndarray | None = None
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Moves`."""
        mass = w[:, None] * _within(self._smoothed(mu)[1], self.y, kept)
        own = np.zeros_like(mass)
        own[np.arange(len(w)), self.y] = 1.0
        pairs = mass.T @ own  # (j, y): mass that moves from class y towards j
        np.fill_diagonal(pairs, 0.0)
        second = np.diag(pairs.sum(axis=0) + pairs.sum(axis=1)) - pairs - pairs.T
        return float(pairs.sum()), mass - w[:, None] * own, second

    def bend(self, w: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
        """See `Moves`."""
        share = self._smoothed(mu)[1]
        return self.plan(w, mu)[2], w * (1.0 - (share * share).sum(axis=1))

    def best(self) -> np.ndarray:
        """See `Moves`."""
        p = np.zeros_like(self.scores)
        p[np.arange(len(p)), self.scores.argmax(axis=1)] = 1.0
        return p
