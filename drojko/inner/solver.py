"""What every inner solver is: settings that turn an objective and draws into an `Adversary`."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from sklearn.base import BaseEstimator

from drojko._validation import Checked, set_known
from drojko.ambiguity import AmbiguitySet
from drojko.exceptions import UnsupportedError
from drojko.inner.objective import Batch, Objective

__all__ = ["InnerSolver"]


class InnerSolver(Checked, BaseEstimator):
    """Settings of an inner solver. ``fit`` is deterministic given the generator."""

    corrections = 0
    training_corrections = 0

    def validate(self) -> None:
        """Raise `InvalidDataError` for a setting out of range."""

    def set_params(self, **params: Any) -> Self:
        """Set parameters; an unknown name is an error that says which one may be meant."""
        return set_known(self, super().set_params, params)

    def check(self, ambiguity: AmbiguitySet) -> None:
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
        effort: str = "fast",
        atoms: bool = False,
    ) -> Any:
        """Learn the worst-case map of ``objective`` from the draws ``batch``, an `Adversary`.

        ``n_labels`` classes (0: regression), a change of which costs ``label_cost``, in the units
        of the ground cost; ``max_time`` in seconds. ``effort`` of its searches: "fast" or
        "thorough". ``atoms``: the draws are all that will be moved, so that nothing need be learned
        for others. Raises `UnsupportedError` where the solver is
        for sets that reweight.
        """
        raise UnsupportedError(
            f"{type(self).__name__} finds the worst cases of sets that reweight; a set that moves "
            "points at a cost needs inner='icnn' or 'pointwise'"
        )
