r"""A step of a linear model of several classes, on a model of its risk that knows of kinks.

.. math:: \min_d\; E\,\mu \log \sum_j e^{(J_j + v_j^\top d)/\mu} + \tfrac12 d^\top H d

holds the worst cases j that compete in a row to first order, and smooths them as the risk is: a
step that goes over many kinks knows of them, where the risk's own second derivative would not. H
is that of moves with shares that stay. Newton's steps on it take products with the rows and no
worst cases; its shares balance, and so make a plan that proves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array

from drojko.losses.class_moves import Moves
from drojko.minimax.newton import factorised
from drojko.minimax.transport.class_bound import ClassGround
from drojko.minimax.wide import conjugate_gradients
from drojko.rows import Rows

__all__ = ["ClassPoint", "ClassStep", "class_step"]

_CLOSE, _MOST = 0.1, 100  # of conjugate gradients: residual and steps
_FLAT = 1e-4  # share of the preconditioner's curvature below which a direction has none
_LEAST = 1e-7  # curvature of a class over their mean
_UNSURE = 1e-12  # curvature of rows that all are sure
_RIVALS = 600  # moves that compete, at most, that the preconditioner knows of
#: Newton's steps on the model, until one gains such a share of what the first would.
_TURNS, _ENOUGH = 6, 0.03
_ALONG, _FLATTER = 20, 0.2  # looks along a line, until its slope is such a share of the first


@dataclass(frozen=True, eq=False)
class ClassPoint:
    """A model (K, D) in the coordinates of the rows, a penalty, and what is known there.

    ``value`` is smoothed, ``attained`` exact for the moves that were found; ``pull`` and
    ``second`` are the derivatives in outputs and, twice, in G / 2 lambda.
    """

    Z: np.ndarray
    penalty: float
    moves: Moves
    turned: np.ndarray
    gram: np.ndarray
    value: float
    attained: float
    pull: np.ndarray
    second: np.ndarray

    @property
    def half(self) -> float:
        return 0.5 / self.penalty

    @property
    def spent(self) -> float:
        """Mean cost of the moves."""
        return self.half * (self.half * float((self.second * self.gram).sum()))


@dataclass(frozen=True, eq=False)
class ClassStep:
    """A step in (Z, penalty), and twice what the model falls by along it.

    ``plan`` has the shares of the model at its end, for moves of the point it began at.
    """

    move: np.ndarray
    gradient: np.ndarray
    decrement: float
    plan: Moves


@dataclass(frozen=True, eq=False)
class _Model:
    """The risk near a point: vectors are (Z, penalty), the last only in a ball."""

    rows: Rows
    ground: ClassGround
    at: ClassPoint
    mu: float

    @property
    def bent(self) -> float:
        """Second derivative in the penalty, which falls as far as it may where little is spent."""
        at, radius = self.at, self.ground.radius or 0.0
        return max(at.half * max(4.0 * at.spent, radius**2), 1e-300)

    def gradient(self, pull: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Of the risk, from its derivatives in outputs and, twice, in G / 2 lambda."""
        at, ground, half = self.at, self.ground, self.at.half
        slope = self.rows.sum(pull).T + half * (second @ at.turned) + ground.ridge * at.Z
        if not ground.ball:
            return slope.ravel()
        # half = 1 / 2 lambda changes by -2 half^2 with lambda.
        spent = half * (half * float((second * at.gram).sum()))
        return np.append(slope.ravel(), [(ground.radius or 0.0) ** 2 - spent])

    def response(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a step changes in outputs and in G / 2 lambda, and half of its part by Z."""
        at, dZ = self.at, v[: self.at.Z.size].reshape(self.at.Z.shape)
        cross = at.half * ((dZ * self.ground.cost) @ at.Z.T)
        dE = cross + cross.T
        if self.ground.ball:
            dE = dE - 2.0 * at.half * (at.half * float(v[-1])) * at.gram
        return self.rows.predict(np.ascontiguousarray(dZ.T)), dE, cross

    def apply(self, v: np.ndarray, curves: tuple[Any, ...]) -> np.ndarray:
        """The second derivative, of moves by ``curves``."""
        at, ground, half = self.at, self.ground, self.at.half
        df, dE, cross = self.response(v)
        pull, second = curves[0](df, dE)
        for curve in curves[1:]:
            more, also = curve(df, dE)
            pull, second = pull + more, second + also
        dZ = v[: at.Z.size].reshape(at.Z.shape)
        out = self.rows.sum(pull).T + ground.ridge * dZ
        out += half * (second @ at.turned + at.second @ (dZ * ground.cost))
        if not ground.ball:
            return out.ravel()
        out += -2.0 * half * (half * float(v[-1])) * (at.second @ at.turned)
        low = -half * (half * float((second * at.gram).sum())) + self.bent * float(v[-1])
        low -= 2.0 * half * float((at.second * cross).sum())
        return np.append(out.ravel(), [low])

    def values(self, moves: Moves) -> float:
        """The mean of what rows gain."""
        return float(self.rows.total(self.rows.w @ moves.values(self.mu)))

    def along(self, moves: Moves, rises: np.ndarray, slope: float, bend: float) -> float:
        """About the least point on a line, on which the model is convex."""
        w, mu = self.rows.w, self.mu
        start, before = moves.slope(w, mu, rises), self.values(moves)
        low, high, at_low, at_high, t = 0.0, math.inf, slope, math.inf, 1.0
        best = least = 0.0
        for _ in range(_ALONG):
            there = moves.raised(t * rises)
            more = self.values(there) - before + t * (slope - start) + 0.5 * t * t * bend
            if more < least:
                best, least = t, more
            here = slope + t * bend + there.slope(w, mu, rises) - start
            if abs(here) <= _FLATTER * -slope and more < 0.0:
                break
            if here > 0.0:  # the end that stays counts by half (Illinois)
                high, at_high, at_low = t, here, 0.5 * at_low
            else:
                low, at_low, at_high = t, here, 0.5 * at_high
                if high == math.inf:  # a step that was cut short by conjugate gradients
                    break
            secant = low + (high - low) * at_low / (at_low - at_high)
            t = min(max(secant, low + 0.1 * (high - low)), high - 0.1 * (high - low))
        return best


def class_step(rows: Rows, ground: ClassGround, at: ClassPoint, mu: float) -> ClassStep:
    """About the least point of the model."""
    near = _Model(rows, ground, at, mu)
    held, inverse = at.moves.curve(rows.w, mu), _inverse(near)
    first = slope = near.gradient(at.pull, at.second)
    moves, move, bend = at.moves, np.zeros_like(first), np.zeros_like(first)
    rises: Any = 0.0
    least = 0.0
    for turn in range(_TURNS):
        curves = (held, moves.contest(rows.w, mu)) if moves.competing else (held,)
        way = conjugate_gradients(
            lambda v, curves=curves: near.apply(v, curves),
            _with_rivals(near, inverse, moves), -slope, _CLOSE, _MOST, _FLAT,
        )  # fmt: skip
        fall = -float(slope @ way)
        if not turn:
            least = _ENOUGH * fall
        elif not fall > least:
            break
        bends, t = near.apply(way, (held,)), 1.0
        if moves.competing:
            more = moves.rises(*near.response(way)[:2])
            t = near.along(moves, more, -fall, float(way @ bends))
            rises = rises + t * more
        move, bend = move + t * way, bend + t * bends
        if not (moves.competing and t):
            break
        moves = at.moves.raised(rises)
        _, pull, second = moves.sums(rows.w, mu)
        slope = near.gradient(pull, second) + bend
    gain = float(first @ move) + 0.5 * float(move @ bend)
    if moves.competing:
        gain += near.values(moves) - near.values(at.moves) - at.moves.slope(rows.w, mu, rises)
    return ClassStep(move, first, max(-2.0 * gain, 0.0), moves)


# Preconditioning --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Inverse:
    """Classes times columns, T' T with T V = root * (left' V right); ``right`` None: 1."""

    left: np.ndarray
    right: np.ndarray | None
    root: np.ndarray
    last: float | None

    def into(self, v: np.ndarray) -> np.ndarray:
        """T v."""
        V = self.left.T @ v[: self.root.size].reshape(self.root.shape)
        V = self.root * (V if self.right is None else V @ self.right)
        return V.ravel() if self.last is None else np.append(V.ravel(), self.last * v[-1])

    def out(self, u: np.ndarray) -> np.ndarray:
        """T' u."""
        V = self.left @ (self.root * u[: self.root.size].reshape(self.root.shape))
        V = V if self.right is None else V @ self.right.T
        return V.ravel() if self.last is None else np.append(V.ravel(), self.last * u[-1])

    def of_products(self, c: np.ndarray, x: np.ndarray, last: np.ndarray) -> np.ndarray:
        """T of c_i x_i' and a last entry, row by row."""
        c, x = c @ self.left, x if self.right is None else x @ self.right
        V = (self.root * c[:, :, None] * x[:, None, :]).reshape(len(c), self.root.size)
        return V if self.last is None else np.append(V, (self.last * last)[:, None], axis=1)


def _inverse(near: _Model) -> _Inverse:
    """Of the second derivative, of rows that count by how unsure they are."""
    rows, ground, at = near.rows, near.ground, near.at
    k = len(at.Z)
    bend, unsure = at.moves.bend(rows.w, near.mu)
    size = max(float(np.trace(bend)) / k, _UNSURE)
    bend += size * (np.full((k, k), 1.0 / k) + _LEAST * np.eye(k))
    last = 1.0 / math.sqrt(near.bent) if ground.ball else None
    if rows.wide:
        _, left = _together(np.zeros_like(bend), bend)
        held = ground.cost * at.half + ground.ridge / size
        return _Inverse(left, None, np.tile(1.0 / np.sqrt(1.0 + held), (k, 1)), last)
    total = max(float(rows.total(unsure.sum())), _UNSURE)
    whole = rows.gram(unsure) / total
    fixed = ~rows.free
    whole[fixed] = whole[:, fixed] = 0.0
    whole[fixed, fixed] = 1.0
    whole[np.diag_indices(rows.size)] += ground.ridge / size + 1e-6
    # Both diagonal at once: outputs and moves.
    a, left = _together(at.half * at.second, bend)
    b, right = _together(np.diag(ground.cost), whole)
    root = 1.0 / np.sqrt(1.0 + np.maximum(a, 0.0)[:, None] * np.maximum(b, 0.0))
    return _Inverse(left, right, root, last)


def _with_rivals(near: _Model, inverse: _Inverse, moves: Moves) -> Any:
    """A preconditioner that knows how moves which compete change their shares, too."""
    all_rows, at, mu = near.rows, near.at, near.mu
    alone = lambda v: inverse.out(inverse.into(v))  # noqa: E731
    if not (mu and moves.competing):
        return alone
    rows, c, share = moves.rivals(mu)
    weight = all_rows.w[rows] * share / mu
    count = int(all_rows.total(np.array(rows.size, dtype=float)))
    if not count:
        return alone
    if count > _RIVALS:
        some = all_rows.chosen(weight * (1.0 - share), _RIVALS)
        rows, c, share, weight = rows[some], c[some], share[some], weight[some]
    index, group = np.unique(rows, return_inverse=True)
    x = all_rows.some(index)[group] + at.half * (c @ at.turned)
    V = inverse.of_products(c, x, -at.half * (at.half * ((c @ at.gram) * c).sum(axis=1)))
    own = csr_array((share, (group, np.arange(len(rows)))), shape=(len(index), len(rows)))
    V = all_rows.every(np.sqrt(weight)[:, None] * (V - (own @ V)[group]))
    inner = V @ V.T
    inner[np.diag_indices(len(inner))] += 1.0
    solution = factorised(inner)

    def apply(v: np.ndarray) -> np.ndarray:
        u = inverse.into(v)
        return inverse.out(u - solution(V @ u) @ V)

    return apply


def _together(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The a and U with U'AU = diag(a) and U'BU = 1, for B that is positive to rounding."""
    values, vectors = eigh(B)
    root = vectors / np.sqrt(np.maximum(values, 1e-13 * values[-1]))
    a, U = eigh(root.T @ A @ root)
    return a, root @ U
