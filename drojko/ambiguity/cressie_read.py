"""The Cressie-Read family of divergences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np

from drojko._numerics import root
from drojko.ambiguity.base import Divergence
from drojko.ambiguity.duals.density_ratio import DensityRatioSet
from drojko.ambiguity.duals.scaling import Sample, Tilt, Worst, centred, level, path
from drojko.exceptions import InvalidDataError
from drojko.losses.smoothing import Kink

__all__ = ["CressieRead"]

#: Tilts x so small that the next term of an expansion, of relative size x, changes the value by
#: x^2 of its distance from the mean.
_TINY = 1e-8
_LARGE = 690.0  # exponents beyond overflow: that radius is out of reach
_STEPS = [4e-16 * 4.0**i for i in range(12)]  # relative ones, from rounding to 2e-9


class CressieRead(DensityRatioSet):
    r"""Distributions within a Cressie-Read divergence of order k, for k > 1 or 0 < k < 1.

    .. math:: D(P, P_0) = E_0\, \varphi_k\!\left(\frac{dP}{dP_0}\right) \le \mathrm{radius}, \qquad
        \varphi_k(s) = \frac{s^k - k s + k - 1}{k (k - 1)}

    With k* = k / (k - 1) and k > 1 the worst case is

    .. math:: \sup_P E_P \ell = \min_c\; c + (1 + k (k - 1)\, \mathrm{radius})^{1/k}
        \left(E_0 (\ell - c)_+^{k_*}\right)^{1/k_*},

    at dP*/dP0 proportional to (loss - c)_+^(1 / (k - 1)): the larger k, the more samples drop out.
    For 0 < k < 1 it is the maximum over c > max loss of
    c - (1 - k (1 - k) radius)^(1/k) (E0 (c - loss)^(k*))^(1/k*), at dP*/dP0 proportional to
    (c - loss)^(-1 / (1 - k)). Every distribution is within 1 / (k (1 - k)) then.

    Orders k < 1 let mass go to the largest loss at a bounded price: around a continuous reference
    a loss without a bound has an infinite supremum. Estimators take the largest loss among their
    draws for it and call the upper side of the certificate a "local-estimate"; k > 1 and
    ``reference="empirical"`` are exact.

    Parameters
    ----------
    k : float
        Order. k = 2 is half the chi-square divergence, k = 1/2 twice the squared Hellinger
        distance 2 E0 (sqrt(dP/dP0) - 1)^2; the limit k = 1 is `KL`.
    radius : float, default=None
        Divergence, no unit. Exactly one of radius and penalty must be given.
    penalty : float, default=None
        Price of one unit of the divergence, in the units of the loss.

    Notes
    -----
    c is found by a safeguarded secant method on the logarithm of the radius that it spends.

    References
    ----------
    J. Duchi, H. Namkoong, 2021, Learning Models with Uniform Performance via Distributionally
    Robust Optimization, arXiv 1810.08750.

    Examples
    --------
    >>> from drojko.ambiguity import ChiSquare, CressieRead
    >>> losses = [0.0, 1.0, 2.0, 5.0]
    >>> dual = CressieRead(3.0, radius=0.1).dual(losses)
    >>> dual
    Dual(value=2.80867, penalty=3.97668, shift=1.61566, attained=2.80867, radius=0.1, n=4,
    proof='dual')
    >>> dual.ratio.round(3)
    array([0.433, 0.831, 1.092, 1.644])
    >>> half, chi = CressieRead(2.0, radius=0.05).dual(losses), ChiSquare(radius=0.1).dual(losses)
    >>> abs(half.value - chi.value) < 1e-12
    True
    """

    def __init__(self, k: float, radius: float | None = None, *, penalty: float | None = None):
        self.k = k
        self.radius = radius
        self.penalty = penalty

    conic_form = "cressie-read"

    @property
    def divergence(self) -> Divergence:
        """Of this order."""
        return Divergence("cressie-read", float(self.k), 1.0)

    def _check_family(self) -> None:
        k = float(self.k) if isinstance(self.k, Real) and not isinstance(self.k, bool) else math.nan
        if k == 1:
            raise InvalidDataError("CressieRead got k=1, where its limit is KL: use KL(...)")
        if k == 0:
            raise InvalidDataError(
                "CressieRead got k=0, the reverse Kullback-Leibler limit, which is not offered: "
                "use a small order such as k=0.1"
            )
        if not 0 < k < math.inf:
            raise InvalidDataError(
                f"CressieRead got k={self.k!r}; it must be a finite number, k > 1 or 0 < k < 1"
            )

    def needs_largest(self, penalty: float) -> bool:
        """For k < 1, and where the worst case is the largest loss."""
        return self.radius != 0 and (float(self.k) < 1 or penalty <= 0)

    def discrepancy(self, ratio: np.ndarray, weights: np.ndarray) -> float:
        """Mean of phi_k of the ratio, whose mean is one."""
        k = float(self.k)
        return max((float(weights @ ratio**k) - 1.0) / (k * (k - 1.0)), 0.0)

    def radius_of_maximum(self, mass: float) -> float:
        return _largest(float(self.k), mass)

    def log_ratio(self, t: np.ndarray) -> np.ndarray:
        k = float(self.k)
        return np.log1p(np.maximum((k - 1.0) * t, -1.0)) / (k - 1.0)

    def conjugate(self, t: np.ndarray) -> np.ndarray:
        k = float(self.k)
        inside = 1.0 + (k - 1.0) * t
        with np.errstate(divide="ignore"):
            power = np.maximum(inside, 0.0) ** (k / (k - 1.0))
        return np.where((inside > 0) | (k > 1), (power - 1.0) / k, np.inf)

    def conjugate_jet(
        self, t: np.ndarray, delta: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return f* and its derivatives; for k > 1 the positive part is smoothed by delta."""
        k = float(self.k)
        power, inside = 1.0 / (k - 1.0), 1.0 + (k - 1.0) * t
        if k < 1.0:
            if inside.min() <= 0.0:
                return None
            q = inside**power
            return (q * inside - 1.0) / k, q, q / inside
        with np.errstate(over="ignore", invalid="ignore"):
            kink = Kink.at(inside, delta)
            a, b = kink.value, kink.slope
            q = a**power
            return (q * a - 1.0) / k, q * b, q / a * b * b + (k - 1.0) * q * kink.second

    def steepness(self, ratio: np.ndarray) -> np.ndarray:
        # Infinite at 0 for k > 2: ratios next to it count as a small positive one.
        least = 1e-3 if self.k > 2 else 0.0
        positive = np.where(ratio > 0, np.maximum(ratio, least), 1.0)
        return np.where(ratio > 0, positive ** (2.0 - float(self.k)), 0.0)

    def _ball(self, sample: Sample, radius: float) -> Worst:
        largest = self.radius_of_maximum(sample.top_mass)
        if radius >= largest:
            return sample.maximum(0.0, largest)
        family = _Family(sample, float(self.k))
        start = family.start(radius) if sample.hint is None else sample.hint
        sample.hint = family.solve(radius, start)
        distance = _distance(sample.hint)
        point = family.at(distance)
        ratio = point.ratio(sample)
        error = point.radius / radius - 1.0
        # Ratios may jump, to rounding, where they become positive (k > 2), or where tiny weights
        # carry the worst case: two of them, as close as can be around the radius, are mixed.
        for step in _STEPS if self.k > 1 and abs(error) > 1e-12 else ():
            other = family.at(distance * (1.0 + math.copysign(step, error)))
            if (other.radius / radius - 1.0) * error < 0:
                pair = (ratio, other.ratio(sample))
                inner, outer = pair if error < 0 else pair[::-1]
                ratio = family.mix(inner, outer, radius)
                break
        return Worst(point.bound(radius), point.penalty, point.shift, ratio, radius)

    def _penalised(self, sample: Sample, penalty: float) -> Worst:
        family = _Family(sample, float(self.k))
        if penalty <= family.first_penalty:
            largest = self.radius_of_maximum(sample.top_mass)
            value = sample.top - penalty * largest
            # The shift at which the maximum has the ratio that carries all mass.
            excess = math.expm1((1.0 - float(self.k)) * math.log(sample.top_mass))
            shift = sample.top - penalty * excess / (float(self.k) - 1.0)
            return replace(sample.maximum(penalty, largest, value), shift=shift)
        point = family.at(_distance(family.solve_penalty(penalty)))
        # Exact at the multiplier of this c, and to second order at the one asked for.
        value = point.shift + point.penalty * (float(self.k) - 1.0) * point.radius
        value += (point.penalty - penalty) * point.radius
        return Worst(value, penalty, point.shift, point.ratio(sample), max(point.radius, 0.0))

    def _path(self, sample: Sample, radii: np.ndarray) -> np.ndarray:
        result = np.where(radii > 0, sample.top, 0.0)
        inner = (radii > 0) & (radii < self.radius_of_maximum(sample.top_mass))
        wanted, back = np.unique(radii[inner], return_inverse=True)
        family = _Family(sample, float(self.k))
        solutions = path(family.solve, wanted, family.start)
        values = [
            family.at(_distance(t)).bound(float(radius)) for t, radius in zip(solutions, wanted)
        ]
        result[inner] = np.asarray(values, dtype=np.float64)[back]
        return result


def _distance(t: float) -> float:
    """Return exp(-t) where it is neither 0 nor infinite."""
    return math.exp(-min(max(t, -600.0), 600.0))


def _largest(k: float, mass: float) -> float:
    """Return the divergence of P0 given an event of this mass."""
    exponent = min((1.0 - k) * math.log(mass), _LARGE)
    return max(math.expm1(exponent) / (k * (k - 1.0)), 0.0)


@dataclass(frozen=True)
class _Point:
    """What the ratios q proportional to g(x), x = slope * (y - base), amount to."""

    k: float
    tilt: Tilt
    slope: float
    base: float
    log_mass: float  # log E g
    mean: float  # E_q x

    @property
    def radius(self) -> float:
        """E phi_k(q), with the part of order k - 1 kept apart: precise near k = 1 too."""
        exponent = math.log1p(self.mean) - (self.k - 1.0) * self.log_mass
        return math.expm1(min(exponent, _LARGE)) / (self.k * (self.k - 1.0))

    @property
    def log_penalty(self) -> float:
        return math.log(abs((self.k - 1.0) / self.slope)) + (self.k - 1.0) * self.log_mass

    @property
    def penalty(self) -> float:
        return math.exp(self.log_penalty)

    @property
    def shift(self) -> float:
        return self.base + math.expm1((self.k - 1.0) * self.log_mass) / self.slope

    def ratio(self, sample: Sample) -> np.ndarray:
        return self.tilt.ratio(sample, self.slope, self.base == 0.0)

    def bound(self, radius: float) -> float:
        """The dual value of a ball at this c: an upper bound whether or not c is optimal."""
        k = self.k
        log_power = self.log_mass + math.log1p(self.mean)  # log E (1 + x)_+^(k*)
        exponent = (math.log1p(k * (k - 1.0) * radius) + log_power * (k - 1.0)) / k
        return self.base + math.expm1(exponent) / self.slope


class _Family:
    """The tilts of one sample, by the distance u = |top - c| > 0 of c from the largest loss.

    Solutions are t = -log(u), or -log(u - gap) where ratios have a kink: the worst case is the
    maximum as soon as u is at most the gap between the two largest losses.
    """

    def __init__(self, sample: Sample, k: float):
        self.sample = sample
        self.k = k
        self.power = 1.0 / (k - 1.0)
        self.sign = math.copysign(1.0, k - 1.0)
        self.gap = float(sample.h[sample.n_top]) if k > 1 else 0.0
        self.largest = _largest(k, sample.top_mass)

    @property
    def first_penalty(self) -> float:
        """Up to this penalty the worst case is the maximum."""
        return abs(self.k - 1.0) * self.gap * self.sample.top_mass ** (self.k - 1.0)

    def at(self, distance: float) -> _Point:
        """Evaluate at u = gap + distance."""
        u = self.gap + distance
        v = u - self.sign * self.sample.top  # |mean - c|, where it is on the right side of c
        from_mean = v > 0 and centred(self.sample.top, self.sign / v, self.power)
        slope = self.sign / (v if from_mean else u)
        base = 0.0 if from_mean else self.sample.top
        tilt = Tilt(self.power, self.gap, distance)
        log_mass, mean = tilt.sums(self.sample, slope, from_mean)
        return _Point(self.k, tilt, slope, base, log_mass, mean)

    def mix(self, inner: np.ndarray, outer: np.ndarray, radius: float) -> np.ndarray:
        """Return the mixture of two ratios, one inside and one outside, at the radius."""

        def excess(share: float) -> float:
            power = (self.sample.w * (inner + share * (outer - inner)) ** self.k).sum()
            return float((power - 1.0) / (self.k * (self.k - 1.0)) / radius - 1.0)

        low, high, below, above = 0.0, 1.0, excess(0.0), excess(1.0)
        if not below < 0 < above:  # as close as rounding allows
            return inner if abs(below) < abs(above) else outer
        for iteration in range(60):
            chord = low - below * (high - low) / (above - below)
            share = chord if iteration % 2 == 0 else 0.5 * (low + high)
            value = excess(share)
            if value <= 0:
                low, below = share, value
            else:
                high, above = share, value
            if abs(value) <= 1e-13:
                break
        return inner + low * (outer - inner)

    def start(self, radius: float) -> float:
        """Return t for small radii: radius = (deviation / ((k - 1) v))^2 / 2."""
        v = abs(self.power) * self.sample.deviation / math.sqrt(2.0 * radius)
        u = max(v + self.sign * self.sample.top, 0.1 * v)
        return -math.log(max(u - self.gap, 0.1 * u))

    def solve(self, radius: float, start: float) -> float:
        """Return the t at which the divergence is ``radius``."""
        if math.sqrt(2.0 * radius) < _TINY * self.sample.deviation:
            return self.start(radius)
        target = level(radius, self.largest)

        def missing(t: float) -> float:
            point = self.at(_distance(t))
            return level(point.radius, self.largest) - target

        return root(missing, start)

    def solve_penalty(self, penalty: float) -> float:
        """Return the t at which the multiplier is ``penalty``."""

        def missing(t: float) -> float:
            point = self.at(_distance(t))
            return math.log(penalty) - point.log_penalty

        u = penalty / abs(self.k - 1.0)
        return root(missing, -math.log(max(u - self.gap, 0.1 * u)), slope=1.0)
