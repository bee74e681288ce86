"""Fits to rows that are never in one place at once: in batches, or on several processes."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from drojko._driver import RANKS
from drojko._sklearn import _fit_context, checked_data
from drojko._validation import floats
from drojko.exceptions import InvalidDataError
from drojko.rows.sparse import SparseTable
from drojko.rows.streamed import StreamedTable

__all__ = ["OnBatches"]


class OnBatches:
    """The part of an estimator that reads batches and shards."""

    _classification: bool
    _fit: Any
    _encoded: Any
    parameters_: dict[str, np.ndarray]

    def fit_batches(self, batches: Any) -> Self:
        """Fit to batches of rows: as `fit` on all of them, in as many passes as it takes.

        For linear models with ``reference="empirical"``. Numbers by row (targets, weights, losses)
        stay in memory, about 50 to 500 bytes a row; X does not, so that files may be larger than
        memory. Small data (4 million entries) are kept after the first pass. Rows are not kept for
        ``reference_`` and ``worst_case_``.

        Parameters
        ----------
        batches : iterable of (X, y) or (X, y, sample_weight), or callable
            The same batches in every pass: a list, an object with ``__iter__``,
            `drojko.rows.parquet`, or a function without arguments that gives them anew at each
            call; a generator gives them only once. Classes are those of the first pass.

        Returns
        -------
        self : object
            With ``n_passes_``, how often the batches were read.

        Raises
        ------
        InvalidDataError
            For batches that change between passes, or hold no finite numbers.
        UnsupportedError
            For models, references and sets that need all rows at once.
        """
        ranks = RANKS.get()
        if ranks is None:
            return self._fit_batches(batches, None)
        return ranks.together(lambda: self._fit_batches(batches, ranks))

    @_fit_context(prefer_skip_nested_validation=True)
    def _fit_batches(self, batches, ranks):
        table = StreamedTable(batches, self._checked_batch, empty=ranks is not None)
        try:
            if ranks is not None:
                from drojko.distributed.shards import Shard

                own = table if len(table.y) else None
                self._joined(ranks, Shard(own, table.y, table.weight, None, "batches"))
                table.passes = int(ranks.largest(table.passes))
                return self
            if len(table) < 2:
                raise InvalidDataError(f"batches hold {len(table)} row; a fit needs 2 or more")
            y, labels = self._encoded(table.y)
            self._fit(table, y, labels, self._weighed(table, labels, table.weight))
        finally:
            self.n_passes_ = table.passes
        return self

    def _checked_batch(self, X: Any, y: Any, weight: Any, first: bool) -> tuple[Any, Any, Any]:
        """A batch of the first pass as arrays."""
        X, y = checked_data(self, X, y, reset=first, y_numeric=not self._classification)
        w = None if weight is None else np.ravel(floats(weight, "sample_weight"))
        if w is not None and (w.shape != (len(X),) or not (np.isfinite(w) & (w >= 0)).all()):
            raise InvalidDataError(
                f"sample_weight of a batch has shape {w.shape}, expected ({len(X)},), of "
                "nonnegative finite numbers"
            )
        return X, np.asarray(y), w

    def _fit_shards(self, ranks, X, y, sample_weight=None, groups=None):
        """Fit to the rows of all ranks, of which these are this one's."""
        from drojko.distributed.shards import Shard

        kwargs: Any = {"y_numeric": not self._classification, "table": SparseTable}
        X, y = checked_data(self, X, y, ensure_min_samples=0, **kwargs)
        return self._joined(ranks, Shard.of(X, np.asarray(y), sample_weight, groups))

    def _joined(self, ranks: Any, shard: Any) -> Any:
        table, y, labels, weight, groups = shard.joined(ranks, self)
        self._fit(table, y, labels, self._weighed(table, labels, weight), groups)
        for value in self.parameters_.values():
            ranks.check_same(value)
        return self

    def _weighed(self, X: Any, labels: np.ndarray, weight: Any) -> Any:
        """Weights of the rows, with those of their classes where there are such."""
        return weight
