r"""Lipschitz constants of many rows of a network with two hidden layers, by common multipliers.

With slopes in [0, 1], diagonal T_1, T_2 > 0 and a row v, the bound of `lipschitz` is, by Woodbury,

.. math:: L^2 = \lambda_{\max}\big(\tfrac12 W_1^\top T_1 W_1
          + \tfrac14 C^\top (S - u u^\top)^{-1} C\big), \quad C = W_2 W_1, \quad u = T_2^{-1} v,
          \quad S = 2 T_2^{-1} - \tfrac12 W_2 T_1^{-1} W_2^\top,

for :math:`S \succ 0` and :math:`q = u^\top S^{-1} u < 1`. One factor of S serves all rows, and each
has a scale s > q of the multipliers of its own: :math:`L^2 = \lambda_{\max}(s K + p p^\top /
4(1 - q/s))`, K the matrix without u and :math:`p = C^\top S^{-1} u`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drojko._numerics import Adam
from drojko.inner.networks.network import Network

__all__ = ["common_rates"]

_RATE, _SHIFT = 0.1, 1e-9
#: Scales s that are tried in the end, as multiples of q.
_SCALES = (1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 2.6, 3.5, 5.0, 8.0, 14.0, 30.0)


@torch.no_grad()
def common_rates(network: Network, rows: Tensor, steps: int) -> Tensor | None:
    """Constants (p,) of ``rows @ last hidden layer`` everywhere; None: of another network."""
    slopes = [act.slopes for act in network.acts]
    if len(network.weights) != 2 or any(low < 0.0 for low, _ in slopes):
        return None
    first, second = network.weights
    second, rows = second * slopes[0][1], rows * slopes[1][1]
    norm = rows.norm(dim=1)
    size = float(norm.max())
    if not 0.0 < size < math.inf:
        return None
    unit = rows / size
    spread = float(torch.linalg.matrix_norm(second, 2).square())
    logs = [
        torch.full((len(first),), math.log(max(spread, 1e-12))).double(),
        torch.full((len(second),), math.log(2.0)).double(),
        unit.norm(dim=1).square().clamp_min(1e-12).log(),
    ]
    logs = [log.requires_grad_() for log in logs]
    sizes = [len(log) for log in logs]
    adam = Adam.like(torch.cat(logs).detach())
    best = torch.full_like(norm, math.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            k, p, q, good = _parts(first, second, unit, logs)
            if not good:  # T_1 is too small
                logs[0].data += 0.2
                continue
            scale = q.detach() + logs[2].exp()
            whole = _whole(k.detach(), p.detach(), q.detach(), scale.detach())[0]
            top = torch.linalg.eigh(whole)[1][..., -1]
            square = scale.unsqueeze(1) * (top @ k)
            value = (square * top).sum(1) + (top * p).sum(1).square() / (4.0 * (1.0 - q / scale))
            loss = value.clamp_min(1e-300).log().mean()
        if step == steps or step % 10 == 9:
            inner, push, least = k.detach(), p.detach(), q.detach()
            for s in _SCALES:
                value = _largest(inner, push, least, s * least.clamp_min(1e-12))
                best = torch.minimum(best, value)
        if step < steps:
            adam.gradient.copy_(torch.cat(torch.autograd.grad(loss, logs)))
            moved = torch.cat(logs).detach()
            adam.step(moved, _RATE)
            for log, part in zip(logs, moved.split(sizes), strict=True):
                log.data.copy_(part)
    found = best.clamp_min(0.0).sqrt() * size * (1.0 + 1e-7)
    return torch.where(norm > 0, found, 0.0)


def _parts(
    first: Tensor, second: Tensor, unit: Tensor, logs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """K, p of all rows and q, and whether S is positive definite."""
    one, two = logs[0].exp(), logs[1].exp()
    s = torch.diag(2.0 / two) - 0.5 * (second / one) @ second.T
    floor = _SHIFT * float((2.0 / two.detach()).max())
    s = s - floor * torch.eye(len(second)).double()
    factor, failed = torch.linalg.cholesky_ex(s)
    c = torch.linalg.solve_triangular(factor, second @ first, upper=False)
    u = torch.linalg.solve_triangular(factor, (unit / two).T, upper=False)
    k = 0.5 * (first.T * one) @ first + 0.25 * c.T @ c
    return k, u.T @ c, u.square().sum(0), int(failed) == 0


def _whole(k: Tensor, p: Tensor, q: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices whose largest eigenvalue is L², and which of them there are."""
    share = 1.0 - q / scale - 1e-9
    rank = p.unsqueeze(2) * p.unsqueeze(1) / (4.0 * share).clamp_min(1e-300)[:, None, None]
    whole = scale[:, None, None] * k + rank
    known = torch.isfinite(whole).flatten(1).all(1) & (share > 0)
    return torch.where(known[:, None, None], whole, 0.0), known


def _largest(k: Tensor, p: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """L² (p,) outwards."""
    whole, known = _whole(k, p, q, scale)
    room = 1e-9 * whole.flatten(1).norm(dim=1)
    return torch.where(known, torch.linalg.eigvalsh(whole)[:, -1] + room, math.inf)
