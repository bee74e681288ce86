"""Where the corrections start: several candidate maps, each a feasible transport.

Keeping, sample by sample, the best of several candidates is a measurable selection, so its value
is attained and stays a lower bound whatever the quality of the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from drojko.exceptions import UnsupportedError
from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.ascent import Ascent, proximal_ascent
from drojko.losses.multiclass import best_class_move
from drojko.models import is_linear
from drojko.transport.maps import BrenierMap

__all__ = [
    "BoxPath",
    "Candidate",
    "Condition",
    "LearnedMap",
    "PairMoves",
    "Stay",
    "Support",
    "best_of",
    "first_candidates",
    "knows_classes",
    "solve_linear_classes",
]

#: Numbers of points that are looked at at once.
_NUMBERS = 4_000_000
_BLOCK = 4096  # rows per block of pairwise distances


class Candidate(Protocol):
    """A transport map to start from."""

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        """Starting points in coordinates, each of shape (n, r)."""
        ...


@dataclass(frozen=True)
class Stay:
    """The sample itself: its ascent is what an attack on one sample would find."""

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        return [batch.q0]


@dataclass(frozen=True)
class Condition:
    """What a map is conditioned on: the label, and the columns that cannot move.

    One-hot classes, or the standardised target of a regression (``n_labels`` 0), then the
    standardised immutable columns: the worst case of a sample depends on all of them.
    """

    n_labels: int
    centre: Tensor
    scale: Tensor
    columns: Tensor | None = None

    @staticmethod
    def of(batch: Batch, n_labels: int, columns: Tensor | None) -> Condition:
        """Standardisation from the moments of a batch."""
        whole = Condition(n_labels, batch.q0.new_zeros(()), batch.q0.new_ones(()), columns)
        values = whole.context(batch)
        centre, spread = values.mean(0), values.std(0, unbiased=False)
        centre[:n_labels], spread[:n_labels] = 0.0, 1.0
        return Condition(n_labels, centre, torch.where(spread > 0, spread, 1.0), columns)

    @property
    def dim(self) -> int:
        return (self.n_labels or 1) + (0 if self.columns is None else len(self.columns))

    def context(self, batch: Batch) -> Tensor:
        """Context of shape (n, dim)."""
        if self.n_labels:
            parts = [one_hot(batch.y, self.n_labels).to(batch.q0.dtype)]
        else:
            parts = [batch.y.to(batch.q0.dtype).unsqueeze(1)]
        if self.columns is not None:
            parts.append(batch.x[:, self.columns])
        return (torch.cat(parts, 1) - self.centre) / self.scale


@dataclass(frozen=True)
class LearnedMap:
    """A Brenier map learned by modified JKO steps, conditioned on label and fixed columns."""

    brenier: BrenierMap
    condition: Condition

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        return [self.brenier.map(batch.q0, self.condition.context(batch))]


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
    def build(
        objective: Objective,
        batch: Batch,
        q: Tensor,
        classes: bool,
        size: int,
        served: Batch | None = None,
    ) -> Support:
        """Support from moved points; at most ``size`` of them, those that serve most samples.

        ``served``: the samples that count, where the batch holds each of them several times.
        """
        risks = objective.risk(batch, q)
        support = Support(q, batch.y if classes else None, risks)
        if len(q) <= size:
            return support
        index, _ = support.assign(objective, batch if served is None else served)
        used = torch.bincount(index, minlength=len(q)).argsort(descending=True, stable=True)[:size]
        return Support(q[used], batch.y[used] if classes else None, risks[used])

    def assign(self, objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
        """Index of the best support point of each sample, and its value by the formula."""
        found = []
        for q0, y in zip(batch.q0.split(_BLOCK), batch.y.split(_BLOCK)):
            score = self.risks - objective.strength * torch.cdist(q0, self.points).square()
            if self.labels is not None:
                score = score.masked_fill(y[:, None] != self.labels, -torch.inf)
            found.append(score.max(1))
        values, indices = (torch.cat(parts) for parts in zip(*found))
        return indices, values

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        """The best support point of each sample; the sample itself where there is none."""
        index, value = self.assign(objective, batch)
        known = torch.isfinite(value).unsqueeze(1)
        return [torch.where(known, self.points[index], batch.q0)]


@dataclass(frozen=True)
class BoxPath:
    """Points x + clip(mu * direction) for a grid of mu.

    The one-dimensional family that holds the worst case of a ridge loss on a box: the cheapest
    way to change the output by a given amount is of this form (its KKT conditions).
    """

    direction: Tensor
    grid: Tensor

    @staticmethod
    def of(objective: Objective) -> BoxPath:
        """The path of a linear model: along its weights in the coordinates of the cost."""
        weights, coordinates = objective.model.first_layer(), objective.coordinates
        if weights is None or coordinates.lower is None or coordinates.upper is None:
            raise UnsupportedError("a box path is for linear models with bounds")
        direction = coordinates.pull(weights)[0]
        norm = float(direction.norm())
        if norm > 0:
            direction = direction / norm
        width = coordinates.upper - coordinates.lower
        reach = float(torch.where(torch.isfinite(width), width, torch.zeros_like(width)).norm())
        slope = objective.loss.lipschitz or 0.0
        far = norm * slope / (2.0 * objective.strength) if math.isfinite(slope) else 0.0
        smallest = float(direction.abs()[direction != 0].min()) if norm > 0 else 1.0
        top = max(far, min(reach / smallest, 1e6), 1.0)
        half = torch.logspace(-4, 0, 40, dtype=direction.dtype, device=direction.device) * top
        return BoxPath(direction, torch.cat([-half.flip(0), half]))

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        """The best point of each sample; the model is affine, so that one look at it will do."""
        loss, coordinates, q0 = objective.loss, objective.coordinates, batch.q0
        f = objective.model.linearise(batch.x)[0]
        weights: Any = objective.model.first_layer()
        slope = coordinates.pull(weights)[0]
        best_q, best = q0, loss.value(f, batch.y)
        for grid in self.grid.split(max(1, _NUMBERS // max(1, q0.numel()))):
            q = q0 + grid.reshape(-1, 1, 1) * self.direction
            q = coordinates.project(q.flatten(0, 1)).reshape(q.shape)
            move = q - q0
            risk = loss.value((f + move @ slope).flatten(), batch.y.repeat(len(grid)))
            value = risk.reshape(len(grid), -1) - objective.strength * move.square().sum(-1)
            top, at = value.nan_to_num(nan=-torch.inf).max(0)
            own = q[at, torch.arange(len(at), device=at.device)]
            better = top > best
            best = torch.where(better, top, best)
            best_q = torch.where(better.unsqueeze(1), own, best_q)
        return [best_q]


@dataclass(frozen=True)
class PairMoves:
    r"""For a linear multi-class model the moves :math:`(w_j - w_y) / 2\lambda`, the best j.

    A loss that is the maximum of affine functions of the logits (the multi-class hinge) has its
    worst case among them; the cross-entropy has one basin near each.
    """

    def starts(self, objective: Objective, batch: Batch) -> list[Tensor]:
        weights: Any = objective.model.first_layer()
        f = objective.model.linearise(batch.x)[0]
        rows = objective.coordinates.pull(weights)
        half = 0.5 / objective.strength
        choice = best_class_move(objective.loss, f, batch.y, rows @ rows.T, half)
        return [batch.q0 + half * (rows[choice] - rows[batch.y])]


def first_candidates(objective: Objective) -> tuple[Candidate, ...]:
    """What every solver starts from: the sample, and closed-form moves of linear models."""
    model = objective.model
    if not is_linear(model):
        return (Stay(),)
    bounded = objective.coordinates.lower is not None
    if model.n_outputs > 1:
        return (Stay(), PairMoves())
    return (Stay(), BoxPath.of(objective)) if bounded else (Stay(),)


def best_of(
    objective: Objective,
    batch: Batch,
    candidates: Sequence[Candidate],
    *,
    screening: int,
    corrections: int = 0,
    tol: float = 0.0,
    extra: Sequence[Tensor] = (),
) -> Ascent:
    """Best candidate per sample after ``screening`` steps each, then ``corrections`` steps."""
    starts = [q for c in candidates for q in c.starts(objective, batch)] + list(extra)
    found = (proximal_ascent(objective, batch, q, screening) for q in starts or [batch.q0])
    best = reduce(Ascent.better, found)
    if corrections == 0:
        return best
    return best.better(proximal_ascent(objective, batch, best.q, corrections, tol=tol))


def knows_classes(objective: Objective) -> bool:
    """Linear model, multi-class loss whose worst case is known, no bounds."""
    linear = is_linear(objective.model) and objective.model.n_outputs > 1
    return linear and objective.loss.has_worst_case and objective.coordinates.lower is None


def solve_linear_classes(objective: Objective, batch: Batch) -> Ascent:
    r"""Maximise :math:`\ell(f + R\delta, y) - \lambda\|\delta\|^2` over displacements delta.

    At a maximiser :math:`\delta = R^\top c / 2\lambda` with c = p - e_y, p the class
    probabilities there (for the hinge: a vertex), so only p is unknown, and the loss knows it.

    Returns
    -------
    Ascent
        Coordinates, values and gradients of shape (n, r), (n,) and (n, r).
    """
    f = objective.model.linearise(batch.x)[0]
    weights: Any = objective.model.first_layer()
    rows = objective.coordinates.pull(weights)
    gram = rows @ rows.T
    half = 0.5 / objective.strength
    p = objective.loss.worst_probabilities(f, batch.y, gram, half)
    own = one_hot(batch.y, f.shape[1]).to(f.dtype)
    q = batch.q0 + half * (p - own) @ rows
    value, gradient = objective.value_and_gradient(batch, q)
    return Ascent(q, value, gradient)
