"""A certified one-dimensional supremum: how far a log-sum-exp of growing scores can pay."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["radial_supremum"]

_CELLS, _REFINED, _PARTS, _BLOCK = 128, 3, 16, 1024


def radial_supremum(scores: Tensor, rates: Tensor, strength: float) -> Tensor:
    r"""Upper bound of :math:`\sup_{t\ge 0}\, \log\sum_j e^{a_j + L_j t} - \lambda t^2`, shape (n,).

    If outputs move at most at the rates L_j >= 0 with the displacement t, this bounds the worst
    case of the cross-entropy with scores a_j = f_j - f_y (and L_y = 0).

    The log-sum-exp is convex in t, so on a cell it lies below its chord, and a chord minus
    lambda t^2 has its maximum in closed form: every cell gives a bound, the largest of them holds,
    and the cells that decide are divided once more. The error falls with the square of the width.

    Parameters
    ----------
    scores, rates : Tensor of shape (n, k)
    strength : float
        lambda > 0.

    Examples
    --------
    >>> zero = torch.zeros(1, 1, dtype=torch.float64)
    >>> round(float(radial_supremum(zero, zero + 2.0, 1.0)), 6)  # linear: L^2 / (4 lambda)
    1.0
    """
    blocks = zip(scores.split(_BLOCK), rates.split(_BLOCK), strict=True)
    return torch.cat([_block(a, rate, strength) for a, rate in blocks])


def _block(scores: Tensor, rates: Tensor, strength: float) -> Tensor:
    # Beyond t = max L / 2 lambda the derivative is negative.
    far = rates.amax(1) / (2.0 * strength)
    grid = torch.linspace(0.0, 1.0, _CELLS + 1, dtype=scores.dtype, device=scores.device)
    nodes = far[:, None] * grid
    bounds = _cells(nodes, _log_sum(scores, rates, nodes), strength)
    top, index = bounds.topk(_REFINED + 1, dim=1)
    rest = top[:, -1]
    parts = torch.linspace(0.0, 1.0, _PARTS + 1, dtype=scores.dtype, device=scores.device)
    for k in range(_REFINED):
        left = nodes.gather(1, index[:, k : k + 1])
        inner = left + (far[:, None] / _CELLS) * parts
        refined = _cells(inner, _log_sum(scores, rates, inner), strength).amax(1)
        rest = torch.maximum(rest, refined)
    # The sum of rounding errors is far below this relative slack.
    return rest + 1e-13 * (1.0 + rest.abs())


def _log_sum(scores: Tensor, rates: Tensor, nodes: Tensor) -> Tensor:
    return torch.logsumexp(scores[:, None, :] + rates[:, None, :] * nodes[:, :, None], dim=2)


def _cells(nodes: Tensor, values: Tensor, strength: float) -> Tensor:
    """Largest chord minus strength t^2 on each cell."""
    left, right = nodes[:, :-1], nodes[:, 1:]
    width = right - left
    slope = torch.where(
        width > 0, values.diff(dim=1) / width.clamp_min(1e-300), torch.zeros_like(width)
    )
    t = torch.minimum(torch.maximum(slope / (2.0 * strength), left), right)
    return values[:, :-1] + slope * (t - left) - strength * t.square()
