r"""The worst cases of divergences: power divergences by tilts, any other from its conjugate.

.. math:: E_0\,(f^*)'\left(\frac{\ell - \eta}{\lambda}\right) = 1, \qquad
          E_0\,f(q) = E_0\,[t q - f^*(t)] = r, \qquad
          t = \frac{\ell - \eta}{\lambda},\; q = (f^*)'(t)

The left-hand sides fall in eta and, along its solution, in lambda. Whatever lambda is, eta +
lambda r + lambda E f*(t) is an upper bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq

from drojko._numerics import root
from drojko.ambiguity.divergence import Divergence
from drojko.ambiguity.duals.scaling import Sample, Tilt, Worst, centred, level

__all__ = ["ByConjugate", "Family"]

#: Tilts x so small that the next term of an expansion, of relative size x, changes the value by
#: x^2 of its distance from the mean.
_TINY = 1e-8
_LARGE = 690.0  # exponents beyond overflow: that radius is out of reach
#: Log of the least multiplier, in units of the spread: its worst case is that of every larger ball.
_LEAST = math.log(1e-10)
_root: Any = brentq
_STEPS = [4e-16 * 4.0**i for i in range(12)]  # relative ones, from rounding to 2e-9


@dataclass(frozen=True)
class _Point:
    """What the ratios q proportional to g(x), x = slope * (y - base), amount to; f = phi_k."""

    k: float
    tilt: Tilt
    slope: float
    base: float
    log_mass: float  # log E g
    mean: float  # E_q x

    @property
    def radius(self) -> float:
        """E phi_k(q), with the part of order k - 1 kept apart: precise near k = 1 too."""
        if self.k == 1.0:
            return max(self.mean - self.log_mass, 0.0)
        exponent = math.log1p(self.mean) - (self.k - 1.0) * self.log_mass
        return math.expm1(min(exponent, _LARGE)) / (self.k * (self.k - 1.0))

    @property
    def log_penalty(self) -> float:
        if self.k == 1.0:
            return -math.log(self.slope)
        return math.log(abs((self.k - 1.0) / self.slope)) + (self.k - 1.0) * self.log_mass

    @property
    def shift(self) -> float:
        log_mass = self.log_mass
        if self.k != 1.0:
            log_mass = math.expm1((self.k - 1.0) * log_mass)
        return self.base + log_mass / self.slope

    def ratio(self, sample: Sample) -> np.ndarray:
        return self.tilt.ratio(sample, self.slope, self.base == 0.0)

    def bound(self, radius: float) -> float:
        """The dual value of a ball at this c: an upper bound whether or not c is optimal."""
        k = self.k
        if k == 1.0:
            return self.base + (self.log_mass + radius) / self.slope
        log_power = self.log_mass + math.log1p(self.mean)  # log E (1 + x)_+^(k*)
        exponent = (math.log1p(k * (k - 1.0) * radius) + log_power * (k - 1.0)) / k
        return self.base + math.expm1(exponent) / self.slope


class Family:
    """The tilts of one sample, by the distance u = |top - c| > 0 of c from the largest loss.

    For k = 1, where g is exp(x), u is the multiplier. Solutions are t = -log(u), or -log(u - gap)
    where ratios have a kink: the worst case is the maximum as soon as u is at most the gap between
    the two largest losses.
    """

    def __init__(self, sample: Sample, divergence: Divergence):
        k, self.unit = divergence.order, divergence.curvature  # of D in that of phi_k
        self.sample, self.divergence, self.k = sample, replace(divergence, curvature=1.0), k
        self.power = 1.0 / (k - 1.0) if k != 1.0 else math.inf
        self.sign = math.copysign(1.0, k - 1.0)
        self.gap = float(sample.h[sample.n_top]) if k > 1 else 0.0
        self.largest = self.divergence.of_event(sample.top_mass)

    def ball(self, radius: float) -> Worst:
        """The worst case of a radius below that of the maximum."""
        sample, radius = self.sample, radius / self.unit
        start = self.start(radius) if sample.hint is None else sample.hint
        sample.hint = self.solve(radius, start)
        distance = _distance(sample.hint)
        point = self.at(distance)
        ratio = point.ratio(sample)
        error = point.radius / radius - 1.0
        # Ratios may jump, to rounding, where they become positive (k > 2), or where tiny weights
        # carry the worst case: two of them, as close as can be around the radius, are mixed.
        for step in _STEPS if self.k > 1 and abs(error) > 1e-12 else ():
            other = self.at(distance * (1.0 + math.copysign(step, error)))
            if (other.radius / radius - 1.0) * error < 0:
                pair = (ratio, other.ratio(sample))
                inner, outer = pair if error < 0 else pair[::-1]
                ratio = self.mix(inner, outer, radius)
                break
        penalty = math.exp(point.log_penalty) / self.unit
        return Worst(point.bound(radius), penalty, point.shift, ratio, radius * self.unit)

    def priced(self, penalty: float) -> Worst:
        """The worst case at a price."""
        sample, g, price = self.sample, self.k - 1.0, penalty * self.unit
        # Up to this price the worst case is the maximum.
        if price <= abs(g) * self.gap * sample.top_mass**g:
            value = sample.top - price * self.largest
            # The shift at which the maximum has the ratio that carries all mass.
            shift = sample.top - price * math.expm1(-g * math.log(sample.top_mass)) / g
            worst = sample.maximum(penalty, self.largest * self.unit, value)
            return replace(worst, shift=shift)
        point = self.at(price if self.k == 1.0 else _distance(self.solve_penalty(price)))
        # Exact at the multiplier of this c, and to second order at the one asked for.
        multiplier = price if self.k == 1.0 else math.exp(point.log_penalty)
        value = point.shift + (multiplier * g + multiplier - price) * point.radius
        radius = max(point.radius, 0.0) * self.unit
        return Worst(value, penalty, point.shift, point.ratio(sample), radius)

    def path(self, radii: np.ndarray) -> np.ndarray:
        """The values of many radii, each solution from the two before it.

        They are logarithms of slopes, nearly linear in log(radius).
        """
        radii = radii / self.unit
        result = np.where(radii > 0, self.sample.top, 0.0)
        inner = (radii > 0) & (radii < self.largest)
        wanted, back = np.unique(radii[inner], return_inverse=True)
        found, values = np.empty(wanted.shape), np.empty(wanted.shape)
        for i, radius in enumerate(wanted.tolist()):
            start = self.start(radius)
            if i >= 2 and wanted[i - 2] < wanted[i - 1]:
                steps = np.log(wanted[i - 1 : i + 1] / wanted[i - 2 : i])
                start = found[i - 1] + min(steps[1] / steps[0], 2.0) * (found[i - 1] - found[i - 2])
            found[i] = self.solve(radius, float(start))
            values[i] = self.at(_distance(found[i])).bound(radius)
        result[inner] = values[back]
        return result

    def at(self, distance: float) -> _Point:
        """Evaluate at u = gap + distance."""
        top = self.sample.top
        u = self.gap + distance
        if self.k == 1.0:
            slope = 1.0 / u
            from_mean = centred(top, slope, self.power)
        else:
            v = u - self.sign * top  # |mean - c|, where it is on the right side of c
            from_mean = v > 0 and centred(top, self.sign / v, self.power)
            slope = self.sign / (v if from_mean else u)
        base = 0.0 if from_mean else top
        tilt = Tilt(self.power, self.gap, distance)
        log_mass, mean = tilt.sums(self.sample, slope, from_mean)
        return _Point(self.k, tilt, slope, base, log_mass, mean)

    def mix(self, inner: np.ndarray, outer: np.ndarray, radius: float) -> np.ndarray:
        """Return the mixture of two ratios, one inside and one outside, at the radius."""

        def excess(share: float) -> float:
            mixed = inner + share * (outer - inner)
            return self.divergence.of(mixed, self.sample.w) / radius - 1.0

        below, above = excess(0.0), excess(1.0)
        if not below < 0 < above:  # as close as rounding allows
            return inner if abs(below) < abs(above) else outer
        share = root(excess, below / (below - above), slope=above - below, low=0.0, high=1.0)
        return inner + share * (outer - inner)

    def start(self, radius: float) -> float:
        """Return t for small radii: radius = (deviation / ((k - 1) v))^2 / 2."""
        v = self.sample.deviation / math.sqrt(2.0 * radius)
        if self.k == 1.0:
            return -math.log(v)
        v *= abs(self.power)
        u = max(v + self.sign * self.sample.top, 0.1 * v)
        return -math.log(max(u - self.gap, 0.1 * u))

    def solve(self, radius: float, start: float) -> float:
        """Return the t at which the divergence is ``radius``."""
        if math.sqrt(2.0 * radius) < _TINY * self.sample.deviation:
            return self.start(radius)
        target = level(radius, self.largest)

        def missing(t: float) -> float:
            return level(self.at(_distance(t)).radius, self.largest) - target

        return root(missing, start)

    def solve_penalty(self, penalty: float) -> float:
        """Return the t at which the multiplier is ``penalty``."""

        def missing(t: float) -> float:
            return math.log(penalty) - self.at(_distance(t)).log_penalty

        u = penalty / abs(self.k - 1.0)
        return root(missing, -math.log(max(u - self.gap, 0.1 * u)), slope=1.0)


class ByConjugate:
    """The worst cases of one sample under a set that offers f* and log f*'."""

    def __init__(self, sample: Sample, ambiguity: Any):
        self.sample, self.ambiguity = sample, ambiguity

    def priced(self, penalty: float) -> Worst:
        """The worst case at a price in the units of the sample."""
        sample, ambiguity = self.sample, self.ambiguity

        def ratio_at(shift: float) -> np.ndarray:
            with np.errstate(over="ignore", divide="ignore"):
                return np.exp(ambiguity.log_ratio((sample.y - shift) / penalty))

        def excess(shift: float) -> float:
            return min(float(sample.w @ np.minimum(ratio_at(shift), 1e300)) - 1.0, 1e6)

        low, high = float(sample.y[-1]), sample.top  # all ratios at least, at most f*'(0) = 1
        shift = high
        if excess(high) < 0.0 < excess(low):
            shift = float(_root(excess, low, high, xtol=1e-15, rtol=1e-15, maxiter=200))
        t = (sample.y - shift) / penalty
        ratio, conjugate = ratio_at(shift), ambiguity.conjugate(t)
        spent = float(sample.w @ (np.where(ratio > 0, t * ratio, 0.0) - conjugate))
        value = shift + penalty * float(sample.w @ conjugate)
        return Worst(value, penalty, shift, ratio / float(sample.w @ ratio), max(spent, 0.0))

    def ball(self, radius: float) -> Worst:
        """The worst case of a radius below that of the maximum."""
        # Small radii: spent = deviation^2 / (2 curvature penalty^2).
        curvature = self.ambiguity.curvature or 1.0
        start = max(self.sample.deviation / math.sqrt(2.0 * curvature * radius), 1e-100)

        def missing(t: float) -> float:
            return math.log(max(self.priced(math.exp(-t)).radius, 1e-300) / radius)

        t = root(missing, -math.log(start), slope=2.0, low=-300.0, high=-_LEAST)
        worst = self.priced(math.exp(-t))
        value = worst.excess + worst.penalty * radius
        return replace(worst, excess=value, radius=min(worst.radius, radius))

    def path(self, radii: np.ndarray) -> np.ndarray:
        """The values of many radii."""
        ball = self.ambiguity._ball
        return np.array([ball(self.sample, r).excess if r > 0 else 0.0 for r in radii.tolist()])


def _distance(t: float) -> float:
    """Return exp(-t) where it is neither 0 nor infinite."""
    return math.exp(-min(max(t, -600.0), 600.0))
