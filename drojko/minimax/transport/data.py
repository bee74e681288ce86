"""Data of a ridge problem, and its geometry in standardised coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np

from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.losses import Loss
from drojko.rows import Rows

__all__ = ["Ground", "RidgeData"]


@dataclass(frozen=True)
class RidgeData:
    r"""Weighted points, a transport cost and a scalar loss :math:`\ell(\theta'x + b, y)`.

    Ground cost: :math:`c(x, x') = \sum_j (x_j - x'_j)^2 / a_j`, plus ``label_cost`` times
    ``[y != y']`` (classification) or ``(y - y')^2`` (regression).

    Parameters
    ----------
    X : array of shape (n, d), float64 or float32; never copied as a whole.
    y : array of shape (n,): 0 or 1 for classification, numbers for regression.
    weight : array of shape (n,), nonnegative; None: equal weights. Only proportions matter.
    inverse_cost : array of shape (d,), the a_j; 0 means that the column cannot move. None: ones.
    label_cost : float, ``inf`` keeps labels fixed.
    loss : a scalar `Loss` with an exact worst case.

    Raises
    ------
    InvalidDataError, UnsupportedError

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> data = RidgeData(np.eye(2), np.array([0, 1]), loss=get_loss("logistic"))
    >>> data.weight
    array([0.5, 0.5])
    """

    X: np.ndarray
    y: np.ndarray
    _: KW_ONLY
    weight: np.ndarray = None  # type: ignore[assignment]
    inverse_cost: np.ndarray = None  # type: ignore[assignment]
    label_cost: float = math.inf
    loss: Loss

    def __post_init__(self) -> None:
        X, put = self.X, lambda name, value: object.__setattr__(self, name, value)
        if not self.loss.has_worst_jet:
            raise UnsupportedError(
                f"{self.loss!r} has no `worst_jet`, which the exact linear solver needs: implement "
                "it, or state a finite curvature of a smooth convex loss"
            )
        if not isinstance(X, np.ndarray) or X.ndim != 2 or X.dtype not in (np.float32, np.float64):
            raise InvalidDataError("X: expected a two-dimensional float32 or float64 array")
        n, d = X.shape
        y = np.array(self.y, dtype=np.float64)  # a copy: torch shares memory with writable arrays
        if y.shape != (n,) or n == 0:
            raise InvalidDataError(f"y has shape {y.shape}, expected ({n},), at least one row")
        if self.loss.task == "classification" and not ((y == 0) | (y == 1)).all():
            raise InvalidDataError("y: expected class indices 0 and 1")
        weight = np.full(n, 1.0 / n) if self.weight is None else np.asarray(self.weight, float)
        if weight.shape != (n,) or not (weight >= 0).all() or not 0 < weight.sum() < math.inf:
            raise InvalidDataError(
                f"weight: expected {n} nonnegative finite numbers, not all of them zero"
            )
        cost = np.ones(d) if self.inverse_cost is None else np.asarray(self.inverse_cost, float)
        if cost.shape != (d,) or not ((cost >= 0) & np.isfinite(cost)).all():
            raise InvalidDataError(f"inverse_cost: expected {d} nonnegative finite numbers")
        if not self.label_cost > 0:
            raise InvalidDataError(f"label_cost = {self.label_cost!r}, expected a positive number")
        put("y", y)
        put("weight", weight / weight.sum())
        put("inverse_cost", cost)
        put("label_cost", float(self.label_cost))

    @property
    def flips(self) -> bool:
        """Whether the adversary may change class labels."""
        return self.loss.task == "classification" and math.isfinite(self.label_cost)

    @property
    def label_norm(self) -> float:
        """What moving the label adds to the squared ridge norm (regression): 1 / label_cost."""
        return 1.0 / self.label_cost if self.loss.task == "regression" else 0.0

    def squared_norm(self, coef: np.ndarray) -> float:
        """n² = sum_j a_j coef_j² (+ 1/label_cost): κ = penalty / n²."""
        return float(self.inverse_cost @ (coef * coef)) + self.label_norm

    def predictions(self, coef: np.ndarray, intercept: float) -> np.ndarray:
        """Return u = X coef + intercept in float64, shape (n,)."""
        u = np.empty(self.X.shape[0])
        for rows in blocks(*self.X.shape):
            u[rows] = self.X[rows].astype(np.float64, copy=False) @ coef
        u += intercept
        return u


def blocks(n: int, d: int) -> Iterator[slice]:
    """Slices of rows small enough that a block and its copies stay in cache."""
    size = int(min(max((1 << 18) // max(d, 1), 1024), 16384))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@dataclass(frozen=True, eq=False)
class Ground:
    r"""Norm and ridge in the coordinates of standardised rows, and the size of the set.

    .. math:: n^2(z) = \sum_j cost_j z_j^2 + offset, \qquad
              \tfrac\alpha2 \|\theta\|^2 = \tfrac12 \sum_j ridge_j z_j^2

    Both are zero on the intercept. ``radius`` None or 0 and ``penalty`` None: nothing moves.
    ``flip_cost`` is the price of another class; infinite: labels stay.
    """

    cost: np.ndarray
    ridge: np.ndarray
    offset: float
    radius: float | None
    penalty: float | None
    flip_cost: float = math.inf

    @classmethod
    def of(
        cls,
        rows: Rows,
        data: RidgeData,
        radius: float | None = None,
        penalty: float | None = None,
        alpha: float = 0.0,
    ) -> Ground:
        """The ground of these rows."""
        cost, ridge = np.zeros(rows.size), np.zeros(rows.size)
        square = rows.scale * rows.scale
        cost[: rows.d] = np.where(rows.dead, 1.0, data.inverse_cost / square)
        ridge[: rows.d] = np.where(rows.dead, 0.0, alpha / square)
        flip_cost = data.label_cost if data.flips else math.inf
        return cls(cost, ridge, data.label_norm, radius or None, penalty, flip_cost)

    @property
    def moves(self) -> bool:
        """Whether anything moves."""
        return self.radius is not None or self.penalty is not None

    def square(self, z: np.ndarray) -> float:
        """n²(z), the offset included."""
        return float(self.cost @ (z * z)) + self.offset

    def decay(self, z: np.ndarray) -> float:
        """The ridge penalty of z."""
        return 0.5 * float(self.ridge @ (z * z))
