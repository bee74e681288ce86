"""A solved inner problem: the map that sends reference draws to their worst case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko.exceptions import UnboundedRiskError
from drojko.inner import linear_classes
from drojko.inner.ascent import Ascent
from drojko.inner.bounds import Structure, is_ridge, structure, upper_bound
from drojko.inner.candidates import Candidate, Stay, Support, best_of
from drojko.inner.objective import Batch, Objective
from drojko.models import MLP

__all__ = ["Adversary", "Moved"]

_FAR = 1e7  # mean displacement, in spreads of the data, that only an unbounded problem reaches


@dataclass(frozen=True, repr=False)
class Moved:
    """Worst-case positions of a batch: coordinates, labels, and what they attain.

    ``value`` is J, ``risk`` the loss there, ``cost`` the ground cost (label moves included), each
    of shape (n,); ``found`` holds the ascent that ended there, at the moved labels.
    """

    batch: Batch
    labels: Tensor
    found: Ascent
    value: Tensor
    cost: Tensor
    risk: Tensor

    @property
    def q(self) -> Tensor:
        return self.found.q

    @staticmethod
    def of(objective: Objective, batch: Batch, labels: Tensor, found: Ascent, fee: float) -> Moved:
        """Positions reached by an ascent at the labels ``labels``, each flip costing ``fee``."""
        cost = objective.cost(batch, found.q)
        risk = found.value + objective.penalty * cost
        flipped = labels != batch.y
        if fee < math.inf and bool(flipped.any()):
            cost = cost + fee * flipped.to(cost.dtype)
        return Moved(batch, labels, found, risk - objective.penalty * cost, cost, risk)

    def better(self, other: Moved) -> Moved:
        """Sample by sample the one of larger value."""
        wins = other.value > self.value

        def pick(own: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(wins.unsqueeze(1) if own.ndim > 1 else wins, theirs, own)

        found = Ascent(
            pick(self.q, other.q),
            pick(self.found.value, other.found.value),
            pick(self.found.gradient, other.found.gradient),
        )
        return Moved(
            self.batch,
            pick(self.labels, other.labels),
            found,
            pick(self.value, other.value),
            pick(self.cost, other.cost),
            pick(self.risk, other.risk),
        )


@dataclass(frozen=True)
class Adversary:
    r"""The map x -> argmax over candidates of J, after proximal corrections.

    ``solve`` moves any batch of draws, not only those it was built on. For a ridge loss without
    bounds the maximiser is a formula and the candidates are not used.
    """

    objective: Objective
    candidates: tuple[Candidate, ...] = (Stay(),)
    screening: int = 12
    corrections: int = 50
    tol: float = 1e-9
    n_labels: int = 0
    label_cost: float = math.inf

    def with_penalty(self, penalty: float) -> Adversary:
        """The same candidates at another penalty: risks of a support do not depend on it."""
        return replace(self, objective=self.objective.with_penalty(penalty))

    @property
    def exact(self) -> bool:
        return is_ridge(self.objective) and self.objective.coordinates.lower is None

    @property
    def smooth(self) -> bool:
        """Whether the model has no kinks, as far as one can tell from outside."""
        model = self.objective.model
        return not (
            isinstance(model, MLP) and model.activation == "relu" and len(model.weights) > 1
        )

    @property
    def flips(self) -> list[int]:
        """Labels that a sample may take beside its own."""
        movable = math.isfinite(self.label_cost)
        return list(range(self.n_labels)) if movable else []

    @torch.no_grad()
    def solve(self, batch: Batch, extra: Sequence[Tensor] = ()) -> Moved:
        """Worst-case position of each sample of ``batch``; ``extra`` are further starts."""
        best = self._moved(batch, batch, extra)
        for label in self.flips:
            flipped = replace(batch, y=torch.full_like(batch.y, label))
            best = best.better(self._moved(batch, flipped, extra))
        mean = float((best.q - batch.q0).square().sum(1).mean())
        if not mean < _FAR**2 and self._may_be_infinite():
            raise UnboundedRiskError(self._unbounded_message())
        return best

    def _moved(self, batch: Batch, labelled: Batch, extra: Sequence[Tensor]) -> Moved:
        found = self._ascend(labelled, extra)
        return Moved.of(self.objective, batch, labelled.y, found, self.label_cost)

    def _may_be_infinite(self) -> bool:
        """Whether nothing proves the worst case finite at this penalty."""
        norms = structure(self.objective).norms
        if norms is None:
            return True
        return self.objective.strength <= self.objective.loss.growth * float(norms.max()) ** 2

    def _unbounded_message(self) -> str:
        known = structure(self.objective)
        floor = "a larger penalty"
        if known.norms is not None:
            limit = self.objective.loss.growth * float(known.norms.max()) ** 2
            floor = f"a penalty above {limit / self.objective.coordinates.scale**2:.6g}"
        return (
            f"the worst-case risk is infinite at penalty={self.objective.penalty:.6g}: the loss "
            f"grows as fast as the transport cost. It is finite for {floor}; or give a radius"
        )

    def _ascend(self, batch: Batch, extra: Sequence[Tensor]) -> Ascent:
        if self.exact:
            return self._ridge(batch)
        if linear_classes.applies(self.objective):
            return linear_classes.solve_linear_classes(self.objective, batch)
        return best_of(
            self.objective,
            batch,
            self.candidates,
            screening=self.screening,
            corrections=self.corrections,
            tol=self.tol,
            extra=extra,
        )

    def _ridge(self, batch: Batch) -> Ascent:
        objective = self.objective
        f, backward = objective.model.linearise(batch.x)
        direction = objective.coordinates.pull(backward(torch.ones_like(f)))[:1]
        square = float(direction.square().sum())
        q = batch.q0
        if square > 0:
            kappa = objective.strength / square
            if not kappa > objective.loss.growth:
                raise UnboundedRiskError(self._unbounded_message())
            shift = objective.loss.shift(f, batch.y, kappa)
            q = q + shift.unsqueeze(1) * (direction / square)
        value, gradient = objective.value_and_gradient(batch, q)
        return Ascent(q, value, gradient)

    @torch.no_grad()
    def stay(self, batch: Batch) -> Moved:
        """Nothing moves: the worst case at an infinite penalty, or in a ball of radius 0."""
        objective = self.objective.with_penalty(1.0)  # any: infinity times no cost is NaN
        value, gradient = objective.value_and_gradient(batch, batch.q0)
        return Moved.of(objective, batch, batch.y, Ascent(batch.q0, value, gradient), math.inf)

    @torch.no_grad()
    def share_basins(self, batch: Batch, rounds: int, size: int) -> tuple[Adversary, Moved]:
        """Add a max-affine support built on ``batch``; ``rounds`` of solve and share."""
        moved = self.solve(batch)
        if self.exact or rounds == 0:
            return self, moved
        classes = self.n_labels > 0
        best = moved
        labelled = replace(batch, y=best.labels)
        for _ in range(rounds):
            support = Support.build(self.objective, labelled, best.q, classes, len(batch))
            shared = replace(self, candidates=(support,), corrections=0)
            found = best.better(shared.solve(batch))
            gained = float((found.value - best.value).mean())
            best, labelled = found, replace(batch, y=found.labels)
            if gained <= 1e-6 * (1.0 + float(best.value.mean().abs())):
                break
        support = Support.build(self.objective, labelled, best.q, classes, size)
        return replace(self, candidates=(*self.candidates, support)), best

    def upper(self, moved: Moved, known: Structure | None = None) -> tuple[Tensor, str]:
        """Upper bound of sup J per sample, and its proof; over all labels where they may move."""
        known = structure(self.objective) if known is None else known
        batch = moved.batch
        at_labels = replace(batch, y=moved.labels)
        bound, proof = upper_bound(self.objective, at_labels, moved.found, known)
        fee = self.objective.penalty * self.label_cost
        if self.flips:
            bound = bound - fee * (moved.labels != batch.y).to(bound.dtype)
        for label in self.flips:
            flipped = replace(batch, y=torch.full_like(batch.y, label))
            other, _ = upper_bound(self.objective, flipped, self._ascend(flipped, [moved.q]), known)
            bound = torch.maximum(bound, other - fee * (batch.y != label).to(other.dtype))
        return bound, proof
