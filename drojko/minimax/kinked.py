"""A quasi-Newton method for functions with kinks, for few parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["DETOURS", "MOST_PARAMETERS", "minimise_kinked"]

#: Beyond, the dense inverse Hessian is not worth its memory.
MOST_PARAMETERS = 2000

#: Distances, relative to the parameters, at which searches start beside the best point so far.
DETOURS = (1e-1, 1e-2, 1e-3)

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


def minimise_kinked(
    function: Function, point: np.ndarray, max_iter: int, report: Callable[[], None]
) -> bool:
    r"""BFGS with the weak Wolfe conditions from ``point``; whether it ended by itself.

    .. math:: x \leftarrow x - t\,H g, \qquad g \in \partial f(x)

    Across a kink the subgradient jumps, H learns that the function is steep there, and the steps
    follow the kink to its lowest point. L-BFGS forgets that, and stops at some point of the kink.
    It ends where no step along -H g nor along -g is found to descend. It is the last part of an
    L-BFGS run and reports to it, as SciPy's loop does: that run holds the limits.

    Parameters
    ----------
    function : callable
        Value and a subgradient; an infinite value marks points outside of the domain.
    point : array of shape (p,)
    max_iter : int
    report : callable
        Called after every accepted step; may raise to stop.

    References
    ----------
    A. S. Lewis, M. L. Overton, 2013, Nonsmooth optimization via quasi-Newton methods, Mathematical
    Programming 141.

    Examples
    --------
    >>> def function(x):  # a valley with a kink along a parabola
    ...     u = x[0] ** 2 - x[1]
    ...     grad = np.sign(u) * np.array([2 * x[0], -1.0]) + 0.2 * x
    ...     seen.append(float(abs(u) + 0.1 * x @ x))
    ...     return seen[-1], grad
    >>> seen = []
    >>> _ = minimise_kinked(function, np.array([1.0, 2.0]), 100, lambda: None)
    >>> min(seen) < 1e-4
    True
    """
    x = point.copy()
    value, grad = function(x)
    inverse, fresh = np.eye(len(x)), True
    for _ in range(max_iter):
        direction = -inverse @ grad
        slope = float(grad @ direction)
        if fresh or not slope < 0.0:
            inverse, fresh = np.eye(len(x)), True
            norm = float(np.linalg.norm(grad))
            if norm == 0.0:
                return True
            # A first step of a size that the parameters have.
            direction = -grad * (0.01 * (1.0 + float(np.linalg.norm(x))) / norm)
            slope = float(grad @ direction)
        step = _weak_wolfe(function, x, value, direction, slope)
        if step is None:
            if fresh:
                return True
            fresh = True
            continue
        length, new_value, new_grad = step
        move, change = length * direction, new_grad - grad
        x, value, grad = x + move, new_value, new_grad
        report()
        curvature = float(move @ change)
        if curvature > 1e-300:
            if fresh:
                inverse = np.eye(len(x)) * (curvature / float(change @ change))
            bent = inverse @ change
            factor = (1.0 + float(change @ bent) / curvature) / curvature
            cross = np.outer(move, bent) / curvature
            inverse = inverse + factor * np.outer(move, move) - cross - cross.T
            fresh = False
    return False


def _weak_wolfe(
    function: Function, x: np.ndarray, value: float, direction: np.ndarray, slope: float
) -> tuple[float, float, np.ndarray] | None:
    """A step length of sufficient descent beyond which the slope has flattened, by bisection."""
    low, high, t = 0.0, math.inf, 1.0
    descent: tuple[float, float, np.ndarray] | None = None
    for _ in range(40):
        new_value, new_grad = function(x + t * direction)
        if not new_value < value + 1e-6 * t * slope:
            high = t
        else:
            descent = (t, new_value, new_grad)
            if float(new_grad @ direction) >= 0.5 * slope:
                return descent
            low = t
        t = 0.5 * (low + high) if math.isfinite(high) else 2.0 * t
        if high - low <= 1e-15 * high:
            break
    return descent
