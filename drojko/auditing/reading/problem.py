"""What is audited: the model's answers on weighted rows, and what moving those rows costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.auditing.progress import Progress
from drojko.auditing.reading.models import AuditedModel
from drojko.inner.objective import Objective
from drojko.inner.transport.adversary import Adversary
from drojko.losses import Loss
from drojko.measures import LabelledMeasure
from drojko.models import TabularModel

__all__ = ["AuditProblem", "ScoresModel"]

_BLOCK = 65_536


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
    calls: list[int] = field(default_factory=lambda: [0])
    progress: Progress = field(default_factory=Progress)

    @property
    def classes(self) -> np.ndarray | None:
        return self.model.classes

    @property
    def n_labels(self) -> int:
        """Number of classes; 0 for regression."""
        return 0 if self.classes is None else len(self.classes)

    @property
    def tabular(self) -> TabularModel:
        """The model as solvers take it; one without derivatives where there are none."""
        return self.model.tabular or ScoresModel(self.model.scores, self.model.n_outputs)

    def adversary(self, objective: Objective) -> Adversary:
        """Ascents from the rows themselves, at whatever label they may take."""
        label_cost = self.ambiguity.label_cost
        return Adversary(objective, n_labels=self.n_labels, label_cost=label_cost)

    def outputs(self, x: Tensor) -> Tensor:
        """Answers at the rows of x, shape (n,) or (n, K); counted."""
        self.calls[0] += len(x)
        tabular = self.tabular
        with torch.no_grad():
            return torch.cat([tabular(part) for part in x.split(_BLOCK)])

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss.value(self.outputs(x), y).detach().double()

    def directions(self, n: int, generator: torch.Generator) -> Tensor:
        """Uniform directions of unit cost in the columns that move, shape (n, d)."""
        mutable = torch.as_tensor(self.cost.mutable)
        root = torch.as_tensor(self.cost.inverse_weights).sqrt()
        draw = torch.randn((n, int(mutable.sum())), generator=generator, dtype=torch.float64)
        draw = draw / draw.norm(dim=1, keepdim=True).clamp_min(1e-300)
        out = torch.zeros((n, len(mutable)), dtype=torch.float64)
        out[:, mutable] = draw * root[mutable]
        return out

    def predictions(self, f: Tensor) -> np.ndarray:
        """Predicted labels, or the predicted numbers of a regression."""
        if self.classes is None:
            return f.numpy()
        return self.classes[_predicted(f).numpy()]

    def accuracy(self, f: Tensor, y: Tensor, mass: Tensor) -> float:
        """Share of rows whose label is predicted; NaN for regression."""
        if self.classes is None:
            return float("nan")
        right = _predicted(f) == y
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


def _predicted(f: Tensor) -> Tensor:
    return (f > 0).long() if f.ndim == 1 else f.argmax(1)


def _auc(score: np.ndarray, positive: np.ndarray, mass: np.ndarray) -> float:
    """P(score of a positive > that of a negative), ties counted half."""
    if not np.isfinite(score).all() or not mass[positive].sum() * mass[~positive].sum() > 0:
        return float("nan")
    return min(1.0, float(roc_auc_score(positive, score, sample_weight=mass)))


class ScoresModel(TabularModel):
    """Answers without derivatives, for sets that ask for nothing but losses."""

    def __init__(self, scores: Callable[[np.ndarray], np.ndarray], n_outputs: int) -> None:
        super().__init__()
        self.scores = scores
        self.n_outputs = n_outputs

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.scores(x.numpy()), dtype=torch.float64)

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        """Answers, and a derivative of zero."""

        def backward(g: Tensor, parameters: bool = False) -> Any:
            return [] if parameters else torch.zeros_like(x)

        return self.forward(x), backward
