"""The samples that were given: as arrays, and class by class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from drojko._sklearn import checked_data, pandas_table
from drojko.exceptions import InvalidDataError

__all__ = ["Part", "classes_of", "frames_of"]

#: Rows (n, d) and labels (n,).
Part = tuple[np.ndarray, np.ndarray]


def frames_of(old: Any, new: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Both as arrays, and the names of their columns."""
    old, new = pandas_table(old), pandas_table(new)
    both: list[Any] = [getattr(table, "columns", None) for table in (old, new)]
    if all(columns is not None and columns.is_unique for columns in both):
        apart = [str(name) for name in both[0].symmetric_difference(both[1], sort=False)]
        if apart:
            raise InvalidDataError(
                f"X_old and X_new differ in their columns: only one has {', '.join(apart[:5])}"
            )
        new = new[list(both[0])]
    frame = BaseEstimator()
    first = checked_data(frame, old, dtype=np.float64)
    second = checked_data(BaseEstimator(), new, dtype=np.float64)
    if first.shape[1] != second.shape[1]:
        raise InvalidDataError(
            f"X_old has {first.shape[1]} features and X_new {second.shape[1]}: give the same ones"
        )
    fewest = min(len(first), len(second))
    if fewest < 8:
        raise InvalidDataError(
            f"{fewest} rows are too few to compare: each sample needs a minimum of 8"
        )
    named = getattr(frame, "feature_names_in_", [f"x{k}" for k in range(first.shape[1])])
    return first, second, [str(name) for name in named]


def _labels(y: Any, rows: np.ndarray, name: str) -> np.ndarray:
    """A class for each row."""
    import pandas as pd

    y = np.asarray(y)
    if y.shape != (len(rows),):
        raise InvalidDataError(
            f"y_{name} has shape {y.shape}; expected ({len(rows)},), a class for each row of "
            f"X_{name}"
        )
    if pd.isna(y).any():
        raise InvalidDataError(f"y_{name} holds missing values: leave such rows out")
    return y


def classes_of(
    y_old: Any, y_new: Any, old: np.ndarray, new: np.ndarray, label_cost: float
) -> list[tuple[Part, Part]]:
    """Rows to compare with each other, with labels; class by class where labels cannot move."""
    if (y_old is None) != (y_new is None):
        raise InvalidDataError("give both y_old and y_new, or neither")
    if y_old is None:
        codes = [np.zeros(len(old)), np.zeros(len(new))]
    else:
        both = [_labels(y_old, old, "old"), _labels(y_new, new, "new")]
        words = [{isinstance(label, str) for label in y.tolist()} for y in both]
        if len(set.union(*words)) > 1:
            raise InvalidDataError("y_old and y_new mix words and numbers: give one kind of class")
        known, index = np.unique(np.concatenate(both), return_inverse=True)
        if len(known) > 100:
            raise InvalidDataError(f"y has {len(known)} values: observed_shift takes classes")
        codes = [index[: len(old)].astype(float), index[len(old) :].astype(float)]
    kept = [(np.ones(len(old), bool), np.ones(len(new), bool))]
    if y_old is not None and math.isinf(label_cost):
        kept = [(codes[0] == k, codes[1] == k) for k in np.unique(codes[1])]
    parts = [((old[a], codes[0][a]), (new[b], codes[1][b])) for a, b in kept]
    for part in parts:
        fewest = min(len(rows) for rows, _ in part)
        if fewest < 8:
            raise InvalidDataError(
                f"{fewest} rows are too few to compare: 8 are needed in each sample"
                + (", and of each class of the new one" if len(parts) > 1 else "")
            )
    return parts
