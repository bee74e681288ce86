"""The ground cost of transport: what moving one sample costs, and where it may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from drojko._validation import checked, floats, refuse, shown
from drojko.ambiguity.ground.columns import Categories, Known
from drojko.exceptions import InvalidDataError
from drojko.measures._arrays import masses, matrix

__all__ = ["GroundCost"]

#: A numpy array or a torch tensor; results are of the kind that comes in.
Array = Any


@checked()
@dataclass(frozen=True, eq=False)
class GroundCost:
    r"""The cost c(x, z) = sum_j weights_j (x_j - z_j)^2 on the box lower <= z <= upper.

    No factor one half. An infinite weight marks an immutable column: moving it at all costs
    infinity. Arguments may be numpy arrays or torch tensors; results are of the same kind, and in
    torch on the same device and with the same dtype.

    Parameters
    ----------
    weights : ndarray of shape (d,)
        Positive; infinite for immutable columns.
    lower, upper : ndarray of shape (d,) or None
        Bounds of the columns, with infinities where there is none; None: no bounds at all.
    feature_names : tuple of str or None
        Only for messages.
    categories : Categories or None
        Groups of columns of infinite weight that change by swaps, at a cost of their own.
    whole : ndarray of bool of shape (d,) or None
        Columns of whole numbers, which audits move in whole steps: see `snap`.
    floor : ndarray of shape (d,) or None
        Below which no row exists, for `snap`: solvers do not look at it, so that what they prove
        is proven of more rows than there are.

    Examples
    --------
    >>> import numpy as np
    >>> from drojko.ambiguity import GroundCost
    >>> cost = GroundCost(np.array([1.0, 4.0, np.inf]))
    >>> x = np.array([[0.0, 0.0, 7.0]])
    >>> cost.cost(x, np.array([[2.0, 1.0, 7.0]])), cost.cost(x, np.array([[2.0, 1.0, 8.0]]))
    (array([8.]), array([inf]))
    >>> cost.dual_norm_squared(np.array([3.0, 2.0, 5.0]))  # 9/1 + 4/4 + 25/inf
    np.float64(10.0)
    """

    weights: np.ndarray
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    categories: Categories | None = None
    whole: np.ndarray | None = None
    floor: np.ndarray | None = None

    @property
    def n_features(self) -> int:
        """Number of columns, d."""
        return self.weights.shape[0]

    @property
    def mutable(self) -> np.ndarray:
        """Mask of shape (d,): the columns that may move."""
        return np.isfinite(self.weights)

    @property
    def inverse_weights(self) -> np.ndarray:
        """1 / weights, of shape (d,); 0 for immutable columns: the metric of the dual norm."""
        return 1.0 / self.weights

    @property
    def bounded(self) -> bool:
        """Whether any column has a bound."""
        return self.lower is not None

    @property
    def unbounded(self) -> GroundCost:
        """The same without bounds."""
        return replace(self, lower=None, upper=None)

    @property
    def span(self) -> np.ndarray:
        """Distance of the bounds of each column, shape (d,); infinite without."""
        if self.lower is None or self.upper is None:
            return np.full(self.n_features, np.inf)
        return self.upper - self.lower

    def cost(self, x: Array, z: Array) -> Array:
        """Return c(x, z) for points of shape (..., d), broadcast; the result has shape (...)."""
        x, z = self._rows(x, "x"), self._rows(z, "z")
        try:
            difference = x - z
        except (RuntimeError, TypeError, ValueError) as error:
            raise InvalidDataError(f"x is {shown(x)} and z {shown(z)}: {error}") from None
        # An infinite weight times no displacement would be NaN: the two kinds are kept apart.
        finite = np.where(self.mutable, self.weights, 0.0)
        total = (_like(difference, finite) * difference**2).sum(-1)
        stays, groups = ~self.mutable, []
        if self.categories is not None:
            stays[self.categories.every_column] = False
            groups = zip(self.categories.columns, self.categories.costs, strict=True)
        for columns, price in (*groups, (stays, np.inf)):
            moved = (difference[..., columns] != 0).any(-1)
            total = total + _where(moved, float(price), total)
        return total

    def weighted_square(self, move: Array) -> Array:
        """What a move (..., d) of the columns that may move costs, shape (...)."""
        return move**2 @ _like(move, np.where(self.mutable, self.weights, 0.0))

    def dual_norm_squared(self, theta: Array) -> Array:
        """Return sum_j theta_j^2 / weights_j for theta of shape (..., d).

        The squared dual norm: max { theta'(z - x) : c(x, z) <= r } is its root times sqrt(r).
        """
        theta = self._rows(theta, "theta")
        return (_like(theta, self.inverse_weights) * theta**2).sum(-1)

    def _rows(self, values: Array, name: str) -> Array:
        """Points of shape (..., d), checked: a tensor, or an array of numbers."""
        tensor = isinstance(values, torch.Tensor)
        if not tensor and getattr(values, "dtype", None) != np.float32:
            values = floats(values, name)
        if values.ndim < 1 or values.shape[-1] != self.n_features:
            raise InvalidDataError(f"{name} is {shown(values)}; expected (..., {self.n_features})")
        if tensor:
            refuse(values, name)
        elif np.isnan(values).any():
            raise InvalidDataError(f"{name} holds NaN; expected numbers")
        if values.dtype in (torch.bool, np.bool_):
            raise InvalidDataError(f"{name} is {shown(values)}; expected numbers, not truth values")
        return values

    def project(self, z: Array) -> Array:
        """Return the nearest points within the bounds, for z of shape (..., d).

        The projection is non-expansive and column by column, so that it brings z no farther from
        any x that lies inside: a transport budget still holds afterwards.
        """
        z = self._rows(z, "z")
        if self.lower is None or self.upper is None:
            return z
        return z.clip(_like(z, self.lower), _like(z, self.upper))

    def snap(self, z: Array) -> Array:
        """Return the rows nearest to z (..., d) that can exist: whole numbers as such, no debts."""
        if self.whole is None or self.floor is None:
            return z
        whole, lower, upper = self.whole, self.floor, np.full(self.n_features, np.inf)
        if self.lower is not None and self.upper is not None:
            lower, upper = np.maximum(lower, self.lower), self.upper
        lower = np.where(whole, np.ceil(lower), lower)
        upper = np.where(whole, np.floor(upper), upper)
        if isinstance(z, torch.Tensor):
            z = torch.where(torch.as_tensor(whole), z.round(), z)
        else:
            z = np.where(whole, np.round(z), z)
        return z.clip(_like(z, lower), _like(z, upper))

    def spread(self, X: np.ndarray, weight: np.ndarray) -> float:
        """Root mean square of what a standard deviation of each column of X (n, d) costs."""
        X, weight = matrix(X, self.n_features), masses(weight, len(X))
        variance = weight @ (X - weight @ X) ** 2
        free = self.mutable & (variance > 0)
        if not free.any():
            raise InvalidDataError("no column varies and may move: give radii=")
        return float(np.sqrt(np.mean(self.weights[free] * variance[free])))

    @property
    def swaps(self) -> bool:
        """Whether any category may be swapped for another."""
        return self.categories is not None and self.categories.swappable

    def observed(self, X: Any, before: Known | None = None) -> GroundCost:
        """The cost whose categories are those of the rows X (n, d), and those ``before``."""
        if self.categories is None:
            return self
        return replace(self, categories=self.categories.observed(np.asarray(X), before))

    def check_inside(self, X: Any) -> None:
        """Raise `InvalidDataError` naming the first column of X (n, d) beyond its bounds.

        Also for a one-hot group that is none.
        """
        plain = isinstance(X, np.ndarray) and X.dtype.kind == "f"
        X = X if plain or hasattr(X, "rows") else floats(X, "X")  # no copy, and tables as they are
        if X.ndim != 2 or X.shape[1] != self.n_features:
            raise InvalidDataError(f"X is {shown(X)}; expected (n, {self.n_features})")
        if not len(X):
            return
        if self.categories is not None:
            self.categories.check(X)
        if self.lower is None or self.upper is None:
            return
        low, high = X.min(axis=0), X.max(axis=0)
        outside = (low < self.lower) | (high > self.upper)
        if outside.any():
            column = int(outside.argmax())
            raise InvalidDataError(
                f"bounds: column {self.column_name(column)} of X spans [{low[column]:g}, "
                f"{high[column]:g}], beyond its bounds [{self.lower[column]:g}, "
                f"{self.upper[column]:g}]; widen the bounds or clip the data"
            )

    def column_name(self, column: int) -> str:
        """How messages call a column: its name where there is one, its index otherwise."""
        return str(column) if self.feature_names is None else repr(self.feature_names[column])

    def __repr__(self) -> str:
        parts = [f"d={self.n_features}"]
        finite = self.weights[self.mutable]
        if finite.size and (finite != 1).any():
            parts.append(f"weights in [{finite.min():g}, {finite.max():g}]")
        immutable = np.flatnonzero(~self.mutable)
        if self.categories is not None:
            immutable = np.setdiff1d(immutable, self.categories.every_column)
        if immutable.size:
            parts.append(f"immutable: {_listed([self.column_name(int(j)) for j in immutable])}")
        if self.lower is not None and self.upper is not None:
            bounded = np.flatnonzero(np.isfinite(self.lower) | np.isfinite(self.upper))
            parts.append(f"bounded: {_listed([self.column_name(int(j)) for j in bounded])}")
        if self.categories is not None:
            parts.append(f"categorical: {_listed(self.categories.names)}")
        return f"GroundCost({', '.join(parts)})"


def _like(array: Array, values: np.ndarray) -> Array:
    """Return ``values`` as the kind, dtype and device of ``array``; float64 for integer numpy."""
    if isinstance(array, torch.Tensor):
        return torch.as_tensor(values, dtype=array.dtype, device=array.device)
    array = np.asarray(array)
    return values.astype(array.dtype) if array.dtype.kind == "f" else values


def _where(mask: Array, value: float, like: Array) -> Array:
    """``value`` where the mask holds, 0 elsewhere; infinity times zero is avoided."""
    if isinstance(like, torch.Tensor):
        return torch.zeros_like(like).masked_fill(mask, value)
    return _like(like, np.where(mask, value, 0.0))


def _listed(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
