"""What every inner solver is: settings that turn an objective and draws into an `Adversary`."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import BaseEstimator

from drojko.exceptions import InvalidDataError
from drojko.inner.objective import Batch, Objective

if TYPE_CHECKING:
    from drojko.inner.transport.adversary import Adversary

__all__ = ["InnerSolver"]


class InnerSolver(BaseEstimator):
    """Settings of an inner solver. ``fit`` is deterministic given the generator."""

    corrections: int
    training_corrections: int

    def validate(self) -> None:
        """Raise `InvalidDataError` for a setting out of range."""
        for name, value in self.get_params(deep=False).items():
            if name == "initialisation":
                if value not in ("identity", "bures"):
                    raise InvalidDataError(
                        f"{type(self).__name__}: initialisation={value!r}; expected 'identity' or "
                        "'bures'"
                    )
                continue
            values = value if isinstance(value, tuple | list) else [value]
            for number in values:
                real = isinstance(number, Real) and not isinstance(number, bool)
                if not real or not math.isfinite(number) or number < 0:
                    raise InvalidDataError(
                        f"{type(self).__name__}: {name}={value!r}; expected non-negative numbers"
                    )
                floating = name in ("tol", "learning_rate")
                if not floating and not isinstance(number, Integral):
                    raise InvalidDataError(f"{type(self).__name__}: {name}={value!r}; expected int")
                if number < 1 and name in ("hidden", "fits", "batch_size"):
                    raise InvalidDataError(
                        f"{type(self).__name__}: {name}={value!r}; expected at least 1"
                    )

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
    ) -> Adversary:
        """Learn the worst-case map of ``objective`` from the draws ``batch``."""
        raise NotImplementedError
