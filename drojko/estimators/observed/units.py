"""The ground cost of two samples of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drojko.ambiguity.ground.norms import primal_norm
from drojko.approaches.registry import approach_to
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["Units"]


@dataclass(frozen=True, eq=False)
class Units:
    """The ground cost between rows: of `points`, Euclidean where the norm is 2, and of labels."""

    weights: np.ndarray
    mutable: np.ndarray
    order: int
    norm: float
    label_cost: float
    names: list[str]
    unit: float = 1.0  # length that counts as one: a power of two

    @staticmethod
    def of(ambiguity: Any, names: list[str], X: np.ndarray) -> Units:
        cost = approach_to(ambiguity).resolve(ambiguity, X, names)
        if not ambiguity.moves or ambiguity.order not in (1, 2):
            raise UnsupportedError(
                f"observed_shift measures in the units of Wasserstein sets; "
                f"{type(ambiguity).__name__} does not move points: give ambiguity=Wasserstein()"
            )
        mutable = np.asarray(cost.mutable, dtype=bool)
        if not mutable.any():
            raise InvalidDataError("all columns are immutable: nothing can be compared")
        weights = np.where(mutable, cost.weights, 0.0)
        return Units(
            weights, mutable, ambiguity.order, ambiguity.norm, float(ambiguity.label_cost), names
        )

    @property
    def euclidean(self) -> bool:
        """Whether lengths of `points` are costs."""
        return self.order == 2 or self.norm == 2

    def points(self, X: np.ndarray) -> np.ndarray:
        """The columns that move (n, k), in units of the cost."""
        return X[:, self.mutable] / self.unit * np.sqrt(self.weights[self.mutable])

    def fitted(self, X: np.ndarray) -> Units:
        """Units in which rows X are of ordinary size: fourth powers are numbers."""
        size = float(np.ptp(self.points(X), axis=0).max())
        unit = math.ldexp(1.0, math.frexp(size)[1]) if 0.0 < size < math.inf else 1.0
        cost = self.label_cost / unit if self.order == 1 else self.label_cost / unit / unit
        return replace(self, unit=unit, label_cost=cost)

    def costs(
        self, a: np.ndarray, b: np.ndarray, label: np.ndarray | None, other: np.ndarray | None
    ) -> np.ndarray:
        """Of moving each of the points a (n, k), of these labels, to each of b (m, k)."""
        if self.euclidean:
            centre = b.mean(0)
            a, b = a - centre, b - centre
            square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2.0 * a @ b.T
            total = np.maximum(square, 0.0)
            total = np.sqrt(total) if self.order == 1 else total
        else:
            total = np.stack([primal_norm(row - b, np.ones(a.shape[1]), self.norm) for row in a])
        if label is not None and other is not None and math.isfinite(self.label_cost):
            total = total + self.label_cost * (label[:, None] != other)
        return total

    def note(self, old: np.ndarray, new: np.ndarray) -> str:
        """On columns that cannot move and did."""
        error = np.sqrt(old.var(0) / len(old) + new.var(0) / len(new))
        apart = np.abs(old.mean(0) - new.mean(0)) > 4.0 * error
        moved = [self.names[k] for k in np.flatnonzero(apart & ~self.mutable)]
        if not moved:
            return ""
        return f" Immutable columns differ, which no radius allows for: {', '.join(moved[:5])}."
