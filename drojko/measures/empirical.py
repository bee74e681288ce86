"""The empirical measure."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from drojko.measures._arrays import double, indices, moments, weighted_rows
from drojko.measures.base import Measure, choose, draws

__all__ = ["Empirical"]


class Empirical(Measure):
    """Weighted atoms, P = sum_i w_i delta_{x_i}.

    Parameters
    ----------
    atoms : array-like of shape (n, d), default=None
        The atoms x_i, for use without `fit`.
    weights : array-like of shape (n,), default=None
        Their weights, normalised to sum 1; None: equal ones.

    Attributes
    ----------
    atoms_, weights_ : ndarray of shape (n, d) and (n,)
        In the order of the rows given; rows of weight 0 are left out.

    Notes
    -----
    There is no density: `log_prob` raises UnsupportedError. `fit` takes a single row, too.

    Examples
    --------
    >>> from drojko.measures import Empirical
    >>> x, w = Empirical([[0.0], [4.0]], weights=[1, 3]).points(100)
    >>> x.ravel().tolist(), w.tolist()
    ([0.0, 4.0], [0.25, 0.75])
    """

    _state = "atoms_"
    _remedy = "call fit(X) first, or give atoms="

    def __init__(self, atoms: Any = None, weights: Any = None):
        self.atoms = atoms
        self.weights = weights

    def fit(self, X: Any, sample_weight: Any = None) -> Self:
        """Keep the rows of X, shape (n, d), that have positive weight."""
        self.atoms_, weights = weighted_rows(X, sample_weight)
        self.weights_ = weights / weights.sum()
        return self

    def _fit_class(self, rows: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> Self:
        # The rows of one class are a copy already, and of positive weight.
        self.atoms_, self.weights_ = rows, weights / weights.sum()
        return self

    def _construct(self) -> None:
        if self.atoms is not None:
            self.fit(self.atoms, self.weights)

    @property
    def dim(self) -> int:
        return self._ready().atoms_.shape[1]

    @property
    def mean(self) -> Tensor:
        """Weighted mean, shape (d,)."""
        self._ready()
        return double(moments(self.atoms_, self.weights_)[0])

    @property
    def covariance(self) -> Tensor:
        """Weighted population covariance, shape (d, d)."""
        self._ready()
        return double(moments(self.atoms_, self.weights_)[1])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n atoms with replacement."""
        self._ready()
        n, generator = draws(n, generator)
        return double(self.atoms_)[choose(self.weights_, n, generator)]

    def points(
        self, n: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the atoms and their weights exactly, whatever n.

        The points share memory with ``atoms_`` (tables can be large): do not write into them.
        """
        self._ready()
        shared = self.atoms_.flags.writeable  # a memory-mapped model file is not
        atoms = torch.from_numpy(self.atoms_) if shared else double(self.atoms_)
        return atoms, double(self.weights_)

    def marginal(self, columns: Any) -> Empirical:
        """Return the atoms' given columns with the same weights."""
        columns = indices(columns, self.dim)
        return Empirical(self.atoms_[:, columns], self.weights_)
