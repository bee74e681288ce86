r"""Upper bounds of the worst cases of linear models under the cross-entropy: branch and bound.

With D_jk = |w_j - w_k|^2 and kappa = 1 / 4 lambda a row of class y with a = f - f_y gains at most
the maximum over class probabilities p of

.. math:: J(p) = \sum_j p_j (a_j + \kappa D_{jy}) + h(p) - \tfrac{\kappa}{2} p^\top D p ,

h the entropy. Where kappa D <= 2 entry by entry, J is concave: for x with sum 0 the quadratic form
is at most kappa max(D) |x|_1^2 / 2, and the entropy's at least |x|_1^2. What D has above that,
E = (D - 2 / kappa)_+, is bounded by branching:

.. math:: -p_j p_k = \tfrac14 (p_j - p_k)^2 - \tfrac14 (p_j + p_k)^2
          \le \tfrac14 \big((l + u)(p_j - p_k) - l u\big) - \tfrac14 (p_j + p_k)^2

for p_j - p_k in [l, u], which is concave; at first -p_j p_k <= 0. A concave function is below its
tangent, so that every p gives a bound: no maximisation needs to be exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from drojko.losses.class_moves import ONE_BASIN, own_row, squares_of

__all__ = ["ceilings", "class_ceilings"]

_PAIRS = 6  # that a node branches on
_STEPS, _LOOK = 80, 8  # towards the maximum of a node, and between looks at its bound
_NODES, _EACH = 10_000, 4  # that are opened at most, over all rows, and for each of them
_CHUNK = 1 << 21  # pairs of classes that are looked at at a time
_SLACK, _LOOSE = 1e-3, 1e-2  # of the mean: what rows may miss, and what asks for another bound


@dataclass
class _Nodes:
    """Parts of the simplices of some rows: pairs of classes and where their difference lies."""

    row: np.ndarray
    first: np.ndarray  # (m, _PAIRS)
    second: np.ndarray
    low: np.ndarray
    high: np.ndarray
    used: np.ndarray
    log: np.ndarray  # (m, K) where a maximisation starts
    bound: np.ndarray

    def take(self, index: np.ndarray) -> _Nodes:
        return _Nodes(*(value[index] for value in vars(self).values()))


class _Tree:
    """What does not depend on the node."""

    def __init__(self, linear: np.ndarray, squares: np.ndarray) -> None:
        # Rounded downwards: a curvature that is a little too large proves nothing.
        self.linear = linear
        self.flat = np.minimum(squares, 0.5 * ONE_BASIN * (1.0 - 1e-12))
        self.excess = squares - self.flat
        self.whole = squares

    def gains(self, row: np.ndarray, p: np.ndarray) -> np.ndarray:
        """J(p): what is attained."""
        quadratic = ((p @ self.whole) * p).sum(axis=1)
        return (p * self.linear[row]).sum(axis=1) + _entropy(p) - 0.5 * quadratic

    def bounds(self, nodes: _Nodes, steps: int, enough: np.ndarray) -> np.ndarray:
        """Upper bounds of the nodes, whose ``log`` is moved towards their maxima."""
        most = int(nodes.used.max(initial=0))
        at = np.arange(len(nodes.row))
        linear = self.linear[nodes.row]
        pairs = []
        for b in range(most):
            j, k = nodes.first[:, b], nodes.second[:, b]
            weight = 0.25 * np.where(nodes.used > b, self.excess[j, k], 0.0)
            pairs.append((j, k, weight, nodes.low[:, b] + nodes.high[:, b], b))
        step = 1.0 / (1.0 + sum((weight for _, _, weight, _, _ in pairs), np.zeros(len(at))))
        log, best, value = nodes.log, nodes.bound.copy(), np.zeros(len(at))
        for i in range(steps):
            p = np.exp(log)
            flat = p @ self.flat
            slope = linear - flat
            look = i % _LOOK == _LOOK - 1 or i == steps - 1
            if look:
                value = (p * (linear - 0.5 * flat)).sum(axis=1) - (p * log).sum(axis=1)
            for j, k, weight, span, b in pairs:
                mine, other = p[at, j], p[at, k]
                together, apart = mine + other, mine - other
                slope[at, j] -= weight * (2.0 * together - span)
                slope[at, k] -= weight * (2.0 * together + span)
                if look:
                    ends = nodes.low[:, b] * nodes.high[:, b]
                    value -= weight * (together**2 - span * apart + ends)
            if look:
                rise = slope - log
                bound = value + rise.max(axis=1) - (p * rise).sum(axis=1)
                best = np.minimum(best, bound + 1e-13 * (1.0 + np.abs(bound)))
                if (best <= np.maximum(enough, value + 1e-2 * np.abs(enough - value))).all():
                    break
            log = log + step[:, None] * (slope - log)
            log -= log.max(axis=1, keepdims=True)
            log -= np.log(np.exp(log).sum(axis=1, keepdims=True))
        nodes.log = log
        return best

    def split(self, nodes: _Nodes) -> tuple[_Nodes, np.ndarray]:
        """Two children of each node, at the pair that its bound is loosest in; and which have."""
        p = np.exp(nodes.log)
        m, k = p.shape
        at = np.arange(m)
        loose = self.excess * (p[:, :, None] * p[:, None, :])
        for b in range(int(nodes.used.max(initial=0))):
            on = np.flatnonzero(nodes.used > b)
            j, i = nodes.first[on, b], nodes.second[on, b]
            t = p[on, j] - p[on, i]
            kept = self.excess[j, i] * 0.25 * ((nodes.high[on, b] - t) * (t - nodes.low[on, b]))
            loose[on, j, i] = loose[on, i, j] = np.maximum(kept, 0.0)
        full = nodes.used == _PAIRS
        if full.any():  # only what is branched on already
            known = np.zeros((m, k, k), dtype=bool)
            for b in range(_PAIRS):
                known[at, nodes.first[:, b], nodes.second[:, b]] = True
            loose[full] = np.where(known[full], loose[full], 0.0)
        choice = np.triu(np.ones((k, k), dtype=bool), 1).ravel() * loose.reshape(m, -1)
        pair = choice.argmax(axis=1)
        good = choice[at, pair] > 0.0
        nodes, pair, p = nodes.take(good), pair[good], p[good]
        m, at = len(pair), np.arange(len(pair))
        j, i = pair // k, pair % k
        same = (nodes.first == j[:, None]) & (nodes.second == i[:, None])
        same &= np.arange(_PAIRS) < nodes.used[:, None]
        old = same.any(axis=1)
        b = np.where(old, same.argmax(axis=1), nodes.used)
        low = np.where(old, nodes.low[at, np.minimum(b, _PAIRS - 1)], -1.0)
        high = np.where(old, nodes.high[at, np.minimum(b, _PAIRS - 1)], 1.0)
        t, width = p[at, j] - p[at, i], high - low
        t = np.clip(t, low + 0.1 * width, high - 0.1 * width)
        nodes.first[at, b], nodes.second[at, b] = j, i
        nodes.used = np.maximum(nodes.used, b + 1)
        left, right = nodes, nodes.take(at)
        left.low[at, b], left.high[at, b] = low, t
        right.low[at, b], right.high[at, b] = t, high
        return joined([left, right]), good


def joined(parts: list[_Nodes]) -> _Nodes:
    """All nodes of some lists of them."""
    return _Nodes(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)


def ceilings(
    f: np.ndarray,
    y: np.ndarray,
    gram: np.ndarray,
    half: float,
    found: np.ndarray,
    near: np.ndarray,
    slack: float,
    nodes: int | None = None,
) -> np.ndarray:
    r"""Upper bounds of the worst cases of rows, shape (n,).

    Parameters
    ----------
    f, y, gram, half
        Logits (n, K), classes (n,), the Gram matrix of the weights, 1 / 2 lambda.
    found : array of shape (n,)
        What is attained: bounds are not below it.
    near : array of shape (n, K)
        Class probabilities there.
    slack : float
        What a bound may exceed ``found`` by, in the mean of the rows that are worked on.
    nodes : int
        How many parts of simplices are looked at.
    """
    squares = 0.5 * half * squares_of(gram)
    linear = f - own_row(f, y)[:, None] + squares[y]
    tree = _Tree(linear, squares)
    n = len(f)
    log = np.log(np.maximum(near, 1e-300))
    zeros = np.zeros((n, _PAIRS))
    index = np.zeros((n, _PAIRS), dtype=int)
    root = _Nodes(
        np.arange(n), index, index.copy(), zeros, zeros.copy(), np.zeros(n, dtype=int), log,
        np.full(n, math.inf),
    )  # fmt: skip
    goal = found + slack
    upper = found.copy()
    open_ = root
    opened, nodes = 0, max(_NODES, _EACH * n) if nodes is None else nodes
    while len(open_.row):
        open_.bound = np.minimum(open_.bound, tree.bounds(open_, _STEPS, goal[open_.row]))
        opened += len(open_.row)
        done = open_.bound <= goal[open_.row]
        if opened >= nodes:
            done[:] = True
        np.maximum.at(upper, open_.row[done], open_.bound[done])
        open_ = open_.take(~done)
        if not len(open_.row) or not tree.excess.any():
            np.maximum.at(upper, open_.row, open_.bound)
            break
        size = max(_CHUNK // gram.size, 1)
        parts = []
        for first in range(0, len(open_.row), size):
            rest = open_.take(np.arange(first, min(first + size, len(open_.row))))
            part, good = tree.split(rest)
            np.maximum.at(upper, rest.row[~good], rest.bound[~good])
            parts.append(part)
        open_ = joined(parts)
    return upper


def class_ceilings(
    loss: Any,
    f: np.ndarray,
    y: np.ndarray,
    gram: np.ndarray,
    moves: Any,
    w: np.ndarray,
    nodes: int | None,
) -> tuple[np.ndarray, str]:
    """Bounds of the worst cases ``moves`` of the cross-entropy, and what proves them.

    By `ceilings`, and where those stay loose by rates (`drojko.losses.multiclass.radial_supremum`).
    """
    found = moves.values(0.0)
    mean = float(w @ found)
    upper = ceilings(f, y, gram, moves.half, found, moves.best(), _SLACK * mean, nodes)
    squares = squares_of(gram)
    proof = "branch-and-bound"
    if moves.half * squares.max(initial=0.0) < ONE_BASIN:
        proof = "strong-concavity"
    open_ = np.flatnonzero(upper - found > _LOOSE * mean)
    if open_.size and w @ (upper - found) > _LOOSE * mean:
        rates = torch.from_numpy(squares[y[open_]]).sqrt()
        rough = loss.rate_bound(
            torch.from_numpy(f[open_]), torch.from_numpy(y[open_]), rates, 0.5 / moves.half
        )
        upper[open_] = np.minimum(upper[open_], np.maximum(rough.numpy(), found[open_]))
    return upper, proof
