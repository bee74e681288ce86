"""What every inner solver is: settings that turn an objective and draws into an `Adversary`."""

from __future__ import annotations

import math
from typing import Any

import torch
from sklearn.base import BaseEstimator

from drojko.inner.objective import Batch, Objective

__all__ = ["InnerSolver"]


class InnerSolver(BaseEstimator):
    """Settings of an inner solver. ``fit`` is deterministic given the generator."""

    corrections: int
    training_corrections: int

    def validate(self) -> None:
        """Raise `InvalidDataError` for a setting out of range."""

    def check(self, ambiguity: Any) -> None:
        """Raise `UnsupportedError` for sets that the solver does not know."""

    def fit(
        self,
        objective: Objective,
        batch: Batch,
        generator: torch.Generator,
        *,
        n_labels: int = 0,
        label_cost: float = math.inf,
        max_time: float | None = None,
    ) -> Any:
        """Learn the worst-case map of ``objective`` from the draws ``batch``, an `Adversary`.

        ``n_labels`` classes (0: regression), a change of which costs ``label_cost``, in the units
        of the ground cost; ``max_time`` in seconds.
        """
        raise NotImplementedError
