"""Where the corrections start: several candidate maps, each a feasible transport.

Keeping, sample by sample, the best of several candidates is a measurable selection, so its value
is attained and stays a lower bound whatever the quality of the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from drojko.inner.ascent import Ascent, proximal_ascent
from drojko.inner.objective import Batch, Objective
from drojko.transport.maps import BrenierMap

__all__ = ["BoxPath", "Candidate", "LearnedMap", "OtherLabel", "Stay", "Support", "best_of"]

_BLOCK = 4096  # rows per block of pairwise distances


class Candidate(Protocol):
    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        """Starting points in coordinates, each of shape (n, r)."""
        ...


@dataclass(frozen=True)
class Stay:
    """The sample itself: its ascent is what an attack on one sample would find."""

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        return [batch.q0]


@dataclass(frozen=True)
class LearnedMap:
    """A Brenier map learned by modified JKO steps, conditioned on the label."""

    brenier: BrenierMap
    n_labels: int

    def context(self, batch: Batch) -> Tensor | None:
        return label_context(batch.y, self.n_labels, batch.q0.dtype)

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        return [self.brenier.map(batch.q0, self.context(batch))]


def label_context(y: Tensor, n_labels: int, dtype: torch.dtype) -> Tensor | None:
    """One-hot labels for a class-conditional potential; None for regression."""
    return one_hot(y, n_labels).to(dtype) if n_labels else None


@dataclass(frozen=True)
class OtherLabel:
    """From x towards a close reference point of another label, and a little beyond.

    ``anchors`` are coordinates of a few dozen draws; for regression ``labels`` is None and every
    anchor counts.
    """

    anchors: Tensor
    labels: Tensor | None
    shares: Sequence[float] = (0.5, 0.75, 1.0, 1.25)

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        distance = torch.cdist(batch.q0, self.anchors)
        if self.labels is not None:
            distance = distance.masked_fill(batch.y[:, None] == self.labels[None, :], torch.inf)
        nearest, index = distance.min(1)
        move = self.anchors[index] - batch.q0
        move = torch.where(torch.isfinite(nearest).unsqueeze(1), move, torch.zeros_like(move))
        return [batch.q0 + share * move for share in self.shares]


@dataclass(frozen=True)
class Support:
    r"""Max-affine potential on points that earlier samples were moved to.

    .. math:: j^*(x) = \arg\max_j\; \ell(z_j, y) - \lambda c(x, z_j)

    is a subgradient of the convex function max_j of affine functions of x: a transport map that
    shares every basin one sample has found with all the others, for one matrix product.
    ``labels`` is None for regression, where a sample's own label enters the loss.
    """

    points: Tensor
    labels: Tensor | None
    risks: Tensor

    @staticmethod
    def build(objective: Objective, batch: Batch, q: Tensor, classes: bool, size: int) -> Support:
        """Support from moved points; at most ``size`` of them, those that serve most samples."""
        risks = objective.risk(batch, q)
        support = Support(q, batch.y if classes else None, risks)
        if len(q) <= size:
            return support
        index, _ = support.assign(objective, batch)
        used = torch.bincount(index, minlength=len(q)).argsort(descending=True, stable=True)[:size]
        return Support(q[used], batch.y[used] if classes else None, risks[used])

    def assign(self, objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
        """Index of the best support point of each sample, and its value by the formula."""
        index, value = [], []
        strength = objective.strength
        for a in range(0, len(batch), _BLOCK):
            q0 = batch.q0[a : a + _BLOCK]
            score = self.risks - strength * torch.cdist(q0, self.points).square()
            if self.labels is not None:
                other = batch.y[a : a + _BLOCK, None] != self.labels
                score = score.masked_fill(other, -torch.inf)
            v, i = score.max(1)
            index.append(i)
            value.append(v)
        return torch.cat(index), torch.cat(value)

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        index, value = self.assign(objective, batch)
        known = torch.isfinite(value).unsqueeze(1)
        return [torch.where(known, self.points[index], batch.q0)]


@dataclass(frozen=True)
class BoxPath:
    """Points x + clip(mu * direction) for a grid of mu: the one-dimensional family that holds the
    worst case of a ridge loss on a box."""

    direction: Tensor
    grid: Tensor

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        best_q = batch.q0
        best = objective.value(batch, best_q)
        for mu in self.grid:
            q = objective.coordinates.project(batch.q0 + mu * self.direction)
            value = objective.value(batch, q)
            better = value > best
            best = torch.where(better, value, best)
            best_q = torch.where(better.unsqueeze(1), q, best_q)
        return [best_q]


def best_of(
    objective: Objective,
    batch: Batch,
    candidates: Sequence[Candidate],
    *,
    screening: int,
    corrections: int,
    tol: float,
    extra: Sequence[Tensor] = (),
) -> Ascent:
    """Best candidate per sample after ``screening`` steps each, then ``corrections`` steps."""
    starts = [q for c in candidates for q in c.starts(objective, batch)] + list(extra)
    best: Ascent | None = None
    for start in starts:
        found = proximal_ascent(objective, batch, start, screening)
        best = found if best is None else better_of(best, found)
    if best is None:
        best = proximal_ascent(objective, batch, batch.q0, screening)
    found = proximal_ascent(objective, batch, best.q, corrections, tol=tol)
    return better_of(best, found)


def better_of(first: Ascent, second: Ascent) -> Ascent:
    """Sample by sample the one with the larger value."""
    better = second.value > first.value
    pick = better.unsqueeze(1)
    return replace(
        first,
        q=torch.where(pick, second.q, first.q),
        value=torch.where(better, second.value, first.value),
        gradient=torch.where(pick, second.gradient, first.gradient),
    )
