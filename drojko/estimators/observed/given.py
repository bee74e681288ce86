"""The samples that were given: as arrays, and class by class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_consistent_length

from drojko._sklearn import checked_data, pandas_table
from drojko.exceptions import InvalidDataError

__all__ = ["Part", "classes_of", "frames_of"]

#: Rows (n, d) and labels (n,).
Part = tuple[np.ndarray, np.ndarray]


def frames_of(old: Any, new: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Both as arrays, and the names of their columns."""
    frame, old, new = BaseEstimator(), pandas_table(old), pandas_table(new)
    first = checked_data(frame, old, ensure_min_samples=8, dtype=np.float64)
    second = checked_data(frame, new, ensure_min_samples=8, dtype=np.float64, reset=False)
    names = getattr(frame, "feature_names_in_", [f"x{k}" for k in range(first.shape[1])])
    return first, second, [str(name) for name in names]


def classes_of(
    y_old: Any, y_new: Any, old: np.ndarray, new: np.ndarray, label_cost: float
) -> list[tuple[Part, Part]]:
    """Rows to compare with each other, with labels; class by class where labels cannot move."""
    if (y_old is None) != (y_new is None):
        raise InvalidDataError("give both y_old and y_new, or neither")
    if y_old is None:
        codes = [np.zeros(len(old)), np.zeros(len(new))]
    else:
        check_consistent_length(old, y_old)
        check_consistent_length(new, y_new)
        both = np.concatenate([np.asarray(y_old), np.asarray(y_new)])
        known, index = np.unique(both, return_inverse=True)
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
