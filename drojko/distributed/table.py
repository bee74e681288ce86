r"""Rows that lie on several ranks: numbers by row are everywhere, X stays where it is.

Predictions are gathered, 8 bytes a row; sums over rows are added up,

.. math:: B^\top g = \sum_k B_k^\top g_k,

D numbers a rank whatever the number of rows. Means and scales are those of all rows, joined as
those of batches are (Chan, Golub, LeVeque 1983).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from drojko.distributed.ranks import Ranks
from drojko.distributed.sums import ShardedRows
from drojko.rows import Rows, is_large, products
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
        self._counted(found[:, 0].tolist(), d)
        self.size = int(found[:, 1].sum())

    def _counted(self, sizes: list[int], d: int) -> None:
        self.sizes = sizes
        start = sum(sizes[: self.ranks.rank])
        self.own = slice(start, start + sizes[self.ranks.rank])
        self.shape = (sum(sizes), d)

    def here(self, index: np.ndarray) -> np.ndarray:
        """Which rows of this rank are among some of all, whose indices do not fall."""
        low, high = np.searchsorted(index, [self.own.start, self.own.stop])
        return index[low:high] - self.own.start

    def chosen(self, index: np.ndarray) -> ShardedTable:
        """Where such rows lie; the table of their numbers, without X."""
        some = copy.copy(self)
        sizes = np.diff(np.searchsorted(index, np.cumsum([0, *self.sizes])))
        some.local = np.zeros((0, self.shape[1]), self.dtype)
        some._counted(sizes.tolist(), self.shape[1])
        some.size = some.shape[0] * some.shape[1]
        return some

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
            part = self.here(index)
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
        X = self.local if is_large(self.local) else self.local.copy()
        return X, y[self.own], own / (own.sum() or 1.0), groups
