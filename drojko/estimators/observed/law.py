"""Distances that a compared square allows, from no shift at all to large ones."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammainc

__all__ = ["interval_of"]

_MISSED = 0.04  # and about one in a hundred for the error of the errors
_GRID = 600
_NORMAL = np.polynomial.hermite_e.hermegauss(61)


def interval_of(
    square: float, bias: float, pairs: float, linear: float
) -> tuple[float, tuple[float, float]]:
    r"""Return the median unbiased distance and an interval of 95 %.

    .. math:: \text{square} \sim (D + \tau z)^2 + c \, \chi^2_k

    The squared length of a vector D in one direction plus normal errors of covariance V: tau^2 is
    its variance in that direction, and the chi-square has the mean and the variance of the rest.
    The interval holds each D under whose law ``square`` is no surprise. At D = 0 only large
    squares are one; the smaller D beside the error, the less of what may be missed is left for
    small ones, so that intervals are 95 % from 0 on (as those of Feldman and Cousins, 1998).

    Parameters
    ----------
    square, bias : float
        As computed, and what error adds to it on average: tr V.
    pairs : float
        tr V^2.
    linear : float
        Variance of what rows add to ``square``: 4 D^2 tau^2, and 4 tr V^2 by its own error.
    """
    if not bias > 0.0 and pairs > 0.0:  # taken off already
        bias = 3.0 * math.sqrt(2.0 * pairs)
        square += bias
    if not bias > 0.0:  # without any error
        exact = math.sqrt(max(square, 0.0))
        return exact, (exact, exact)
    pairs = max(pairs, 1e-3 * bias**2)
    error, found = math.sqrt(2.0 * pairs), max(square - bias, 0.0)
    # as of a random direction where none is seen
    tau = (max(0.25 * linear - pairs, 0.0) + pairs / bias * error) / (found + error)
    small = min(tau, math.sqrt(pairs), bias)
    rest = max(bias - small, 1e-9 * bias)
    spread = max(2.0 * (pairs - small**2), 1e-6 * rest**2)
    reach = 6.0 * math.sqrt(tau + math.sqrt(pairs))
    grid = np.linspace(max(math.sqrt(found) - reach, 0.0), math.sqrt(found) + reach, _GRID)
    nodes, share = _NORMAL
    about = np.maximum(square - (grid[:, None] + math.sqrt(tau) * nodes) ** 2, 0.0)
    below = gammainc(rest**2 / spread, about * rest / spread) @ (share / share.sum())
    lower = 0.5 * _MISSED * -np.expm1(-(grid**2) / error)
    median = float(np.interp(-0.5, -below, grid)) if below[0] > 0.5 else 0.0
    held = grid[(below >= lower) & (below <= 1.0 - _MISSED + lower)]
    low, high = (held[0], held[-1]) if len(held) else (median, median)
    return median, (min(float(low), median), max(float(high), median))
