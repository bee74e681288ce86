"""A decision loss as the model of the inner problem, and its exact adversary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drojko.exceptions import InvalidDataError
from drojko.inner.objective import Batch
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.ascent import Ascent
from drojko.inner.transport.bounds import Structure
from drojko.inner.transport.local_bounds import strong_gap
from drojko.losses import Loss
from drojko.losses.callables import in_torch
from drojko.measures import ClassConditional, LabelledMeasure, Measure
from drojko.models import ModuleModel
from drojko.problems.families.structured import StructuredLoss
from drojko.problems.parameters import Layout

__all__ = [
    "LABEL",
    "DecisionModule",
    "Identity",
    "StructuredAdversary",
    "decision_model",
    "unlabelled",
]

#: The one label that there is.
LABEL = np.zeros(1, dtype=np.int64)


class Identity(Loss):
    """The loss of a model that returns the loss: value f, slope 1."""

    name = "decision"
    task = "regression"
    lipschitz = 1.0
    curvature = 0.0
    growth = math.inf  # in z: nothing is known of it

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return f

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(f)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(f)


class DecisionModule(nn.Module):
    """z -> loss(params, z), with all of params in one vector."""

    def __init__(self, loss: Callable[[Any, Tensor], Tensor], layout: Layout, flat: Tensor):
        super().__init__()
        self.loss = loss
        self.layout = layout
        self.flat = nn.Parameter(flat.clone())

    @property
    def params(self) -> Any:
        """The decision in the user's shape, without gradient."""
        return self.layout.split(self.flat.detach())

    def of_labelled(self, x: Tensor, y: Tensor) -> Tensor:
        """The same of rows with labels, which say nothing."""
        return self(x)

    def forward(self, x: Tensor) -> Tensor:
        """Loss of each row, shape (n,)."""
        value = in_torch("loss(params, z)", self.loss, self.layout.split(self.flat), x)
        if not isinstance(value, Tensor) or tuple(value.shape) != (len(x),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidDataError(
                f"loss(params, z) returned {got} for {len(x)} rows; expected one value per row, a "
                f"tensor of shape ({len(x)},)"
            )
        return value


def decision_model(loss: Callable[[Any, Tensor], Tensor], layout: Layout, flat: Tensor):
    """The loss as a model with one output."""
    return ModuleModel(DecisionModule(loss, layout, flat), 1)


def unlabelled(measure: Measure) -> LabelledMeasure:
    """The measure with the label 0 at every point."""
    return ClassConditional.from_measures([measure])


@dataclass(frozen=True)
class StructuredAdversary(Adversary):
    """The maximiser of a `StructuredLoss` by its formula; proof "dual".

    Where the formula does not hold (a quadratic with bounds) it is a search like any other, with
    the loss's own curvature as proof.
    """

    @property
    def _structured(self) -> StructuredLoss:
        loss: Any = self.objective.model
        return loss.module.loss

    @property
    def exact(self) -> bool:
        """Whether the formula holds: no candidates, no warm starts."""
        return self._structured.applies(self.objective.coordinates.lower is not None)

    def _params(self) -> Any:
        model: Any = self.objective.model
        return model.module.params

    def _floor(self) -> float:
        return 0.0 if self.exact else math.inf

    def _ascend(self, batch: Batch, extra: Sequence[Tensor]) -> Ascent:
        if not self.exact:
            return super()._ascend(batch, extra)
        q = self._structured.maximise(self._params(), self.objective, batch)
        loss: Any = self.objective.model
        risk = loss.module(self.objective.decode(batch, q))
        value = risk - self.objective.penalty * self.objective.cost(batch, q)
        return Ascent(q, value, torch.zeros_like(q))  # a maximiser: nothing asks for more

    def upper(self, moved: Moved, known: Structure | None = None) -> tuple[Tensor, str]:
        """The value itself, or the bound by strong concavity."""
        if self.exact:
            return moved.value, "dual"
        curvature = self._structured.curvature(self._params(), self.objective.coordinates)
        modulus = 2.0 * self.objective.strength - curvature
        if modulus <= 0:
            return super().upper(moved, known)
        gap = strong_gap(self.objective, moved.found, torch.full_like(moved.value, modulus))
        return moved.value + gap, "strong-concavity"
