"""The Kullback-Leibler ball."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import entr

from drojko._numerics import root
from drojko.ambiguity.base import Divergence
from drojko.ambiguity.duals.density_ratio import DensityRatioSet
from drojko.ambiguity.duals.scaling import Sample, Tilt, Worst, centred, level, path

__all__ = ["KL"]

_TILT = Tilt(math.inf)
#: Tilts x so small that the next term of an expansion, of relative size x, changes the value by
#: x^2 of its distance from the mean.
_TINY = 1e-8


class KL(DensityRatioSet):
    r"""Distributions whose Kullback-Leibler divergence from the reference is limited.

    .. math:: D(P, P_0) = E_P \log \frac{dP}{dP_0} \le \mathrm{radius}, \qquad
        \sup_P E_P \ell = \min_{\lambda \ge 0}
        \lambda\, \mathrm{radius} + \lambda \log E_0 e^{\ell / \lambda}

    with dP*/dP0 = exp(loss / lambda) / E0 exp(loss / lambda). In the penalised form the value is
    penalty * log E0 exp(loss / penalty), the entropic risk.

    Parameters
    ----------
    radius : float, default=None
        Divergence in nats. 0 is the reference alone; from -log(P0(largest loss)) on, the worst
        case is the largest loss. Exactly one of radius and penalty must be given.
    penalty : float, default=None
        Price of one nat, in the units of the loss.

    Notes
    -----
    `dual` finds the tilt 1/lambda by a safeguarded secant method on the logarithm of the radius
    that it spends, which costs O(n log n) for sorting and a few passes over the losses; `dual_path`
    sorts once.

    References
    ----------
    Z. Hu, L. J. Hong, 2013, Kullback-Leibler Divergence Constrained Distributionally Robust
    Optimization.

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> dual = KL(radius=0.1).dual([0.0, 1.0, 2.0, 5.0])
    >>> dual
    Dual(value=2.86822, penalty=4.4422, shift=2.424, attained=2.86822, radius=0.1, n=4,
    proof='dual')
    >>> dual.ratio.round(3)
    array([0.579, 0.726, 0.909, 1.786])
    >>> round(KL(penalty=2.0).dual([0.0, 1.0, 2.0, 5.0]).value, 5)
    2.95746
    >>> KL(radius=2.0).dual([0.0, 1.0, 2.0, 5.0]).value  # more than log 4
    5.0
    """

    conic_form = "kl"
    divergence = Divergence("kl", 1.0, 1.0)

    def discrepancy(self, ratio: np.ndarray, weights: np.ndarray) -> float:
        """Mean of ratio * log(ratio)."""
        return max(-float(weights @ entr(ratio)), 0.0)

    def radius_of_maximum(self, mass: float) -> float:
        return max(-math.log(mass), 0.0)

    def log_ratio(self, t: np.ndarray) -> np.ndarray:
        return t

    def conjugate(self, t: np.ndarray) -> np.ndarray:
        return np.expm1(t)

    def steepness(self, ratio: np.ndarray) -> np.ndarray:
        return ratio

    def _ball(self, sample: Sample, radius: float) -> Worst:
        largest = self.radius_of_maximum(sample.top_mass)
        if radius >= largest:
            return sample.maximum(0.0, largest)
        start = _start(sample, radius) if sample.hint is None else sample.hint
        sample.hint = _solve(sample, radius, start)
        slope = math.exp(min(sample.hint, 600.0))
        log_mass, _, base = _evaluate(sample, slope)
        shift = base + log_mass / slope
        ratio = _TILT.ratio(sample, slope, base == 0.0)
        return Worst(shift + radius / slope, 1.0 / slope, shift, ratio, radius)

    def _penalised(self, sample: Sample, penalty: float) -> Worst:
        slope = 1.0 / penalty
        log_mass, mean, base = _evaluate(sample, slope)
        value = base + log_mass / slope
        ratio = _TILT.ratio(sample, slope, base == 0.0)
        return Worst(value, penalty, value, ratio, max(mean - log_mass, 0.0))

    def _path(self, sample: Sample, radii: np.ndarray) -> np.ndarray:
        result = np.where(radii > 0, sample.top, 0.0)
        inner = (radii > 0) & (radii < self.radius_of_maximum(sample.top_mass))
        wanted, back = np.unique(radii[inner], return_inverse=True)
        slopes = np.exp(
            path(lambda r, t: _solve(sample, r, t), wanted, lambda r: _start(sample, r))
        )
        values = np.empty(wanted.shape)
        for i, (slope, radius) in enumerate(zip(slopes, wanted)):
            log_mass, _, base = _evaluate(sample, slope)
            values[i] = base + (log_mass + radius) / slope
        result[inner] = values[back]
        return result


def _start(sample: Sample, radius: float) -> float:
    """Return the logarithm of the slope for small radii: radius = slope^2 variance / 2."""
    return 0.5 * math.log(2.0 * radius) - math.log(sample.deviation)


def _evaluate(sample: Sample, slope: float) -> tuple[float, float, float]:
    """Return log E e^x, E_q x and the base that x = slope * (y - base) refers to."""
    from_mean = centred(sample.top, slope, math.inf)
    log_mass, mean = _TILT.sums(sample, slope, from_mean)
    return log_mass, mean, 0.0 if from_mean else sample.top


def _solve(sample: Sample, radius: float, start: float) -> float:
    """Return the logarithm of the slope at which the divergence is ``radius``."""
    first = _start(sample, radius)
    if math.exp(first) < _TINY:
        return first
    largest = -math.log(sample.top_mass)
    target = level(radius, largest)

    def missing(t: float) -> float:
        log_mass, mean, _ = _evaluate(sample, math.exp(min(t, 600.0)))
        return level(mean - log_mass, largest) - target

    return root(missing, start)
