"""The Newton systems of order-1 training: one weighted Gram matrix, and the cones' blocks."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor
from scipy.linalg.blas import dsyrk  # type: ignore[attr-defined]

from drojko.minimax.order_one.cones import Cones
from drojko.minimax.order_one.system import State, System

__all__ = ["factorise"]


def factorise(sys: System, state: State, hessian: np.ndarray, s: np.ndarray):
    """Cholesky factor of the Newton system at hessian (n, K, K) and slacks s (n, J).

    Returns the factor with its scaling, and what the pieces' elimination needs again.

    Raises
    ------
    numpy.linalg.LinAlgError, ValueError
        Where rounding leaves no positive definite system.
    """
    loss = sys.loss
    d, K, J = sys.X.shape[1], sys.n_outputs, loss.n_pieces
    one = 1 if sys.intercept else 0
    size = K * (d + one)
    H = np.zeros((size + 1, size + 1))
    D = mean = total = None
    cross = np.zeros((len(s), K))
    price = 0.0
    if J:
        D = state.p / s
        total = D.sum(axis=1)
        mean = (D @ loss.slopes) / total[:, None]
        if J == 2 and K == 1:
            a = float(loss.slopes[1, 0] - loss.slopes[0, 0])
            joint = D[:, 0] * D[:, 1] / total
            if loss.curved:
                joint = joint / (1.0 + joint * a * a)
            hessian = hessian + (joint * a * a)[:, None, None]
            e = loss.prices[:, 1] - loss.prices[:, 0]
            cross = (joint * a * e)[:, None]
            price = float(sys.weight @ (joint * e * e))
        else:
            weighted = D[:, :, None] * (loss.slopes[None] - mean[:, None, :])
            hessian = hessian + np.einsum("njk,jl->nkl", weighted, loss.slopes)
            if sys.lam_free and loss.prices.any():
                mean_e = (D * loss.prices).sum(axis=1) / total
                off = D * (loss.prices - mean_e[:, None])
                cross = off @ loss.slopes
                price = float(sys.weight @ (off * loss.prices).sum(axis=1))
    view = H[:size, :size].reshape(K, d + one, K, d + one)
    sign = loss.sign[:, 0]
    for k in range(K):
        for j in range(k + 1):
            block = _gram(sys, sys.weight * hessian[:, k, j])
            view[k, :, j, :] = block
            view[j, :, k, :] = block.T
    H[np.arange(size), np.arange(size)] += _decay_vector(sys, K, one)
    if sys.lam_free:
        column = (cross * (sys.weight * sign)[:, None]).T
        part = [column @ sys.X] + ([column.sum(axis=1, keepdims=True)] if one else [])
        H[size, :size] = H[:size, size] = np.concatenate(part, axis=1).ravel()
        H[size, size] = price
    if state.cones is not None:
        _add_cones(sys, H, state.cones, d + one, size)
    if not sys.lam_free:
        H = H[:size, :size]
    _regularise(H, K, d + one)
    diagonal = np.sqrt(np.maximum(np.diag(H), 1e-300))
    scaled = H / diagonal[:, None] / diagonal[None]
    for shift in (0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6):
        try:
            scaled[np.diag_indices_from(scaled)] = 1.0 + shift
            return (cho_factor(scaled, lower=True), diagonal, scaled), (D, mean, total)
        except np.linalg.LinAlgError:
            continue
    raise np.linalg.LinAlgError("the Newton system is not positive definite")


def _decay_vector(sys: System, K: int, one: int) -> np.ndarray:
    decay = np.broadcast_to(sys.decay, (K, sys.X.shape[1]))
    return np.concatenate([decay, np.zeros((K, one))], axis=1).ravel()


def _regularise(H: np.ndarray, K: int, width: int) -> None:
    # A vector added to all rows of W changes nothing: give that direction some curvature.
    if K > 1:
        view = H[: K * width, : K * width].reshape(K, width, K, width)
        size = np.einsum("kiki->i", view) / K**2 + 1e-30
        index = np.arange(width)
        for k in range(K):
            for j in range(K):
                view[k, index, j, index] += size


def _gram(sys: System, h: np.ndarray) -> np.ndarray:
    """[X, 1]' diag(h) [X, 1], in blocks of rows."""
    n, d = sys.X.shape
    one = 1 if sys.intercept else 0
    out = np.zeros((d + one, d + one))
    size = max(256, (1 << 17) // max(d, 1))
    positive = bool((h >= 0).all())
    for first in range(0, n, size):
        rows = slice(first, min(first + size, n))
        block, part = sys.X[rows], h[rows]
        if positive:
            root = np.sqrt(part)
            half = block * root[:, None]
            inner = dsyrk(1.0, half.T, lower=0)  # upper triangle of half' half
            out[:d, :d] += inner
            if one:
                out[:d, d] += root @ half
        else:
            out[:d, :d] += np.triu(block.T @ (block * part[:, None]))
            if one:
                out[:d, d] += part @ block
        if one:
            out[d, d] += part.sum()
    upper = np.triu(out)
    return upper + np.triu(upper, 1).T


def _add_cones(sys: System, H: np.ndarray, cones: Cones, width: int, size: int) -> None:
    m = len(sys.mutable)
    factor = sys.scale * sys.slope
    blocks = cones.blocks()
    square = blocks[:, :m, :m] * factor[:, None] * factor[None]
    line = blocks[:, :m, m] * factor
    for e, (j, k) in enumerate(sys.pairs()):
        at = j * width + sys.mutable
        H[np.ix_(at, at)] += square[e]
        H[at, size] += line[e]
        H[size, at] += line[e]
        if k is None:
            continue
        to = k * width + sys.mutable
        H[np.ix_(to, to)] += square[e]
        H[np.ix_(at, to)] -= square[e]
        H[np.ix_(to, at)] -= square[e].T
        H[to, size] -= line[e]
        H[size, to] -= line[e]
    H[size, size] += blocks[:, m, m].sum() + cones.floor_curvature
