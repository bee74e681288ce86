r"""One-dimensional exponential tilts: log-mean-exp of a convex loss under Gaussian noise.

For u = s g with g ~ N(0, 1), and an inverse temperature eta >= 0,

.. math:: G(f, s, \eta) = \tfrac1\eta \log E\, e^{\eta\, \ell(f + u, y)}
          = \max_\pi E_\pi \ell - \tfrac1\eta \mathrm{KL}(\pi \| N(0, s^2)), \qquad
          \pi \propto e^{\eta \ell} N(0, s^2).

All derivatives of G are moments of (l', l' g, l) under pi and of l'' (1, g, g^2), so these are
what is computed: pieces of straight lines and the squared loss in closed form, the logistic loss
by a trapezoidal rule with a proven error, the Huber loss by both. (J. Wang, R. Gao, Y. Xie, 2021,
arXiv 2109.11926, estimate these by sampling.)

Logistic loss: the trapezoidal rule with step h. The integrand F(w) = e^{eta softplus(w - m)}
phi_s(w) is analytic for \|Im w\| < pi and \|F(w + id)\| <= e^{d^2 / 2 s^2} F(w) there (because
\|1 + e^{x + id}\| <= 1 + e^x), so the relative error of the integral is at most

.. math:: 2\, e^{d^2 / (2 s^2)} / (e^{2\pi d / h} - 1), \qquad 0 < d < \pi

(L. N. Trefethen, J. A. C. Weideman, 2014, theorem 5.1). The step below makes that 1e-13.
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
from drojko.losses.jets import logistic_shift

__all__ = [
    "Tilted",
    "flip",
    "gentle",
    "huber_tilt",
    "kinked_tilt",
    "logistic_moments",
    "logistic_tilt",
    "squared_tilt",
    "still",
    "wide_logistic",
]

_ROOT = math.sqrt(2.0 / math.pi)
_SMALL = 1e-6  # tilts below are linear to rounding
_WIDE = 8.0  # deviations of logits from which on the logistic loss is mostly straight
_HALF_LOG = 0.5 * math.log(2.0 * math.pi)
#: Beyond this margin softplus is a straight line to rounding.
FAR = 38.0

_TAIL = 8.3  # deviations; the mass beyond is 1e-16
_DROP = 40.0  # logarithm of what may be left out
_GOAL = math.log(2e13)
_STRIP = 3.0  # below pi: the logistic slope has a pole there
_BLOCK = 1 << 16  # nodes at once: work arrays stay in cache
_ROUND = 16  # numbers of nodes come in multiples of this
_CELLS = 64
_GAUSS = np.polynomial.legendre.leggauss(24)
_PANELS, _POINTS = 19, np.polynomial.legendre.leggauss(16)


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
    value, slope, second = loss.line(f.copy(), y.copy())
    zero = np.zeros_like(value)
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
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        hazard = _ROOT / erfcx(z / math.sqrt(2.0))
        variance = np.clip(1.0 - hazard * (hazard - z), 0.0, 1.0)
        # Far out the difference is all rounding, and its limit is z^-2 (1 + O(z^-2)).
        variance = np.where(z < 1e3, variance, np.maximum(z, 1.0) ** -2.0)
    log_mass = eta * (slope * r + offset) + 0.5 * middle**2 + log_ndtr(-z)
    mean = middle + (hazard if upper else -hazard)
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
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number proves nothing
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


def logistic_step(s: float) -> float:
    """Step of the trapezoidal rule with relative error at most 1e-13."""
    small = s * math.pi * math.sqrt(2.0 / _GOAL)
    if 2.0 * math.pi * s * s / small <= _STRIP:
        return small
    return 2.0 * math.pi * _STRIP / (_GOAL + _STRIP**2 / (2.0 * s * s))


def logistic_windows(
    f: np.ndarray, s: float, eta: float, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """Left ends and numbers of nodes of windows in w that hold all but 1e-15 of each mass.

    The loss is softplus(f + w): its slope lies in [0, 1], so that the mass lies between those of
    the slopes 0 and 1, N(0, s^2) and N(eta s^2, s^2).
    """
    far = eta * s * s
    low, high = np.full_like(f, -_TAIL * s), np.full_like(f, far + _TAIL * s)
    if far > 3.0 * s:
        flat = eta * s * s / 4.0  # curvature of the loss in units of 1 / s^2
        if flat < 0.75:
            kappa = torch.tensor(0.5 / far, dtype=torch.float64)
            at = logistic_shift(torch.from_numpy(-f), kappa).numpy()
            half = _TAIL * s / math.sqrt(1.0 - flat)
            low, high = np.maximum(low, at - half), np.minimum(high, at + half)
        elif (far + 2.0 * _TAIL * s) / step > _CELLS:
            low, high = _trimmed(f, s, eta, low[0], high[0])
    return low, np.ceil((high - low) / step).astype(np.int64) + 1


def _trimmed(f, s, eta, low, high):
    """Cells that may matter: log integrand within 40 of its maximum.

    eta loss is convex, so on a cell it lies below its chord; a chord minus w^2 / 2 s^2 has its
    maximum in closed form.
    """
    nodes = np.linspace(low, high, _CELLS + 1)
    tilt = eta * np.logaddexp(0.0, f[:, None] + nodes)
    values = tilt - 0.5 * (nodes / s) ** 2
    slope = np.diff(tilt, axis=1) / (nodes[1] - nodes[0])
    best = np.clip(slope * s * s, nodes[:-1], nodes[1:])
    bound = tilt[:, :-1] + slope * (best - nodes[:-1]) - 0.5 * (best / s) ** 2
    kept = bound >= values.max(axis=1, keepdims=True) - _DROP
    first = kept.argmax(axis=1)
    last = _CELLS - kept[:, ::-1].argmax(axis=1)
    return nodes[first], nodes[last]


def logistic_moments(f: np.ndarray, s: float, eta: float):
    """Log mass, mean (3, n), cov (6, n) and bend (3, n) of softplus(f + s g)."""
    step = logistic_step(s)
    low, count = logistic_windows(f, s, eta, step)
    count = -(-count // _ROUND) * _ROUND if count.min() < count.max() else count

    def block(part):
        size = int(count[part[0]])
        local = (np.arange(size) - 0.5 * size) * (step / s)
        return _logistic_block(f[part], low[part] / s, local, s, eta)

    sizes = np.unique(count).tolist()
    return _by_blocks(block, [(np.flatnonzero(count == size), size) for size in sizes])


def _by_blocks(block, rows):
    """Log mass, mean, cov and bend of ``block(part)`` for parts of (rows, nodes of each)."""
    n = sum(len(each) for each, _ in rows)
    out = np.empty(n), np.empty((3, n)), np.empty((6, n)), np.empty((3, n))
    for each, size in rows:
        for part in np.array_split(each, -(-len(each) * size // _BLOCK)):
            for whole, piece in zip(out, block(part)):
                whole[..., part] = piece
    return out


def _softplus(x):
    """Value and two derivatives of log(1 + e^x)."""
    small = np.exp(-np.abs(x))
    inverse = 1.0 / (1.0 + small)
    slope = np.where(x >= 0.0, inverse, small * inverse)
    return np.maximum(x, 0.0) + np.log1p(small), slope, small * inverse * inverse


def _logistic_block(f, left, local, s, eta):
    centre = left - local[0]  # in deviations
    g = local if (left == left[0]).all() else centre[:, None] + local
    if g.ndim == 1:
        g = local + centre[0]
    weight = -0.5 * g * g + math.log((local[1] - local[0]) / math.sqrt(2.0 * math.pi))
    loss, slope, second = _softplus(s * g + f[:, None])
    local, centre = (g, None) if g.ndim == 1 else (np.broadcast_to(local, g.shape), centre)
    return _moments(weight, slope, local, loss, second, eta, eta * s < 0.5, centre)


def _moments(weight, slope, g, loss, second, eta, gentle, centre=None):
    """Moments of (slope, slope g, loss) and second (1, g, g^2) over the last axis.

    ``weight`` are logarithms; ``centre`` (n,) is to be added to g.
    """
    if gentle:
        # Small tilts: log(1 + small), so that nothing cancels however large the temperature.
        p = np.exp(weight)
        p = np.broadcast_to(p / p.sum(-1, keepdims=True), loss.shape)
        middle = _dot(p, loss)
        tilt = np.expm1(eta * (loss - middle[:, None]))
        log_mass = eta * middle + np.log1p(_dot(p, tilt))
        p = p * (1.0 + tilt)
    else:
        p = eta * loss
        p += weight
        top = p.max(axis=1)
        p -= top[:, None]
        np.exp(p, out=p)
        log_mass = top + np.log(p.sum(axis=1))
    p /= p.sum(axis=1, keepdims=True)
    moved = slope * g
    mean = np.stack([_dot(p, slope), _dot(p, moved), _dot(p, loss)])
    away = [slope - mean[0][:, None], moved - mean[1][:, None], loss - mean[2][:, None]]
    cov = []
    for i in range(3):
        weighted = p * away[i]
        cov += [_dot(weighted, away[j]) for j in range(i, 3)]
    p *= second
    bend = [p.sum(axis=1), _dot(p, g)]
    p *= g
    bend.append(_dot(p, g))
    if centre is not None:  # (a, b, l) -> (a, b + c a, l), and g -> g + c
        c00, c01, c02, c11, c12, c22 = cov
        mean[1] += centre * mean[0]
        cov = [c00, c01 + centre * c00, c02, c11 + centre * (2.0 * c01 + centre * c00),
               c12 + centre * c02, c22]  # fmt: skip
        bend = [bend[0], bend[1] + centre * bend[0],
                bend[2] + centre * (2.0 * bend[1] + centre * bend[0])]  # fmt: skip
    return log_mass, mean, np.stack(cov), np.stack(bend)


def _dot(a, b):
    return a @ b if b.ndim == 1 else np.einsum("ij,ij->i", a, b)


def logistic_middle(f: np.ndarray, s: float, eta: float):
    """The part of softplus(f + s g) between -FAR and FAR, for wide noise.

    Panels of length 4 with 16 Gauss-Legendre points: poles lie pi away from the real line, so the
    error falls like 3.4^-32. Where eta s is so large that a panel is too long for the tilt, the
    two straight parts outweigh this one beyond rounding.
    """
    half = FAR / _PANELS
    centres = -FAR + half * (2.0 * np.arange(_PANELS) + 1.0)
    x = (centres[:, None] + half * _POINTS[0]).ravel()
    log_width = np.log(half * np.tile(_POINTS[1], _PANELS) / (s * math.sqrt(2.0 * math.pi)))
    derivatives = _softplus(x)

    def block(part):
        g = (x - f[part, None]) / s
        loss, slope, second = (np.broadcast_to(each, g.shape) for each in derivatives)
        return _moments(log_width - 0.5 * g * g, slope, g, loss, second, eta, False)

    return _by_blocks(block, [(np.arange(len(f)), len(x))])


def huber_inside(r: np.ndarray, s: float, eta: float, delta: float):
    """The part of a Huber loss within delta: exp of a quadratic between two ends.

    Both sides of its extremum are monotone; each is integrated from its larger end over what
    lies within e^-40 of it, by a Gauss-Legendre rule of 24 points.
    """
    bend = eta - 1.0 / (s * s)
    pull = r / (s * s)
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = np.where(bend == 0.0, delta, -pull / bend)
    turn = np.clip(turn, -delta, delta)

    def exponent(x):
        return 0.5 * eta * x * x - 0.5 * ((x - r) / s) ** 2

    nodes, logs = [], []
    for end in (-delta, delta):
        other = np.full_like(r, end)
        outside = exponent(other) > exponent(turn)
        peak = np.where(outside, other, turn)
        toward = np.where(outside, turn, other)
        length = np.abs(toward - peak)
        sign = np.sign(toward - peak)
        fall = np.maximum(-sign * (bend * peak + pull), 0.0)
        root = fall**2 - 2.0 * _DROP * bend
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(
                root >= 0.0, 2.0 * _DROP / (fall + np.sqrt(np.maximum(root, 0.0))), np.inf
            )
        length = np.where(reach < length, reach, length)
        nodes.append(peak[:, None] + (sign * length)[:, None] * (0.5 * (_GAUSS[0] + 1.0)))
        with np.errstate(divide="ignore"):
            logs.append(np.log(length)[:, None] + np.log(0.5 * _GAUSS[1]))
    x = np.concatenate(nodes, axis=1)
    weight = np.concatenate(logs, axis=1) - math.log(s * math.sqrt(2.0 * math.pi))
    g = (x - r[:, None]) / s
    return _moments(weight - 0.5 * g * g, x, g, 0.5 * x * x, np.ones_like(x), eta, False)
