"""Rows of a table as conic programs want them: distinct, with masses and groups."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Rows"]


class Rows:
    """Distinct rows (x, y, groups) of positive mass, and the way back: copies are weights."""

    def __init__(self, X: np.ndarray, y: np.ndarray, mass: np.ndarray, members: Any) -> None:
        self.given, self.given_mass, self.kept = X, mass, mass > 0
        d = X.shape[1]
        parts = [X, y] if members is None else [X, y, members]
        rows = np.column_stack(parts)[self.kept]
        distinct, index = np.unique(rows, axis=0, return_inverse=True)
        self.index = index.ravel()
        self.x, self.y = np.ascontiguousarray(distinct[:, :d]), distinct[:, d].astype(y.dtype)
        self.members = None if members is None else distinct[:, d + 1 :] > 0
        self.mass = np.bincount(self.index, weights=mass[self.kept])

    def masses(self, distinct: np.ndarray) -> np.ndarray:
        """Masses of the given rows: copies share in proportion to their weights."""
        result = np.zeros(len(self.given))
        ratio = distinct / self.mass
        result[self.kept] = ratio[self.index] * self.given_mass[self.kept]
        return result / result.sum()

    def atoms(self, distinct: np.ndarray) -> np.ndarray:
        """Positions of the given rows; those without weight stay."""
        result = self.given.copy()
        result[self.kept] = distinct[self.index]
        return result
