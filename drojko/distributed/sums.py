"""Sums over rows that lie on several ranks; numbers by row of all of them, or of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from drojko.rows import Rows, equal, normalised, rows_of
from drojko.rows.rows import Swept

__all__ = ["OwnRows", "ShardedRows"]

_SUMS = 32  # at most beside those of columns, in one read


class ShardedRows(Rows):
    """`Rows` of all ranks, summed where they lie."""

    def __init__(self, table: Any, y: np.ndarray, w: np.ndarray | None, *, intercept: bool) -> None:
        self.X: Any = table
        self.y, self.intercept = y, intercept
        self.n, self.d = table.shape
        self.reads = 1
        self.w = equal(self.n) if w is None else normalised(np.asarray(w, dtype=np.float64))
        self.size = self.d + int(intercept)
        self._matrix, self.raw = None, False
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
        """See `Rows`: each rank keeps its own of them; indices do not fall."""
        some, here = copy.copy(self), self.X.here(index)
        some.X, some.y = self.X.chosen(index), self.y[index]
        some.local = self.local.take(here) if self.local is not None and len(here) else None
        return some._weighed(self.w[index] if w is None else w)


class OwnRows(Rows):
    """The rows of one rank: numbers by row are its own, sums those of all ranks."""

    apart = True

    def __init__(self, every: ShardedRows) -> None:
        self.__dict__.update(every.__dict__)
        self.X: Any = every.X
        self.local: Rows | None = every.local
        self.raw = self._is_raw()  # the same on all ranks
        self.all, here = every, every.X.own
        self.y, self.w = every.y[here], every.w[here]
        self.total, self.whole = every.X.total, every.X.joined

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
        table = type(self.X)(self.X.ranks, np.zeros((len(self.y), 1)), (1, np.dtype(float)))
        return table.rows(self.all.y, self.all.w, intercept=self.intercept).own()

    def everywhere(self, index: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return self.every(index + self.X.own.start)

    def here(self, index: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return self.X.here(index)

    def take(self, index: np.ndarray, w: np.ndarray | None = None) -> Rows:
        """See `Rows`: of all rows."""
        return self.all.take(index, w).own()

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
        # A rank without rows does not know how many sums there are: all leave room for as many.
        own = np.zeros(3 + self.size + _SUMS)
        if found is not None:
            count = len(found.totals)
            own[1:3] = 1.0, count
            own[3 : 3 + self.size], own[3 + self.size :][:count] = found.slope, found.totals
        else:
            own[0] = self.local is not None
        sums = self.total(own)
        failed, ranks, counts = sums[:3]
        if failed:
            return None
        return Swept(sums[3 + self.size :][: int(counts / ranks)], sums[3 : 3 + self.size])

    def sum(self, g: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return self.all._summed(lambda rows: rows.sum(g), (self.size, *g.shape[1:]))

    def gram(self, h: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return self.all._summed(lambda rows: rows.gram(h), (self.size, self.size))
