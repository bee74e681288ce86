"""A batch while it is trained on: where its worst case is looked for, and what is kept of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.adversary import Moved
from drojko.minimax.problem import RobustProblem
from drojko.models import MLP, TabularModel

__all__ = ["Room", "Visit", "room"]

_JITTER = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the Gram matrix, relative to its mean


@dataclass(frozen=True)
class Visit(ABC):
    """A batch at the present parameters; positions are those of its objective."""

    problem: RobustProblem
    objective: Objective
    batch: Batch

    @abstractmethod
    def start(self, kept: Tensor) -> Tensor:
        """Positions from what was kept of an earlier visit."""

    @abstractmethod
    def kept(self, q: Tensor) -> Tensor:
        """What to keep of positions."""

    @abstractmethod
    def gradient(self, moved: Moved, kept: Tensor, weights: Tensor) -> list[Tensor]:
        """Danskin: gradient of the weighted mean loss at the moved rows, by parameter.

        ``kept``: what `kept` gives of their positions.
        """


class _InInputs(Visit):
    """Positions are the coordinates of x; displacements are kept."""

    def start(self, kept: Tensor) -> Tensor:
        return self.batch.q0 + kept

    def kept(self, q: Tensor) -> Tensor:
        return q - self.batch.q0

    def gradient(self, moved: Moved, kept: Tensor, weights: Tensor) -> list[Tensor]:
        return self.problem.parameter_gradient(self.objective, moved, weights)


class _Tail(TabularModel):
    """A perceptron as a function of what its first layer gives."""

    def __init__(self, model: MLP) -> None:
        super().__init__()
        self.n_outputs = model.n_outputs
        self.linearise: Any = model.tail


@dataclass(frozen=True)
class _InFirstLayer(Visit):
    r"""A perceptron's rows, moved within the row space of its first layer.

    With G = W C^{-1} W' = L L' a displacement C^{-1} W' u, L' u = sigma q, costs sigma^2 |q|^2 and
    moves the first layer by sigma L q: steps cost O(width^2) a row, not O(d width). What is kept is
    u: at a worst case it is the slope of the loss in the first layer over 2 lambda, and it means
    the same when W has changed.
    """

    x: Tensor
    first: Tensor  # W C^-1
    root: Tensor  # L

    def start(self, kept: Tensor) -> Tensor:
        return (kept @ self.root) / self.objective.coordinates.scale

    def kept(self, q: Tensor) -> Tensor:
        scaled = q * self.objective.coordinates.scale
        return torch.linalg.solve_triangular(self.root, scaled, upper=False, left=False)

    def gradient(self, moved: Moved, kept: Tensor, weights: Tensor) -> list[Tensor]:
        f, backward = self.objective.model.linearise(self.objective.decode(moved.at, moved.q))
        slope = self.problem.loss.gradient(f, moved.labels)
        scale = weights.to(slope.dtype)
        slope = slope * (scale if slope.ndim == 1 else scale.unsqueeze(1))
        slope, others, biases = backward(slope, parameters=True)
        if len(self.root) <= len(kept):
            whole = torch.addmm(slope.T @ self.x, slope.T @ kept, self.first)
        else:
            whole = slope.T @ torch.addmm(self.x, kept, self.first)
        return [whole, *others, slope.sum(0), *biases]


#: Makes a visit of rows x (n, d), y (n,) at a penalty.
Room = Callable[[Tensor, Tensor, float], Visit]


def room(problem: RobustProblem, points: Tensor, rows: int) -> tuple[Room, int]:
    """Where worst cases of a model are looked for in training, and how many numbers a row keeps.

    ``points`` give the unit of length. Perceptrons without bounds and swaps are worked on in their
    first layer, where that is the shorter way for so many rows at once; 0 rows: in no case.
    """
    model, cost = problem.model, problem.cost
    coordinates = Coordinates.build(cost, points, reduce=False, mean=problem.mean)
    free = problem.single and not cost.bounded and coordinates.swaps is None
    if rows and isinstance(model, MLP) and len(model.weights) > 1 and free:
        width, free = len(model.weights[0]), int(cost.mutable.sum())
        if _shorter(rows, width, free, problem.inner.training_corrections):
            return _FirstLayer(problem, coordinates.scale), width

    def visit(x: Tensor, y: Tensor, penalty: float) -> Visit:
        objective = Objective(model, problem.loss, coordinates, penalty)
        return _InInputs(problem, objective, objective.batch(x, y))

    return visit, coordinates.dim


def _shorter(rows: int, width: int, free: int, corrections: int) -> bool:
    """Whether a step in the first layer takes fewer multiplications than one in the columns."""
    looks = corrections + 1
    columns = 2 * (looks + 1) * rows * width * free
    gram = width * width * (free + 4 * width)  # a Cholesky factor is slower than a product
    layer = (2 + min(1.0, width / rows)) * rows * width * free + gram
    return width < free and layer + (2 * looks + 3) * rows * width * width < columns


class _FirstLayer:
    """The room of `_InFirstLayer`."""

    def __init__(self, problem: RobustProblem, scale: float) -> None:
        self.problem, self.scale = problem, scale
        self.model: Any = problem.model
        self.tail = _Tail(self.model)
        self.inverse = torch.as_tensor(problem.cost.inverse_weights).to(self.model.weights[0])
        self.plain = bool((self.inverse == 1).all())

    def __call__(self, x: Tensor, y: Tensor, penalty: float) -> Visit:
        weight, bias = self.model.weights[0].detach(), self.model.biases[0].detach()
        first = weight if self.plain else weight * self.inverse
        gram = first @ weight.T
        diagonal = gram.diagonal()
        diagonal += _JITTER[gram.dtype] * diagonal.mean() + 1e-30
        root = torch.linalg.cholesky_ex(gram)[0]
        coordinates = Coordinates(self.scale, lift=root * self.scale, n_features=len(root))
        objective = Objective(self.tail, self.problem.loss, coordinates, penalty)
        seen = torch.addmm(bias, x, weight.T)
        batch = Batch(seen, y, torch.zeros_like(seen))
        return _InFirstLayer(self.problem, objective, batch, x, first, root)
