"""Numerics that many rooms need: the root of a monotone function, the standard error of a mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

__all__ = ["root", "standard_error"]


def root(
    function: Callable[[float], float | tuple[float, float]],
    start: float,
    *,
    slope: float = 1.5,
    low: float = -math.inf,
    high: float = math.inf,
    tol: float = 1e-13,
) -> float:
    """The zero of an increasing function: Newton or secant steps inside a shrinking bracket.

    Plateaus say nothing to a secant: without a bracket a step that hardly changes the value is
    followed by a longer one, and inside a bracket every other step halves it once eight steps
    have not settled (jumps, or rounding).

    Parameters
    ----------
    function : callable
        Its value, or (value, slope); about linear with slope of order 1 for secants, as is the
        logarithm of one quantity in that of another.
    start, slope : float
        First point, and a guess of the slope there.
    low, high : float
        A bracket, where one is known.
    tol : float
        Absolute value of the function that counts as zero.

    Examples
    --------
    >>> round(root(lambda t: math.expm1(t) - 1.0, 0.0), 9)
    0.693147181
    >>> round(root(lambda t: (t**3 - 8.0, 3.0 * t**2), 1.0, low=0.0, high=9.0), 9)
    2.0
    """
    t, previous, step = start, None, 1.0
    for iteration in range(400):
        found = function(t)
        value, known = found if isinstance(found, tuple) else (found, None)
        if abs(value) <= tol:
            break
        low, high = (t, high) if value < 0 else (low, t)
        flat = False
        if known is not None:
            slope = known if known > 0.0 else slope
        elif previous is not None and t != previous[0]:
            secant = (value - previous[1]) / (t - previous[0])
            slope = secant if 1e-3 < secant < 1e3 else slope
            flat = abs(value) > 0.5 * abs(previous[1])
        previous = (t, value)
        move = -value / slope
        if math.isinf(high - low):  # no bracket yet: steps that may grow
            size = min(abs(move), 4.0 * step)
            size = max(size, step) if flat else size
            move = math.copysign(size, move)
            step = 2.0 * max(abs(move), step)
            after = t + move
        else:
            after = t + move
            if not low < after < high or (iteration >= 8 and iteration % 2 == 1):
                after = 0.5 * (low + high)
        if min(abs(after - t), high - low) <= 4e-16 * max(1.0, abs(t)):
            break
        t = after
    return t


def standard_error(values: Any, weights: Any) -> float:
    r"""Standard error of a weighted mean, :math:`\sqrt{\sum w_i^2 (v_i - \sum w_j v_j)^2}`.

    Parameters
    ----------
    values, weights : array or tensor of shape (n,)
        Weights sum to 1.

    Examples
    --------
    >>> standard_error([0.0, 2.0], [0.5, 0.5])
    0.7071067811865476
    """
    v, w = (
        np.asarray(part.detach().cpu() if isinstance(part, torch.Tensor) else part, np.float64)
        for part in (values, weights)
    )
    return math.sqrt(float(w**2 @ (v - w @ v) ** 2))
