r"""Intervals of a second layer on balls by quadratics, where lines leave twice too much.

For either sign of a unit, c being its weights times the sign, and an anchor of its own, which
climbs to where on the sphere the unit is largest,

.. math:: c^\top \varphi(a) \le c^\top (\varphi(a^*) + S D) + \tfrac12 D^\top \operatorname{diag}(c
          \odot M) D, \quad D = a - a^*,

with M the largest curvature around the anchor where c > 0, the least elsewhere. In the displacement
that is a trust-region problem, whose dual is solved (`quadratic.trust_region`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from drojko.inner.networks.network import Network
from drojko.inner.networks.quadratic import trust_region

__all__ = ["WIDEST", "sharpened"]

#: Units of a layer beyond which it costs more than the bounds gain: it grows with one power more.
WIDEST = 64
#: Steps along the sphere to an anchor; entries of matrices at once, which stay near the processor.
_CLIMBS, _ENTRIES = 2, 2**18
#: Share of the attained width by which an end must be too far out to be worth the work.
_LOOSE = 0.25


@torch.no_grad()
def sharpened(
    network: Network, radius: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Pre-activations (n, width) of the second layer on balls of radius (n,), within ``second``.

    ``first`` and ``second`` are intervals (low, high) of both layers there.
    """
    (w, into), act = network.weights[:2], network.acts[0]
    c, level = torch.cat([into, -into]), torch.cat([network.biases[1], -network.biases[1]])
    count = len(into)
    top = torch.cat([second[1], -second[0]], 1)
    start, sphere = network.centre[:, None], radius[:, None, None]
    a = start.expand(-1, len(c), -1)
    for _ in range(_CLIMBS + 1):
        g = (act(a)[1] * c) @ w
        a = start + (g * (sphere / g.norm(dim=2, keepdim=True).clamp_min(1e-100))) @ w.T
    attained = (act(a)[0] * c).sum(2) + level
    width = (attained[:, :count] + attained[:, count:]).repeat(1, 2)
    row, side = (top - attained > _LOOSE * width).nonzero(as_tuple=True)
    for part in torch.arange(len(row)).split(max(1, _ENTRIES // network.dim**2)):
        i, j = row[part], side[part]
        here = a[i, j], c[j], level[j]
        new = _highest(network.take(i), radius[i], (first[0][i], first[1][i]), *here)
        top[i, j] = torch.minimum(top[i, j], new)
    return -top[:, count:], top[:, :count]


def _highest(
    network: Network, radius: Tensor, first: tuple[Tensor, Tensor], a: Tensor, c: Tensor,
    level: Tensor,
) -> Tensor:  # fmt: skip
    """Upper bounds (n,) of ``c @ first hidden layer + level``, anchored at pre-activations a."""
    w, act, slack = network.weights[0], network.acts[0], network.slack
    low, high = first
    around = act.around(low - slack * low.abs(), high + slack * high.abs(), a)
    h, s = act(a)
    bend = c * torch.where(c > 0, around.curved[1], around.curved[0])
    away = network.centre - a  # of the centre from the anchor
    g = (c * s + bend * away) @ w
    terms = c * h, c * s * away, 0.5 * bend * away.square()
    size = bend.abs() @ w.square().sum(1)
    mu, _, cost, _ = trust_region((w.T * bend[:, None]) @ w, g, radius, size, None)
    value = sum(part.sum(1) for part in terms) + level + cost + 0.5 * mu * radius.square()
    # Pre-activations are sums themselves; a change of theirs moves the unit by its slopes.
    moved = network.size + radius[:, None] * w.norm(dim=1)
    steep = c.abs() * max(map(abs, act.slopes)) + bend.abs() * away.abs()
    error = sum(part.abs().sum(1) for part in terms) + level.abs() + (steep * moved).sum(1)
    room = 4.0 * slack * error + 1e-11 * (
        value.abs() + g.norm(dim=1) * radius + size * radius.square()
    )
    return torch.nan_to_num(value + room, nan=torch.inf, posinf=torch.inf)
