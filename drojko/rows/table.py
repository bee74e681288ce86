"""Data that are no array: sparse matrices, and batches that are read pass by pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from drojko.exceptions import UnsupportedError
from drojko.rows.rows import Rows

__all__ = ["NeedsArray", "Table"]


class NeedsArray(UnsupportedError, TypeError):
    """What was asked for needs the rows as an array (for scikit-learn, a `TypeError`)."""


class Table(ABC):
    """Rows of numbers that linear models are fitted to without an array of them.

    Attributes
    ----------
    shape : tuple of (n, d)
    dtype : numpy.dtype
        float64 or float32.
    size : int
        About how many numbers a product reads.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    size: int
    ndim = 2
    #: Whether some rows lie on other processes.
    shared = False
    #: What messages call it, and how it becomes an array.
    name: str
    remedy: str

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def rows(self, y: np.ndarray, w: np.ndarray | None = None, *, intercept: bool = True) -> Rows:
        """The rows in standardised coordinates."""

    @abstractmethod
    def products(self, coef: np.ndarray) -> np.ndarray:
        """X coef in float64, shape (n,) or (n, K), for coef of shape (d,) or (d, K)."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Table:
        """Some rows."""

    @abstractmethod
    def min(self, axis: int = 0) -> np.ndarray:
        """Smallest entries of the columns, shape (d,)."""

    @abstractmethod
    def max(self, axis: int = 0) -> np.ndarray:
        """Largest entries of the columns, shape (d,)."""

    def total(self, sums: np.ndarray) -> np.ndarray:
        """Sums over all rows, from those over the rows of this process."""
        return sums

    def every(self, part: np.ndarray) -> np.ndarray:
        """Numbers of all processes, from those of this one."""
        return part

    def kept(self, y: np.ndarray, w: np.ndarray, groups: Any) -> Any:
        """What a fit keeps of its rows for ``reference_``; None: nothing."""
        return None

    def refused(self, what: str) -> NeedsArray:
        """The error for what cannot do without an array."""
        return NeedsArray(f"{what} cannot take {self.name}, dense data is required: {self.remedy}")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise self.refused("this")
