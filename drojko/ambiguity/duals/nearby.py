r"""The exact dual of many losses from a dual point close to it, block by block.

.. math:: \min_{\eta, \lambda}\; \eta + \lambda r
          + \lambda E_0 f^*\!\left(\frac{\ell - \eta}{\lambda}\right)

by Newton's method in both variables. What the point proves does not rest on how good it is: its
value is an upper bound, and its ratio, thinned until it is in the set, attains the other side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from drojko._threads import in_order, slabs
from drojko.ambiguity.base import Dual

__all__ = ["dual_near", "tail_near"]

_STEPS = 12
_CLOSE = 1e-13  # relative distance of both sides that is rounding


def dual_near(
    ambiguity: Any, losses: np.ndarray, weights: np.ndarray, shift: float, penalty: float
) -> Dual | None:
    """The dual of an f-divergence on losses, without its ratio; None where it is not near.

    Parameters
    ----------
    ambiguity : DensityRatioSet
        With a smooth conjugate.
    losses, weights : arrays of shape (n,)
        The weights sum to 1.
    shift, penalty : float
        A dual point nearby.

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> losses, weights = np.array([0.0, 1.0, 2.0, 5.0]), np.full(4, 0.25)
    >>> dual = dual_near(KL(radius=0.1), losses, weights, 2.4, 4.4)
    >>> round(dual.value, 5), round(dual.attained, 5), round(dual.penalty, 4)
    (2.86822, 2.86822, 4.4422)
    """
    ball = ambiguity.penalty is None
    p = np.array([shift, penalty if ball else float(ambiguity.penalty)])
    radius = float(ambiguity.radius or 0.0) if ball else 0.0

    def sums(part: slice) -> np.ndarray | None:
        t = (losses[part] - p[0]) / p[1]
        jet = ambiguity.conjugate_jet(t, 1e-16) if np.isfinite(t).all() else None
        if jet is None:
            return None
        f, q, bend = jet
        w = weights[part]
        mass, steep = w * q, w * bend
        moments = steep.sum(), steep @ t, steep @ (t * t)
        return np.array([w @ f, mass.sum(), mass @ t, mass @ losses[part], *moments])

    parts = list(slabs(len(losses)))
    for _ in range(_STEPS):
        if not (p[1] > 0.0 and np.isfinite(p).all()):
            return None
        total = np.zeros(7)
        with np.errstate(over="ignore", invalid="ignore"):
            for found in in_order(sums, parts):
                if found is None:
                    return None
                total += found
        f, mass, moment, worth, s0, s1, s2 = total.tolist()
        if not np.isfinite(total).all() or not 0.5 < mass < 2.0:
            return None
        value = float(p[0] + p[1] * (radius + f))
        # Of the ratio over its mass, the mean loss and what it spends: E f(q) = E(t q - f*).
        attained = worth / mass
        spent = moment - f
        keep = min(1.0, radius / spent) if ball and spent > 0.0 else 1.0
        if keep < 1.0:
            attained = keep * attained + (1.0 - keep) * float(weights @ losses)
        lower = attained if ball else attained - float(p[1]) * spent
        if abs(mass - 1.0) <= 1e-12 and value - lower <= _CLOSE * abs(value):
            spent, none = radius if ball else spent, np.zeros(0)
            return Dual(value, float(p[1]), float(p[0]), none, attained, spent)
        gradient = np.array([1.0 - mass, radius + f - moment])
        hessian = np.array([[s0, s1], [s1, s2]]) / p[1]
        if ball:
            if not s0 * s2 - s1 * s1 > 1e-14 * s0 * s2:
                return None
            move = np.linalg.solve(hessian, -gradient)
        else:
            move = np.array([-gradient[0] / hessian[0, 0] if s0 > 0.0 else math.nan, 0.0])
        p = p + move * min(1.0, 0.5 * p[1] / abs(move[1]) if move[1] else 1.0)
    return None


def tail_near(alpha: float, losses: np.ndarray, weights: np.ndarray, shift: float) -> Dual | None:
    """The mean of the largest losses, of mass alpha, from a value at risk nearby, without a ratio.

    Losses near ``shift`` alone are sorted. None where the tail does not begin there.

    Parameters
    ----------
    alpha : float
    losses, weights : arrays of shape (n,)
        The weights sum to 1.
    shift : float

    Examples
    --------
    >>> dual = tail_near(0.4, np.array([0.0, 1.0, 2.0, 5.0]), np.full(4, 0.25), 1.9)
    >>> dual.value, dual.shift, dual.penalty
    (3.875, 2.0, 0.75)
    """
    parts = list(slabs(len(losses)))
    width = 0.01 * max(abs(float(weights @ losses) - shift), 1e-12 * abs(shift), 1e-300)
    for _ in range(_STEPS):
        above, inside = 0.0, []
        for part in parts:
            x = losses[part] - shift
            above += float(weights[part] @ (x > width))
            inside.append(np.flatnonzero(np.abs(x) <= width) + part.start)
        index = np.concatenate(inside)
        order = index[np.argsort(-losses[index])]
        mass = above + np.cumsum(weights[order])
        if 0.0 < above < alpha and order.size and mass[-1] >= alpha:
            break
        width *= 8.0
    else:
        return None
    level = float(losses[order[int(np.searchsorted(mass, alpha))]])
    excess = 0.0
    for part in parts:
        excess += float(weights[part] @ np.maximum(losses[part] - level, 0.0))
    value = level + excess / alpha
    return Dual(value, excess, level, np.zeros(0), value, 1.0 / alpha - 1.0)
