"""Everything that training and certificates need to know of a fit, in the units of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.inner.solver import InnerSolver
from drojko.losses import Loss
from drojko.measures import LabelledMeasure
from drojko.minimax.limits import Limits
from drojko.minimax.problem import Callback, RobustProblem, TrainResult
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import TabularModel

__all__ = ["Plan", "Points"]

#: Rows x, their targets y and their masses w.
Points = tuple[Tensor, Tensor, Tensor]
_COLUMNS = ("iteration", "robust_risk", "penalty", "transport_cost", "stationarity", "seconds")


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
    atoms: Points | None = None  # all points of an empirical reference

    @property
    def limits(self) -> Limits:
        """When training ends; the clock starts here."""
        return Limits(self.max_iter, self.tol, self.max_time, self.callback)

    def solve_linear(
        self, solver: Callable[..., Any], data: Any, model: Any, **options: Any
    ) -> TrainResult:
        """Train a linear model by an exact ``solver``; a callback finds each iterate in it."""
        weight, bias = model.weights[0], model.biases[0]

        def load(coef: np.ndarray, intercept: Any) -> None:
            weight.data.copy_(torch.as_tensor(np.atleast_2d(coef), dtype=weight.dtype))
            bias.data.copy_(torch.as_tensor(intercept, dtype=bias.dtype))  # not float32

        def callback(iteration: int, info: dict[str, Any]) -> bool:
            if self.callback is None:
                return False
            load(info["coef"], info["intercept"])
            return self.callback(iteration, info)

        solution = solver(
            *data,
            radius=self.radius,
            penalty=self.penalty,
            alpha=self.alpha,
            fit_intercept=self.fit_intercept,
            tol=self.tol,
            max_iter=self.max_iter,
            max_time=self.max_time,
            callback=callback,
            **options,
        )
        load(solution.coef, solution.intercept)
        history = {
            name: np.array([row.get(name, math.nan) for row in solution.history])
            for name in _COLUMNS
        }
        return TrainResult(
            solution.status,
            solution.message,
            solution.n_iter,
            solution.penalty,
            solution.stationarity,
            history,
            solution.relative_gap,
        )

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
        shared = {f.name for f in fields(RobustProblem)} & {f.name for f in fields(Plan)}
        return RobustProblem(model=model, **{name: getattr(self, name) for name in shared})
