"""What is audited: the model's answers on weighted rows, and what moving those rows costs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.auditing.progress import Progress
from drojko.auditing.reading.models import AuditedModel
from drojko.auditing.reading.own import BLOCK, ScoresModel
from drojko.inner.objective import Objective
from drojko.inner.swaps import Swaps
from drojko.inner.transport.adversary import Adversary
from drojko.losses import Loss
from drojko.measures import LabelledMeasure
from drojko.models import TabularModel

__all__ = ["AuditProblem"]


@dataclass(frozen=True, eq=False)
class AuditProblem:
    """A model, a loss, weighted rows and the geometry that an audit works with.

    ``x`` (n, d), ``y`` (n,) class indices or targets, ``w`` (n,) summing to one; ``rows`` (n,) are
    positions in the user's table, -1 for draws of a continuous reference.
    """

    model: AuditedModel
    loss: Loss
    ambiguity: AmbiguitySet
    cost: GroundCost
    x: Tensor
    y: Tensor
    w: Tensor
    rows: np.ndarray
    reference: LabelledMeasure
    smooth: bool
    sampled: bool
    generator: torch.Generator
    groups: Any = None
    effort: str = "fast"
    deadline: float = math.inf
    calls: list[int] = field(default_factory=lambda: [0])
    progress: Progress = field(default_factory=Progress)

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        if self.deadline == math.inf:
            return None
        return max(self.deadline - time.perf_counter(), 0.0)

    @property
    def late(self) -> bool:
        """Whether what is not needed is left out."""
        return self.time_left == 0.0

    def part(self, rows: Tensor) -> AuditProblem:
        """The problem of some of the rows; its progress is its own."""
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            w=self.w[rows] / self.w[rows].sum(),
            rows=self.rows[rows.numpy()],
            progress=Progress(),
        )

    @property
    def classes(self) -> np.ndarray | None:
        return self.model.classes

    @property
    def n_labels(self) -> int:
        """Number of classes; 0 for regression."""
        return 0 if self.classes is None else len(self.classes)

    @cached_property
    def nominal(self) -> Tensor:
        """Losses of the rows where they are, shape (n,)."""
        return self.losses(self.x, self.y)

    @property
    def tabular(self) -> TabularModel:
        """The model as solvers take it; one without derivatives where there are none."""
        return self.model.tabular or ScoresModel(
            self.model.own, self.model.n_outputs, self.model.tally
        )

    def adversary(self, objective: Objective) -> Adversary:
        """Ascents from the rows themselves, at whatever label they may take."""
        label_cost = self.ambiguity.label_cost
        return Adversary(objective, n_labels=self.n_labels, label_cost=label_cost)

    def outputs(self, x: Tensor) -> Tensor:
        """Answers at the rows of x, shape (n,) or (n, K); counted."""
        self.calls[0] += len(x)
        tabular = self.tabular
        with torch.no_grad():
            return torch.cat([tabular(part) for part in x.split(BLOCK)])

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss.value(self.outputs(x), y).detach().double()

    @cached_property
    def swaps(self) -> Swaps | None:
        """Categories that may be swapped, at their prices."""
        return Swaps.of(self.cost, {"dtype": torch.float64, "device": "cpu"})

    @cached_property
    def gaps(self) -> Tensor | None:
        """Missing values, which stay so, as a mask (n, d); None where there are none."""
        missing = self.model.space.missing
        return None if missing is None else self.x == missing

    def real(self, z: Tensor) -> Tensor:
        """The rows nearest to z (n, d) that the rows of ``x`` may become by moves, no swaps."""
        z = self.cost.snap(self.cost.project(z))
        return z if self.gaps is None else torch.where(self.gaps, self.x, z)

    def price(self, move: Tensor) -> Tensor:
        """The ground cost of moves (..., d) of numbers, shape (...)."""
        mutable = torch.as_tensor(self.cost.mutable)
        weights = torch.where(mutable, torch.as_tensor(self.cost.weights), 0.0)
        if self.ambiguity.order != 1:
            return move.square() @ weights
        norm = float(self.ambiguity.norm)
        return torch.linalg.vector_norm(move * weights.sqrt(), ord=norm, dim=-1)

    def budget(self, radius: float) -> float:
        """What a ball of a radius may spend."""
        return radius ** (self.ambiguity.order or 2)

    def radius_of(self, cost: float) -> float:
        """The radius of the ball that may spend a mean cost."""
        return cost ** (1.0 / (self.ambiguity.order or 2))

    def directions(self, n: int, generator: torch.Generator) -> Tensor:
        """Uniform directions of unit cost in the columns that move, shape (n, d)."""
        mutable = torch.as_tensor(self.cost.mutable)
        root = torch.as_tensor(self.cost.inverse_weights).sqrt()
        draw = torch.randn((n, int(mutable.sum())), generator=generator, dtype=torch.float64)
        draw = draw / draw.norm(dim=1, keepdim=True).clamp_min(1e-300)
        out = torch.zeros((n, len(mutable)), dtype=torch.float64)
        out[:, mutable] = draw * root[mutable]
        if self.ambiguity.order == 1:  # of its own norm
            out = out / self.price(out).clamp_min(1e-300).unsqueeze(1)
        return out

    def predictions(self, x: Tensor) -> np.ndarray:
        """What the model predicts at the rows of x: labels, or the numbers of a regression."""
        return np.concatenate([self.model.own.predicted(part.numpy()) for part in x.split(BLOCK)])

    def accuracy(self, x: Tensor, y: Tensor, mass: Tensor) -> float:
        """Share of rows x whose label the model predicts; NaN for regression."""
        if self.classes is None:
            return float("nan")
        right = torch.as_tensor(self.predictions(x) == self.classes[y.numpy()])
        return min(1.0, float(mass[right].sum() / mass.sum()))  # rounding must not exceed one

    def auc(self, f: Tensor, y: Tensor, mass: Tensor) -> float:
        """Weighted area under the ROC curve; of several classes the mean of one against rest."""
        if self.classes is None:
            return float("nan")
        if f.ndim == 1:
            return _auc(f.numpy(), y.numpy() == 1, mass.numpy())
        logs = (f - torch.logsumexp(f, 1, keepdim=True)).numpy()
        areas = [_auc(logs[:, k], y.numpy() == k, mass.numpy()) for k in range(f.shape[1])]
        areas = [area for area in areas if np.isfinite(area)]
        return float(np.mean(areas)) if areas else float("nan")


def _auc(score: np.ndarray, positive: np.ndarray, mass: np.ndarray) -> float:
    """P(score of a positive > that of a negative), ties counted half."""
    if not np.isfinite(score).all() or not mass[positive].sum() * mass[~positive].sum() > 0:
        return float("nan")
    return min(1.0, float(roc_auc_score(positive, score, sample_weight=mass)))
