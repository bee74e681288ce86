"""Losses of binary classification: logistic and hinge."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import entr, expit
from torch import Tensor
from torch.nn.functional import logsigmoid

from drojko.losses.base import Loss, sign
from drojko.losses.smoothing import Kink, Smoothed

__all__ = ["Hinge", "Logistic", "even_logistic_root"]

_BLOCK = 1 << 16  # entries per block of an iterative envelope: its work arrays stay in cache
_MAX_NEWTON = 64
_NEAR = 8  # steps from a nearby worst case


class Logistic(Loss):
    r"""Binary logistic loss :math:`\log(1 + e^{-s f})`, ``s = 2 y - 1``.

    Worst case. With margin m = s f and new margin -t (so the margin falls by v = t + m),

    .. math:: \log(1+e^{t}) - \kappa (t+m)^2
              = \log 2\cosh(t/2) - \kappa t^2 + c\,t - \kappa m^2, \qquad c = 1/2 - 2\kappa m.

    All but the term c t is even in t, so a global maximiser has the sign of c: t = sign(c) τ,
    and τ ≥ 0 is the root of the concave function ½ tanh(τ/2) - 2κτ + \|c\|, reached by Newton's
    method from the right, monotonically. At c = 0 and κ < 1/8 both signs are maximisers.

    Examples
    --------
    >>> loss = Logistic()
    >>> f, y = torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([1, 1])
    >>> v = -loss.shift(f, y, 0.05)
    >>> bool(torch.allclose(torch.sigmoid(v - f), 2 * 0.05 * v))
    True
    """

    name = "logistic"
    lipschitz = 1.0
    curvature = 0.25
    attained = False

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return -logsigmoid(sign(f, y) * f)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        s = sign(f, y)
        return -s * torch.sigmoid(-s * f)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(f) * torch.sigmoid(-f)

    def smoothed(
        self, f: np.ndarray, y: np.ndarray, mu: float, dual: np.ndarray | None = None
    ) -> Smoothed:
        """The loss itself."""
        s = 2.0 * y - 1.0
        m = s * f
        p = expit(-m)
        slope = -s * p
        return Smoothed(np.logaddexp(0.0, -m), slope, p * (1.0 - p), slope)

    def least(self, slope: np.ndarray, y: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        """The entropy of a coin with probability |slope|."""
        p = np.clip(np.abs(slope), 0.0, 1.0)
        return entr(p) + entr(1.0 - p)

    def domain(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From -1 to 0 for label 1, from 0 to 1 for label 0."""
        return _towards(y)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        s = sign(f, y)
        c = 0.5 - 2.0 * kappa * (s * f)
        tau = even_logistic_root(c.abs(), kappa.expand_as(c) if kappa.ndim else kappa)
        # The stationarity condition gives v with full relative accuracy even where t ~ -m.
        return -s * torch.sigmoid(torch.where(c >= 0, tau, -tau)) / (2.0 * kappa)

    def worst_near(
        self, f: np.ndarray, y: np.ndarray, sigma: float, near: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        r"""Worst cases :math:`\max_p\, p f + p^2\sigma - \ell^*(p)`, sigma < 2, from nearby ones.

        Returns values, slopes and curvatures in f, and the log-odds t of |p| for the next call:
        the root of t - 2 sigma sigmoid(t) + m, a margin m = s f, by Newton's method.
        """
        s = 2.0 * y - 1.0
        m = torch.from_numpy(s * f)
        t = sigma - m if near is None else torch.from_numpy(near)
        for _ in range(_NEAR):
            p = torch.sigmoid(t)
            step = (t - 2.0 * sigma * p + m) / (1.0 - 2.0 * sigma * (p - p * p))
            t = t - step
            if float(step.abs().max()) <= 1e-8:  # its square is what is left
                break
        else:
            c = 0.5 - 0.5 * m / sigma
            root = even_logistic_root(c.abs(), torch.tensor(0.25 / sigma, dtype=c.dtype))
            t = torch.where(c >= 0.0, root, -root)
        size = t.abs()
        low = torch.sigmoid(-size)
        p = torch.where(t >= 0.0, 1.0 - low, low)
        value = (sigma * p - m) * p - torch.log1p(-low) + size * low
        curve = low - low * low
        bend = curve / (1.0 - 2.0 * sigma * curve)
        return value.numpy(), -s * p.numpy(), bend.numpy(), t.numpy()


def _towards(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = 2.0 * y - 1.0
    return np.minimum(-s, 0.0), np.maximum(-s, 0.0)


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


class Hinge(Loss):
    r"""Hinge loss :math:`(1 - s f)_+`, ``s = 2 y - 1``; worst case ``(1 - s f + 1/(4κ))_+``.

    Examples
    --------
    >>> f, y = torch.tensor([0.5, 9.0]), torch.tensor([1, 1])
    >>> Hinge().robust_value(f, y, 0.25)
    tensor([1.5000, 0.0000])
    """

    name = "hinge"
    lipschitz = 1.0
    curvature = math.inf
    kinks = (1.0,)

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return (1.0 - sign(f, y) * f).clamp_min(0.0)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        s = sign(f, y)
        return torch.where(s * f < 1.0, -s, torch.zeros_like(s))

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(f)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        s = sign(f, y)
        moved = 1.0 - s * f + 1.0 / (4.0 * kappa) > 0
        return torch.where(moved, -s / (2.0 * kappa), torch.zeros_like(s))

    def smoothed(
        self, f: np.ndarray, y: np.ndarray, mu: float, dual: np.ndarray | None = None
    ) -> Smoothed:
        """A smoothed kink at margin 1."""
        s = 2.0 * y - 1.0
        kink = Kink.at(1.0 - s * f, mu, dual)
        return Smoothed(kink.value, -s * kink.slope, kink.second, -s * kink.share, kink)

    def least(self, slope: np.ndarray, y: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        """The size of the slope."""
        return (1.0 - 2.0 * y) * slope

    def domain(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From -1 to 0 for label 1, from 0 to 1 for label 0."""
        return _towards(y)
