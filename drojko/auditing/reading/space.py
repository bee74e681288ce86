"""The columns that an audit moves: raw numbers, and category indicators that stay."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from drojko._validation import plain_tensor
from drojko.auditing.reading.channels import Affine, Key
from drojko.exceptions import InvalidDataError

__all__ = ["Space", "filled"]


def filled(U: np.ndarray, missing: float | None) -> np.ndarray:
    """Rows U (n, d) with the mean of its column in the place of each missing value."""
    if missing is None:
        return U
    gaps = missing == U
    counts = np.maximum((~gaps).sum(axis=0), 1)
    return np.where(gaps, np.where(gaps, 0.0, U).sum(axis=0) / counts, U)


@dataclass(frozen=True, eq=False)
class Space:
    """Between a user's table and the float matrix whose rows the audit moves.

    Attributes
    ----------
    raw_names : tuple of str
        Columns of the user's table.
    keys : tuple of Key
        Columns of the matrix: numbers first, then indicators, grouped by raw column.
    frame : bool
        Whether the user's table is a DataFrame.
    missing : float or None
        What stands for NaN in the matrix, where rows with missing values may be: a number that no
        column holds.
    codes : dict of int to ndarray
        Columns of the table that stay, each a single column of the matrix: the position of a
        value among the categories given here.
    """

    raw_names: tuple[str, ...]
    keys: tuple[Key, ...]
    frame: bool
    dtypes: dict[str, Any] = field(default_factory=dict)
    missing: float | None = None
    codes: dict[int, Any] = field(default_factory=dict)

    @staticmethod
    def of(X: Any, keys: list[Key] | None = None, codes: dict[int, Any] | None = None) -> Space:
        """The space of a table; without keys all columns are numbers."""
        frame = hasattr(X, "columns")
        names = [str(c) for c in X.columns] if frame else [f"x{j}" for j in range(X.shape[1])]
        if keys is None:
            keys = [Key(j) for j in range(len(names))]
        order = sorted(keys, key=lambda k: (k.category is not None, k.column, str(k.category)))
        dtypes = {str(c): X[c].dtype for c in X.columns} if frame else {}
        return Space(tuple(names), tuple(order), frame, dtypes, codes=codes or {})

    def holding(self, X: Any) -> Space:
        """The space in which missing values of a table have a number, where it has any."""
        values = []
        for key, column in ((key, self._raw(X)[key.column]) for key in self.keys):
            number = key.category is None and key.column not in self.codes
            if number and column.dtype.kind in "fO":
                with suppress(TypeError, ValueError):
                    values.append(np.asarray(column, dtype=np.float64))
        found = np.concatenate(values) if values else np.zeros(0)
        if not np.isnan(found).any():
            return self
        sizes = np.abs(found[np.isfinite(found)])
        return replace(self, missing=-math.pi * (1.0 + float(sizes.max(initial=0.0))))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matrix' columns: indicators read column=category."""
        return tuple(
            self.raw_names[k.column]
            if k.category is None
            else f"{self.raw_names[k.column]}={k.category}"
            for k in self.keys
        )

    @property
    def fixed(self) -> np.ndarray:
        """Mask of the columns that are no numbers, shape (d,)."""
        return np.array([k.category is not None or k.column in self.codes for k in self.keys])

    @property
    def indicators(self) -> list[list[int]]:
        """Columns of the matrix of each column of categories."""
        groups: dict[int, list[int]] = {}
        for i, key in enumerate(self.keys):
            if key.category is not None:
                groups.setdefault(key.column, []).append(i)
        return list(groups.values())

    def affine(self, channels: list[Affine]) -> tuple[np.ndarray, np.ndarray]:
        """Matrix (k, d) and offset (k,) of channels as functions of the matrix' columns."""
        where = {key: i for i, key in enumerate(self.keys)}
        matrix = np.zeros((len(channels), len(self.keys)))
        for row, channel in enumerate(channels):
            for key, value in channel.terms.items():
                matrix[row, where[key]] = value
        return matrix, np.array([channel.offset for channel in channels])

    def encode(self, X: Any) -> np.ndarray:
        """The matrix of a table, shape (n, d), float64 and finite."""
        raw = self._raw(X)
        columns = []
        for key in self.keys:
            values = raw[key.column]
            if key.category is not None:
                lost = key.category != key.category  # NaN, a category that equals nothing
                same = values != values if lost else values == key.category
                columns.append(same.astype(np.float64))
                continue
            if key.column in self.codes:
                columns.append(self._positions(key.column, values))
                continue
            try:
                columns.append(np.asarray(values, dtype=np.float64))
            except (TypeError, ValueError):
                raise InvalidDataError(
                    f"column {self.raw_names[key.column]!r} holds no numbers: audit the pipeline "
                    "that encodes it, with the encoder inside"
                ) from None
        matrix = np.column_stack(columns) if columns else np.empty((len(raw[0]), 0))
        if self.missing is not None:
            matrix = np.where(np.isnan(matrix), self.missing, matrix)
        bad = ~np.isfinite(matrix)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise InvalidDataError(
                f"column {self.names[column]!r} holds {matrix[row, column]} in row {row}: an audit "
                "needs complete rows here; impute or drop them first. Where rows stay (KL, "
                "ChiSquare, CVaR, Group) and under Wasserstein of order 2, around the data "
                "themselves, an estimator that takes missing values is audited with them"
            )
        return matrix

    def _positions(self, column: int, values: np.ndarray) -> np.ndarray:
        import pandas as pd

        found = pd.Index(self.codes[column]).get_indexer(pd.Index(values, dtype=object))
        if (found < 0).any():
            odd = values[int(np.argmin(found))]
            raise InvalidDataError(
                f"column {self.raw_names[column]!r} holds {odd!r}, which the audited rows do not"
            )
        return found.astype(np.float64)

    def decode(self, U: np.ndarray, X: Any = None) -> Any:
        """Rows as the model takes them: numbers from ``U``, categories from its indicators."""
        if self.missing is not None:
            U = np.where(self.missing == U, np.nan, U)
        numbers = {k.column: U[:, i] for i, k in enumerate(self.keys) if k.category is None}
        if not self.frame:
            if self.codes:
                numbers |= {j: known[numbers[j].astype(int)] for j, known in self.codes.items()}
            return np.column_stack([numbers[j] for j in range(len(self.raw_names))])
        import pandas as pd

        data: dict[str, Any] = {}
        rows = np.arange(len(U)) % (1 if X is None else len(X))
        for j, name in enumerate(self.raw_names):
            if j in self.codes:
                data[name] = pd.Series(self.codes[j][numbers[j].astype(int)])
                data[name] = data[name].astype(self.dtypes.get(name, object))
                continue
            if j in numbers:
                data[name] = self._typed(name, numbers[j])
                continue
            at = [(i, k.category) for i, k in enumerate(self.keys) if k.column == j]
            if not at:  # a column that the model drops
                data[name] = np.zeros(len(U)) if X is None else X[name].take(rows).array
                continue
            pick = U[:, [i for i, _ in at]].argmax(axis=1)
            categories = np.array([category for _, category in at], dtype=object)
            data[name] = pd.Series(categories[pick]).astype(self.dtypes.get(name, object))
        return pd.DataFrame(data)

    def _typed(self, name: str, values: np.ndarray) -> Any:
        """Whole numbers as the table has them: models may look at the type of a column."""
        dtype = self.dtypes.get(name)
        kind = getattr(dtype, "kind", "")
        if kind not in "bi" or not (np.round(values) == values).all():
            return values
        if kind == "b" and not ((values == 0) | (values == 1)).all():
            return values
        return values.astype(dtype if isinstance(dtype, np.dtype) else float)

    def table(self, U: np.ndarray) -> Any:
        """`decode` as a DataFrame, whatever the user's table is."""
        import pandas as pd

        rows = self.decode(U)
        return rows if self.frame else pd.DataFrame(rows, columns=list(self.raw_names))

    def _raw(self, X: Any) -> list[np.ndarray]:
        X = X if hasattr(X, "columns") else np.asarray(plain_tensor(X, "X"))
        if X.shape[1] != len(self.raw_names):
            raise InvalidDataError(
                f"X has {X.shape[1]} columns; the model takes {len(self.raw_names)}"
            )
        if hasattr(X, "columns"):
            names = [str(c) for c in X.columns]
            if self.frame and names != list(self.raw_names):
                odd = sorted(set(names) ^ set(self.raw_names))
                raise InvalidDataError(f"X has other columns than the model was given: {odd[:5]}")
            return [np.asarray(X.iloc[:, j]) for j in range(len(names))]
        return list(X.T)
