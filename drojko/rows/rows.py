r"""Weighted rows in the coordinates :math:`(x - m)/s`, and sums over them block by block.

A linear problem needs three sums only: predictions :math:`Bz`, gradients :math:`B^\top g` and Gram
matrices :math:`B^\top \mathrm{diag}(h) B`. B holds the standardised columns and a column of ones;
it exists as a matrix for small data only. Otherwise blocks of the data are read as they are, and
mean and scale enter the sums algebraically:
:math:`B^\top g = s^{-1}(X^\top g - m\,1^\top g)`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["Rows", "blocks", "is_mapped", "is_wide", "products", "rows_of"]

#: A column farther from zero than this many standard deviations is centred entry by entry: in
#: algebraic sums it would lose digits.
FAR = 100.0
#: Parameters from which on matrices of them are not formed.
_COLUMNS = 1500
#: Rows, and rows a parameter, from which on a sample has nearly the curvature of all.
_LARGE, _EACH = 20_000, 100
#: Columns from which on the space of the rows is worth a rotation.
_WIDE = 256
#: Scales between which squares of raw entries and their sums neither over- nor underflow.
_LEAST, _MOST = 1e-60, 1e60


def blocks(n: int, d: int) -> Iterator[slice]:
    """Slices of rows small enough that a block and its copies stay in cache."""
    size = int(min(max((1 << 18) // max(d, 1), 1024), 16384))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def rows_of(X: Any, y: np.ndarray, w: np.ndarray | None = None, *, intercept: bool = True) -> Rows:
    """Rows of an array; a table that is none makes its own (`drojko.rows.table.Table`)."""
    own = getattr(X, "rows", None)
    return Rows(X, y, w, intercept=intercept) if own is None else own(y, w, intercept=intercept)


def products(X: Any, coef: np.ndarray) -> np.ndarray:
    """X coef in float64, shape (n,) or (n, K), of an array or a table, block by block."""
    own = getattr(X, "products", None)
    if own is not None:
        return own(coef)
    out = np.empty((len(X), *coef.shape[1:]))
    for rows in blocks(*X.shape):
        np.matmul(X[rows].astype(np.float64, copy=False), coef, out=out[rows])
    return out


def is_wide(X: Any) -> bool:
    """Whether an array has so many columns that its rows span the smaller space."""
    return isinstance(X, np.ndarray) and X.shape[1] > max(len(X), _WIDE)


def is_mapped(X: Any) -> bool:
    """Whether an array lies in a file (`numpy.memmap`) rather than in memory."""
    while isinstance(X, np.ndarray):
        if isinstance(X, np.memmap):
            return True
        X = X.base
    return False


class Rows:
    r"""Weighted rows of X in the coordinates ``(x - mean) / scale``, a column of ones last.

    Parameters
    ----------
    X : array of shape (n, d), float64 or float32
        Kept as it is, never copied as a whole in another type; sums are float64.
    y : array of shape (n,)
        Kept as it is.
    w : array of shape (n,), nonnegative, default=None
        Only proportions matter; rows of weight 0 have no say in the coordinates. None: equal.
    intercept : bool, default=True
        Without it, columns are not centred and there is no column of ones.
    limit : int, default=2**22
        Number of entries up to which the standardised matrix is made once and kept.

    Attributes
    ----------
    mean, scale : arrays of shape (d,)
    dead : array of shape (d,)
        Columns that are constant to rounding: zero in these coordinates.
    size : int
        D, the number of parameters: d, and one for the intercept.
    free : array of shape (D,)
        Which parameters are not those of dead columns.

    Examples
    --------
    >>> rows = Rows(np.array([[0.0], [2.0]]), np.array([0, 1]))
    >>> rows.block(slice(None))
    array([[-1.,  1.],
           [ 1.,  1.]])
    >>> rows.outward(np.array([3.0, 1.0]))
    (array([3.]), -2.0)
    """

    def __init__(
        self,
        X: np.ndarray,
        y: np.ndarray,
        w: np.ndarray | None = None,
        *,
        intercept: bool = True,
        limit: int = 2**22,
    ) -> None:
        self.X, self.y, self.intercept = X, y, intercept
        self.n, self.d = X.shape
        w = np.full(self.n, 1.0 / self.n) if w is None else np.asarray(w, dtype=np.float64)
        self.w: np.ndarray = w / w.sum()
        self.size = self.d + int(intercept)
        self._standardise()
        self.free: np.ndarray = np.append(~self.dead, np.ones(int(intercept), dtype=bool))
        alive = ~self.dead
        moderate = (self.scale >= _LEAST) & (self.scale <= _MOST)
        near = np.abs(self.mean) <= FAR * self.scale
        self._raw = bool(
            (moderate & near)[alive].all() and np.abs(self.mean).max(initial=0) < _MOST
        )
        self._matrix: np.ndarray | None = None
        if self.n * self.d <= limit:
            matrix = np.empty((self.n, self.size))
            for rows, part in self._parts():
                self._fill(part, matrix[rows])
            self._matrix = matrix

    def _standardise(self) -> None:
        """Mean and scale in one read; columns that need care get two more."""
        X, w, d = self.X, self.w, self.d
        # Deviations from a rough centre, so that squares do not cancel.
        some = X[:: max(self.n // 64, 1)].astype(np.float64)
        centre = np.median(some, axis=0) if self.intercept else np.zeros(d)
        total, square = np.zeros(d), np.zeros(d)
        buffer = self._buffer(d)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for rows in self.blocks():
                part = np.subtract(X[rows], centre, out=buffer[: rows.stop - rows.start])
                total += w[rows] @ part
                square += w[rows] @ np.square(part, out=part)
            shift = total if self.intercept else np.zeros(d)
            spread = square - shift * shift
            sure = spread > 1e-4 * (square + 1e-8 * centre * centre)
            sure &= (spread > 1e-200) & (spread < 1e200)
        self.mean: np.ndarray = centre + shift
        self.scale: np.ndarray = np.sqrt(np.where(sure, spread, 1.0))
        self.dead: np.ndarray = np.zeros(d, dtype=bool)
        for j in np.flatnonzero(~sure):
            self._carefully(int(j))

    def _carefully(self, j: int) -> None:
        """Mean, scale and whether it is constant, of a column of any size."""
        column, w = self.X[:, j], self.w
        if not w.all():
            column, w = column[w > 0], w[w > 0]
        low, high = float(column.min()), float(column.max())
        size = max(abs(low), abs(high))
        spread = high - low if self.intercept else size
        # Columns that vary by no more than rounding are constant.
        if spread <= 8 * np.finfo(self.X.dtype).eps * size:
            self.mean[j], self.scale[j], self.dead[j] = low if self.intercept else 0.0, 1.0, True
            return
        unit = (column - np.float64(low if self.intercept else 0.0)) / spread
        mean = float(w @ unit) if self.intercept else 0.0
        self.mean[j] = low + spread * mean if self.intercept else 0.0
        self.scale[j] = spread * np.sqrt(w @ (unit - mean) ** 2)

    @property
    def wide(self) -> bool:
        """Whether a matrix of the parameters is too large to be worked with."""
        return self.size > _COLUMNS

    @property
    def large(self) -> bool:
        """Whether solvers for many rows, or many columns, are worth it."""
        return self.n >= max(_LARGE, _EACH * self.size) or self.wide

    # Blocks -------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[slice]:
        """Slices of rows small enough that a block and its copies stay in cache."""
        return blocks(self.n, self.d)

    def _buffer(self, columns: int) -> np.ndarray:
        return np.empty((next(self.blocks()).stop, columns))

    def block(self, rows: slice) -> np.ndarray:
        """Rows in these coordinates, shape (k, D): to read, not to write."""
        if self._matrix is not None:
            return self._matrix[rows]
        part = self.X[rows]
        out = np.empty((part.shape[0], self.size))
        self._fill(part, out)
        return out

    def _parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of the data as they are."""
        for rows in self.blocks():
            yield rows, self.X[rows]

    def _fill(self, part: np.ndarray, out: np.ndarray) -> None:
        """Rows of the data in these coordinates."""
        columns = out[:, : self.d]
        np.subtract(part, self.mean, out=columns)
        columns /= self.scale
        if self.dead.any():
            columns[:, self.dead] = 0.0
        if self.intercept:
            out[:, -1] = 1.0

    def _read(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks that the sums are made of: raw where that is exact enough, in a reused buffer."""
        if self._matrix is not None:
            for rows in self.blocks():
                yield rows, self._matrix[rows]
            return
        buffer = np.zeros((0, 0))
        for rows, part in self._parts():
            if self._raw and part.dtype == np.float64:
                yield rows, part
                continue
            if not buffer.size:
                buffer = self._buffer(self.d if self._raw else self.size)
            block = buffer[: len(part)]
            if self._raw:
                np.copyto(block, part)
            else:
                self._fill(part, block)
            yield rows, block

    @property
    def _algebraic(self) -> bool:
        return self._raw and self._matrix is None

    def read(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All blocks of rows in these coordinates, one after the other, shape (k, D)."""
        for rows, part in self._parts():
            if self._matrix is not None:
                yield rows, self._matrix[rows]
                continue
            out = np.empty((part.shape[0], self.size))
            self._fill(part, out)
            yield rows, out

    def columns(self, which: np.ndarray) -> np.ndarray:
        """Some columns (of the data, none of them dead) in these coordinates, shape (n, k)."""
        return (self.X[:, which] - self.mean[which]) / self.scale[which]

    def extremes(self, which: np.ndarray, count: int) -> np.ndarray:
        """Rows with the largest entries of each of some columns, so many a column, with repeats."""
        found = [np.zeros(0, dtype=int)]
        for j in which:
            far = np.abs(self.columns(which=np.array([j]))[:, 0])
            found.append(np.argpartition(-far, min(count, self.n - 1))[:count])
        return np.concatenate(found)

    # Sums ---------------------------------------------------------------------------------------

    def predict(self, z: np.ndarray) -> np.ndarray:
        """B z in float64, shape (n,), or (n, K) for z of shape (D, K)."""
        out = np.empty((self.n, *z.shape[1:]))
        coef, shift = self.outward(z) if self._algebraic else (z, 0.0)
        for rows, block in self._read():
            np.matmul(block, coef, out=out[rows])
        out += shift
        return out

    def sum(self, g: np.ndarray) -> np.ndarray:
        """B' g, shape (D,) or (D, m), for g of shape (n,) or (n, m)."""
        total = np.zeros((self.d if self._algebraic else self.size, *g.shape[1:]))
        few = g.ndim == 2 and g.shape[1] <= 8  # column by column is the faster product
        for rows, block in self._read():
            if few:
                for j in range(g.shape[1]):
                    total[:, j] += block.T @ g[rows, j]
            else:
                total += block.T @ g[rows]
        return self._centred(total, g.sum(axis=0)) if self._algebraic else total

    def gram(self, h: np.ndarray) -> np.ndarray:
        """B' diag(h) B, shape (D, D), for h >= 0 of shape (n,)."""
        return self._dense_gram(h)

    def _dense_gram(self, h: np.ndarray) -> np.ndarray:
        total = np.zeros((self.size, self.size))
        scratch = self._buffer(self.size)
        for rows, block in self._read():
            root = np.sqrt(h[rows])
            keep = np.flatnonzero(root)
            if not keep.size:
                continue
            if 2 * keep.size < root.size:
                block, root = block[keep], root[keep]
            part = scratch[: root.size]
            columns = part[:, : block.shape[1]]
            np.multiply(block, root[:, None], out=columns)
            if columns.shape[1] < self.size:
                part[:, -1] = root
            total += part.T @ part
        return self._centred_gram(total) if self._algebraic else total

    def squares(self, h: np.ndarray) -> np.ndarray:
        """The diagonal of `gram`, shape (D,)."""
        total = np.zeros(self.size)
        for rows, block in self.read():
            total += h[rows] @ np.square(block)
        return total

    def _centred(self, total: np.ndarray, mass: np.ndarray) -> np.ndarray:
        """B' g from X' g and the sum of g."""
        columns = total - np.multiply.outer(self.mean, mass)
        columns = (columns.T / self.scale).T
        columns[self.dead] = 0.0
        return np.concatenate([columns, mass[None]]) if self.intercept else columns

    def _centred_gram(self, total: np.ndarray) -> np.ndarray:
        d = self.d
        if self.intercept:
            move = np.eye(self.size)
            move[:d, -1] = -self.mean
            total = move @ total @ move.T
        total[:d] /= self.scale[:, None]
        total[:, :d] /= self.scale
        dead = ~self.free
        total[dead] = 0.0
        total[:, dead] = 0.0
        return total

    # Coordinates --------------------------------------------------------------------------------

    def inward(self, coef: np.ndarray, intercept: float) -> np.ndarray:
        """The parameters z, shape (D,), of a model in the units of the data."""
        z = np.where(self.dead, 0.0, coef * self.scale)
        return np.append(z, intercept + coef @ self.mean) if self.intercept else z

    def inward_classes(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """The parameters (K, D) of several outputs: coefficients (K, d), intercepts (K,)."""
        Z = np.where(self.dead, 0.0, coef * self.scale)
        if not self.intercept:
            return Z
        return np.concatenate([Z, (intercept + coef @ self.mean)[:, None]], axis=1)

    def outward(self, z: np.ndarray) -> tuple[np.ndarray, Any]:
        """Coefficients and intercept in the units of the data; of several outputs (D, K) both."""
        coef = np.where(self.dead, 0.0, z[: self.d].T / self.scale).T
        if not self.intercept:
            return coef, 0.0
        intercept = z[-1] - self.mean @ coef
        return coef, intercept if z.ndim > 1 else float(intercept)

    def take(self, index: np.ndarray, w: np.ndarray | None = None) -> Rows:
        """Some rows in the same coordinates, with their own weights or with others."""
        some = copy.copy(self)
        some.X, some.y = self.X[index], self.y[index]
        if self._matrix is not None:
            some._matrix = self._matrix[index]
        return some._weighed(self.w[index] if w is None else w)

    def _weighed(self, w: np.ndarray) -> Rows:
        w = np.asarray(w, dtype=np.float64)
        self.n, self.w = len(w), w / w.sum()
        return self
