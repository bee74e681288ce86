"""The min-max problem as a value: what is fixed while the model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Callback
from drojko.ambiguity.base import AmbiguitySet
from drojko.ambiguity.ground.cost import GroundCost
from drojko.distributed.points import SharedPoints
from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Batch, Objective
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.ascent import Ascent, proximal_ascent
from drojko.inner.transport.candidates import first_candidates
from drojko.losses import Loss
from drojko.measures.base import LabelledMeasure
from drojko.measures.grouped import Grouped
from drojko.models import TabularModel

__all__ = ["NOT_FINITE", "Callback", "RobustProblem", "TrainResult"]

NOT_FINITE = (
    "the worst-case risk is not finite at the start: look for extreme values or scales in the data "
    "and the settings"
)


@dataclass(frozen=True)
class TrainResult:
    """How a training run ended; the parameters themselves are in the model.

    ``gap`` is the proven relative gap of the objective, NaN where nothing is proven; ``advice`` a
    word on the result for the user; ``risk`` the worst case and ``scores`` the predictions of the
    rows, where the solver knows them.
    """

    status: str
    message: str
    n_iter: int
    penalty: float
    stationarity: float
    history: dict[str, np.ndarray] = field(default_factory=dict)
    gap: float = math.nan
    advice: str | None = None
    risk: Any = None
    scores: Any = None


@dataclass(frozen=True)
class RobustProblem:
    r"""Minimise :math:`\sup_P \{E_P\ell(\theta) : D(P, P_0) \le r\} + \tfrac\alpha2\|\theta\|^2`.

    or its penalised form; exactly one of ``radius`` and ``penalty`` is given. With ``centre`` and
    ``scale`` the draws are (x - centre) / scale, with ``target_centre`` and ``target_scale`` the
    targets of a regression likewise; cost, radius, penalty and alphas are in those units. An
    empirical reference may come with its ``atoms``, drawn once for all that ask. ``certified`` is
    the weight of the product of the layers' norms, added to the objective of networks;
    ``held_out`` are points whose robust risk ends training; with ``shards`` the atoms, and those
    held out, are the ones of this process, and sums are made over all.
    """

    reference: LabelledMeasure
    model: TabularModel
    loss: Loss
    cost: GroundCost
    inner: InnerSolver
    radius: float | None = None
    penalty: float | None = None
    alpha: float = 0.0
    certified: float = 0.0
    label_cost: float = math.inf
    n_labels: int = 0
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    alphas: tuple[float, ...] | None = None
    centre: Tensor | None = None
    scale: float = 1.0
    target_centre: float = 0.0
    target_scale: float = 1.0
    atoms: tuple[Tensor, Tensor, Tensor] | None = None
    held_out: tuple[Tensor, Tensor, Tensor] | None = None
    shards: SharedPoints | None = None
    #: Whether a row moves to one point; else `move` and `parameter_gradient` know of more.
    single: ClassVar[bool] = True

    def decay(self) -> list[float]:
        """L2 penalty of each parameter: ``alphas`` where the units were changed."""
        if self.alphas is not None:
            return list(self.alphas)
        return [self.alpha if on else 0.0 for on in self.model.penalised()]

    def total(self, sums: Tensor) -> Tensor:
        """Sums over all points, from those over the points here."""
        return sums if self.shards is None else self.shards.total(sums)

    def mean(self, values: Tensor) -> Tensor:
        """Means over the rows of all points, each of which counts once."""
        if self.shards is None:
            return values.mean(0)
        return (self.total(values.sum(0)) / len(self.shards)).to(values.dtype)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Low-variance weighted reference points, inside the bounds, on the problem's device."""
        return self._place(*self._points(n, generator))

    def held(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The points held out, as `draw` gives others."""
        return None if self.held_out is None else self._place(*self.held_out)

    def _points(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Reference points in the units of the data: the atoms, where they are known."""
        return self.atoms or self.reference.points(n, generator)

    def support(
        self, ambiguity: AmbiguitySet, n: int, generator: torch.Generator, groups: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Reference points of positive weight, and a reweighting set on them.

        The set sees the points in the units of the data. ``groups``: of the points of an
        empirical reference; a `Grouped` one brings its own.
        """
        reference = self.reference
        if isinstance(reference, Grouped):
            *drawn, index = reference.grouped_points(n, generator)
            groups = index.numpy()
        else:
            drawn = self._points(n, generator)
        x, y, w = self._place(*drawn)
        kept = w > 0
        if not bool(kept.all()):
            x, y, w = x[kept], y[kept], w[kept]
            groups = None if groups is None else np.asarray(groups)[kept.cpu().numpy()]
        outer = x if self.centre is None else x * self.scale + self.centre.to(x)
        return x, y, w, ambiguity.bind(outer, y, w, groups)

    def _place(self, x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reference points on the device, in this problem's units."""
        x = x.to(self.device)
        if self.centre is not None:
            x = (x - self.centre.to(x)).div_(self.scale)
        # Solvers of linear models take points in whichever precision they come.
        x = self.cost.project(x if self.model is None else x.to(self.dtype))
        if not self.n_labels:
            y = ((y - self.target_centre) / self.target_scale).to(self.dtype)
        y = y.to(self.device)
        return x, y, w.to(self.device, torch.float64)

    def objective(self, points: Tensor, penalty: float, *, reduce: bool = True) -> Objective:
        """Inner objective of the current parameters, conditioned by the spread of ``points``."""
        first = self.model.first_layer() if reduce else None
        coordinates = Coordinates.build(self.cost, points, first, reduce)
        return Objective(self.model, self.loss, coordinates, penalty)

    def adversary(self, objective: Objective, corrections: int) -> Adversary:
        """The cheap adversary of training: from where a sample is, a few corrections."""
        return Adversary(
            objective,
            first_candidates(objective),
            screening=0,
            corrections=corrections,
            n_labels=self.n_labels,
            label_cost=self.label_cost,
        )

    def first_penalty(
        self, objective: Objective, batch: Batch, weights: Tensor, least: float = 1e-12
    ) -> float:
        """The penalty, or for a radius the one that a locally linear loss would need.

        ``least``: slope that is assumed of flat models, as a share of the mean loss per spread of
        the draws. Training that starts at a flat model needs one: a penalty near zero would let
        the adversary keep it there.
        """
        if self.penalty is not None:
            return self.penalty
        if not self.radius:
            return math.inf
        sums = weights.new_zeros(2)
        if len(batch):
            value, gradient = objective.with_penalty(1.0).value_and_gradient(batch, batch.q0)
            square, value = gradient.square().sum(1).double(), value.double()
            sums = torch.stack([square @ weights, value.abs() @ weights])
        square, size = self.total(sums).tolist()
        slope = max(square**0.5, least * size, 1e-200) / objective.coordinates.scale
        return slope / (2.0 * self.radius) + self._growth(objective, batch, weights)

    def _growth(self, objective: Objective, batch: Batch, weights: Tensor) -> float:
        """Penalty below which the loss of the locally linear model grows faster than the cost."""
        growth = self.loss.growth
        if not (0.0 < growth < math.inf and self.model.n_outputs == 1):
            return 0.0
        steepness = weights.new_zeros(1)
        if len(batch):
            f, backward = objective.model.linearise(batch.x)
            slopes = objective.coordinates.pull(backward(torch.ones_like(f))).square().sum(1)
            steepness[0] = slopes.double() @ weights
        return growth * float(self.total(steepness)) / objective.coordinates.scale**2

    def move(self, adversary: Adversary, batch: Batch, start: Tensor, corrections: int) -> Moved:
        """Worst-case positions from a warm start: a formula where there is one."""
        objective = adversary.objective
        if math.isinf(objective.penalty):
            value, gradient = objective.with_penalty(0.0).value_and_gradient(batch, batch.q0)
            zero = torch.zeros_like(value)
            return Moved(batch, batch, Ascent(batch.q0, value, gradient), value, zero, value)
        if adversary.exact or adversary.discrete or len(adversary.candidates) > 1:
            return adversary.solve(batch, [start])
        found = proximal_ascent(objective, batch, start, corrections)
        return Moved.of(objective, batch, batch, found)

    def parameter_gradient(self, objective: Objective, moved: Moved, weights: Tensor):
        """Danskin: gradient of the weighted mean loss at the moved samples."""
        x = objective.decode(moved.at, moved.q)
        return self.outputs_and_gradient(x, moved.labels, weights)[1]

    def outputs_and_gradient(self, x: Tensor, y: Tensor, mass: Tensor) -> tuple[Tensor, Any]:
        """The model's outputs, and the gradient of the losses there under these masses."""
        f, backward = self.model.linearise(x)
        slope = self.loss.gradient(f, y)
        scale = mass.to(slope.dtype)
        slope = slope * (scale if slope.ndim == 1 else scale.unsqueeze(1))
        return f, backward(slope, parameters=True)
