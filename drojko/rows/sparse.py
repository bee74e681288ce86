r"""Rows of a sparse matrix in standardised coordinates, without an entry more.

The scaled entries are stored, centring is algebra: with S the scaled matrix and c the scaled means

.. math:: Bz = S z - 1\,c^\top z + z_0, \qquad
          B^\top g = (S^\top g - c\,1^\top g,\; 1^\top g) .
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from drojko._threads import in_order, slabs
from drojko.rows.rows import FAR, Rows, Swept
from drojko.rows.table import Table

__all__ = ["SparseRows", "SparseTable"]

#: Share of entries from which on blocks of rows are multiplied as dense ones.
_FULL = 0.05


class SparseTable(Table):
    """A SciPy sparse matrix of float64 or float32.

    Examples
    --------
    >>> table = SparseTable(sparse.eye_array(3))
    >>> len(table), table.products(np.array([1.0, 2.0, 3.0])), table.max()
    (3, array([1., 2., 3.]), array([1., 1., 1.]))
    """

    name = "a sparse matrix"
    remedy = "take model='linear' with reference='empirical', or give X.toarray()"

    def __init__(self, X: Any) -> None:
        own = sparse.csr_array(X)
        if not own.has_canonical_format:
            own = own.copy()  # the caller's stays as it is
            own.sum_duplicates()
        self.X = own
        self.shape: Any = self.X.shape
        self.dtype, self.size = self.X.dtype, self.X.nnz

    def rows(self, y: np.ndarray, w: np.ndarray | None = None, *, intercept: bool = True) -> Rows:
        """See `Table`."""
        return SparseRows(self.X, y, w, intercept=intercept)

    def products(self, coef: np.ndarray) -> np.ndarray:
        """See `Table`."""
        return np.asarray(self.X @ coef, dtype=np.float64)

    def __getitem__(self, index: Any) -> SparseTable:
        return SparseTable(self.X[index])

    def min(self, axis: int = 0) -> np.ndarray:
        """See `Table`."""
        return self.X.min(axis=0).toarray().ravel()

    def max(self, axis: int = 0) -> np.ndarray:
        """See `Table`."""
        return self.X.max(axis=0).toarray().ravel()


class SparseRows(Rows):
    """`Rows` of a CSR matrix; sums cost what its stored entries do."""

    def __init__(
        self, X: Any, y: np.ndarray, w: np.ndarray | None = None, *, intercept: bool = True
    ) -> None:
        super().__init__(X, y, w, intercept=intercept, limit=-1)
        unit = np.where(self.dead, 0.0, 1.0 / self.scale)
        self.centre: np.ndarray = self.mean * unit
        scaled = sparse.csr_array(
            (X.data * unit[X.indices], X.indices, X.indptr), shape=X.shape, copy=False
        )
        # Columns far from zero have entries nearly everywhere: these are centred one by one.
        far = np.flatnonzero((np.abs(self.mean) > FAR * self.scale) & ~self.dead)
        if far.size:
            entries = (X[:, far].toarray() - self.mean[far]) * unit[far]
            scaled = sparse.lil_array(scaled)
            scaled[:, far] = entries
            self.centre[far] = 0.0
        self.scaled: Any = sparse.csr_array(scaled)
        self._full = self.scaled.nnz > _FULL * self.n * self.d

    def _standardise(self) -> None:
        X: Any = self.X
        w = self.w
        if not w.all():
            X, w = X[w > 0], w[w > 0]
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            entries = X.data.astype(np.float64)
            squared = sparse.csr_array((entries * entries, X.indices, X.indptr), shape=X.shape)
            self.mean = X.T @ w if self.intercept else np.zeros(self.d)
            square = squared.T @ w
            spread = square - self.mean**2
            sure = (spread > 1e-4 * square) & (spread > 1e-200) & (spread < 1e200)
        self.scale = np.sqrt(np.where(sure, spread, 1.0))
        self.dead = np.zeros(self.d, dtype=bool)
        rest = np.flatnonzero(~sure)
        if rest.size:
            self._with_care(X[:, rest], w, rest)

    def _with_care(self, X: Any, w: np.ndarray, which: np.ndarray) -> None:
        """Mean, scale and whether they are constant, of some columns of any size."""
        d, columns = len(which), X.indices
        mass = np.repeat(w, np.diff(X.indptr))
        low, high = (np.asarray(X.min(axis=0).toarray(), dtype=np.float64).ravel(), X.max(axis=0))
        high = np.asarray(high.toarray(), dtype=np.float64).ravel()
        # In units of the largest entry, so that squares are numbers.
        size = np.maximum(np.abs(low), np.abs(high))
        unit = np.where(size > 0, size, 1.0)
        entries, mean = X.data / unit[columns], np.zeros(d)
        if self.intercept:
            mean = np.bincount(columns, mass * entries, d)
        square = np.bincount(columns, mass * (entries - mean[columns]) ** 2, d)
        absent = np.maximum(1.0 - np.bincount(columns, mass, d), 0.0)
        spread = high - low if self.intercept else size
        dead = spread <= 8 * np.finfo(X.dtype).eps * size
        self.dead[which] = dead
        self.scale[which] = np.where(dead, 1.0, np.sqrt(square + absent * mean**2) * unit)
        self.mean[which] = np.where(dead, low if self.intercept else 0.0, mean * unit)

    def block(self, rows: slice) -> np.ndarray:
        """See `Rows`."""
        part = self.scaled[rows]
        out = np.empty((part.shape[0], self.size))
        self._fill(part, out)
        return out

    def _parts(self) -> Iterator[tuple[slice, Any]]:
        for rows in self.blocks():
            yield rows, self.scaled[rows]

    def _fill(self, part: Any, out: np.ndarray) -> None:
        out[:, : self.d] = part.toarray() - self.centre
        if self.intercept:
            out[:, -1] = 1.0

    @property
    def _algebraic(self) -> bool:
        return False

    def predict(self, z: np.ndarray) -> np.ndarray:
        """B z."""
        self.reads += 1
        out = self.scaled @ z[: self.d]
        out += (z[-1] if self.intercept else 0.0) - self.centre @ z[: self.d]
        return out

    def sum(self, g: np.ndarray) -> np.ndarray:
        """B' g."""
        self.reads += 1
        mass = g.sum(axis=0)
        total = self.scaled.T @ g - np.multiply.outer(self.centre, mass)
        return np.concatenate([total, mass[None]]) if self.intercept else total

    def swept(
        self, z: np.ndarray, visit: Callable[[slice, np.ndarray], tuple | None]
    ) -> Swept | None:
        """See `Rows`; products are those of the whole matrix."""
        u, g, totals = self.predict(z), np.empty(self.n), 0.0

        def work(rows: slice) -> Any:
            found = visit(rows, u[rows])
            if found is not None:
                g[rows] = found[1]
            return found and np.asarray(found[0])

        for found in in_order(work, slabs(self.n)):
            if found is None:
                return None
            totals = totals + found
        return Swept(np.asarray(totals), self.sum(g))

    def gram(self, h: np.ndarray) -> np.ndarray:
        """B' diag(h) B."""
        if self._full:
            return self._dense_gram(h)
        keep = np.flatnonzero(h)
        some, h = (self.scaled[keep], h[keep]) if 2 * keep.size < h.size else (self.scaled, h)
        total = np.zeros((self.size, self.size))
        d, c, root = self.d, self.centre, np.sqrt(h)
        weighed = sparse.csr_array(
            (some.data * np.repeat(root, np.diff(some.indptr)), some.indices, some.indptr),
            shape=some.shape,
        )
        total[:d, :d] = (weighed.T @ weighed).toarray()
        side, mass = some.T @ h, float(h.sum())
        total[:d, :d] += mass * np.outer(c, c) - np.outer(side, c) - np.outer(c, side)
        if self.intercept:
            total[:d, -1] = total[-1, :d] = side - mass * c
            total[-1, -1] = mass
        return total

    def squares(self, h: np.ndarray) -> np.ndarray:
        """The diagonal of `gram`."""
        c, some = self.centre, self.scaled
        squared = sparse.csr_array((some.data**2, some.indices, some.indptr), shape=some.shape)
        mass = float(h.sum())
        out = squared.T @ h - 2.0 * c * (some.T @ h) + mass * c * c
        return np.append(out, mass) if self.intercept else out

    def columns(self, which: np.ndarray) -> np.ndarray:
        """Some columns, shape (n, k)."""
        return self.scaled[:, which].toarray() - self.centre[which]

    def take(self, index: np.ndarray, w: np.ndarray | None = None) -> Rows:
        """Some rows in the same coordinates, with their own weights or with others."""
        some = copy.copy(self)
        some.X, some.scaled, some.y = self.X[index], self.scaled[index], self.y[index]
        return some._weighed(self.w[index] if w is None else w)
