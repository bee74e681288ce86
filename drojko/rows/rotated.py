r"""More columns than rows: the same problem in the space that the rows span.

With unit costs :math:`a_j` of the columns, :math:`\phi = \sqrt{a}\,\theta` and
:math:`X - 1 m^\top = \tilde X\,Q^\top \mathrm{diag}(\sqrt a)`, Q of orthonormal columns,

.. math:: X\theta + b = \tilde X \psi + (b + m^\top\theta), \qquad
          \sum_j a_j\theta_j^2 = \|\phi\|^2 \ge \|\psi\|^2, \qquad \psi = Q^\top \phi ,

with equality for phi = Q psi: what a loss of the predictions and this norm decide has its optimum
there, and values and bounds are the same in both spaces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
from scipy import sparse
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpstrf

from drojko._driver import Limits

__all__ = ["Rotation"]

qr: Any = scipy.linalg.qr
_Turned = tuple[np.ndarray, Any, np.ndarray, np.ndarray]

#: Pivots of the Gram matrix over the largest: what is kept is no less than the first, so that the
#: square of the condition costs no digits that count; below the second a row adds nothing, ...
_SURE, _NONE = 1e-5, 1e-12
_LEFT, _FEW = 1e-12, 16  # ... if what it leaves over is so little, of so many rows at most
#: Square of a mean row over that of the longest deviation, beyond which differences lose digits.
_AWAY = 1e3


@dataclass(frozen=True, eq=False)
class Rotation:
    """Coordinates X (n, k) of the rows, units (d,) and means (d,) of their columns.

    Q is ``span`` (m, d) turned: its rows ``pick`` (k,), times the inverse of the lower triangular
    ``factor`` (k, k).
    """

    X: np.ndarray
    span: Any
    pick: np.ndarray
    factor: np.ndarray
    unit: np.ndarray
    mean: np.ndarray

    @classmethod
    def of(
        cls, X: Any, weight: np.ndarray | None, cost: np.ndarray, intercept: bool
    ) -> Rotation | None:
        """For positive costs (d,) of the columns; None where the rows span nothing.

        X is an array, or a `SparseTable`, of which no array is made; None, too, where its rows are
        nearly dependent or its columns far from zero.

        Examples
        --------
        >>> X = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> turned = Rotation.of(X, None, np.ones(3), intercept=False)
        >>> coef, intercept = turned.outward(np.array([1.0, 0.5]), 0.0)
        >>> np.allclose(X @ coef, turned.X @ [1.0, 0.5])
        True
        """
        unit = 1.0 / np.sqrt(cost)
        if not isinstance(X, np.ndarray):
            table = _Centred.of(X.X, weight, unit, intercept)
            found = _by_gram(table)
            return None if found is None else cls(*found, unit, table.shift * np.sqrt(cost))
        mean = np.zeros(X.shape[1])
        if intercept:
            mean = np.average(X, axis=0, weights=weight)
        centred = X - mean
        # Columns that are constant to rounding are so.
        size = np.abs(X).max(axis=0)
        centred[:, np.abs(centred).max(axis=0) <= 8 * np.finfo(X.dtype).eps * size] = 0.0
        centred *= unit
        found = _by_gram(centred) or _by_reflections(centred)
        return None if found is None else cls(*found, unit, mean)

    def inward(self, coef: np.ndarray, intercept: Any) -> tuple[np.ndarray, Any]:
        """The model of the same predictions, of one output or several."""
        coef = np.asarray(coef, dtype=np.float64)
        along = (self.span @ (coef / self.unit).T)[self.pick]
        psi = solve_triangular(self.factor, along, lower=True)
        return psi.T, intercept + coef @ self.mean

    def outward(self, psi: np.ndarray, intercept: Any) -> tuple[np.ndarray, Any]:
        """The model in the units of the data."""
        along = np.zeros((len(self.span), *psi.T.shape[1:]))
        along[self.pick] = solve_triangular(self.factor, psi.T, lower=True, trans=1)
        coef = (along.T @ self.span) * self.unit
        return coef, intercept - coef @ self.mean

    def limits(self, limits: Limits) -> Limits:
        """With a callback that sees models in the units of the data."""
        ask = limits.callback
        if ask is None:
            return limits

        def tell(iteration: int, info: dict[str, Any]) -> bool:
            coef, intercept = self.outward(info["coef"], info["intercept"])
            return bool(ask(iteration, {**info, "coef": coef, "intercept": intercept}))

        return replace(limits, callback=tell)

    def back(self, found: Any) -> Any:
        """A solution (`drojko.minimax.newton.LinearFit`) in the units of the data."""
        coef, intercept = self.outward(found.coef, found.intercept)
        return replace(found, coef=coef, intercept=intercept, scores=None)


class _Centred:
    """Rows of a sparse matrix less a shift (d,), for products from both sides."""

    __array_ufunc__ = None  # products are those below

    def __init__(self, X: Any, shift: np.ndarray) -> None:
        self.X, self.shift = X, shift

    @classmethod
    def of(cls, X: Any, weight: np.ndarray | None, unit: np.ndarray, intercept: bool) -> _Centred:
        """Of columns in these units, around their means."""
        scaled = sparse.csr_array((X.data * unit[X.indices], X.indices, X.indptr), shape=X.shape)
        shift = np.zeros(X.shape[1])
        if intercept:
            w = np.full(X.shape[0], 1.0 / X.shape[0]) if weight is None else weight / weight.sum()
            shift = scaled.T @ w
        return cls(scaled, shift)

    def __len__(self) -> int:
        return self.X.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.X[index].toarray() - self.shift

    def __matmul__(self, right: np.ndarray) -> np.ndarray:
        return self.X @ right - self.shift @ right

    def __rmatmul__(self, left: np.ndarray) -> np.ndarray:
        return left @ self.X - np.multiply.outer(left.sum(axis=-1), self.shift)

    def gram(self) -> np.ndarray:
        """Products of the rows; of NaN where they have lost too many digits."""
        along, square = self.X @ self.shift, float(self.shift @ self.shift)
        out = (self.X @ self.X.T).toarray()
        out += square - along[:, None] - along
        lost = square > _AWAY * float(out.diagonal().max(initial=0.0))
        return np.full_like(out, np.nan) if lost else out


def _by_gram(rows: Any) -> _Turned | None:
    """From Cholesky's factor of the rows' products, where rows are far from dependent, or are so.

    Some 20 times as fast as reflections, at the square of the condition.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        gram = rows @ rows.T if isinstance(rows, np.ndarray) else rows.gram()
    most = float(gram.diagonal().max(initial=0.0))
    if not 1e-200 < most < 1e200:
        return None
    factor, order, rank, _ = dpstrf(gram, lower=True, tol=_NONE * most)
    pivots = factor.diagonal()[:rank] ** 2
    if not rank or pivots.min() < _SURE * most:
        return None
    factor, order = np.tril(factor)[:, :rank], order - 1
    pick, rest, corner = order[:rank], order[rank:], np.asfortranarray(factor[:rank])
    if len(rest):
        share = np.zeros((len(rest), len(rows)))
        share[:, pick] = solve_triangular(corner, factor[rank:].T, lower=True, trans=1).T
        if isinstance(rows, np.ndarray) and len(rest) > _FEW:  # reflections are as fast
            return None
        for some in np.array_split(np.arange(len(rest)), -(-len(rest) // _FEW)):
            if np.square(rows[rest[some]] - share[some] @ rows).sum() > _LEFT**2 * most:
                return None
    turned = np.empty((len(rows), rank))
    turned[order] = factor
    return turned, rows, pick, corner


def _by_reflections(rows: np.ndarray) -> _Turned | None:
    """From orthogonal factors, to full accuracy; None where there is nothing."""
    Q, R = qr(rows.T, mode="economic")
    V, T, order = qr(R, pivoting=True)
    sizes = np.abs(T.diagonal())
    rank = int((sizes > 1e-15 * max(rows.shape) * sizes.max(initial=0.0)).sum())
    if rank == 0:
        return None
    turned = np.empty((len(rows), rank))
    turned[order] = T[:rank].T
    return turned, (Q @ V[:, :rank]).T, np.arange(rank), np.eye(rank)
