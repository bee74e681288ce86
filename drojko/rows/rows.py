r"""Weighted rows in the coordinates :math:`(x - m)/s`, and sums over them block by block.

A linear problem needs three sums only: predictions :math:`Bz`, gradients :math:`B^\top g` and Gram
matrices :math:`B^\top \mathrm{diag}(h) B`. B holds the standardised columns and a column of ones;
it exists as a matrix for small data only. Otherwise blocks of the data are read as they are, and
mean and scale enter the sums algebraically:
:math:`B^\top g = s^{-1}(X^\top g - m\,1^\top g)`.
"""

from __future__ import annotations

import copy
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from drojko._threads import in_order

__all__ = [
    "Rows", "Swept", "blocks", "equal", "fingerprint", "is_large", "is_mapped", "is_wide",
    "normalised", "products", "rows_of",
]  # fmt: skip

#: A column farther from zero than this many standard deviations is centred entry by entry: in
#: algebraic sums it would lose digits.
FAR = 100.0
#: A rough centre within so many deviations of zero is no matter.
_NEAR = 8.0
#: Parameters from which on matrices of them are not formed.
_COLUMNS = 1500
#: Rows, and rows a parameter, from which on a sample has nearly the curvature of all.
_LARGE, _EACH = 20_000, 100
#: Columns from which on the space of the rows is worth a rotation.
_WIDE = 256
#: Rows whose entries and squares stay in a small cache.
_FINE = 1024
#: Entries from which on threads share a sum.
_SHARED = 2**21
#: Scales between which squares of raw entries and their sums neither over- nor underflow.
_LEAST, _MOST = 1e-60, 1e60


def blocks(n: int, d: int) -> Iterator[slice]:
    """Slices of rows small enough that a block and its copies stay in cache."""
    size = int(min(max((1 << 19) // max(d, 1), 1024), 16384))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def equal(n: int, total: float = 1.0) -> np.ndarray:
    """Equal weights, to read: one number in memory."""
    return np.broadcast_to(np.float64(total / n), n)


def normalised(w: np.ndarray) -> np.ndarray:
    """Weights over their sum; equal ones stay one number in memory."""
    w = np.asarray(w, dtype=np.float64)
    return equal(len(w)) if w.strides == (0,) and len(w) else w / w.sum()


class Swept(NamedTuple):
    """Sums of one read of the rows: totals of the blocks, and B' g."""

    totals: np.ndarray
    slope: np.ndarray


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

    def work(rows: slice) -> None:
        np.matmul(X[rows].astype(np.float64, copy=False), coef, out=out[rows])

    several = in_order if X.size >= _SHARED else map
    for _ in several(work, blocks(*X.shape)):
        pass
    return out


def is_wide(X: Any) -> bool:
    """Whether an array has so many columns that its rows span the smaller space."""
    return isinstance(X, np.ndarray) and X.shape[1] > max(len(X), _WIDE)


def is_large(X: np.ndarray) -> bool:
    """Whether an array is worked on where it is: a second one would be large, or is in a file."""
    return X.size >= _SHARED or is_mapped(X)


def is_mapped(X: Any) -> bool:
    """Whether an array lies in a file (`numpy.memmap`) rather than in memory."""
    while isinstance(X, np.ndarray):
        if isinstance(X, np.memmap):
            return True
        X = X.base
    return False


def fingerprint(X: np.ndarray) -> int:
    """A checksum of up to 1024 rows of an array, by which it is known again."""
    return zlib.crc32(np.ascontiguousarray(X[:: len(X) // 1024 + 1]).tobytes())


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
    raw : bool
        Whether sums and predictions of entries as they are lose no digits.
    reads : int
        How often all rows were read, for these coordinates and for sums.

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
        self.reads = 1
        self.w: np.ndarray = equal(self.n) if w is None else normalised(w)
        self.size = self.d + int(intercept)
        self._standardise()
        self.free: np.ndarray = np.append(~self.dead, np.ones(int(intercept), dtype=bool))
        self.raw = self._is_raw()
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
        with np.errstate(over="ignore", invalid="ignore"):
            centre[np.abs(centre) <= _NEAR * some.std(axis=0)] = 0.0
        moved, total, square, spare = centre.any(), np.zeros(d), np.zeros(d), []

        def work(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            buffer = self._lent(spare, d, _FINE)
            first, second = np.zeros(d), np.zeros(d)
            for start in range(rows.start, rows.stop, _FINE):
                few = slice(start, min(start + _FINE, rows.stop))
                part, block = X[few], buffer[: few.stop - start]
                if moved:
                    part = np.subtract(part, centre, out=block)
                elif part.dtype != np.float64:
                    np.copyto(block, part)
                    part = block
                mass = np.ascontiguousarray(w[few])  # products with a repeated number are slow
                first += mass @ part
                second += mass @ np.square(part, out=block)
            spare.append(buffer)
            return first, second

        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for first, second in self._several(work, self.blocks()):
                total += first
                square += second
            shift = total if self.intercept else np.zeros(d)
            spread = square - shift * shift
            sure = spread > 1e-4 * (square + 1e-8 * centre * centre)
            sure &= (spread > 1e-200) & (spread < 1e200)
        self.mean: np.ndarray = centre + shift
        self.scale: np.ndarray = np.sqrt(np.where(sure, spread, 1.0))
        self.dead: np.ndarray = np.zeros(d, dtype=bool)
        for j in np.flatnonzero(~sure):
            self._carefully(int(j))

    def _is_raw(self) -> bool:
        moderate = (self.scale >= _LEAST) & (self.scale <= _MOST)
        near = np.abs(self.mean) <= FAR * self.scale
        held = (moderate & near)[~self.dead].all()
        return bool(held and np.abs(self.mean).max(initial=0) < _MOST)

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

    @property
    def ample(self) -> bool:
        """Whether rows are so many that a sample of them nearly is the problem."""
        return self.large and self.n >= _LARGE

    # Blocks -------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[slice]:
        """Slices of rows small enough that a block and its copies stay in cache."""
        return blocks(self.n, self.d)

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

    def _several(self, work: Callable[[Any], Any], items: Any) -> Iterator[Any]:
        """What ``work`` gives of the items, in order; many rows are shared by threads."""
        return in_order(work, items) if self.n * self.d >= _SHARED else map(work, items)

    def _lent(self, spare: list[np.ndarray], columns: int, rows: int | None = None) -> np.ndarray:
        """A buffer for a block, or so many rows, of those that threads have given back."""
        try:
            return spare.pop()
        except IndexError:
            return np.empty((rows or next(self.blocks()).stop, columns))

    def _each(self, work: Callable[[slice, np.ndarray], Any]) -> Iterator[Any]:
        """What ``work(rows, block)`` gives of all blocks, in order, of which sums are made.

        Blocks are raw where that is exact enough, in reused buffers.
        """
        spare: list[np.ndarray] = []
        self.reads += 1

        def one(item: tuple[slice, np.ndarray]) -> Any:
            rows, part = item
            if self._matrix is not None:
                return work(rows, self._matrix[rows])
            if self._algebraic and part.dtype == np.float64:
                return work(rows, part)
            buffer = self._lent(spare, self.d if self._algebraic else self.size)
            block = buffer[: part.shape[0]]
            if self._algebraic:
                np.copyto(block, part)
            else:
                self._fill(part, block)
            found = work(rows, block)
            spare.append(buffer)
            return found

        kept = self._matrix is not None
        return self._several(one, ((r, None) for r in self.blocks()) if kept else self._parts())

    @property
    def _algebraic(self) -> bool:
        return self.raw and self._matrix is None

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
        found, count = [np.zeros(0, dtype=int)], min(count, self.n)
        for j in which:
            far = np.abs(self.columns(which=np.array([j]))[:, 0])
            least = -np.partition(-far, count - 1)[count - 1]
            more = np.flatnonzero(far > least)
            # Of equals the first, wherever rows are kept.
            found += [more, np.flatnonzero(far == least)[: count - len(more)]]
        return np.concatenate(found)

    # Sums ---------------------------------------------------------------------------------------

    def predict(self, z: np.ndarray) -> np.ndarray:
        """B z in float64, shape (n,), or (n, K) for z of shape (D, K)."""
        out = np.empty((self.n, *z.shape[1:]))
        coef, shift = self.outward(z) if self._algebraic else (z, 0.0)
        for _ in self._each(lambda rows, block: np.matmul(block, coef, out=out[rows])):
            pass
        out += shift
        return out

    def outputs(self, Z: np.ndarray) -> np.ndarray:
        """B Z' of several outputs, shape (n, K), for Z of shape (K, D)."""
        return np.concatenate([block @ Z.T for _, block in self.read()])

    def mean_of(
        self, of: Callable[[np.ndarray], np.ndarray], size: int, w: np.ndarray | None = None
    ) -> np.ndarray:
        """Mean of a function of the rows, of (k, D) to (k, size); ``w`` in place of the weights."""
        total, w = np.zeros(size), self.w if w is None else w
        for rows, block in self.read():
            total += w[rows] @ of(block)
        return total

    def triangle(self, t: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
        """Triangular factor of the columns and t (n,), weighted: block after block."""
        size, w = self.d + 1, self.w if w is None else w
        stack = np.zeros((0, size))
        for rows, block in self.read():
            new = np.concatenate([block[:, : self.d], t[rows, None]], axis=1)
            new *= np.sqrt(w[rows])[:, None]
            stack = np.asarray(np.linalg.qr(np.concatenate([stack, new]), mode="r"))
        return np.concatenate([stack, np.zeros((size - len(stack), size))])

    def sum(self, g: np.ndarray) -> np.ndarray:
        """B' g, shape (D,) or (D, m), for g of shape (n,) or (n, m)."""
        total = np.zeros((self.d if self._algebraic else self.size, *g.shape[1:]))
        few = g.ndim == 2 and g.shape[1] <= 8  # column by column is the faster product

        def work(rows: slice, block: np.ndarray) -> np.ndarray:
            if few:
                return np.stack([block.T @ g[rows, j] for j in range(g.shape[1])], axis=1)
            return block.T @ g[rows]

        for part in self._each(work):
            total += part
        return self._centred(total, g.sum(axis=0)) if self._algebraic else total

    def swept(
        self, z: np.ndarray, visit: Callable[[slice, np.ndarray], tuple | None]
    ) -> Swept | None:
        """One read of the rows for predictions and the sums that rest on them.

        Parameters
        ----------
        z : array of shape (D,)
        visit : callable
            (rows, B z of these, shape (k,)) -> (numbers to be added up, g of shape (k,)), or None,
            which ends it all: the result is None. One at a time, of several threads.

        Examples
        --------
        >>> rows = Rows(np.array([[0.0], [2.0]]), np.array([0, 1]))
        >>> rows.swept(np.array([1.0, 3.0]), lambda part, u: ([u.sum()], u))
        Swept(totals=array([6.]), slope=array([2., 6.]))
        """
        coef, shift = self.outward(z) if self._algebraic else (z, 0.0)
        # Products run side by side; the many short operations between them take turns, or threads
        # would wait for the interpreter at each.
        turn = threading.Lock()

        def work(rows: slice, block: np.ndarray) -> tuple | None:
            u = block @ coef
            u += shift
            with turn:
                found = visit(rows, u)
            return found and (np.asarray(found[0]), block.T @ found[1], found[1].sum())

        totals, slope, mass = None, None, 0.0
        for found in self._each(work):
            if found is None:
                return None
            if totals is None:
                totals, slope, mass = found
                continue
            totals, slope, mass = totals + found[0], slope + found[1], mass + found[2]
        if totals is None or slope is None:
            raise ValueError("no rows")
        return Swept(totals, self._centred(slope, np.asarray(mass)) if self._algebraic else slope)

    def gram(self, h: np.ndarray) -> np.ndarray:
        """B' diag(h) B, shape (D, D), for h >= 0 of shape (n,)."""
        return self._dense_gram(h)

    def _dense_gram(self, h: np.ndarray) -> np.ndarray:
        total, spare = np.zeros((self.size, self.size)), []

        def work(rows: slice, block: np.ndarray) -> np.ndarray | None:
            root = np.sqrt(h[rows])
            keep = np.flatnonzero(root)
            if not keep.size:
                return None
            if 2 * keep.size < root.size:
                block, root = block[keep], root[keep]
            scratch = self._lent(spare, self.size)
            part = scratch[: root.size]
            columns = part[:, : block.shape[1]]
            np.multiply(block, root[:, None], out=columns)
            if columns.shape[1] < self.size:
                part[:, -1] = root
            found = part.T @ part
            spare.append(scratch)
            return found

        for part in self._each(work):
            if part is not None:
                total += part
        return self._centred_gram(total) if self._algebraic else total

    def squares(self, h: np.ndarray) -> np.ndarray:
        """The diagonal of `gram`, shape (D,)."""
        total = np.zeros((2, self.d if self._algebraic else self.size))

        def work(rows: slice, block: np.ndarray) -> np.ndarray:
            mass = np.ascontiguousarray(h[rows])
            return np.stack([mass @ np.square(block), mass @ block])

        for part in self._each(work):
            total += part
        square, first = total
        if not self._algebraic:
            return square
        mass = float(h.sum())
        square = (square - self.mean * (2.0 * first - mass * self.mean)) / self.scale**2
        square[self.dead] = 0.0
        return np.append(square, mass) if self.intercept else square

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

    # Several processes ---------------------------------------------------------------------------

    #: Whether sums over the rows are those of more processes than this one.
    apart = False

    def own(self) -> Rows:
        """Those of this process, whose sums are those of all; alone, all."""
        return self

    def total(self, sums: np.ndarray) -> np.ndarray:
        """Sums over all rows, from those over `own` ones."""
        return sums

    def whole(self, values: np.ndarray) -> np.ndarray:
        """Numbers by row of all rows, from those of `own` ones."""
        return values

    def chosen(self, order: np.ndarray, most: int) -> np.ndarray:
        """Indices, which rise, of those numbers here that are among so many largest of all."""
        return np.sort(np.argsort(-order, kind="stable")[:most])

    def every(self, part: np.ndarray) -> np.ndarray:
        """The arrays of all processes, of any lengths, one below the other."""
        return part

    def some(self, index: np.ndarray) -> np.ndarray:
        """Some of the `own` rows in these coordinates, shape (k, D)."""
        return self.take(index).block(slice(None))

    def blank(self) -> Rows:
        """The rows without what they say: one column of zeros."""
        return Rows(np.zeros((self.n, 1)), self.y, self.w, intercept=self.intercept)

    def everywhere(self, index: np.ndarray) -> np.ndarray:
        """Some `own` rows of every process, among all rows."""
        return index

    def here(self, index: np.ndarray) -> np.ndarray:
        """Which `own` rows are among some of all rows, whose indices do not fall."""
        return index

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

    def doubled(self) -> Rows:
        """With entries in float64: what is read often is converted once."""
        some = copy.copy(self)
        if isinstance(self.X, np.ndarray):
            some.X = self.X.astype(np.float64, copy=False)
        return some

    def _weighed(self, w: np.ndarray) -> Rows:
        self.n, self.w = len(w), normalised(w)
        return self
