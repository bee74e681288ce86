"""Fits to batches of rows that are never in memory at once."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from drojko._sklearn import _fit_context, checked_data
from drojko._validation import floats
from drojko.exceptions import InvalidDataError
from drojko.rows.streamed import StreamedTable

__all__ = ["OnBatches"]


class OnBatches:
    """The part of an estimator that reads batches."""

    _classification: bool
    _fit: Any
    _encoded: Any

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_batches(self, batches: Any) -> Self:
        """Fit to batches of rows: as `fit` on all of them, in as many passes as it takes.

        For linear models with ``reference="empirical"``. Numbers by row (targets, weights, losses)
        stay in memory, about 100 to 500 bytes a row; X does not, so that files may be larger than
        memory. Small data (4 million entries) are kept after the first pass. Rows are not kept for
        ``reference_`` and ``worst_case_``.

        Parameters
        ----------
        batches : iterable of (X, y) or (X, y, sample_weight)
            The same batches in every pass: a list, an object with ``__iter__``, or
            `drojko.rows.parquet`; a generator gives them only once. Classes are those of the first
            pass.

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
        table = StreamedTable(batches, self._checked_batch)
        if len(table) < 2:
            raise InvalidDataError(f"batches hold {len(table)} row; a fit needs 2 or more")
        y, labels = self._encoded(table.y)
        try:
            self._fit(table, y, labels, table.weight)
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
