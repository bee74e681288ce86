r"""Worst-case losses of single points with their derivatives, kinks smoothed on request.

.. math:: G(u, \sigma) = \max_t \ell(u + t, y) - t^2 / (4\sigma)
                       = \max_p \; p u + p^2 \sigma - \ell^*(p), \qquad \sigma = n^2 / (4\lambda)

As a maximum of linear functions G is jointly convex in (u, σ), with ∂G/∂u = p and ∂G/∂σ = p² for
the maximising slope p = t/(2σ). For every loss here it has the form

.. math:: G = \text{linear}(u, \sigma) + B(|x|, \sigma), \qquad B(e, \sigma) = \max_{d \ge 0}
              \{ e d + \sigma d^2 - \text{even}(d) \}, \qquad x = \text{linear}(u, \sigma),

so its only kink is x = 0, where the slopes with d and -d tie. Smoothing replaces |x| by
sqrt(x² + width²), which mixes the two: the mixture is a transport plan, so a point at which the
smoothed gradient vanishes certifies itself by duality (`ridge_bound`), and ``bias`` says by how
much the smoothed value exceeds that of its plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.exceptions import UnsupportedError

__all__ = [
    "Atom",
    "Jet",
    "bent",
    "even_logistic_root",
    "huber_jet",
    "jet",
    "kinks",
    "lines_jet",
    "logistic_jet",
    "logistic_shift",
    "smooth_jet",
    "smooth_shift",
    "square_jet",
]

Number = np.ndarray | float

_BLOCK = 1 << 16  # entries per block of an iterative envelope: its work arrays stay in cache
_MAX_NEWTON = 64


@dataclass
class Atom:
    """A share ``weight`` of each point's mass, moved to where the loss has slope ``slope``."""

    weight: Number
    slope: Number
    flip: bool = False


@dataclass
class Jet:
    """Value, first and second derivatives in (u, σ, λ); ``l`` terms only where labels flip.

    ``curve_s`` is ∂G/∂σ as it multiplies second derivatives of σ: where there are duals it belongs
    to their mixture, like all second derivatives.
    """

    value: np.ndarray
    u: Number
    s: Number
    uu: Number = 0.0
    us: Number = 0.0
    ss: Number = 0.0
    bias: Number = 0.0
    l: Number = 0.0  # noqa: E741
    ul: Number = 0.0
    sl: Number = 0.0
    ll: Number = 0.0
    curve_s: Number = 0.0
    atoms: list[Atom] = field(default_factory=list)


def jet(
    loss: Any,
    u: np.ndarray,
    y: np.ndarray,
    sigma: float,
    mu: float,
    flip_price: tuple[float, float] | None = None,
    duals: np.ndarray | None = None,
) -> Jet:
    """Jet of every point, smoothed by `mu` in units of the loss; `sigma` = 0 is the plain loss.

    `flip_price` = (λ, label cost) lets the adversary change a class label at λ * label cost.
    `duals` (kinks, 4, n) makes second derivatives those of the primal-dual system; see `bent`.
    """
    if duals is None:
        duals = np.empty((3, 0, 0))
    own = loss.worst_jet(u, y, sigma, mu, duals[0])
    if flip_price is None:
        return own
    lam, cost = flip_price
    other = loss.worst_jet(u, 1.0 - y, sigma, mu, duals[1])
    other.value = other.value - lam * cost
    other.l = -cost
    for atom in other.atoms:
        atom.flip = True
    return _smooth_max(own, other, mu, duals[2])


def kinks(flips: bool) -> int:
    """How many kinks `jet` smooths, the leading size of its `duals`."""
    return 3 if flips else 1


def lines_jet(
    x: np.ndarray,
    sign: Number,
    slopes: tuple[float, float],
    sigma: float,
    mu: float,
    dual: np.ndarray,
) -> Jet:
    """The larger of two lines through x = 0, where u enters x with this sign."""
    low, high = slopes
    raised = x + (high + low) * sigma  # half the difference of the two raised lines, over gap / 2
    e = _rounded(raised, mu)
    ends = sign * high, sign * low
    return _even(sign * x, sigma, raised, e, (sign, high + low), *ends, 0.0, 0.0, mu, dual)


def square_jet(r: np.ndarray, sigma: float) -> Jet:
    """The squared residual, finite for sigma < 1/4."""
    room = 1.0 - 4.0 * sigma
    return _one(r * r / room, 2.0 * r / room, 2.0 / room)


def smooth_jet(loss: Any, u: np.ndarray, y: np.ndarray, sigma: float) -> Jet:
    """A smooth convex loss while nothing but its own cost bends more than it does, by Newton."""
    t = smooth_shift(loss, u, y, sigma)
    value, slope, second = loss.line(u + t, y)
    if sigma > 0.0:
        value = value - t * t / (4.0 * sigma)
    return _one(value, slope, second / (1.0 - 2.0 * sigma * second))


def smooth_shift(loss: Any, u: np.ndarray, y: np.ndarray, sigma: float) -> np.ndarray:
    """The maximiser of loss(u + t) - t² / (4 sigma), concave as 2 sigma curvature < 1."""
    t = np.zeros_like(u)
    if sigma == 0.0:
        return t
    if not 2.0 * sigma * loss.curvature < 1.0:
        raise UnsupportedError(
            f"{type(loss).__name__} has no `worst_jet`, which exact linear training needs once "
            "the worst case is not concave (2 sigma * curvature >= 1): implement it and `_shift`, "
            "take a smaller radius, or give the function itself as loss="
        )
    low, high = np.full_like(u, -np.inf), np.full_like(u, np.inf)
    for _ in range(100):
        _, slope, second = loss.line(u + t, y)
        rest = t - 2.0 * sigma * slope
        low, high = np.where(rest <= 0.0, t, low), np.where(rest >= 0.0, t, high)
        new = t - rest / (1.0 - 2.0 * sigma * second)
        inside = (new > low) & (new < high)
        # The slope of `rest` is at least this: a step that is safe where Newton's is not.
        safe = t - rest
        middle = np.where(np.isfinite(low) & np.isfinite(high), 0.5 * (low + high), safe)
        new = np.where(rest == 0.0, t, np.where(inside, new, middle))
        if (np.abs(new - t) <= 4e-16 * (np.abs(t) + np.abs(u))).all():
            return new
        t = new
    return t


def _one(value: np.ndarray, slope: np.ndarray, bend: Number) -> Jet:
    """Jet of a worst case with one maximiser, from its slope and curvature in u."""
    square = slope * slope
    out = Jet(value, slope, square, uu=bend, curve_s=square, atoms=[Atom(1.0, slope)])
    out.us, out.ss = 2.0 * slope * bend, 4.0 * square * bend
    return out


def _rounded(x: np.ndarray, mu: float) -> np.ndarray:
    """|x|, or the smooth function of this width in its place."""
    return np.sqrt(x * x + mu * mu) if mu > 0 else np.abs(x)


def _even(
    at: np.ndarray,
    sigma: float,
    x: np.ndarray,
    e: np.ndarray,
    x_slopes: tuple[Number, float],
    upper: Number,
    lower: Number,
    rate: Number,
    rest: Number,
    mu: float,
    dual: np.ndarray,
) -> Jet:
    """Jet of a loss whose maximising slopes are ``upper`` and ``lower`` on the sides of x = 0.

    ``x_slopes`` +-1 and that in σ; d is half the difference of the two slopes, up to sign, and
    ``rate`` its derivative in ``e``, the rounded |x|; ``rest`` is minus the conjugate of both
    slopes, with u counted as ``at``.
    """
    xu, xt = x_slopes
    gap, tilt = upper - lower, lower * lower
    d, squares = 0.5 * xu * gap, upper * upper - tilt
    if mu > 0:
        rho, q = x / e, (mu / e) ** 2
        share = np.where(x > 0, 0.5 + 0.5 * rho, 0.5 * q / (1.0 + np.abs(rho)))
        bias = d * mu * mu / e
        q, mix = bent(dual, x, e, q, share)
        xx = rate * (1.0 - q) + q * d / e
    else:
        share = mix = np.where(x >= 0, 1.0, 0.0)
        bias, xx = 0.0, rate
    first, second = lower + share * gap, tilt + share * squares
    out = Jet(at * first + sigma * second + rest + bias, first, second, bias=bias)
    xs = 2.0 * d * rate * (2.0 * mix - 1.0)
    out.uu = xx
    out.us = (xx * xt + xs) * xu
    out.ss = (xx * xt + 2.0 * xs) * xt + 4.0 * d * d * rate
    out.curve_s = tilt + mix * squares
    out.atoms = [Atom(mix, upper), Atom(1.0 - mix, lower)]
    return out


def bent(
    dual: np.ndarray, x: np.ndarray, e: np.ndarray, q: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """1 - w ρ in place of q = 1 - ρ², the curvature of e = sqrt(x² + width²) times e; ρ = x/e.

    Newton's method on the pair {gradient with w for ρ, w e = x} instead of on the gradient alone
    has this curvature (T. Chan, G. Golub, P. Mulet 1999, "A nonlinear primal-dual method for total
    variation-based image restoration"); it keeps converging fast as the width goes to zero.
    `dual` holds x, (1 - w ρ)/e, ρ - w and w of the last call; w follows the linearised second
    equation. After a step of length t the caller multiplies the third row by t.

    The mass on the upper side, in place of ``share``, is (1 + w) / 2: it balances far better than
    the primal (1 + ρ) / 2, which is stiff when the width is small.
    """
    if dual.size == 0:
        return q, share
    rho = x / e
    old_x, gain, offset, w = dual
    fresh = np.isnan(w)
    if fresh.all():
        w = rho
    else:
        w = np.clip(w + offset + gain * (x - old_x), -1.0, 1.0)
        w = np.where(fresh, rho, w) if fresh.any() else w
    bend = 1.0 - w * rho
    dual[0], dual[1], dual[2], dual[3] = x, bend / e, rho - w, w
    return bend, 0.5 + 0.5 * w


def _smooth_max(a: Jet, b: Jet, mu: float, dual: np.ndarray) -> Jet:
    """max(a, b) = a + max(z, 0) with z = b - a, where max(z, 0) ~ (z + sqrt(z² + 4 mu²)) / 2."""
    z = b.value - a.value
    root = np.maximum(np.sqrt(z * z + 4.0 * mu * mu), 2.0 * mu + 1e-300)  # no width, and a tie
    ratio = mu / root
    share = np.where(z > 0, 0.5 + 0.5 * z / root, 2.0 * ratio * mu / (root + np.abs(z)))
    bend, mix = bent(dual, z, root, 4.0 * ratio * ratio, share)
    bend, extra, rest = 0.5 * bend / root, 2.0 * ratio * mu, 1.0 - share
    dz = {name: getattr(b, name) - getattr(a, name) for name in "usl"}

    def first(name: str) -> Number:
        return getattr(a, name) + share * dz[name]

    def second(name: str) -> Number:
        p, q = getattr(a, name), getattr(b, name)
        return p + mix * (q - p) + bend * dz[name[0]] * dz[name[1]]

    out = Jet(a.value + share * z + extra, first("u"), first("s"))
    out.uu, out.us, out.ss = second("uu"), second("us"), second("ss")
    out.l, out.ul, out.sl, out.ll = first("l"), second("ul"), second("sl"), second("ll")
    out.bias = extra + rest * a.bias + share * b.bias
    out.curve_s = a.curve_s + mix * (b.curve_s - a.curve_s)
    out.atoms = [Atom((1.0 - mix) * p.weight, p.slope, p.flip) for p in a.atoms]
    out.atoms += [Atom(mix * p.weight, p.slope, p.flip) for p in b.atoms]
    return out


def logistic_jet(u: np.ndarray, y: np.ndarray, sigma: float, mu: float, dual: np.ndarray) -> Jet:
    # In the margin m: max_p -pm + p²σ + H(p); p = 1/2 ± d gives x = σ - m and the linear part
    # σ/4 - m/2. Written with τ = logit(1/2 + d), so that tails keep their relative accuracy.
    s = 2.0 * y - 1.0
    if sigma <= 0.5:  # no kink is possible, and duals start afresh
        mu, dual[...] = 0.0, np.nan
    kappa = 0.25 / sigma
    x = sigma - s * u
    e = _rounded(x, mu)
    c = torch.from_numpy(2.0 * kappa * e)
    tau = even_logistic_root(c, torch.tensor(kappa, dtype=torch.float64)).numpy()
    fall = np.exp(-tau)
    low, high = fall / (1.0 + fall), 1.0 / (1.0 + fall)
    curve = low * high
    rate = curve / np.maximum(1.0 - 2.0 * sigma * curve, 1e-12)
    entropy = np.log1p(fall) + tau * low
    return _even(u, sigma, x, e, (-s, 1.0), -s * high, -s * low, rate, entropy, mu, dual)


def huber_jet(r: np.ndarray, delta: float, sigma: float, mu: float, dual: np.ndarray) -> Jet:
    # max_|p|<=δ p r + p² (σ - 1/2): interior for σ < 1/2, otherwise p = ±δ.
    mu = mu / delta  # in units of r: the loss has slope δ there
    room, e = 1.0 - 2.0 * sigma, _rounded(r, mu)
    rate = (e < delta * room) / (room if room > 0 else 1.0)
    d = np.where(rate > 0.0, rate * e, delta)
    return _even(r, sigma, r, e, (1.0, 0.0), d, -d, rate, -0.5 * d * d, mu, dual)


def logistic_shift(margin: Tensor, kappa: Tensor) -> Tensor:
    r"""Fall v >= 0 of the margin that maximises log(1 + e^(v - margin)) - kappa v^2.

    With the new margin -t, so that v = t + m for the margin m,

    .. math:: \log(1+e^{t}) - \kappa (t+m)^2
              = \log 2\cosh(t/2) - \kappa t^2 + c\,t - \kappa m^2, \qquad c = 1/2 - 2\kappa m.

    All but the term c t is even in t, so a global maximiser has the sign of c: t = sign(c) τ,
    and τ ≥ 0 is the root of the concave function ½ tanh(τ/2) - 2κτ + \|c\|, reached by Newton's
    method from the right, monotonically. At c = 0 and κ < 1/8 both signs are maximisers.
    """
    c = 0.5 - 2.0 * kappa * margin
    tau = even_logistic_root(c.abs(), kappa.expand_as(c) if kappa.ndim else kappa)
    # The stationarity condition gives v with full relative accuracy even where t ~ -m.
    return torch.sigmoid(torch.where(c >= 0, tau, -tau)) / (2.0 * kappa)


def even_logistic_root(c: Tensor, kappa: Tensor) -> Tensor:
    """Root τ ≥ 0 (the larger one) of ``tanh(τ/2)/2 - 2 κ τ + c`` for ``c >= 0``, elementwise."""
    flat = c.reshape(-1)
    out = torch.empty_like(flat)
    for a in range(0, flat.numel(), _BLOCK):
        k = kappa.reshape(-1)[a : a + _BLOCK] if kappa.ndim else kappa
        out[a : a + _BLOCK] = _even_logistic_block(flat[a : a + _BLOCK], k)
    return out.reshape(c.shape)


def _even_logistic_block(c: Tensor, kappa: Tensor) -> Tensor:
    two_kappa = 2.0 * kappa
    tau = (c + 0.5) / two_kappa
    # tanh(x) <= x gives a second start on the right of the root, closer when κ is large.
    steep = two_kappa - 0.25
    tau = torch.where(steep > 0, torch.minimum(tau, c / steep.clamp_min(1e-300)), tau)
    tolerance = 8.0 * torch.finfo(c.dtype).eps
    live: Tensor | None = None  # indices still moving, once most have stopped
    x, cx, k2 = tau, c, two_kappa
    for iteration in range(_MAX_NEWTON):
        th = torch.tanh(0.5 * x)
        step = (0.5 * th - k2 * x + cx) / (0.25 * (th * th - 1.0) + k2)
        # Concavity: exact steps are negative, so a positive one is rounding at the root.
        step = torch.where(step < 0, step, torch.zeros_like(step))
        x = (x + step).clamp_min_(0.0)
        if live is None:
            tau = x
        else:
            tau[live] = x
        moving = -step > tolerance * x
        count = int(moving.sum())
        if count == 0:
            break
        if iteration >= 4 and count * 4 < x.numel():
            keep = moving.nonzero()[:, 0]
            live = keep if live is None else live[keep]
            x, cx = x[keep], cx[keep]
            k2 = k2[keep] if k2.ndim else k2
    return tau
