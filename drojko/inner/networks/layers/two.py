r"""Quadratic bounds of two hidden layers, of the units alone that bend on a ball.

Most ReLU of a wide network are linear on a small ball. With z the anchor, e_1 what the bending
units of the first layer add to their linear parts and D_1 = W_1 (d - z) of these, the bending units
of the second see :math:`D_2 = J (d - z) + V e_1`, J the Jacobian of their pre-activations at z.
With the constraints of `quadratic`, of which D_2 leaves at most D_2'H D_2/2 + l'D_2,

.. math:: H = R^2, \quad K = I - R V (2P)^{-1} V^\top R \succ 0, \quad
          b_0 = b - l_1 + V^\top l,
.. math:: Y = R J + R V (2P)^{-1} x W_1, \quad y_0 = R V (2P)^{-1} b_0,
.. math:: \tfrac12 (d - z)^\top (W_1^\top (x^2 / 2P - 2 z_1) W_1 + Y^\top K^{-1} Y)(d - z)
          + (g + J^\top l + W_1^\top (g_1 + x b_0 / 2P) + Y^\top K^{-1} y_0)^\top (d - z)
          + \tfrac12 b_0^\top (2P)^{-1} b_0 + \tfrac12 y_0^\top K^{-1} y_0 + \text{const},

after :math:`\tfrac12 D_2^\top H D_2 = \max_w w^\top R D_2 - \tfrac12 w^\top w`: the matrix that is
factored has as many rows as units of the second layer bend, which are fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.networks.activations import Activation
from drojko.inner.networks.constraints import PRODUCTS, Layer, Units, descend, still
from drojko.inner.networks.linear import Head
from drojko.inner.networks.nested import mapped
from drojko.inner.networks.quadratic import SHIFT, Quadratic, forward_error, trust_region

__all__ = ["two_layers"]

#: Bytes of the matrices of the first layer's bending units, and how many there are of a region.
_MEMORY, _MATRICES = 2**26, 6
#: Regions at once: of more the number of bending units differs much.
_TOGETHER = 64
#: Times the largest eigenvalue that the first layer is raised to, where it does not dominate.
_DOMINATED = 1.4


@dataclass(frozen=True)
class _Region:
    """What is linear in the constraints, of n regions; U_1 and U_2 units bend."""

    weight: Tensor  # W_1 (n, U_1, r)
    jacobian: Tensor  # J (n, U_2, r)
    between: Tensor  # V (n, U_2, U_1)
    gradient: Tensor  # of the margin at the anchor, (n, r)
    pulls: tuple[Tensor, Tensor]  # in e_1 and e_2
    layers: tuple[Layer, Layer]
    value: Tensor
    error: Tensor

    @staticmethod
    def of(head: Head, anchor: Tensor) -> _Region:
        network = head.network
        first, second = network.weights
        a, h = network.forward(anchor)
        slope, top = (act(at)[1] for act, at in zip(network.acts, a, strict=True))
        above = (top * head.rows) @ second
        # With the anchor, as a unit must be linear from there on to count as such.
        spans = [
            (
                torch.minimum(low - network.slack * low.abs(), at),
                torch.maximum(high + network.slack * high.abs(), at),
            )
            for (low, high), at in zip(head.intervals, a, strict=True)
        ]
        one, two = (_bending(act, *s) for act, s in zip(network.acts, spans, strict=True))
        pulls = above.gather(1, one), head.rows.gather(1, two)
        layers = [
            Layer.of(act.around(low.gather(1, k), high.gather(1, k), at.gather(1, k)), pull)
            for act, at, (low, high), k, pull in zip(
                network.acts, a, spans, (one, two), pulls, strict=True
            )
        ]
        return _Region(
            first[one], (second[two] * slope.unsqueeze(1)) @ first,
            second[two.unsqueeze(2), one.unsqueeze(1)], (slope * above) @ first, pulls,
            (layers[0], layers[1]), (head.rows * h).sum(1) + head.levels,
            forward_error(network, head.rows, head.levels, anchor, a),
        )  # fmt: skip


def _bends(act: Activation, low: Tensor, high: Tensor) -> Tensor:
    """Which units are not linear on their intervals."""
    return (low <= 0) & (high > 0) if act.name == "relu" else low <= high


def _bending(act: Activation, low: Tensor, high: Tensor) -> Tensor:
    """Indices (n, U) of these; some others as well, as all regions have as many."""
    bends = _bends(act, low, high)
    count = max(1, int(bends.sum(1).max()))
    return bends.to(low.dtype).topk(count, dim=1).indices


@torch.no_grad()
def two_layers(head: Head, anchor: Tensor, radius: Tensor, steps: int) -> Quadratic:
    """`quadratic_bound` of a head of two layers; multipliers are improved in single precision.

    Those of about as many bending units go together.
    """
    counts = _bends(head.network.acts[0], *head.intervals[0]).sum(1)
    order, parts = counts.argsort(stable=True), []
    while len(order):
        largest = max(1, int(counts[order[-1]]))
        part = order[-max(1, min(_TOGETHER, _MEMORY // (8 * _MATRICES * largest**2))) :]
        parts.append((part, *_bounded(head.take(part), anchor[part], radius[part], steps)))
        order = order[: -len(part)]
    index, constant, curvature = (torch.cat(part) for part in zip(*parts, strict=True))
    back = index.argsort()
    return Quadratic(constant[back], curvature[back], None, (steps + 1) * len(radius))


def _bounded(head: Head, anchor: Tensor, radius: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Constants and curvatures."""
    region = _Region.of(head, anchor)
    free = [layer.start(k == 1) for k, layer in enumerate(region.layers)]
    mu = None
    if steps:
        free, mu = _improved(region, free, anchor, radius, steps)
    q, g, const, size, _ = _eliminated(region, free)
    qd = (q @ anchor.unsqueeze(2))[..., 0]
    far = anchor.norm(dim=1) + radius
    rounding = 4.0 * region.error + 1e-11 * (
        region.value.abs() + const.abs() + g.norm(dim=1) * far + size * far.square()
    )
    value = const - (g * anchor).sum(1) + 0.5 * (qd * anchor).sum(1)
    used, _, cost, _ = trust_region(q, g - qd, radius, size, mu)
    constant = value + cost + rounding
    return torch.where(constant.isnan(), torch.inf, constant), used


def _improved(
    region: _Region, free: list[Tensor], anchor: Tensor, radius: Tensor, steps: int
) -> tuple[list[Tensor], Tensor]:
    """Multipliers after some steps of Adam, and the multiplier of the ball."""
    region, free, anchor, radius = mapped([region, free, anchor, radius], Tensor.float)
    moments = still(free)
    mu = None
    for step in range(1, steps + 1):
        q, g, _, size, e = _eliminated(region, free)
        _, d, _, mu = trust_region(q, g - (q @ anchor.unsqueeze(2))[..., 0], radius, size, mu)
        e.improve(region, free, moments, d - anchor, step)
    return mapped([free, mu], Tensor.double)


@dataclass(frozen=True)
class _Maximiser:
    """What finds the maximising e_1 and e_2 where the displacement has moved."""

    units: tuple[Units, Units]
    steep: Tensor  # R V, (n, U_2, U_1)
    half: Tensor  # 1 / 2P
    alone: tuple[Tensor, Tensor]  # x and b_0, over 2P
    factor: Tensor
    push: Tensor  # Y after half of the solve, and y_0
    offset: Tensor
    ratio: Tensor
    rest: Tensor

    def improve(
        self, region: _Region, free: list[Tensor],
        moments: list[tuple[Tensor, Tensor]], moved: Tensor, count: int,
    ) -> None:  # fmt: skip
        """A step of Adam in all multipliers."""
        right = self.push @ moved.unsqueeze(2) + self.offset.unsqueeze(2)
        w = torch.linalg.solve_triangular(self.factor.mT, right, upper=True)
        seen = (region.weight @ moved.unsqueeze(2))[..., 0]
        first = self.alone[0] * seen + self.alone[1] + self.half * (self.steep.mT @ w)[..., 0]
        inner = (region.jacobian @ moved.unsqueeze(2) + region.between @ first.unsqueeze(2))[..., 0]
        second = self.ratio * inner + self.rest
        for k, (d, e) in enumerate(((seen, first), (inner, second))):
            descend(region.layers[k], self.units[k], free[k], moments[k], d, e, count)


def _eliminated(
    region: _Region, free: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, _Maximiser]:
    """Hessian, gradient and constant in d - anchor, what the Hessian is the sum of in size."""
    w, jacobian = region.weight, region.jacobian
    two = region.layers[1].combined(free[1])
    b2 = region.pulls[1] - two.linear
    ratio, rest = 0.5 * two.mixed / two.square, 0.5 * b2 / two.square
    # What is concave of a unit is left out, so that H has a root.
    root = (ratio * two.mixed - 2.0 * two.flat).clamp_min(0.0).sqrt()
    up = two.along + ratio * b2
    steep = root.unsqueeze(2) * region.between
    one, half, factor, failed = _factored(region.layers[0], free[0], steep)
    if bool(failed.any()):  # raised, where the first layer does not dominate the second
        _raised(half, free[0], steep, failed)
        one, half, factor, failed = _factored(region.layers[0], free[0], steep)
    b0 = region.pulls[0] - one.linear + (up.unsqueeze(1) @ region.between)[:, 0]
    mixed, pulled = half * one.mixed, half * b0
    right = torch.empty(*jacobian.shape[:2], w.shape[2] + 1, dtype=w.dtype)
    torch.bmm(steep, torch.cat([mixed.unsqueeze(2) * w, pulled.unsqueeze(2)], 2), out=right)
    right[..., :-1].addcmul_(root.unsqueeze(2), jacobian)
    y = torch.linalg.solve_triangular(factor, right, upper=False)
    push, offset = y[..., :-1], y[..., -1]
    along = one.along + one.mixed * pulled
    g = region.gradient + (up.unsqueeze(1) @ jacobian + along.unsqueeze(1) @ w)[:, 0]
    g = g + (push.mT @ offset.unsqueeze(2))[..., 0]
    const = region.value + two.const + one.const + 0.5 * (b0 * pulled).sum(1)
    const = const + 0.5 * offset.square().sum(1) + (0.25 * b2.square() / two.square).sum(1)
    const = torch.where(failed, torch.inf, const)  # no bound without a factor
    bent = one.mixed * mixed
    solved = push.mT @ push
    spread = (ratio * two.mixed).abs() + 2.0 * two.spread
    size = (
        (spread * jacobian.square().sum(2)).sum(1)
        + ((bent + 2.0 * one.spread) * w.square().sum(2)).sum(1)
        + solved.flatten(1).norm(dim=1)
    )
    q = torch.baddbmm(solved, w.mT, (bent - 2.0 * one.flat).unsqueeze(2) * w)
    e = _Maximiser((one, two), steep, half, (mixed, pulled), factor, push, offset, ratio, rest)
    return 0.5 * (q + q.mT), g, const, size, e


def _factored(layer: Layer, free: Tensor, steep: Tensor) -> tuple[Units, Tensor, Tensor, Tensor]:
    """A layer's constraints, 1 / 2P, the factor of K, and where there is none."""
    units = layer.combined(free)
    half = 0.5 / units.square
    k = torch.bmm(steep * half.unsqueeze(1), steep.mT).neg_()
    k.diagonal(dim1=1, dim2=2).add_(1.0 - SHIFT)
    factor, failed = torch.linalg.cholesky_ex(k)
    return units, half, factor, failed != 0


def _raised(half: Tensor, free: Tensor, steep: Tensor, failed: Tensor) -> None:
    """Products where the largest eigenvalue of R V V'R / 2P is no longer below 1, in place."""
    bad = failed.nonzero().squeeze(1)
    part = steep[bad]
    # What overflows is as large as can be, and of entries near one the eigenvalues converge.
    square = torch.nan_to_num(part * half[bad].unsqueeze(1) @ part.mT)
    size = square.abs().amax((1, 2)).clamp_min(1e-30)
    top = torch.linalg.eigvalsh(square / size[:, None, None])[:, -1]
    lift = (_DOMINATED * top.clamp_min(0.0)).log() + size.log()
    free[bad, :PRODUCTS] += lift.clamp_min(0.02)[:, None, None]
