r"""Robust value of a decision and a cut below it: what outer solvers ask for.

Every measure P that the inner problem finds gives, for a loss that is convex in the decision,

.. math:: V(\theta') \ge E_P \ell(\theta') \ge E_P \ell(\theta)
          + \langle g, \theta' - \theta\rangle, \qquad g = E_P \nabla_\theta \ell(\theta)

(Danskin), a proven lower bound of the robust risk of every other decision.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.ambiguity import AmbiguitySet
from drojko.ambiguity.ground.cost import GroundCost
from drojko.certificates import Certificate
from drojko.exceptions import UnboundedRiskError
from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Batch, Objective
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.radius import BallSolution, mean, solve_ball
from drojko.inner.worst_case import WorstCase
from drojko.measures import Measure
from drojko.models import ModuleModel
from drojko.problems.constraints import Region
from drojko.problems.families.adversary import Identity, StructuredAdversary

__all__ = [
    "Answer", "BallOracle", "Decided", "Draws", "Family", "Gauge", "Oracle", "RatioOracle", "Wall",
]  # fmt: skip

#: Rounding of a mean of losses, relative to their size.
EPS = 16.0 * float(np.finfo(float).eps)
_CORRECTIONS = 30  # of worst cases that have no formula, from one decision to the next
_INFINITE = "the worst-case risk is infinite: raise the penalty, or give a radius"
_PROBES = 8  # random signs that sizes of slopes are estimated from


@dataclass(frozen=True)
class Draws:
    """Reference points (n, d), inside the bounds, with masses that sum to one."""

    x: Tensor
    w: Tensor

    @property
    def y(self) -> Tensor:
        """Labels: none, that is zero."""
        return self.x.new_zeros(len(self.x))


@dataclass(frozen=True)
class Answer:
    """The robust value at a point: ``attained`` by a measure of the set, at most ``value``.

    ``attained + gradient @ (other - point)`` bounds the robust value of every other point from
    below where the loss is convex in the decision.
    """

    value: float
    attained: float
    gradient: np.ndarray

    @property
    def size(self) -> float:
        """Size of the risk: a bound that nothing comes near says nothing of it."""
        return min(abs(self.value), abs(self.attained))


@dataclass(frozen=True)
class Wall:
    """A convex condition that a point fails by ``excess``: its worst case is infinite.

    ``excess + gradient @ (other - point) <= 0`` holds wherever the worst case is finite.
    """

    excess: float
    gradient: np.ndarray


@dataclass(frozen=True)
class Gauge:
    """Sizes at a decision: of losses, and per variable the rows' root mean square slope.

    The size of losses is the mean of |loss|, or that of the worst case where it is larger.

    The rows' slopes do not vanish at an optimum as their mean does: a move by ``size / slopes``
    changes losses by about their size, in whatever unit losses and decisions are.
    """

    size: float
    slopes: np.ndarray

    def lengths(self, point: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Natural length of a move in each variable.

        The decision's own size, or one, where losses are zero or do not depend on a variable.
        """
        steep = np.maximum(self.slopes, np.abs(gradient))
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            found = self.size / steep
        unknown = ~(np.isfinite(found) & (found > EPS * np.abs(point)))
        return np.where(unknown, np.maximum(np.abs(point), 1.0), found)

    def rounding(self, point: np.ndarray, gradient: np.ndarray) -> float:
        """How far rounding of a decision, or of losses of this size, moves their mean."""
        steep = np.maximum(self.slopes, np.abs(gradient))
        return EPS * (
            self.size + float(steep @ np.maximum(np.abs(point), self.lengths(point, gradient)))
        )


class Oracle(ABC):
    """Robust values on fixed draws, at points of one flat vector."""

    reason = ""  # why the last point had no finite worst case

    def __init__(self, model: ModuleModel, draws: Draws) -> None:
        self.model = model
        self.draws = draws

    @property
    def module(self) -> Any:
        """The loss and its parameters, a `DecisionModule`."""
        return self.model.module

    def start(self, region: Region) -> tuple[np.ndarray, Answer]:
        """The decision as given, inside the region, and its answer."""
        point = region.nearest(self.module.flat.detach().numpy().copy())
        answer = self(point)
        if not isinstance(answer, Answer):
            raise UnboundedRiskError(
                f"at the first decision {self.reason or _INFINITE}; or start at params whose worst "
                "case is finite"
            )
        return point, answer

    def load(self, point: np.ndarray) -> None:
        """Put a point's decision into the model."""
        self.module.flat.data.copy_(torch.as_tensor(point))

    @abstractmethod
    def __call__(self, point: np.ndarray) -> Answer | Wall | None:
        """The answer at a point; a wall, or None, where the worst case is infinite."""

    def gauge(self, point: np.ndarray, answer: Answer) -> Gauge:
        """Sizes of the losses and of their rows' slopes at a point.

        Random signs leave, of the sum over the rows, the root of the sum of squares.
        """
        self.load(point)
        losses, backward = self.model.linearise(self.draws.x)
        root = self.draws.w.sqrt()
        generator = torch.Generator().manual_seed(0)
        square = np.zeros(len(point))
        for _ in range(_PROBES):
            coin = torch.rand(len(root), generator=generator, dtype=root.dtype) < 0.5
            (found,) = backward(torch.where(coin, root, -root).to(losses), parameters=True)
            square += found.detach().double().numpy() ** 2 / _PROBES
        size = mean(losses.double().abs(), self.draws.w)
        return Gauge(max(size, answer.size), np.sqrt(square))

    def slope(self, x: Tensor, weights: Tensor) -> np.ndarray:
        """Gradient in the decision of the weighted loss at rows x."""
        _, backward = self.model.linearise(x)
        (gradient,) = backward(weights, parameters=True)
        return gradient.detach().numpy().copy()


@dataclass(frozen=True)
class Decided:
    """A decision to certify: the model at it, and the draws of the reference it is judged on."""

    model: ModuleModel
    draws: Draws
    reference: Measure
    sampled: bool
    generator: torch.Generator
    stationarity: float


@dataclass(frozen=True)
class Family(ABC):
    """One kind of ambiguity set, ``resolved`` for the columns of z, and the loss it is met by."""

    ambiguity: Any
    resolved: Any
    loss: Any
    inner: InnerSolver
    names: tuple[str, ...] | None

    @property
    def exact(self) -> bool:
        """Whether worst cases are formulas, so that bounds are proven and many draws are cheap."""
        return True

    def inside(self, x: Tensor, w: Tensor, sampled: bool) -> Draws:
        """Reference points that the set can use."""
        return Draws(x.double(), w.double())

    @abstractmethod
    def oracle(self, model: ModuleModel, draws: Draws) -> Oracle:
        """Robust values and cuts on these draws."""

    @abstractmethod
    def certify(self, of: Decided) -> tuple[Certificate, WorstCase]:
        """Certificate and worst case of the model's decision."""


class RatioOracle(Oracle):
    """Sets that reweight the draws: the exact dual, at every point."""

    def __init__(self, model: ModuleModel, draws: Draws, ambiguity: AmbiguitySet | None) -> None:
        super().__init__(model, draws)
        self.ambiguity = ambiguity  # None: the reference alone
        self.bound = None if ambiguity is None else ambiguity.bind(draws.x, None, draws.w)

    def __call__(self, point: np.ndarray) -> Answer | None:
        self.load(point)
        losses, backward = self.model.linearise(self.draws.x)
        if not bool(torch.isfinite(losses).all()):
            return None
        if self.ambiguity is None or self.bound is None:
            mass, value = self.draws.w, mean(losses, self.draws.w)
            attained = value
        else:
            dual = self.bound.dual(losses.numpy())
            mass = self.draws.w * torch.from_numpy(dual.ratio)
            priced = 0.0 if self.ambiguity.penalty is None else dual.penalty * dual.radius
            value, attained = dual.value, dual.attained - priced
        (gradient,) = backward(mass, parameters=True)
        return Answer(value, min(attained, value), gradient.detach().numpy().copy())


class BallOracle(Oracle):
    """Transport sets: worst-case positions of all draws, at the multiplier of the radius.

    Losses with an exact worst case are solved by their formula. Others start where the last
    decision left the draws and climb by 30 steps: ``attained`` is attained all the
    same, ``value`` then is an estimate.
    """

    def __init__(
        self,
        model: ModuleModel,
        draws: Draws,
        cost: GroundCost,
        ambiguity: AmbiguitySet,
        exact: bool,
    ) -> None:
        super().__init__(model, draws)
        self.radius, self.penalty, self.exact = ambiguity.radius, ambiguity.penalty, exact
        self.coordinates = Coordinates.build(cost, draws.x, None, False)
        self.batch = Batch(draws.x, draws.y, self.coordinates.encode(draws.x))
        self.displacement = torch.zeros_like(self.batch.q0)
        self.guess: float | None = None

    def objective(self, penalty: float) -> Objective:
        """The inner problem of the current decision."""
        return Objective(self.model, Identity(), self.coordinates, penalty)

    def adversary(self, penalty: float) -> Adversary:
        """The quick adversary of the current decision."""
        objective = self.objective(penalty)
        if self.exact:
            return StructuredAdversary(objective)
        return Adversary(objective, screening=0, corrections=_CORRECTIONS)

    def first_penalty(self) -> float:
        """The penalty at which a locally linear loss would spend the radius."""
        if self.penalty is not None:
            return self.penalty
        objective = self.objective(1.0)
        value, gradient = objective.value_and_gradient(self.batch, self.batch.q0)
        slope = math.sqrt(mean(gradient.square().sum(1), self.draws.w)) / self.coordinates.scale
        least = 1e-3 * mean(value.abs(), self.draws.w) / self.coordinates.scale
        # A loss without any slope or size says nothing: any penalty will do.
        return (max(slope, least) or 1.0) / (2.0 * (self.radius or 1.0))

    def __call__(self, point: np.ndarray) -> Answer | None:
        self.load(point)
        starts = [self.batch.q0 + self.displacement]
        try:
            if not self.exact:
                ball = self.radius is not None
                self.adversary(self.penalty or 1.0).check_finite(self.batch, ball)
            if self.radius is None:
                moved = self.adversary(self.first_penalty()).solve(self.batch, starts)
                value = mean(moved.value, self.draws.w)
                gradient = self.slope(self._points(moved), self.draws.w)
                return self._answer(value, value, gradient, moved)
            ball = self._bracketed()
            if ball is None:
                penalty = self.first_penalty()
                if self.guess is not None and 1e-2 * penalty < self.guess < 1e2 * penalty:
                    penalty = self.guess
                at, w = self.adversary(penalty), self.draws.w
                ball = solve_ball(
                    at, self.batch, w, self.radius, start=penalty, tol=1e-8, starts=starts
                )
            return self._of_ball(ball)
        except UnboundedRiskError as error:
            self.reason = str(error)
            return None

    def _bracketed(self) -> BallSolution | None:
        """The ball of a loss that knows its multiplier, from two solves."""
        if not self.exact:
            return None
        budget, module = (self.radius or 0.0) ** 2, self.module
        known = module.loss.bracket(
            module.params, self.coordinates, self.batch.x, self.draws.w, budget
        )
        if known is None:
            return None
        below, above = known
        low = self.adversary(below).solve(self.batch)
        high = self.adversary(above).solve(self.batch)
        spent = [mean(moved.cost, self.draws.w) for moved in (low, high)]
        if not spent[0] >= budget >= spent[1]:
            return None
        spread = spent[0] - spent[1]
        share = (budget - spent[1]) / spread if spread > 0 else 0.0
        return BallSolution(above, low, high, below, above, share, self.adversary(above))

    def _of_ball(self, ball: BallSolution) -> Answer | None:
        self.guess = ball.penalty if 0.0 < ball.penalty < math.inf else None
        w, budget = self.draws.w, (self.radius or 0.0) ** 2
        gradient = self.slope(self._points(ball.high), w * (1.0 - ball.share))
        if ball.share > 0.0:
            gradient += self.slope(self._points(ball.low), w * ball.share)
        attained = mean(ball.risk, w)
        value = min(
            penalty * budget + mean(moved.value, w)
            for penalty, moved in ((ball.low_penalty, ball.low), (ball.high_penalty, ball.high))
        )
        return self._answer(value, attained, gradient, ball.high)

    def _points(self, moved: Moved) -> Tensor:
        return self.coordinates.decode(self.batch.x, self.batch.q0, moved.q)

    def _answer(
        self, value: float, attained: float, gradient: np.ndarray, moved: Moved
    ) -> Answer | None:
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            return None
        self.displacement = moved.q - self.batch.q0
        return Answer(max(value, attained), attained, gradient)
