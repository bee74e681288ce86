r"""Losses with their structure as data: the worst case is a formula, and its proof a certificate.

A loss that is written as ``loss(params, z)`` is a black box, whose worst case a search finds. Where
z enters through a maximum of affine functions or a quadratic, say so: the supremum

.. math:: \sup_z \ell(\theta, z) - \lambda c(z, x)

is then known for every x, and both sides of the certificate meet.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from drojko._validation import checked
from drojko.ambiguity.ground.norms import steepest_direction
from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Batch, Objective

__all__ = ["Geometry", "MaxAffine", "Quadratic", "SeparableMaxAffine", "StructuredLoss"]

#: Scores of pieces from which a search by whole solves is faster than bisection.
_MANY = 40_000


@dataclass(frozen=True, eq=False)
class Geometry:
    r"""The ground cost of order 1, :math:`\|\sqrt w \circ (x - z)\|_p`: 1 / w and p."""

    inverse_weights: np.ndarray
    norm: float = 2.0

    def dual_norm(self, rows: Tensor) -> Tensor:
        """Dual norm of each row, which autograd follows."""
        order = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[self.norm]
        scaled = rows * torch.from_numpy(np.sqrt(self.inverse_weights)).to(rows)
        return torch.linalg.vector_norm(scaled, ord=order, dim=-1)

    def steepest(self, row: np.ndarray) -> np.ndarray:
        """A move of unit cost that gains the dual norm."""
        return steepest_direction(row, self.inverse_weights, self.norm)


class StructuredLoss(ABC):
    """A loss ``loss(params, z) -> (n,)`` whose dependence on z is known."""

    @abstractmethod
    def __call__(self, params: Any, z: Tensor) -> Tensor:
        """Loss of each row of z, shape (n,)."""

    @abstractmethod
    def maximise(self, params: Any, objective: Objective, batch: Batch) -> Tensor:
        """Coordinates q of a global maximiser of loss - penalty * cost, for every sample."""

    #: Whether `maximise` holds within bounds on the columns, too.
    within_bounds = True
    #: Whether `slope` and `steepest` are known: for order-1 transport.
    has_slope = False

    def applies(self, bounded: bool) -> bool:
        """Whether `maximise` holds where columns have bounds, or have none."""
        return self.within_bounds or not bounded

    def bracket(
        self, params: Any, coordinates: Coordinates, x: Tensor, weights: Tensor, budget: float
    ) -> tuple[float, float] | None:
        """Penalties on either side of the one that spends a budget, very close to each other.

        None: to be searched for.
        """
        return None

    def curvature(self, params: Any, coordinates: Coordinates) -> float:
        """Largest eigenvalue of the Hessian in q, infinite for kinks."""
        return math.inf

    def tail(self, params: Any, dim: int) -> np.ndarray | None:
        """The Hessian in z far away, shape (d, d), where it decides on exponential moments."""
        return None

    def slope(self, params: Any, geometry: Geometry) -> Tensor:
        """How fast the loss grows in z, far away, along its steepest direction; a number."""
        raise UnsupportedError(f"{type(self).__name__} has no known slope")

    def steepest(self, params: Any, geometry: Geometry) -> np.ndarray:
        """That direction, at unit cost, shape (d,)."""
        raise UnsupportedError(f"{type(self).__name__} has no known slope")


def _matrix(name: str, value: Any, like: Tensor, columns: int) -> Tensor:
    found = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if found.ndim != 2 or found.shape[1] != columns:
        raise InvalidDataError(
            f"{name} have shape {tuple(found.shape)}; expected (pieces, {columns}) for rows of "
            f"{columns} columns"
        )
    return found


@dataclass(frozen=True)
class _Pieces(StructuredLoss):
    """What maxima of affine functions share: ``pieces(params) -> (slopes, offsets)``."""

    pieces: Callable[[Any], tuple[Tensor, Tensor]]
    has_slope = True

    @abstractmethod
    def _data(self, params: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes and offsets, checked against rows of a table."""

    def _slopes(self, params: Any, geometry: Geometry) -> Tensor:
        return self._data(params, torch.zeros(1, len(geometry.inverse_weights)).double())[0]


def _best_move(objective: Objective, batch: Batch, pull: Tensor, scores: Any) -> Tensor:
    """The best of the pieces' own moves, whole or, where scores have columns, in each column."""
    q, best = batch.q0, torch.full_like(scores[0], -math.inf)
    for direction, score in zip(pull, scores, strict=True):
        at = objective.coordinates.project(batch.q0 + direction / (2.0 * objective.strength))
        move = at - batch.q0
        gain = move * direction - objective.strength * move.square()
        value = score + (gain.sum(1) if score.ndim == 1 else gain)
        better = value > best
        best = torch.where(better, value, best)
        q = torch.where(better if score.ndim > 1 else better.unsqueeze(1), at, q)
    return q


@checked()
@dataclass(frozen=True)
class MaxAffine(_Pieces):
    r"""A maximum of affine functions of z.

    .. math:: \ell(\theta, z) = \max_i\; a_i(\theta)^\top z + b_i(\theta), \qquad
        \sup_z \ell - \lambda c(z, x) = \max_i\; a_i^\top x + b_i + \|a_i\|_*^2 / 4\lambda

    without bounds on the columns; with bounds the supremum of each piece is a clipped move. Finite
    for every penalty.

    Parameters
    ----------
    pieces : callable
        ``pieces(params) -> (slopes, offsets)``, tensors of shape (k, d) and (k,) that autograd can
        follow back to params.

    Examples
    --------
    >>> def pieces(q):  # what unsold stock and missed sales cost
    ...     return torch.tensor([[-1.0], [3.0]]), torch.stack([q, -3.0 * q])
    >>> MaxAffine(pieces)(torch.tensor(2.0), torch.tensor([[0.0], [4.0]]))
    tensor([2., 6.])
    """

    def _data(self, params: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        slopes, offsets = self.pieces(params)
        slopes = _matrix("the slopes of MaxAffine", slopes, like, like.shape[1])
        offsets = torch.as_tensor(offsets, dtype=like.dtype, device=like.device)
        if tuple(offsets.shape) != (len(slopes),):
            raise InvalidDataError(
                f"the offsets of MaxAffine have shape {tuple(offsets.shape)}; expected "
                f"({len(slopes)},), one per row of the slopes"
            )
        return slopes, offsets

    def slope(self, params: Any, geometry: Geometry) -> Tensor:
        """The largest dual norm of a piece."""
        return geometry.dual_norm(self._slopes(params, geometry)).amax()

    def steepest(self, params: Any, geometry: Geometry) -> np.ndarray:
        """The direction of that piece."""
        slopes = self._slopes(params, geometry).detach()
        return geometry.steepest(slopes[int(geometry.dual_norm(slopes).argmax())].numpy())

    def __call__(self, params: Any, z: Tensor) -> Tensor:
        """The largest piece at each row."""
        slopes, offsets = self._data(params, z)
        return torch.addmm(offsets, z, slopes.T).amax(1)

    def bracket(
        self, params: Any, coordinates: Coordinates, x: Tensor, weights: Tensor, budget: float
    ) -> tuple[float, float] | None:
        """Bisection on the pieces' scores: no point is moved."""
        slopes, offsets = self._data(params, x)
        scores = torch.addmm(offsets, x, slopes.T).detach().numpy()
        square = coordinates.pull(slopes).square().sum(1).detach().numpy()
        if coordinates.lower is not None or scores.size > _MANY or not square.max() > 0:
            return None
        unit = coordinates.scale**2  # of penalties: strength = penalty * unit
        mass, rows = weights.numpy(), np.arange(len(scores))

        def spends(strength: float) -> bool:
            choice = (scores + square / (4.0 * strength)).argmax(1)
            return bool(unit * (mass[rows] @ square[choice]) / (4.0 * strength**2) >= budget)

        high = 0.5 * math.sqrt(unit * square.max() / budget) * (1.0 + 1e-9)
        low = 1e-9 * high
        if not spends(low):
            return None
        while high - low > 1e-13 * high:
            middle = math.sqrt(low * high)
            if not low < middle < high:
                break
            low, high = (middle, high) if spends(middle) else (low, middle)
        return low / unit, high / unit

    def maximise(self, params: Any, objective: Objective, batch: Batch) -> Tensor:
        """The best piece's own maximiser."""
        slopes, offsets = self._data(params, batch.x)
        pull, strength = objective.coordinates.pull(slopes), objective.strength
        score = torch.addmm(offsets, batch.x, slopes.T)
        if objective.coordinates.lower is None:
            score = score + pull.square().sum(1) / (4.0 * strength)
            return batch.q0 + pull[score.argmax(1)] / (2.0 * strength)
        return _best_move(objective, batch, pull, score.T)


@checked()
@dataclass(frozen=True)
class SeparableMaxAffine(_Pieces):
    r"""A sum over the columns of maxima of affine functions of one column.

    .. math:: \ell(\theta, z) = \sum_j \max_i\; s_{ij}(\theta) z_j + o_{ij}(\theta)

    Columns move independently, so that k pieces per column stand for k^d pieces of a `MaxAffine`.

    Parameters
    ----------
    pieces : callable
        ``pieces(params) -> (slopes, offsets)``, both of shape (k, d).

    Examples
    --------
    >>> def pieces(q):
    ...     return torch.tensor([[-1.0, -1.0], [3.0, 3.0]]), torch.stack([q, -3.0 * q])
    >>> loss = SeparableMaxAffine(pieces)
    >>> loss(torch.tensor([2.0, 2.0]), torch.tensor([[0.0, 4.0]]))
    tensor([8.])
    """

    def _data(self, params: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        slopes, offsets = self.pieces(params)
        slopes = _matrix("the slopes of SeparableMaxAffine", slopes, like, like.shape[1])
        offsets = _matrix("the offsets of SeparableMaxAffine", offsets, like, like.shape[1])
        return slopes, offsets

    def slope(self, params: Any, geometry: Geometry) -> Tensor:
        """Dual norm of the columns' steepest pieces."""
        return geometry.dual_norm(self._slopes(params, geometry).abs().amax(0))

    def steepest(self, params: Any, geometry: Geometry) -> np.ndarray:
        """Every column along its steepest piece."""
        slopes = self._slopes(params, geometry).detach()
        top = slopes.gather(0, slopes.abs().argmax(0, keepdim=True))[0]
        return geometry.steepest(top.numpy())

    def __call__(self, params: Any, z: Tensor) -> Tensor:
        """Sum over the columns of the largest piece."""
        slopes, offsets = self._data(params, z)
        return (z.unsqueeze(1) * slopes + offsets).amax(1).sum(1)

    def maximise(self, params: Any, objective: Objective, batch: Batch) -> Tensor:
        """The best piece of each column; a coordinate is a column that may move."""
        slopes, offsets = self._data(params, batch.x)
        columns = torch.ones(batch.x.shape[1], dtype=torch.bool, device=batch.x.device)
        if objective.coordinates.immutable is not None:
            columns[objective.coordinates.immutable] = False
        x = batch.x[:, columns]
        scores = [
            x * slope + offset for slope, offset in zip(slopes[:, columns], offsets[:, columns])
        ]
        return _best_move(objective, batch, objective.coordinates.pull(slopes), scores)


@checked()
@dataclass(frozen=True)
class Quadratic(StructuredLoss):
    r"""A quadratic function of z, convex or not.

    .. math:: \ell(\theta, z) = \tfrac12 z^\top A z + b^\top z + c, \qquad
        z^*(x) = x + (2\lambda C - A)^{-1}(A x + b)

    with the weights C of the ground cost; finite for penalties above half the largest eigenvalue
    of A in the metric C.

    Parameters
    ----------
    coefficients : callable
        ``coefficients(params) -> (A, b, c)``, tensors of shape (d, d), (d,) and ().

    Examples
    --------
    >>> def coefficients(t):  # half |t|^2 - t'z
    ...     return torch.zeros(2, 2), -t, 0.5 * t @ t
    >>> Quadratic(coefficients)(torch.ones(2), torch.tensor([[1.0, 1.0]]))
    tensor([-1.])
    """

    coefficients: Callable[[Any], tuple[Any, Any, Any]]

    def _data(self, params: Any, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.coefficients(params)
        a, b, c = (torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in found)
        d = like.shape[-1]
        if tuple(a.shape) != (d, d) or tuple(b.shape) != (d,) or c.numel() != 1:
            raise InvalidDataError(
                f"the coefficients of Quadratic have shapes {tuple(a.shape)}, {tuple(b.shape)}, "
                f"{tuple(c.shape)}; expected ({d}, {d}), ({d},), () for rows of {d} columns"
            )
        return 0.5 * (a + a.T), b, c.reshape(())

    def __call__(self, params: Any, z: Tensor) -> Tensor:
        """The quadratic at each row."""
        a, b, c = self._data(params, z)
        return 0.5 * ((z @ a) * z).sum(1) + z @ b + c

    #: With bounds it is a quadratic program per sample.
    within_bounds = False

    def _matrix(self, params: Any, dim: int) -> Tensor:
        return self._data(params, torch.zeros(0, dim, dtype=torch.float64))[0]

    def tail(self, params: Any, dim: int) -> np.ndarray | None:
        """A, everywhere."""
        return self._matrix(params, dim).detach().numpy()

    def _hessian(self, a: Tensor, coordinates: Coordinates) -> Tensor:
        return coordinates.pull(coordinates.pull(a).T)

    def curvature(self, params: Any, coordinates: Coordinates) -> float:
        """Largest eigenvalue of A in the coordinates."""
        hessian = self._hessian(self._matrix(params, coordinates.n_features), coordinates)
        if hessian.numel() == 0:
            return 0.0
        return float(torch.linalg.eigvalsh(hessian)[-1])

    def bracket(
        self, params: Any, coordinates: Coordinates, x: Tensor, weights: Tensor, budget: float
    ) -> tuple[float, float] | None:
        """A root in the eigenvectors of A, where the budget is a sum of poles."""
        a, b, _ = (part.detach() for part in self._data(params, x))
        hessian = self._hessian(a, coordinates)
        if coordinates.lower is not None or hessian.numel() == 0:
            return None
        values, vectors = torch.linalg.eigh(hessian)
        slopes = (coordinates.pull(x @ a + b) @ vectors).square()
        square, below = (weights @ slopes).numpy(), (values[-1] - values).numpy()
        unit, top = coordinates.scale**2, float(values[-1])

        def excess(logarithm: float) -> float:
            return unit * float((square / (math.exp(logarithm) + below) ** 2).sum()) / budget - 1.0

        high = math.sqrt(unit * float(square.sum()) / budget)
        if not high > 0:
            return None
        ends = [math.log(high) + 1e-9, math.log(max(1e-9 * high, -top * (1.0 + 1e-9)))]
        if not (ends[1] < ends[0] and excess(ends[1]) > 0 > excess(ends[0])):
            return None
        found: Any = brentq(excess, *ends, xtol=1e-14)
        root = math.exp(found)
        low, high = (0.5 * (root * (1.0 + side) + top) / unit for side in (-1e-11, 1e-11))
        return (low, high) if low > 0 else None

    def maximise(self, params: Any, objective: Objective, batch: Batch) -> Tensor:
        """One linear system for all samples."""
        a, b, _ = self._data(params, batch.x)
        coordinates, strength = objective.coordinates, objective.strength
        hessian = self._hessian(a, coordinates)
        if hessian.numel() == 0:
            return batch.q0
        values, vectors = torch.linalg.eigh(hessian)
        modulus = 2.0 * strength - values
        if not float(modulus[0].minimum(modulus[-1])) > 1e-14 * strength:
            least = 0.5 * float(values[-1]) / coordinates.scale**2
            raise UnboundedRiskError(
                f"the worst-case risk is infinite at penalty={objective.penalty:.6g}: the loss "
                f"grows as fast as the transport cost. It is finite for a penalty above "
                f"{least:.6g}; or give a radius"
            )
        slope = coordinates.pull(batch.x @ a + b)
        return batch.q0 + ((slope @ vectors) / modulus) @ vectors.T
