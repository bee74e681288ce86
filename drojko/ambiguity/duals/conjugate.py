r"""The worst case of any f-divergence from its conjugate, by two scalar equations.

.. math:: E_0\,(f^*)'\left(\frac{\ell - \eta}{\lambda}\right) = 1, \qquad
          E_0\,f(q) = E_0\,[t q - f^*(t)] = r, \qquad
          t = \frac{\ell - \eta}{\lambda},\; q = (f^*)'(t)

The left-hand sides fall in eta and, along its solution, in lambda. Whatever lambda is, eta +
lambda r + lambda E f*(t) is an upper bound.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq

from drojko.ambiguity.duals.scaling import Sample, Worst

__all__ = ["ball", "priced"]

#: Log of the least multiplier, in units of the spread: its worst case is that of every larger ball.
_LEAST = math.log(1e-10)
_LARGE = 1e6
_root: Any = brentq


def priced(family: Any, sample: Sample, penalty: float) -> Worst:
    """Solution of the penalised form at a price in the units of the sample."""

    def ratio_at(shift: float) -> np.ndarray:
        with np.errstate(over="ignore", divide="ignore"):
            return np.exp(family.log_ratio((sample.y - shift) / penalty))

    def excess(shift: float) -> float:
        return min(float(sample.w @ np.minimum(ratio_at(shift), 1e300)) - 1.0, _LARGE)

    low, high = float(sample.y[-1]), sample.top  # all ratios at least, at most f*'(0) = 1
    shift = high
    if excess(high) < 0.0 < excess(low):
        shift = float(_root(excess, low, high, xtol=1e-15, rtol=1e-15, maxiter=200))
    t = (sample.y - shift) / penalty
    ratio = ratio_at(shift)
    conjugate = family.conjugate(t)
    spent = float(sample.w @ (np.where(ratio > 0, t * ratio, 0.0) - conjugate))
    value = shift + penalty * float(sample.w @ conjugate)
    return Worst(value, penalty, shift, ratio / float(sample.w @ ratio), max(spent, 0.0))


def ball(family: Any, sample: Sample, radius: float) -> Worst:
    """Solution of the radius form, 0 < radius < that of the maximum."""

    def missing(log_penalty: float) -> float:
        spent = priced(family, sample, math.exp(log_penalty)).radius
        return math.log(max(spent, 1e-300) / radius)

    curvature = family.curvature or 1.0  # small radii: spent = deviation^2 / (2 curvature l^2)
    low = high = math.log(max(sample.deviation / math.sqrt(2.0 * curvature * radius), 1e-100))
    step = 0.5
    while missing(low) < 0.0 and low > _LEAST:
        low, step = low - step, 2.0 * step
    step = 0.5
    while missing(high) > 0.0 and high < 300.0:
        high, step = high + step, 2.0 * step
    found = low
    if low < high and missing(low) > 0.0:
        found = float(_root(missing, low, high, xtol=1e-13, rtol=1e-14, maxiter=200))
    worst = priced(family, sample, math.exp(found))
    return Worst(
        worst.excess + worst.penalty * radius,
        worst.penalty,
        worst.shift,
        worst.ratio,
        min(worst.radius, radius),
    )
