"""Dual norms of the order-1 ground cost, and the directions that attain them."""

from __future__ import annotations

import numpy as np

__all__ = ["dual_norm", "primal_norm", "steepest_direction"]


def primal_norm(move: np.ndarray, weights: np.ndarray, norm: float = 2) -> np.ndarray:
    r"""The order-1 ground cost :math:`\|\sqrt{w} \circ v\|_p`, p = norm, of displacements v.

    Parameters
    ----------
    move : ndarray of shape (..., d)
    weights : ndarray of shape (d,)
        Column weights; moving a column of infinite weight at all costs infinity.
    norm : {1, 2, inf}

    Returns
    -------
    ndarray of shape (...)

    Examples
    --------
    >>> import numpy as np
    >>> float(primal_norm(np.array([3.0, 2.0]), np.array([1.0, 4.0]), 2))
    5.0
    """
    scale = np.sqrt(np.where(np.isfinite(weights), weights, 0.0))
    total = np.linalg.norm(move * scale, ord=norm, axis=-1)
    moved = (move[..., np.isinf(weights)] != 0).any(axis=-1)
    return np.where(moved, np.inf, total)


def dual_norm(theta: np.ndarray, inverse_weights: np.ndarray, norm: float = 2) -> np.ndarray:
    r"""The largest :math:`\theta^\top v` over :math:`\|\sqrt{w} \circ v\|_p \le 1`: a q-norm.

    1/p + 1/q = 1, and theta is divided by sqrt(w).

    Parameters
    ----------
    theta : ndarray of shape (..., d)
    inverse_weights : ndarray of shape (d,)
        1 / w; zero for columns that cannot move.
    norm : {1, 2, inf}
        p, the norm of the ground cost.

    Returns
    -------
    ndarray of shape (...)

    Examples
    --------
    >>> import numpy as np
    >>> ones = np.ones(2)
    >>> [float(dual_norm(np.array([3.0, -4.0]), ones, p)) for p in (1, 2, np.inf)]
    [4.0, 5.0, 7.0]
    """
    scaled = theta * np.sqrt(inverse_weights)
    order = {1: np.inf, 2: 2, np.inf: 1}[norm]
    return np.linalg.norm(scaled, ord=order, axis=-1) if scaled.shape[-1] else scaled.sum(-1)


def steepest_direction(
    theta: np.ndarray, inverse_weights: np.ndarray, norm: float = 2
) -> np.ndarray:
    r"""A displacement v of unit cost with :math:`\theta^\top v = \|\theta\|_*`, shape (d,).

    Zero where theta moves nothing.

    Examples
    --------
    >>> import numpy as np
    >>> steepest_direction(np.array([3.0, 4.0]), np.array([1.0, 0.0]), 2)
    array([1., 0.])
    """
    root = np.sqrt(inverse_weights)
    scaled = theta * root
    size = np.abs(scaled).max(initial=0.0)
    if size == 0.0:
        return np.zeros_like(scaled)
    if norm == 2:
        unit = scaled / size
        return root * unit / np.linalg.norm(unit)
    if norm == 1:  # everything into the steepest column
        unit = np.zeros_like(scaled)
        top = int(np.abs(scaled).argmax())
        unit[top] = np.sign(scaled[top])
        return root * unit
    return root * np.sign(scaled)
