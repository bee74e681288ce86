r"""One-dimensional exponential tilts: log-mean-exp of a convex loss under Gaussian noise.

For u = s g with g ~ N(0, 1), and an inverse temperature eta >= 0,

.. math:: G(f, s, \eta) = \tfrac1\eta \log E\, e^{\eta\, \ell(f + u, y)}
          = \max_\pi E_\pi \ell - \tfrac1\eta \mathrm{KL}(\pi \| N(0, s^2)), \qquad
          \pi \propto e^{\eta \ell} N(0, s^2).

All derivatives of G are moments of (l', l' g, l) under pi and of l'' (1, g, g^2), so these are
what is computed: pieces of straight lines and the squared loss in closed form, the logistic loss
by a trapezoidal rule with a proven error, the Huber loss by both. (J. Wang, R. Gao, Y. Xie, 2021,
arXiv 2109.11926, estimate these by sampling.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import erfcx, log_ndtr

from drojko.exceptions import UnboundedRiskError
from drojko.losses.nodes import FAR, huber_inside, logistic_middle, logistic_moments

__all__ = [
    "Tilted",
    "flip",
    "gentle",
    "huber_tilt",
    "kinked_tilt",
    "logistic_tilt",
    "squared_tilt",
    "still",
    "wide_logistic",
]

_ROOT = math.sqrt(2.0 / math.pi)
_SMALL = 1e-6  # tilts below are linear to rounding
_WIDE = 8.0  # deviations of logits from which on the logistic loss is mostly straight
_HALF_LOG = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class Tilted:
    """Moments under the tilted laws, one column per sample.

    ``value`` (n,) is G and ``divergence`` (n,) the KL divergence in nats; ``mean`` (3, n) and
    ``cov`` (6, n; upper triangle row by row) belong to (l', l' g, l), ``bend`` (3, n) to
    l'' (1, g, g^2).
    """

    value: np.ndarray
    divergence: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    bend: np.ndarray

    def second(self, eta: float) -> tuple[np.ndarray, ...]:
        """Second derivatives of G in (f, s, T), T = 1/eta: ff, fs, fT, ss, sT, TT."""
        c, b = self.cov, self.bend
        return (
            b[0] + eta * c[0],
            b[1] + eta * c[1],
            -(eta**2) * c[2],
            b[2] + eta * c[3],
            -(eta**2) * c[4],
            eta**3 * c[5],
        )


def gentle(at: Callable[[float], Tilted], steep: float, eta: float) -> Tilted:
    """``at(eta)``, but to first order where the tilt of a loss of slope ``steep`` is slight.

    Exact to rounding there, where the logarithm of a mean near 1 is not.
    """
    if not 0.0 < eta * steep < _SMALL:
        return at(eta)
    plain = at(0.0)
    tilt = eta * plain.cov[[2, 4, 5]]
    value = plain.value + 0.5 * tilt[2]
    return Tilted(value, 0.5 * eta * tilt[2], plain.mean + tilt, plain.cov, plain.bend)


def still(loss: Any, f: np.ndarray, y: np.ndarray) -> Tilted:
    """The moments of a loss without noise."""
    at, label = torch.from_numpy(np.ascontiguousarray(f)), torch.from_numpy(np.array(y))
    value, slope = loss.value(at, label).numpy(), loss.gradient(at, label).numpy()
    second, zero = loss.second_derivative(at, label).numpy(), np.zeros_like(value)
    return Tilted(
        value, zero, np.stack([slope, zero, value]), np.zeros((6, len(f))),
        np.stack([second, zero, second]),
    )  # fmt: skip


def _value(log_mass, mean, cov, bend, eta: float) -> Tilted:
    if eta == 0.0:
        return Tilted(mean[2], np.zeros_like(mean[2]), mean, cov, bend)
    divergence = np.maximum(eta * mean[2] - log_mass, 0.0)
    return Tilted(log_mass / eta, divergence, mean, cov, bend)


def flip(found: Tilted, sign: np.ndarray) -> Tilted:
    """From derivatives in sign * f to those in f: odd moments change their sign."""
    found.mean[0] *= sign
    found.cov[1:3] *= sign
    found.bend[1] *= sign
    return found


def squared_tilt(r: np.ndarray, s: float, eta: float) -> Tilted:
    """Loss x^2 of x = r + s g."""
    k = 1.0 - 2.0 * eta * s * s
    if not k > 0.0:
        raise UnboundedRiskError(
            "squared loss: the mean of exp(loss / (penalty epsilon)) is infinite unless the "
            "penalty exceeds the squared dual norm of the coefficients: raise the penalty"
        )
    shift = r * (2.0 * eta * s * s / k)  # mean of u under the tilted law N(shift, s^2 / k)
    middle, v = r / k, s * s / k
    value = r * r / k
    if eta > 0.0:
        value = value - 0.5 * math.log(k) / eta
    else:
        value = value + s * s
    square = v * (4.0 * middle**2 + 2.0 * v)  # Var x^2, x = r + u
    mixed = 2.0 * middle * v  # Cov(x, x^2)
    mean_square = middle**2 + v
    mean = np.stack([2.0 * middle, 2.0 * (middle * shift + v) / s, mean_square])
    cov = np.stack([
        np.full_like(r, 4.0 * v), 4.0 * (mixed - r * v) / s, 2.0 * mixed,
        4.0 * (square - 2.0 * r * mixed + r * r * v) / s**2, 2.0 * (square - r * mixed) / s, square,
    ])  # fmt: skip
    bend = 2.0 * np.stack([np.ones_like(r), shift / s, (shift**2 + v) / s**2])
    # KL of N(shift, s^2 / k) from N(0, s^2).
    divergence = 0.5 * (1.0 / k - 1.0 + math.log(k)) + 0.5 * (shift / s) ** 2
    return Tilted(value, np.maximum(divergence, 0.0), mean, cov, bend)


def _line(r, s, eta, slope, offset, t, upper):
    """The part of a loss ``slope * x + offset`` beyond g = t (upper) or below it, x = r + s g.

    Under the tilt g is N(slope s eta, 1), truncated. Returns log mass, mean, cov, bend = 0.
    """
    middle = slope * s * eta
    z = (t - middle) if upper else (middle - t)
    with np.errstate(over="ignore", divide="ignore"):
        hazard = _ROOT / erfcx(z / math.sqrt(2.0))
    log_mass = eta * (slope * r + offset) + 0.5 * middle**2 + log_ndtr(-z)
    mean = middle + (hazard if upper else -hazard)
    variance = np.clip(1.0 - hazard * (hazard - z), 0.0, 1.0)
    direction = (0.0, slope, slope * s)
    means = np.stack([np.full_like(r, slope), slope * mean, slope * (r + s * mean) + offset])
    cov = np.stack([direction[i] * direction[j] * variance for i, j in _PAIRS])
    return log_mass, means, cov, np.zeros((3, len(r)))


_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def _mixture(parts):
    """Law of total covariance for parts (log mass, mean, cov, bend)."""
    logs = np.stack([part[0] for part in parts])
    top = logs.max(axis=0)
    share = np.exp(logs - top)
    total = share.sum(axis=0)
    share /= total
    log_mass = top + np.log(total)
    mean = sum(p * part[1] for p, part in zip(share, parts))
    cov = sum(p * part[2] for p, part in zip(share, parts))
    for p, part in zip(share, parts):
        away = part[1] - mean
        cov = cov + p * np.stack([away[i] * away[j] for i, j in _PAIRS])
    bend = sum(p * part[3] for p, part in zip(share, parts))
    return log_mass, mean, cov, bend


def kinked_tilt(r: np.ndarray, s: float, eta: float, low: float, high: float) -> Tilted:
    """Loss max(low x, high x) of x = r + s g."""
    t = -r / s
    parts = [_line(r, s, eta, low, 0.0, t, False), _line(r, s, eta, high, 0.0, t, True)]
    log_mass, mean, cov, bend = _mixture(parts)
    # l'' is a point mass at the kink, where the integrand is the density of g itself.
    at = np.exp(-0.5 * t * t - _HALF_LOG - log_mass) * ((high - low) / s)
    bend = np.stack([at, at * t, at * t * t])
    return _value(log_mass, mean, cov, np.where(at > 0, bend, 0.0), eta)


def logistic_tilt(m: np.ndarray, s: float, eta: float) -> Tilted:
    """Loss log(1 + e^x) of x = m + s g."""
    moments = wide_logistic if s > _WIDE else logistic_moments
    return _value(*moments(m, s, eta), eta)


def wide_logistic(f: np.ndarray, s: float, eta: float):
    """Log mass and moments of the logistic loss under noise that is wide beside its bend."""
    parts = [
        _line(f, s, eta, 0.0, 0.0, (-FAR - f) / s, False),
        logistic_middle(f, s, eta),
        _line(f, s, eta, 1.0, 0.0, (FAR - f) / s, True),
    ]
    return _mixture(parts)


def huber_tilt(r: np.ndarray, s: float, eta: float, delta: float) -> Tilted:
    """Loss of Huber of x = r + s g."""
    offset = -0.5 * delta**2
    parts = [
        _line(r, s, eta, -delta, offset, (-delta - r) / s, False),
        huber_inside(r, s, eta, delta),
        _line(r, s, eta, delta, offset, (delta - r) / s, True),
    ]
    return _value(*_mixture(parts), eta)
