r"""Rows that lie on several ranks: numbers by row are everywhere, X stays where it is.

Predictions are gathered, 8 bytes a row; sums over rows are added up,

.. math:: B^\top g = \sum_k B_k^\top g_k,

D numbers a rank whatever the number of rows. Means and scales are those of all rows, joined as
those of batches are (Chan, Golub, LeVeque 1983).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from drojko.distributed.ranks import Ranks
from drojko.rows import Rows, equal, is_mapped, normalised, products, rows_of
from drojko.rows.rows import Swept
from drojko.rows.table import Table

__all__ = ["ShardedTable"]


class ShardedTable(Table):
    """The rows of all ranks, of which ``own`` lie here.

    Parameters
    ----------
    ranks : Ranks
    local : array of shape (k, d), float64 or float32, or Table, or None
        The rows of this rank; None: it has none, and does not know of any.
    like : tuple of d and dtype
        What all ranks agree on.
    """

    shared = True
    name = "rows that lie on several ranks"
    remedy = (
        "take model='linear' or, against Wasserstein sets of order 2, a network, with "
        "reference='empirical'; or fit on one process"
    )

    def __init__(self, ranks: Ranks, local: Any, like: tuple[int, np.dtype]) -> None:
        d, self.dtype = like
        self.ranks, self.local = ranks, np.zeros((0, d), self.dtype) if local is None else local
        count = len(self.local)
        found = ranks.gather(np.array([[count, getattr(self.local, "size", 0)]]), [1] * ranks.size)
        self.sizes: list[int] = found[:, 0].tolist()
        start = sum(self.sizes[: ranks.rank])
        self.own = slice(start, start + count)
        self.shape = (sum(self.sizes), d)
        self.size = int(found[:, 1].sum())

    def joined(self, part: np.ndarray) -> np.ndarray:
        """Numbers by row of all ranks, from those of each."""
        return self.ranks.gather(part, self.sizes)

    def total(self, sums: np.ndarray) -> np.ndarray:
        """See `Table`."""
        return self.ranks.total(sums)

    def every(self, part: np.ndarray) -> np.ndarray:
        """See `Table`."""
        sizes = self.ranks.gather(np.array([len(part)]), [1] * self.ranks.size)
        return self.ranks.gather(part, sizes.tolist())

    def rows(self, y: np.ndarray, w: np.ndarray | None = None, *, intercept: bool = True) -> Rows:
        """See `Table`."""
        return ShardedRows(self, y, w, intercept=intercept)

    def products(self, coef: np.ndarray) -> np.ndarray:
        """See `Table`."""
        own = np.zeros((0, *coef.shape[1:]))
        return self.joined(products(self.local, coef) if len(self.local) else own)

    def __getitem__(self, index: Any) -> ShardedTable:
        """Some rows, by a mask or by indices that do not fall; or all rows and some columns."""
        like = self.shape[1], self.dtype
        if isinstance(index, tuple):
            part = self.local[index]
            return ShardedTable(self.ranks, part, (part.shape[1], self.dtype))
        index = np.asarray(index)
        if index.dtype == bool:
            part = index[self.own]
        else:
            part = index[np.searchsorted(index, self.own.start) :]
            part = part[: np.searchsorted(part, self.own.stop)] - self.own.start
        return ShardedTable(self.ranks, self.local[part], like)

    def min(self, axis: int = 0) -> np.ndarray:
        """See `Table`."""
        return -self._extreme(lambda X: -X.min(axis=0))

    def max(self, axis: int = 0) -> np.ndarray:
        """See `Table`."""
        return self._extreme(lambda X: X.max(axis=0))

    def _extreme(self, largest: Callable[[Any], np.ndarray]) -> np.ndarray:
        own = largest(self.local) if len(self.local) else np.full(self.shape[1], -np.inf)
        return self.ranks.largest(own)

    def kept(self, y: np.ndarray, w: np.ndarray, groups: Any) -> Any:
        """The rows of this rank, where they are an array: `reference_` is made of them."""
        if not isinstance(self.local, np.ndarray) or not len(self.local):
            return None
        own = w[self.own]
        if groups is not None:
            groups = (groups[0][self.own], groups[1])
        X = self.local if is_mapped(self.local) else self.local.copy()
        return X, y[self.own], own / (own.sum() or 1.0), groups


class ShardedRows(Rows):
    """`Rows` of all ranks, summed where they lie."""

    def __init__(
        self, table: ShardedTable, y: np.ndarray, w: np.ndarray | None, *, intercept: bool
    ) -> None:
        self.X: Any = table
        self.y, self.intercept = y, intercept
        self.n, self.d = table.shape
        self.reads = 1
        self.w = equal(self.n) if w is None else normalised(np.asarray(w, dtype=np.float64))
        self.size = self.d + int(intercept)
        self._matrix, self._raw = None, False
        self._standardise()
        self.free = np.append(~self.dead, np.ones(int(intercept), dtype=bool))

    def _standardise(self) -> None:
        """Those of all rows from those of each rank's own."""
        table, ranks, d = self.X, self.X.ranks, self.d
        y, w = self.y[table.own], self.w[table.own]
        mass, mean, scale, own = float(w.sum()), np.zeros(d), np.zeros(d), None
        if len(w):
            own = rows_of(table.local, y, w if mass > 0.0 else None, intercept=self.intercept)
            mean, scale = own.mean, np.where(own.dead, 0.0, own.scale)
        parts = ranks.gather(np.concatenate([[mass], mean, scale])[None], [1] * ranks.size)
        parts = parts[parts[:, 0] > 0.0]
        share = parts[:, 0] / parts[:, 0].sum()
        means, scales = parts[:, 1 : 1 + d], parts[:, 1 + d :]
        self.mean = means[0] + share @ (means - means[0])
        # In units of the largest, so that squares are numbers.
        far = np.abs(means - self.mean)
        unit = np.maximum(scales, far).max(axis=0)
        unit = np.where(unit > 0.0, unit, 1.0)
        self.scale = unit * np.sqrt(share @ ((scales / unit) ** 2 + (far / unit) ** 2))
        self.dead = np.zeros(d, dtype=bool)
        eps = 8 * np.finfo(table.dtype).eps
        if (self.scale <= 2.0 * eps * np.abs(self.mean)).any():
            low, high = table.min(), table.max()
            size = np.maximum(np.abs(low), np.abs(high))
            self.dead = (high - low if self.intercept else size) <= eps * size
            self.scale = np.where(self.dead, 1.0, self.scale)
            self.mean = np.where(self.dead, low if self.intercept else 0.0, self.mean)
        self.local: Rows | None = None
        if own is not None:
            place = {name: getattr(self, name) for name in ("mean", "scale", "dead")}
            known = {"_standardise": lambda rows: rows.__dict__.update(place)}
            kind: Any = type(type(own).__name__, (type(own),), known)
            self.local = kind(own.X, y, intercept=self.intercept)

    def _parts(self) -> Any:
        raise self.X.refused("a block of rows")

    # Sums ----------------------------------------------------------------------------------------

    def _summed(self, of: Callable[[Rows], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        self.reads += 1
        return self.X.ranks.total(np.zeros(shape) if self.local is None else of(self.local))

    def _gathered(self, of: Callable[[Rows], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        self.reads += 1
        return self.X.joined(np.zeros((0, *shape)) if self.local is None else of(self.local))

    def predict(self, z: np.ndarray) -> np.ndarray:
        """See `Rows`: gathered."""
        return self._gathered(lambda rows: rows.predict(z), z.shape[1:])

    def outputs(self, Z: np.ndarray) -> np.ndarray:
        """See `Rows`: gathered."""
        return self._gathered(lambda rows: rows.outputs(Z), (len(Z),))

    def columns(self, which: np.ndarray) -> np.ndarray:
        """See `Rows`: gathered."""
        return self._gathered(lambda rows: rows.columns(which), (len(which),))

    def sum(self, g: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        own = g[self.X.own]
        return self._summed(lambda rows: rows.sum(own), (self.size, *g.shape[1:]))

    def gram(self, h: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        own = h[self.X.own]
        return self._summed(lambda rows: rows.gram(own), (self.size, self.size))

    def squares(self, h: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        own = h[self.X.own]
        return self._summed(lambda rows: rows.squares(own), (self.size,))

    def mean_of(
        self, of: Callable[[np.ndarray], np.ndarray], size: int, w: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Rows`."""
        own = (self.w if w is None else w)[self.X.own]
        return self._summed(lambda rows: rows.mean_of(of, size, own), (size,))

    def triangle(self, t: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
        """See `Rows`: the factor of the ranks' factors."""
        own, w = self.X.own, self.w if w is None else w
        part, ranks = np.zeros((self.d + 1, self.d + 1)), self.X.ranks
        if self.local is not None:
            part = self.local.triangle(t[own], w[own])
        stack = ranks.gather(part, [self.d + 1] * ranks.size)
        return np.asarray(np.linalg.qr(stack, mode="r"))

    # Some rows -----------------------------------------------------------------------------------

    def own(self) -> Rows:
        """See `Rows`."""
        return self if self.wide else OwnRows(self)

    def extremes(self, which: np.ndarray, count: int) -> np.ndarray:
        """See `Rows`: the largest of each rank's largest."""
        found, ranks = np.zeros((len(which), count, 2)), self.X.ranks
        found[:, :, 0] = -1.0
        if self.local is not None and len(which):
            index = self.local.extremes(which, count)
            far = np.abs(self.local.take(index).columns(which))
            index, far = index.reshape(len(which), -1), far.reshape(len(which), -1, len(which))
            for j, rows in enumerate(index):
                found[j, : len(rows)] = np.stack([far[j, :, j], rows + self.X.own.start], axis=1)
        every = ranks.gather(found[None], [1] * ranks.size)
        every = every.transpose(1, 0, 2, 3).reshape(len(which), ranks.size * count, 2)
        best = [rows[np.lexsort((rows[:, 1], -rows[:, 0]))[:count]] for rows in every]
        some = np.concatenate([np.zeros((0, 2)), *best])
        return some[some[:, 0] >= 0.0, 1].astype(int)

    def take(self, index: np.ndarray, w: np.ndarray | None = None) -> Rows:
        """Some rows, on every rank from there on."""
        index = np.asarray(index)
        wanted, back = np.unique(index, return_inverse=True)
        bounds = np.searchsorted(wanted, np.cumsum([0, *self.X.sizes]))
        first, last = bounds[self.X.ranks.rank], bounds[self.X.ranks.rank + 1]
        part = np.zeros((0, self.d), dtype=self.X.dtype)
        if last > first and self.local is not None:
            found: Any = self.local.take(wanted[first:last] - self.X.own.start).X
            part = found if isinstance(found, np.ndarray) else found.toarray()
        X = self.X.ranks.gather(part, np.diff(bounds).tolist())[back]
        some, matrix = Rows.__new__(Rows), np.empty((len(index), self.size))
        some.__dict__.update(
            {name: getattr(self, name) for name in ("intercept", "d", "size", "mean", "scale")},
            dead=self.dead, free=self.free, _raw=False, X=X, y=self.y[index], _matrix=matrix,
            reads=0,
        )  # fmt: skip
        some._fill(X, matrix)
        return some._weighed(self.w[index] if w is None else w)


class OwnRows(Rows):
    """The rows of one rank: numbers by row are its own, sums those of all ranks."""

    apart = True

    def __init__(self, every: ShardedRows) -> None:
        self.__dict__.update(every.__dict__)
        self.X: Any = every.X
        self.local: Rows | None = every.local
        self.all, here = every, every.X.own
        self.y, self.w = every.y[here], every.w[here]
        self.total, self.whole, self.take = every.X.total, every.X.joined, every.take

    def own(self) -> Rows:
        """See `Rows`."""
        return self

    def chosen(self, order: np.ndarray, most: int) -> np.ndarray:
        """See `Rows`."""
        ends = np.cumsum(self.every(np.array([len(order)])))
        start = ends[self.X.ranks.rank] - len(order)
        found = np.argsort(-self.every(order), kind="stable")[:most] - start
        return np.sort(found[(found >= 0) & (found < len(order))])

    def every(self, part: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return self.X.every(part)

    def some(self, index: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return np.zeros((0, self.size)) if self.local is None else self.local.some(index)

    def blank(self) -> Rows:
        """See `Rows`."""
        table = ShardedTable(self.X.ranks, np.zeros((len(self.y), 1)), (1, np.dtype(float)))
        return table.rows(self.all.y, self.all.w, intercept=self.intercept).own()

    def at(self, index: np.ndarray, *values: np.ndarray) -> Sequence[np.ndarray]:
        """See `Rows`: of all ranks."""
        bounds = np.searchsorted(index, np.cumsum([0, *self.X.sizes]))
        rank, counts = self.X.ranks.rank, np.diff(bounds)
        here = index[bounds[rank] : bounds[rank + 1]] - self.X.own.start
        part = np.stack([one[here] for one in values], axis=1)
        return [*np.ascontiguousarray(self.X.ranks.gather(part, counts.tolist()).T)]

    def predict(self, z: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        self.reads += 1
        own = np.zeros((0, *z.shape[1:]))
        return own if self.local is None else self.local.predict(z)

    def swept(
        self, z: np.ndarray, visit: Callable[[slice, np.ndarray], tuple | None]
    ) -> Swept | None:
        """See `Rows`."""
        self.reads += 1
        found = None if self.local is None else self.local.swept(z, visit)
        failed = self.local is not None and found is None
        count = 0 if found is None else len(found.totals)
        # A rank without rows does not know how many sums there are.
        failed, count = self.X.ranks.largest(np.array([float(failed), count])).astype(int).tolist()
        if failed:
            return None
        own = np.zeros(count + self.size)
        if found is not None:
            own[:count], own[count:] = found.totals, found.slope
        sums = self.total(own)
        return Swept(sums[:count], sums[count:])

    def sum(self, g: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return self.all._summed(lambda rows: rows.sum(g), (self.size, *g.shape[1:]))

    def gram(self, h: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return self.all._summed(lambda rows: rows.gram(h), (self.size, self.size))
