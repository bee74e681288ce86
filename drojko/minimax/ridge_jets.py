r"""Worst-case losses of single points with their derivatives, kinks smoothed on request.

.. math:: G(u, \kappa) = \max_t \ell(u + t, y) - \kappa t^2, \qquad \kappa = \lambda / n^2

By the envelope theorem ∂G/∂u = 2κt = ℓ'(u + t) and ∂G/∂κ = -t². G is convex in u with at most one
kink, where two maximisers tie. A smoothing of width mu mixes the two instead of choosing: the
mixture is a transport plan, so a point at which the smoothed gradient vanishes still certifies
itself by duality (`ridge_bound`), and ``bias`` says by how much smoothing raised the value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike

from drojko.losses import Hinge, Huber, Logistic, Loss, Quantile, Squared, even_logistic_root

__all__ = ["Atom", "Jet", "conjugate", "jet", "kink_free", "kinks"]

Number = np.ndarray | float


@dataclass
class Atom:
    """A share ``weight`` of each point's mass, moved to where the loss has slope ``slope``."""

    weight: Number
    slope: Number
    flip: bool = False


@dataclass
class Jet:
    """Value, first and second derivatives in (u, κ, λ); ``l`` terms only where labels flip.

    ``curve_k`` is ∂G/∂κ as it enters second derivatives of the whole problem through those of κ:
    where there are duals it belongs to their mixture, like the other second derivatives.
    """

    value: np.ndarray
    u: Number
    k: Number
    uu: Number = 0.0
    uk: Number = 0.0
    kk: Number = 0.0
    bias: Number = 0.0
    l: Number = 0.0  # noqa: E741
    ul: Number = 0.0
    kl: Number = 0.0
    ll: Number = 0.0
    curve_k: Number | None = None
    atoms: list[Atom] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.curve_k is None:
            self.curve_k = self.k


def jet(
    loss: Loss,
    u: np.ndarray,
    y: np.ndarray,
    kappa: float,
    mu: float,
    flip_price: tuple[float, float] | None = None,
    duals: np.ndarray | None = None,
) -> Jet:
    """Jet of every point, smoothed by `mu` in units of the loss.

    `flip_price` = (λ, label cost) lets the adversary change a class label at λ * label cost.
    `duals` (kinks, 4, n) makes second derivatives those of the primal-dual system; see `_bend`.
    """
    if duals is None:
        duals = np.empty((3, 0, 0))
    own = _own_label(loss, u, y, kappa, mu, duals[0])
    if flip_price is None:
        return own
    lam, cost = flip_price
    other = _own_label(loss, u, 1.0 - y, kappa, mu, duals[1])
    other.value = other.value - lam * cost
    other.l = -cost
    for atom in other.atoms:
        atom.flip = True
    return _smooth_max(own, other, mu, duals[2])


def kinks(flips: bool) -> int:
    """How many kinks `jet` smooths, the leading size of its `duals`."""
    return 3 if flips else 1


def _own_label(
    loss: Loss, u: np.ndarray, y: np.ndarray, kappa: float, mu: float, dual: np.ndarray
) -> Jet:
    if isinstance(loss, Logistic):
        return _logistic(u, y, kappa, mu, dual)
    if isinstance(loss, Hinge):
        s = 2.0 * y - 1.0
        zero, line = _line(np.zeros_like(u), 0.0, kappa), _line(1.0 - s * u, -s, kappa)
        return _smooth_max(zero, line, mu, dual)
    if isinstance(loss, Quantile):
        low, high = loss.slopes
        r = u - y
        return _smooth_max(_line(low * r, low, kappa), _line(high * r, high, kappa), mu, dual)
    if isinstance(loss, Huber):
        return _huber(u - y, loss.delta, kappa, mu, dual)
    if isinstance(loss, Squared):
        grown = 1.0 if np.isinf(kappa) else kappa / (kappa - 1.0)
        slope = 2.0 * grown * (u - y)
        return Jet(0.5 * slope * (u - y), slope, 0.0, atoms=[Atom(1.0, slope)])
    raise TypeError(f"no jet for {loss!r}")


def kink_free(loss: Loss, kappa: float) -> bool:
    """Whether G is differentiable in u at this κ, with a margin for later changes of κ."""
    if isinstance(loss, Logistic):
        return kappa > 0.1275
    return isinstance(loss, Huber) and kappa > 0.51


def _line(value: np.ndarray, slope: Number, kappa: float) -> Jet:
    gain = 0.25 * slope * slope / kappa
    return Jet(
        value + gain, slope, -gain / kappa, kk=2.0 * gain / kappa**2, atoms=[Atom(1.0, slope)]
    )


def _bend(dual: np.ndarray, c: np.ndarray, e: np.ndarray, q: np.ndarray) -> np.ndarray:
    """1 - w ρ in place of q = 1 - ρ², the curvature of e = sqrt(c² + width²) times e; ρ = c/e.

    Newton's method on the pair {gradient with w for ρ, w e = c} instead of on the gradient alone
    has this curvature (T. Chan, G. Golub, P. Mulet 1999, "A nonlinear primal-dual method for total
    variation-based image restoration"); it keeps converging fast as the width goes to zero. `dual`
    holds c, e, ρ and w of the last call, and w follows the linearised second equation.
    """
    if dual.size == 0:
        return q
    rho = c / e
    old_c, gain, offset, w = dual
    w = rho if np.isnan(w[0]) else np.clip(w + offset + gain * (c - old_c), -1.0, 1.0)
    bend = 1.0 - w * rho
    dual[0], dual[1], dual[2], dual[3] = c, bend / e, rho - w, w
    return bend


def _width(mu: float, needed: bool, dual: np.ndarray) -> float:
    """`mu` where a kink is possible; otherwise 0, and the duals start afresh."""
    if not needed:
        dual[...] = np.nan
    return mu if needed else 0.0


def _share(dual: np.ndarray, primal: Number) -> Number:
    """Mass on the upper side of a kink: the dual (1 + w) / 2 where there is one.

    It balances far better than the primal (1 + ρ) / 2, which is stiff when the width is small.
    """
    return 0.5 + 0.5 * dual[3] if dual.size else primal


def _smooth_max(a: Jet, b: Jet, mu: float, dual: np.ndarray) -> Jet:
    """max(a, b) = a + max(z, 0) with z = b - a, where max(z, 0) ~ (z + sqrt(z² + 4 mu²)) / 2."""
    z = b.value - a.value
    if mu > 0:
        root = np.sqrt(z * z + 4.0 * mu * mu)
        ratio = mu / root
        share = np.where(z > 0, 0.5 + 0.5 * z / root, 2.0 * ratio * mu / (root + np.abs(z)))
        bend = 0.5 * _bend(dual, z, root, 4.0 * ratio * ratio) / root
        extra = 2.0 * ratio * mu
    else:
        share, bend, extra = (z > 0).astype(np.float64), 0.0, 0.0
    rest, mix = 1.0 - share, _share(dual, share) if mu > 0 else share
    dz = {name: getattr(b, name) - getattr(a, name) for name in "ukl"}

    def first(name: str) -> Number:
        return getattr(a, name) + share * dz[name]

    def second(name: str) -> Number:
        p, q = getattr(a, name), getattr(b, name)
        flat = p + mix * (q - p) if np.any(p) or np.any(q) else 0.0
        return flat + bend * dz[name[0]] * dz[name[1]]

    out = Jet(a.value + share * z + extra, first("u"), first("k"))
    out.uu, out.uk, out.kk = second("uu"), second("uk"), second("kk")
    if np.any(dz["l"]):
        out.l = first("l")
        out.ul, out.kl, out.ll = second("ul"), second("kl"), second("ll")
    out.bias = extra + rest * a.bias + share * b.bias
    out.curve_k = a.curve_k + mix * (b.curve_k - a.curve_k)
    out.atoms = [Atom((1.0 - mix) * p.weight, p.slope, p.flip) for p in a.atoms]
    out.atoms += [Atom(mix * p.weight, p.slope, p.flip) for p in b.atoms]
    return out


def _logistic(u: np.ndarray, y: np.ndarray, kappa: float, mu: float, dual: np.ndarray) -> Jet:
    # Notation of drojko.losses.Logistic: G = max_t log 2cosh(t/2) - κt² + ct - κm², c = ½ - 2κm,
    # even in c with a kink at 0 for κ < 1/8; smoothing replaces |c| by e = sqrt(c² + (2κ mu)²).
    s = 2.0 * y - 1.0
    m = s * u
    if np.isinf(kappa):
        p = 1.0 / (1.0 + np.exp(np.minimum(m, 700.0)))
        value = np.maximum(-m, 0.0) + np.log1p(np.exp(-np.abs(m)))
        return Jet(value, -s * p, 0.0, uu=p * (1.0 - p), atoms=[Atom(1.0, -s * p)])
    mu = _width(mu, kappa <= 0.5, dual)
    c = 0.5 - 2.0 * kappa * m
    width = 2.0 * kappa * mu
    e = np.sqrt(c * c + width * width) if mu > 0 else np.abs(c)
    tau = even_logistic_root(torch.from_numpy(e), torch.tensor(kappa, dtype=torch.float64)).numpy()
    fall = np.exp(-tau)
    p_low, p_high = fall / (1.0 + fall), 1.0 / (1.0 + fall)  # sigmoid(-τ), sigmoid(τ)
    bend = p_low * p_high
    stiff = np.maximum(2.0 * kappa - bend, 1e-12 * kappa)
    soft_low = np.log1p(fall)  # softplus(-τ)
    if mu == 0.0:
        up = c >= 0
        p = np.where(up, p_high, p_low)
        v = p / (2.0 * kappa)
        value = np.where(up, tau, 0.0) + soft_low - kappa * v * v
        ratio = bend / stiff
        return Jet(
            value,
            -s * p,
            -v * v,
            uu=2.0 * kappa * ratio,
            uk=s * 2.0 * v * ratio,
            kk=4.0 * v * v / stiff,
            atoms=[Atom(1.0, -s * p)],
        )
    gap = width * width
    over = np.where(c > 0, c + e, gap / (e - np.minimum(c, 0.0)))  # e + c without cancellation
    under = np.where(c > 0, gap / (e + np.maximum(c, 0.0)), e - c)  # e - c
    share = 0.5 * over / e
    v_high, v_low = (p_high + under) / (2.0 * kappa), (p_low - over) / (2.0 * kappa)
    cost = share * v_high * v_high + (1.0 - share) * v_low * v_low
    bias = tau * gap / e
    # Second derivatives, with the dual mixture where there is one (then ρ² becomes w ρ).
    q = _bend(dual, c, e, (width / e) ** 2)
    mix = _share(dual, share)
    v = mix * v_high + (1.0 - mix) * v_low
    spread = 4.0 * mix * (1.0 - mix)
    ratio, slack = bend / stiff, q * (tau / e - 1.0 / stiff)
    return Jet(
        share * tau + soft_low - kappa * cost + bias,
        -s * (share * p_high + (1.0 - share) * p_low),
        -cost,
        uu=(1.0 - q) * 2.0 * kappa * ratio + q * kappa * (p_high - p_low) / e,
        uk=s * (2.0 * v * ratio + 4.0 * kappa * m * slack),
        kk=4.0 * (v * v + tau * tau * spread) / stiff + 4.0 * m * m * slack,
        bias=bias,
        curve_k=-(mix * v_high * v_high + (1.0 - mix) * v_low * v_low),
        atoms=[Atom(mix, -s * p_high), Atom(1.0 - mix, -s * p_low)],
    )


def _huber(r: np.ndarray, delta: float, kappa: float, mu: float, dual: np.ndarray) -> Jet:
    # G = δ H(|r|) + const with H quadratic up to ρ = δ(2κ-1)/(2κ), then linear (see Huber).
    mu = _width(mu, kappa <= 2.0, dual)
    knot = delta * max(1.0 - 0.5 / kappa, 0.0)
    width = mu / delta
    e = np.sqrt(r * r + width * width) if mu > 0 else np.abs(r)
    inside = e < knot
    slope = np.where(inside, e * (delta / max(knot, 1e-300)), delta)
    value = np.where(inside, 0.5 * slope * e, delta * e + 0.25 * delta**2 / kappa - 0.5 * delta**2)
    shift = slope / (2.0 * kappa)
    stiff = 2.0 * kappa - 1.0
    if mu > 0:
        rho, q = r / e, (width / e) ** 2
        bias = slope * width * width / e
        q = _bend(dual, r, e, q)
        sign = 2.0 * _share(dual, 0.5 + 0.5 * rho) - 1.0
    else:
        rho, q, bias = np.sign(r), 0.0, 0.0
        sign = rho
    bend = np.where(inside, delta / max(knot, 1e-300), 0.0)
    tie = q * slope / e if mu > 0 else 0.0
    # At κ = inf every term in κ vanishes; numpy would make inf * 0 of some.
    finite = np.isfinite(kappa)
    uk = np.where(inside, -2.0 * shift / stiff, 0.0) * sign if finite else 0.0
    kk = 4.0 * shift * shift / np.where(inside, stiff, 2.0 * kappa) if finite else 0.0
    return Jet(
        value,
        slope * rho,
        -shift * shift,
        uu=(1.0 - q) * bend + tie,
        uk=uk,
        kk=kk,
        bias=bias,
        atoms=[
            Atom(0.5 + 0.5 * sign, slope),
            Atom(0.5 - 0.5 * sign, -slope),
        ],
    )


def conjugate(loss: Loss, slope: ArrayLike, y: np.ndarray) -> np.ndarray:
    """``-sup_f (slope f - loss(f, y)) = inf_f loss(f, y) - slope f``, for slopes that occur."""
    p = np.asarray(slope, dtype=np.float64)
    if isinstance(loss, Logistic):
        share = np.clip((1.0 - 2.0 * y) * p, 0.0, 1.0)
        rest = 1.0 - share
        return -(
            share * np.log(np.maximum(share, 1e-300)) + rest * np.log(np.maximum(rest, 1e-300))
        )
    if isinstance(loss, Hinge):
        return (1.0 - 2.0 * y) * p
    if isinstance(loss, Quantile):
        return -p * y
    if isinstance(loss, Huber):
        return -0.5 * p * p - p * y
    return -0.25 * p * p - p * y  # squared
