"""The one-dimensional worst case of the logistic loss."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["even_logistic_root", "logistic_shift"]

_BLOCK = 1 << 16  # entries per block of an iterative envelope: its work arrays stay in cache
_MAX_NEWTON = 64


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
