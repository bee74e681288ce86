"""Where ascents of a network start: families of random points around the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective

__all__ = ["SHARES", "Anchors", "draw", "reach", "spheres"]

#: Shares of the way to an anchor, and factors of a gradient's step, that starts lie at.
SHARES, _STEPS = (0.5, 1.5), 1.5
#: Distances of spheres, in reaches: those whose gradients are taken, and those started from.
_INNER, _OUTER = (0.05, 4.0), (0.25, 4.0)
#: Looks for slopes farther out, and rows that they are taken from at most.
_LOOKS, _LOOKED = 16, 200
#: Anchors that compete where no label tells which are far: the one of largest loss is taken.
_RIVALS = 2


@dataclass(frozen=True)
class Anchors:
    """Rows that starts are drawn towards: features (m, d), class indices or targets (m,)."""

    x: Tensor
    y: Tensor
    classes: bool

    def seen(self, objective: Objective) -> tuple[Tensor, Tensor]:
        """Their coordinates (m, r) and predictions."""
        return objective.coordinates.encode(self.x), objective.model.linearise(self.x)[0].detach()

    def pick(
        self, objective: Objective, batch: Batch, f: Tensor, count: int, generator: torch.Generator
    ) -> Tensor:
        """Indices (count, n): of every other label in turn; of larger loss where there is none."""
        n, m = len(batch), len(self.x)
        device = batch.q0.device
        size = (count, n, _RIVALS)
        uniform = torch.rand(size, generator=generator, dtype=torch.float64).to(device)
        if self.classes:
            order = self.y.argsort(stable=True)
            present, counts = self.y.unique(return_counts=True)
            own = (batch.y[:, None] == present).to(torch.long)
            known, rank, size = own.sum(1), own.argmax(1), len(present)
            others = size - known  # classes to choose from, row by row
            turn = torch.arange(count, device=device)[:, None] % others.clamp_min(1)
            target = (rank + known + turn) % size
            index = (uniform[..., 0] * counts[target]).long() + (counts.cumsum(0) - counts)[target]
            index = order[index]
            if bool((others > 0).all()):
                return index
            return torch.where(others > 0, index, (uniform[..., 0] * m).long())
        index = (uniform * m).long()
        flat = index.reshape(-1)
        y = batch.y[:, None].expand(count, n, _RIVALS).reshape(-1)
        loss = objective.loss.value(f[flat], y).reshape(index.shape)
        return index.gather(2, loss.argmax(2, keepdim=True)).squeeze(2)


def reach(objective: Objective, batch: Batch, around: bool = False) -> Tensor:
    """The longest first step of an ascent from the rows, as a number; positive.

    With ``around`` half of the longest from points at random up to four times as far, too, and so
    on: the loss of a prediction that hits its target is flat at the row, whatever it is farther
    out, and maxima are found at half of what the steepest slopes lead to. Of a loss that grows
    with the square of the distance, up to as far alone, or every look would go farther out.
    """
    flat, generator = objective.with_penalty(0.0), torch.Generator().manual_seed(0)
    own = far = _longest(flat, batch, batch.q0) / (2.0 * objective.strength)
    within = (_INNER[0], 1.0) if objective.loss.growth > 0 else _INNER
    batch = batch.take(torch.arange(0, len(batch), -(-len(batch) // _LOOKED)).to(batch.q0.device))
    for _ in range(_LOOKS if around else 0):
        q = batch.q0 + far * spheres(batch, 1, within, generator)[0]
        far = torch.maximum(far, _longest(flat, batch, q) / (2.0 * objective.strength))
    return torch.maximum(own, 0.5 * far if around else far).clamp_min(1e-300)


def _longest(objective: Objective, batch: Batch, q: Tensor) -> Tensor:
    """The largest finite slope of the rows at q."""
    slopes = objective.value_and_gradient(batch, q)[1].norm(dim=1)
    slopes = slopes[torch.isfinite(slopes)]
    return slopes.max() if len(slopes) else slopes.sum()


def spheres(batch: Batch, count: int, radii: tuple[float, float], generator: torch.Generator):
    """Points (count, n, r) in random directions, at log-uniform distances within ``radii``."""
    n, r = batch.q0.shape
    u = torch.randn((count, n, r), generator=generator, dtype=torch.float64)
    u = u / u.norm(dim=2, keepdim=True).clamp_min(1e-300)
    low, high = (math.log(radius) for radius in radii)
    distance = torch.rand((count, n, 1), generator=generator, dtype=torch.float64)
    return (u * (low + (high - low) * distance).exp()).to(batch.q0)


def draw(
    objective: Objective,
    batch: Batch,
    anchors: Anchors,
    families: tuple[int, int, int],
    far: Tensor | float,
    generator: torch.Generator,
) -> Tensor:
    r"""Starts of three families, shape (sum of ``families``, n, r).

    - Anchors: x + s (a - x), s uniform on [.5, 1.5].
    - Cells: :math:`x + u\,\nabla f(z_0)^\top \ell'(f_a, y) / 2\lambda`, u uniform on [0, 1.5], z0
      on a sphere: where the first step of an ascent would end if the network were linear with
      its slope at z0 and the loss were that of the anchor's prediction.
    - Spheres, at distances in units of ``far``.
    """
    towards, cells, around = families
    q, f = anchors.seen(objective)
    n, q0 = len(batch), batch.q0
    starts = []
    if towards:
        index = anchors.pick(objective, batch, f, towards, generator)
        low, high = SHARES
        share = torch.rand((towards, n, 1), generator=generator, dtype=torch.float64).to(q0)
        starts.append(
            torch.lerp(q0.expand(towards, *q0.shape), q[index], low + (high - low) * share)
        )
    if cells:
        index = anchors.pick(objective, batch, f, cells, generator).reshape(-1)
        z0 = q0 + far * spheres(batch, cells, _INNER, generator)
        many = batch.repeat(cells)
        _, backward = objective.model.linearise(objective.decode(many, z0.reshape(cells * n, -1)))
        slope = objective.coordinates.pull(backward(objective.loss.gradient(f[index], many.y)))
        step = torch.rand((cells, n, 1), generator=generator, dtype=torch.float64).to(q0)
        step = step * (_STEPS / (2.0 * objective.strength))
        starts.append(q0 + step * slope.reshape(cells, n, -1))
    if around:
        starts.append(q0 + far * spheres(batch, around, _OUTER, generator))
    return torch.cat(starts)
