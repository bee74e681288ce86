"""Numerics of the density-ratio duals: losses in units of their spread, and tilts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from drojko._validation import floats
from drojko.exceptions import InvalidDataError, NonFiniteError

__all__ = [
    "Sample",
    "Tilt",
    "Worst",
    "centred",
    "cumulate",
    "finite_losses",
    "floats",
    "level",
    "masses",
    "nonnegative",
    "smoothed",
]

_PLAIN = 4096  # numbers that are summed up one after the other
_BLOCK = 512  # losses of a block, which a tilt treats as one where it varies little over it
_ORDER = 12  # of the Taylor expansion within a block: remainder 2^-13 / 13! = 2e-14
_LARGE = 600.0  # exponents up to here do not overflow: log of the largest float is 709
_NEGLIGIBLE = -60.0  # log of a share of the mass that is below rounding


class NonFiniteLossError(InvalidDataError, NonFiniteError):
    """NaN or infinity among losses: bad data of whoever gives them, a failed step within a fit."""


def finite_losses(losses: Any, n: int) -> np.ndarray:
    """Return the losses of n rows as numbers."""
    values = floats(losses, "losses")
    if values.shape != (n,) or not np.isfinite(values).all():
        kind = NonFiniteLossError if values.shape == (n,) else InvalidDataError
        raise kind(f"losses must be {n} finite numbers, one per row; got shape {values.shape}")
    return values


def smoothed(dual: Callable[..., Any], bound: Any, losses: Any, smoothing: float) -> Any:
    """A smoothed dual of losses; so much smoothing that no number is left is refused."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = dual(bound, losses, smoothing)
    if not math.isfinite(found.value):
        raise InvalidDataError(
            f"smoothing={smoothing:g} leaves no finite value; it is in the units of the losses: "
            "take a small part of their range"
        )
    return found


def nonnegative(ratio: np.ndarray) -> None:
    """Raise for what is no density ratio."""
    if ratio.min(initial=0.0) < 0.0:
        raise InvalidDataError(
            f"ratio holds {float(ratio.min()):g}; a density ratio dP/dP0 is at least 0: "
            "clip what is rounding, and divide by the mean"
        )


def masses(weights: Any, n: int) -> np.ndarray:
    """Return the weights of n rows, the largest of which is 1; None: all equal."""
    if weights is None:
        return np.ones(n)
    mass = floats(weights, "weights")
    if mass.shape != (n,):
        raise InvalidDataError(f"weights has shape {mass.shape}; expected ({n},), one per row")
    if not (np.isfinite(mass).all() and (mass >= 0).all() and mass.any()):
        raise InvalidDataError("weights must be finite and >= 0, and positive somewhere")
    return mass / mass.max()  # the sum of huge weights overflows


def cumulate(values: np.ndarray) -> np.ndarray:
    """Return the cumulative sums, by blocks: rounding grows with sqrt(n), not n."""
    n = values.shape[0]
    if n <= _PLAIN:
        return np.cumsum(values)
    size = math.isqrt(n - 1) + 1
    rows = -(-n // size)
    padded = np.zeros(rows * size)
    padded[:n] = values
    inside = np.cumsum(padded.reshape(rows, size), axis=1)
    inside[1:] += np.cumsum(inside[:-1, -1])[:, None]
    return inside.ravel()[:n]


@dataclass(frozen=True, eq=False)
class Worst:
    """A solution in the units of a `Sample`; ``ratio`` None stands for ones."""

    excess: float
    penalty: float
    shift: float
    ratio: np.ndarray | None
    radius: float


class Sample:
    """Losses of positive weight, descending, as mean + unit * y with max |y| in [1/2, 1).

    The unit is a power of two, so that scaling does not round, and y is centred, so that what is
    added to the mean is relative to the spread and not to an offset of the losses. ``plain`` says
    that losses are finite numbers and weights positive ones that sum to 1: nothing is checked.

    Attributes
    ----------
    y, h, w : ndarray of shape (size,)
        Centred losses, their distances from the largest one, weights that sum to 1.
    top, top_mass : float
        The largest y and its weight.
    hint : float or None
        Where an iteration may start; where it ended, afterwards. For losses that change little.
    """

    hint: float | None = None

    def __init__(self, losses: Any, weights: Any = None, *, plain: bool = False):
        if plain:
            values, self.n = losses, losses.size
            order = np.argsort(-values)
            self.w = weights[order]
        else:
            values, order = self._check(losses, weights)
        self.order = order
        self.size = order.size
        values = values[order]
        self.largest = float(values[0])
        self._outer = int(np.frexp(max(abs(values[0]), abs(values[-1])))[1])
        values = np.ldexp(values, -self._outer)
        # The median as the pivot: subtracting an outlier would round all others.
        pivot = values[self.size // 2]
        y = values - pivot
        first = (self.w * y).sum()
        y -= first
        second = (self.w * y).sum()
        y -= second
        self.constant = bool(values[0] == values[-1])
        self._centre = float(values[0] if self.constant else pivot + (first + second))
        self._inner = int(np.frexp(max(abs(y[0]), abs(y[-1])))[1])
        if self.constant:
            y[:] = 0.0
        self.y = np.ldexp(y, -self._inner)
        self.h = np.ldexp(values[0] - values, -self._inner)
        self.top = float(self.y[0])
        self.n_top = int(np.searchsorted(self.h, 0.0, side="right"))
        self.top_mass = float(self.w[: self.n_top].sum())

    def _check(self, losses: Any, weights: Any) -> tuple[np.ndarray, np.ndarray]:
        """Losses as an array, and the order of those that have a weight."""
        values = floats(losses, "losses")
        if values.ndim != 1 or values.size == 0:
            raise InvalidDataError(
                f"losses has shape {values.shape}; expected one loss per sample, (n,) with n >= 1"
            )
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise NonFiniteLossError(
                f"losses[{bad}] is {values[bad]}; a worst case needs finite losses: look at the "
                "model or loss that made it"
            )
        self.n = values.size
        mass = masses(weights, self.n)
        kept = np.flatnonzero(mass > 1e-300)
        order = kept[np.argsort(-values[kept])]
        self.w = mass[order] / mass[order].sum()
        return values, order

    def reach(self, y: Any) -> Any:
        """Return centred means in the units of the losses, not above the largest."""
        result = np.where(np.asarray(y) >= self.top, self.largest, self.restore(y))
        result = np.minimum(result, self.largest)
        return result if result.ndim else float(result)

    def restore(self, y: Any) -> Any:
        """Return centred values in the units of the losses."""
        result = np.ldexp(self._centre + np.ldexp(y, self._inner), self._outer)
        return result if np.ndim(y) else float(result)

    def enlarge(self, penalty: float) -> float:
        """Return a slope in the units of the losses."""
        return float(np.ldexp(penalty, self._inner + self._outer))

    def reduce(self, penalty: float) -> float:
        """Return a slope of the user in the units of y."""
        with np.errstate(over="ignore", under="ignore"):
            return float(np.ldexp(float(penalty), -(self._inner + self._outer)))

    def scatter(self, ratio: np.ndarray) -> np.ndarray:
        """Return values of the sorted samples in the order of the losses that came in."""
        result = np.zeros(self.n)
        result[self.order] = ratio
        return result

    def maximum(self, penalty: float, radius: float, excess: float | None = None) -> Worst:
        """Return the solution that has all mass on the largest loss."""
        ratio = np.zeros(self.size)
        ratio[: self.n_top] = 1.0 / self.top_mass
        value = self.top if excess is None else excess
        return Worst(value, penalty, self.top, ratio, radius)

    @cached_property
    def deviation(self) -> float:
        """The standard deviation of y."""
        return math.sqrt((self.w * self.y**2).sum())

    @cached_property
    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """Where runs of equal losses start, and the weight of each run."""
        starts = np.flatnonzero(np.r_[True, self.h[1:] != self.h[:-1]])
        if starts.size == self.size:
            return starts, self.w
        return starts, np.add.reduceat(self.w, starts)

    @cached_property
    def blocks(self) -> _Blocks | None:
        """Moments of consecutive losses, where there are enough of them to be worth it."""
        return _Blocks(self) if self.size >= 40 * _BLOCK else None


class _Blocks:
    """Weights, means and scaled moments of blocks of consecutive losses."""

    def __init__(self, sample: Sample):
        rows = -(-sample.size // _BLOCK)
        missing = rows * _BLOCK - sample.size
        shape = (rows, _BLOCK)
        self.y = np.pad(sample.y, (0, missing), mode="edge").reshape(shape)
        self.minus_h = np.pad(-sample.h, (0, missing), mode="edge").reshape(shape)
        self.w = np.pad(sample.w, (0, missing)).reshape(shape)
        self.mass = self.w.sum(1)
        share = self.w / self.mass[:, None]
        self.mean_y = (share * self.y).sum(1)
        self.mean_minus_h = (share * self.minus_h).sum(1)
        deviations = self.y - self.mean_y[:, None]
        # Enough for the edges although means are rounded; positive, so that it divides.
        self.width = np.maximum(np.abs(deviations[:, [0, -1]]).max(1), 1e-300)
        deviations /= self.width[:, None]
        self.moments = np.empty((_ORDER + 2, rows))
        for j in range(_ORDER + 2):
            self.moments[j] = share.sum(1)
            share *= deviations
        self.moments[1] = 0.0


@dataclass(frozen=True)
class Tilt:
    """The ratios q = g(x) / E g(x), x = slope * (y - base), with g(0) = 1.

    ``power`` a: g(x) = (1 + x)_+^a, which for a = infinity, slope / a in the place of slope, is
    g(x) = e^x. The base is the mean, where g is moderate: then 1 and the linear term, whose mean
    is known, are split off, which keeps the relative precision of small tilts. Elsewhere it is the
    maximum, so that nothing overflows.

    With 0 < a < 1 the ratio has a vertical slope where it becomes positive: there 1 + x is taken
    from ``distance``, by which the base exceeds that point plus the ``gap`` to the second loss.
    """

    power: float
    gap: float = 0.0
    distance: float = 0.0

    def log(self, t: np.ndarray, slope: float, centred: bool) -> np.ndarray:
        """Return log g(slope * t) for t = y - base."""
        if math.isinf(self.power):
            return slope * t
        if 0 < self.power < 1 and not centred:
            return self.power * np.log(np.maximum(slope * (self.distance + (self.gap + t)), 0.0))
        return self.power * np.log1p(np.maximum(slope * t, -1.0))

    def sums(self, sample: Sample, slope: float, centred: bool) -> tuple[float, float]:
        """Return log E g(x) and the mean of x under q, with the mean (centred) or top as base."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            if sample.blocks is None:
                t = sample.y if centred else -sample.h
                mass, first = self._direct(t, sample.w, slope, centred)
            else:
                mass, first = self._blocked(sample.blocks, slope, centred, sample.top_mass)
        if centred:
            return math.log1p(mass), first / (1.0 + mass)
        return math.log(mass), first / mass

    def ratio(self, sample: Sample, slope: float, centred: bool) -> np.ndarray:
        """Return q for each sample."""
        with np.errstate(divide="ignore", under="ignore"):
            g = np.exp(self.log(sample.y if centred else -sample.h, slope, centred))
        return g / (sample.w * g).sum()

    def _direct(
        self, t: np.ndarray, w: np.ndarray, slope: float, centred: bool
    ) -> tuple[float, float]:
        exponent, x = self.log(t, slope, centred), slope * t
        if centred:
            g = np.expm1(exponent)
            linear = 1.0 if math.isinf(self.power) else self.power
            return float((w * (g - linear * x)).sum()), float((w * g * x).sum())
        g = w * np.exp(exponent)
        return float(g.sum()), float((g * x).sum())

    def _blocked(
        self, blocks: _Blocks, slope: float, centred: bool, top_mass: float
    ) -> tuple[float, float]:
        if centred:
            rows, means = blocks.y, blocks.mean_y
        else:
            rows, means = blocks.minus_h, blocks.mean_minus_h
        x = slope * means
        step = slope * blocks.width
        tau, limit = step, 0.5
        if math.isfinite(self.power):
            tau, limit = step / (1.0 + x), 0.5 / (abs(self.power) + _ORDER)
        floor = _NEGLIGIBLE + (0.0 if centred else math.log(top_mass))
        dead = self.log(rows[:, 0], slope, centred) < floor  # the first is the largest of its block
        exact = ~dead & ~(np.abs(tau) <= limit)
        plain = ~exact
        x, step, mass = x[plain], step[plain], blocks.mass[plain]
        tau = np.where(dead[plain], 0.0, tau[plain])
        exponent = np.where(dead[plain], -np.inf, self.log(means[plain], slope, centred))
        zeroth, first = self._expand(tau, blocks.moments[:, plain])
        g = np.exp(exponent)
        if centred:
            linear = 1.0 if math.isinf(self.power) else self.power
            minus_one = np.expm1(exponent) + g * zeroth
            total = (mass * (minus_one - linear * x)).sum()
            moment = (mass * (minus_one * x + g * step * first)).sum()
        else:
            total = (mass * g * (1.0 + zeroth)).sum()
            moment = (mass * g * ((1.0 + zeroth) * x + step * first)).sum()
        if exact.any():
            part = self._direct(rows[exact].ravel(), blocks.w[exact].ravel(), slope, centred)
            total, moment = total + part[0], moment + part[1]
        return float(total), float(moment)

    def _expand(self, tau: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return E g / g(centre) - 1 and E u g / g(centre) in each block, |u| <= 1."""
        zeroth, first = np.zeros_like(tau), np.zeros_like(tau)
        term = np.ones_like(tau)
        for j in range(1, _ORDER + 1):
            term = term * tau * (1.0 if math.isinf(self.power) else self.power - j + 1) / j
            zeroth += term * moments[j]
            first += term * moments[j + 1]
        return zeroth, first


def centred(top: float, slope: float, power: float) -> bool:
    """Whether the mean serves as the base of a tilt: no overflow and no cancellation there."""
    if math.isinf(power):
        return slope * top <= _LARGE
    x = slope * top
    return abs(x) <= 0.5 and power * math.log1p(x) <= _LARGE


def level(radius: float, largest: float) -> float:
    """Return log(-log(1 - radius / largest)): nearly linear in the logarithm of a slope."""
    share = min(radius / largest, 1.0 - 1e-16)
    if share < 1e-8:
        return math.log(max(radius, 1e-300)) - math.log(largest) + max(share, 0.0) / 2.0
    return math.log(-math.log1p(-share))
