r"""Rows that are read batch by batch, pass by pass; numbers by row stay in memory, X does not.

What a linear problem asks of X is sums over rows, and a pass over the batches gives one. Means and
scales come from the first pass, which also keeps targets and weights:

.. math:: M \leftarrow M + M_k + \frac{w\,w_k}{w + w_k}(m - m_k)^2

joins the sums of squares of a batch to those of the batches before (Chan, Golub, LeVeque 1983).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from drojko.exceptions import DrojkoError, InvalidDataError
from drojko.rows.rows import Rows, blocks
from drojko.rows.table import Table

__all__ = ["StreamedRows", "StreamedTable"]

_AGAIN = (
    "give a re-iterable that yields the same batches in every pass, for example a list, an object "
    "with __iter__, a generator function (not called), or drojko.rows.parquet(...)"
)
#: Entries up to which standardised rows are kept in memory.
_KEPT = 2**22


class _Called:
    """The batches that a function gives anew whenever it is called."""

    def __init__(self, give: Callable[[], Iterable[Any]]) -> None:
        self.give = give

    def __iter__(self) -> Iterator[Any]:
        return iter(self.give())


class _Moments:
    """Weighted means, sums of squares and ranges of the columns of rows of positive weight."""

    def __init__(self, d: int) -> None:
        self.mass = 0.0
        self.mean, self.square = np.zeros(d), np.zeros(d)
        self.low, self.high = np.full(d, np.inf), np.full(d, -np.inf)

    def of(self, columns: np.ndarray) -> _Moments:
        """Those of some columns."""
        some = _Moments(len(columns))
        some.mass = self.mass
        for name in ("mean", "square", "low", "high"):
            setattr(some, name, getattr(self, name)[columns])
        return some

    def add(self, X: np.ndarray, w: np.ndarray) -> None:
        """Take a batch in."""
        if not w.all():
            X, w = X[w > 0], w[w > 0]
        if not len(w):
            return
        mass = float(w.sum())
        np.minimum(self.low, X.min(axis=0), out=self.low)
        np.maximum(self.high, X.max(axis=0), out=self.high)
        mean = sum(w[part] @ X[part].astype(np.float64) for part in blocks(*X.shape)) / mass
        square = sum(
            w[part] @ np.square(X[part].astype(np.float64) - mean) for part in blocks(*X.shape)
        )
        move = mean - self.mean
        total = self.mass + mass
        self.square += square + move * move * (self.mass * mass / total)
        self.mean += move * (mass / total)
        self.mass = total


class StreamedTable(Table):
    """Batches (X, y) or (X, y, weight) of rows; the first pass is made at once.

    Parameters
    ----------
    batches : iterable or callable
        Gives the same batches whenever it is iterated over, or called.
    check : callable
        (X, y, weight or None, whether it is the first batch) -> the same as arrays, checked:
        X of shape (k, d), float64 or float32, y and weight (None, if there is none) of shape (k,).
    empty : bool, default=False
        Whether there may be no rows at all.

    Attributes
    ----------
    y : array of shape (n,)
        Targets or labels as they came.
    weight : array of shape (n,) or None
    passes : int
        How often the batches were read from the first to the last.
    """

    name = "rows that come in batches"
    remedy = (
        "take model='linear' with reference='empirical' and a loss by its name, or fit(X, y) on "
        "an array (a memory map, numpy.load(..., mmap_mode='r'), is read where it is)"
    )

    def __init__(
        self, batches: Iterable[Any], check: Callable[..., Any], *, empty: bool = False
    ) -> None:
        if callable(batches) and not hasattr(batches, "__iter__"):
            batches = _Called(batches)
        try:
            again = iter(batches)
        except TypeError:
            given = batches.give if isinstance(batches, _Called) else batches
            raise InvalidDataError(f"batches={given!r} gives no batches: {_AGAIN}") from None
        if again is batches:
            raise InvalidDataError(
                f"batches is {type(batches).__name__}, which gives its batches only once, and a "
                f"fit makes several passes: {_AGAIN}"
            )
        self.batches, self.mask, self.picked, self._count = batches, None, None, [0]
        found: Any = None
        y, weight, kinds = [], [], set()
        for number, batch in enumerate(again):
            given = _parts_of(batch)
            if np.shape(given[0])[:1] == (0,):
                continue
            try:
                X, target, w = check(*given, found is None)
            except DrojkoError:
                raise
            except ValueError as error:  # columns that are not those of the first one
                raise InvalidDataError(f"batch {number}: {error}") from error
            if found is None:
                found = _Moments(X.shape[1])
            found.add(X, np.ones(len(X)) if w is None else w)
            y.append(target)
            weight.append(w)
            kinds.add(X.dtype)
        self.passes = 1
        if found is None and empty:
            self.y, self.weight = np.zeros(0), None
            return
        if found is None:
            raise InvalidDataError("batches holds no rows")
        if len({target.dtype.kind in "biuf" for target in y}) > 1:
            raise InvalidDataError(
                "y is numbers in some batches and text in others: give labels of one kind"
            )
        if len({w is None for w in weight}) > 1:
            raise InvalidDataError("some batches have weights, others have none: give all or none")
        if not found.mass > 0:
            raise InvalidDataError("the weights of all batches are zero: no sample is left")
        self.moments = found
        self.y = np.concatenate(y)
        self.weight = None if weight[0] is None else np.concatenate(weight)
        self.shape, self.width = (len(self.y), len(found.mean)), len(found.mean)
        self.size = self.shape[0] * self.shape[1]
        self.dtype = np.result_type(*kinds)
        self._last: Any = (None, None)

    @property
    def passes(self) -> int:
        return self._count[0]

    @passes.setter
    def passes(self, value: int) -> None:
        self._count[0] = value

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """A pass: blocks of rows as they are."""
        d, start, seen = self.shape[1], 0, 0
        self.passes += 1
        whole = len(self.y)
        for number, batch in enumerate(self.batches):
            X, y, _ = _parts_of(batch)
            X = np.asarray(X)
            if X.dtype not in (np.float64, np.float32):
                X = X.astype(np.float64)
            size = len(X)
            if not size:
                continue
            same = X.ndim == 2 and X.shape[1] == self.width and seen + size <= whole
            if not (same and np.array_equal(np.asarray(y).ravel(), self.y[seen : seen + size])):
                raise InvalidDataError(
                    f"batch {number} of pass {self.passes} is not that of the first pass (X of "
                    f"shape {X.shape}, or other targets): {_AGAIN}"
                )
            if not np.isfinite(X.sum(dtype=np.float64)):
                raise InvalidDataError(
                    f"batch {number} of pass {self.passes} holds NaN or infinite entries, which "
                    f"the first pass did not: {_AGAIN}"
                )
            keep = None if self.mask is None else self.mask[seen : seen + size]
            seen += size
            X = X if keep is None or keep.all() else X[keep]
            X = X if self.picked is None else X[:, self.picked]
            for part in blocks(len(X), d):
                yield slice(start + part.start, start + part.stop), X[part]
            start += len(X)
        if seen != whole:
            raise InvalidDataError(
                f"pass {self.passes} over the batches gave {seen} rows, the first one {whole}: "
                f"a generator that is exhausted? {_AGAIN}"
            )

    def rows(self, y: np.ndarray, w: np.ndarray | None = None, *, intercept: bool = True) -> Rows:
        """See `Table`."""
        return StreamedRows(self, y, w, intercept=intercept)

    def products(self, coef: np.ndarray) -> np.ndarray:
        """See `Table`; the last ones are kept, as certificates ask for them again."""
        key = (coef.shape, coef.tobytes())
        if self._last[0] != key:
            out = np.empty((len(self), *coef.shape[1:]))
            for rows, part in self.parts():
                np.matmul(part.astype(np.float64, copy=False), coef, out=out[rows])
            self._last = (key, out)
        return self._last[1].copy()

    def __getitem__(self, index: Any) -> StreamedTable:
        """Rows that a mask of all of them keeps: the same batches, in which others are skipped.

        Or all rows and some columns.
        """
        if isinstance(index, tuple):
            some = copy.copy(self)
            some.picked, some._last = np.arange(self.width)[index[1]], (None, None)
            some.moments = self.moments.of(some.picked)
            some.shape = (len(self), len(some.picked))
            return some
        mask = np.asarray(index)
        if mask.dtype != bool or self.mask is not None:
            raise self.refused("a choice of rows")
        self.mask, self.shape = mask, (int(mask.sum()), self.shape[1])
        return self

    def min(self, axis: int = 0) -> np.ndarray:
        """See `Table`; of rows of positive weight."""
        return self.moments.low

    def max(self, axis: int = 0) -> np.ndarray:
        """See `Table`; of rows of positive weight."""
        return self.moments.high


def _parts_of(batch: Any) -> tuple[Any, Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise InvalidDataError(
            f"a batch is {type(batch).__name__}; expected (X, y) or (X, y, sample_weight)"
        )
    return (*batch, None) if len(batch) == 2 else tuple(batch)


class StreamedRows(Rows):
    """`Rows` of batches: a sum is a pass, and a sample of the rows is one, too."""

    def __init__(
        self,
        X: StreamedTable,
        y: np.ndarray,
        w: np.ndarray | None = None,
        *,
        intercept: bool = True,
        limit: int | None = None,
    ) -> None:
        self._known: tuple[np.ndarray, Any] = np.zeros(0, dtype=int), None
        limit = _KEPT if limit is None else limit
        super().__init__(X, y, w, intercept=intercept, limit=limit)  # type: ignore[arg-type]

    def _standardise(self) -> None:
        found: _Moments = self.X.moments  # type: ignore[attr-defined]
        size = np.maximum(np.abs(found.low), np.abs(found.high))
        spread = found.high - found.low if self.intercept else size
        self.dead = spread <= 8 * np.finfo(self.X.dtype).eps * size
        square = found.square / found.mass
        if not self.intercept:
            square = square + found.mean**2
        self.scale = np.where(self.dead, 1.0, np.sqrt(square))
        level = np.where(self.dead, found.low, found.mean)
        self.mean = level if self.intercept else np.zeros(self.d)

    def _parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        return self.X.parts()  # type: ignore[attr-defined]

    def block(self, rows: slice) -> np.ndarray:
        """Rows that are kept in memory."""
        if self._matrix is None:
            raise self.X.refused("a block of rows")  # type: ignore[attr-defined]
        return self._matrix[rows]

    def columns(self, which: np.ndarray) -> np.ndarray:
        """See `Rows`: one pass."""
        if self._matrix is not None:
            return self._matrix[:, which]
        out = np.empty((self.n, len(which)))
        for rows, part in self._parts():
            out[rows] = (part[:, which] - self.mean[which]) / self.scale[which]
        return out

    def extremes(self, which: np.ndarray, count: int) -> np.ndarray:
        """See `Rows`: one pass for all columns."""
        if self._matrix is not None:
            return super().extremes(which, count)
        best = np.full((0, len(which)), 0.0)
        where = np.zeros((0, len(which)), dtype=int)
        if not len(which):
            return where.ravel()
        for rows, part in self._parts():
            far = np.abs(part[:, which] - self.mean[which])
            own = np.broadcast_to(np.arange(rows.start, rows.stop)[:, None], far.shape)
            best, where = np.concatenate([best, far]), np.concatenate([where, own])
            if len(best) > count:
                top = np.argsort(-best, axis=0, kind="stable")[:count]
                best, where = (np.take_along_axis(a, top, axis=0) for a in (best, where))
        return where.T.ravel()

    def take(self, index: np.ndarray, w: np.ndarray | None = None) -> Rows:
        """Some rows, in memory from there on: one pass, unless the last ones taken hold them."""
        index = np.asarray(index)
        some = Rows.__new__(Rows)
        some.__dict__.update(
            {name: getattr(self, name) for name in ("intercept", "d", "size", "mean", "scale")},
            dead=self.dead, free=self.free, raw=self.raw, _matrix=None, reads=0,
            X=self._entries(index), y=self.y[index],
        )  # fmt: skip
        if some.X.size <= _KEPT:
            some._matrix = np.empty((len(index), self.size))
            some._fill(some.X, some._matrix)
        return some._weighed(self.w[index] if w is None else w)

    def _entries(self, index: np.ndarray) -> np.ndarray:
        known, kept = self._known
        wanted = np.unique(index)
        at = np.searchsorted(known, wanted).clip(0, max(len(known) - 1, 0))
        if kept is None or not np.array_equal(known[at], wanted):
            kept = np.empty((len(wanted), self.d), dtype=self.X.dtype)
            for rows, part in self._parts():
                low, high = np.searchsorted(wanted, [rows.start, rows.stop])
                kept[low:high] = part[wanted[low:high] - rows.start]
            known = wanted
            self._known = known, kept
        return kept[np.searchsorted(known, index)]
