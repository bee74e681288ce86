"""Everything that training and certificates need to know of a fit, in the units of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.inner.solver import InnerSolver
from drojko.losses import Loss
from drojko.measures import LabelledMeasure
from drojko.minimax.problem import Callback, RobustProblem
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import TabularModel

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Everything a fit or an evaluation needs, in the units of the data."""

    reference: LabelledMeasure
    ambiguity: AmbiguitySet
    cost: GroundCost
    loss: Loss
    inner: InnerSolver
    radius: float | None
    penalty: float | None
    label_cost: float
    n_labels: int
    dtype: torch.dtype
    device: str
    generator: torch.Generator
    alpha: float = 0.0
    fit_intercept: bool = True
    max_iter: int = 200
    tol: float = 1e-3
    max_time: float | None = None
    n_draws: int = 2000
    outer: Subgradient = field(default_factory=Subgradient)
    callback: Callback | None = None
    groups: Any = None
    atoms: tuple[Tensor, Tensor, Tensor] | None = None  # all points of an empirical reference

    @property
    def _known(self) -> bool:
        """Whether the exact linear solver knows the worst cases of the loss, with derivatives."""
        return self.loss.scalar and self.loss.has_worst_case and self.loss.has_worst_jet

    @property
    def ridge(self) -> bool:
        """Whether the exact linear solver applies (for a linear model)."""
        return self._known and not self.cost.bounded and not self.cost.swaps

    @property
    def relaxes(self) -> bool:
        """Whether the exact linear solver applies once bounds and swaps are left out."""
        return self._known and (self.cost.bounded or self.cost.swaps)

    @property
    def classes(self) -> bool:
        """Whether the exact multi-class solver applies (for a linear model)."""
        known = not self.loss.scalar and self.loss.has_worst_case
        free = not self.cost.bounded and not self.cost.swaps
        return known and free and math.isinf(self.label_cost)

    def problem(self, model: TabularModel) -> RobustProblem:
        return RobustProblem(
            self.reference,
            model,
            self.loss,
            self.cost,
            self.inner,
            radius=self.radius,
            penalty=self.penalty,
            alpha=self.alpha,
            label_cost=self.label_cost,
            n_labels=self.n_labels,
            dtype=self.dtype,
            device=self.device,
            atoms=self.atoms,
        )
