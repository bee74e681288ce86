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
    `duals` (kinks, 4, n) makes second derivatives those of the primal-dual system; see `_bend`.
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
    gap, mean = high - low, 0.5 * (high + low)
    # Half the difference of the two raised lines is d x with d = gap/2.
    raised = x + 2.0 * mean * sigma
    square = 0.5 * (high**2 + low**2)
    linear = mean * x + square * sigma

    def branch(e: np.ndarray) -> _Branch:
        return _Branch(0.5 * gap * e, 0.5 * gap, 0.0, squares=False)

    return _even(raised, (sign, 2.0 * mean), linear, (sign * mean, square), branch, mu, dual)


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


@dataclass
class _Branch:
    """B(e, σ) on its smooth side: value, d = ∂B/∂e, rate = ∂d/∂e, and whether d² = ∂B/∂σ."""

    value: np.ndarray
    d: Number
    rate: Number
    squares: bool = True


def _even(
    x: np.ndarray,
    x_slopes: tuple[Number, float],
    linear: np.ndarray,
    slopes: tuple[Number, float],
    branch,
    mu: float,
    dual: np.ndarray,
) -> Jet:
    """Jet of linear + B(|x|, σ): slopes of `x` and of `linear` are in (u, σ)."""
    if mu > 0:
        e = np.sqrt(x * x + mu * mu)
        rho, q = x / e, (mu / e) ** 2
        share = np.where(x > 0, 0.5 + 0.5 * rho, 0.5 * q / (1.0 + np.abs(rho)))
        b = branch(e)
        bias = b.d * mu * mu / e
        q = _bend(dual, x, e, q)
        mix = _share(dual, share)
    else:
        rho, q = np.where(x >= 0, 1.0, -1.0), 0.0
        share = mix = 0.5 + 0.5 * rho
        e = np.abs(x)
        b = branch(e)
        bias = 0.0
    w = 2.0 * mix - 1.0
    square, double = (b.d * b.d, 2.0 * b.d * b.rate) if b.squares else (0.0, 0.0)
    xx = b.rate * (1.0 - q) + (q * b.d / np.maximum(e, 1e-300) if mu > 0 else 0.0)
    xs, ss = double * w, 4.0 * square * b.rate
    (xu, xt), (lu, lt) = x_slopes, slopes
    out = Jet(linear + b.value, lu + b.d * rho * xu, lt + b.d * rho * xt + square, bias=bias)
    out.uu = xx * xu * xu
    out.us = (xx * xt + xs) * xu
    out.ss = xx * xt * xt + 2.0 * xs * xt + ss
    out.curve_s = lt + b.d * w * xt + square
    out.atoms = [Atom(mix, lu + b.d * xu), Atom(1.0 - mix, lu - b.d * xu)]
    return out


def _bend(dual: np.ndarray, x: np.ndarray, e: np.ndarray, q: np.ndarray) -> np.ndarray:
    """1 - w ρ in place of q = 1 - ρ², the curvature of e = sqrt(x² + width²) times e; ρ = x/e.

    Newton's method on the pair {gradient with w for ρ, w e = x} instead of on the gradient alone
    has this curvature (T. Chan, G. Golub, P. Mulet 1999, "A nonlinear primal-dual method for total
    variation-based image restoration"); it keeps converging fast as the width goes to zero.
    `dual` holds x, (1 - w ρ)/e, ρ - w and w of the last call; w follows the linearised second
    equation. After a step of length t the caller multiplies the third row by t.
    """
    if dual.size == 0:
        return q
    rho = x / e
    old_x, gain, offset, w = dual
    w = rho if np.isnan(w[0]) else np.clip(w + offset + gain * (x - old_x), -1.0, 1.0)
    bend = 1.0 - w * rho
    dual[0], dual[1], dual[2], dual[3] = x, bend / e, rho - w, w
    return bend


def _share(dual: np.ndarray, primal: Number) -> Number:
    """Mass on the upper side of a kink: the dual (1 + w) / 2 where there is one.

    It balances far better than the primal (1 + ρ) / 2, which is stiff when the width is small.
    """
    return 0.5 + 0.5 * dual[3] if dual.size else primal


def _width(mu: float, needed: bool, dual: np.ndarray) -> float:
    """`mu` where a kink is possible; otherwise 0, and the duals start afresh."""
    if not needed:
        dual[...] = np.nan
    return mu if needed else 0.0


def _smooth_max(a: Jet, b: Jet, mu: float, dual: np.ndarray) -> Jet:
    """max(a, b) = a + max(z, 0) with z = b - a, where max(z, 0) ~ (z + sqrt(z² + 4 mu²)) / 2."""
    z = b.value - a.value
    root = np.sqrt(z * z + 4.0 * mu * mu)
    ratio = mu / root
    share = np.where(z > 0, 0.5 + 0.5 * z / root, 2.0 * ratio * mu / (root + np.abs(z)))
    bend = 0.5 * _bend(dual, z, root, 4.0 * ratio * ratio) / root
    extra, rest, mix = 2.0 * ratio * mu, 1.0 - share, _share(dual, share)
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
    m = s * u
    if sigma == 0.0:
        p = 1.0 / (1.0 + np.exp(np.minimum(m, 700.0)))
        value = np.maximum(-m, 0.0) + np.log1p(np.exp(-np.abs(m)))
        curve = p * (1.0 - p)
        return _one(value, -s * p, curve)
    mu = _width(mu, sigma > 0.5, dual)
    kappa = 0.25 / sigma
    x = sigma - m
    e = np.sqrt(x * x + mu * mu) if mu > 0 else np.abs(x)
    c = torch.from_numpy(2.0 * kappa * e)
    tau = even_logistic_root(c, torch.tensor(kappa, dtype=torch.float64)).numpy()
    fall = np.exp(-tau)
    low, high = fall / (1.0 + fall), 1.0 / (1.0 + fall)
    d, curve = 0.5 * (high - low), low * high
    rate = curve / np.maximum(1.0 - 2.0 * sigma * curve, 1e-12)

    def branch(_: np.ndarray) -> _Branch:
        return _Branch(e * d, d, rate)  # its value is replaced below

    out = _even(x, (-s, 1.0), 0.0 * x, (-0.5 * s, 0.25), branch, mu, dual)
    rho = x / e if mu > 0 else np.where(x >= 0, 1.0, -1.0)
    share = 0.5 + 0.5 * rho
    if mu > 0:
        share = np.where(x > 0, share, 0.5 * (mu / e) ** 2 / (1.0 + np.abs(rho)))
    mean = share * high + (1.0 - share) * low
    square = share * high * high + (1.0 - share) * low * low
    entropy = np.log1p(fall) + tau * low
    out.value = sigma * square - m * mean + entropy + out.bias
    out.u, out.s = -s * mean, square
    shares = [atom.weight for atom in out.atoms]
    out.curve_s = shares[0] * high * high + shares[1] * low * low
    out.atoms = [Atom(shares[0], -s * high), Atom(shares[1], -s * low)]
    return out


def huber_jet(r: np.ndarray, delta: float, sigma: float, mu: float, dual: np.ndarray) -> Jet:
    # max_|p|<=δ p r + p² (σ - 1/2): interior for σ < 1/2, otherwise p = ±δ.
    room = 1.0 - 2.0 * sigma

    def branch(e: np.ndarray) -> _Branch:
        inside = e < delta * room
        d = np.where(inside, e / (room if room > 0 else 1.0), delta)
        rate = np.where(inside, 1.0 / (room if room > 0 else 1.0), 0.0)
        return _Branch(d * (e - 0.5 * room * d), d, rate)

    # The width is in units of r: the loss has slope δ there.
    return _even(r, (1.0, 0.0), 0.0 * r, (0.0, 0.0), branch, mu / delta, dual)


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
