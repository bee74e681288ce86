"""The normal distribution, and the formulas that its mixtures share."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from drojko._validation import check_number, floats
from drojko.exceptions import InvalidDataError
from drojko.measures._arrays import double, indices, matrix, moments, positive, queries
from drojko.measures.base import Measure, antithetic, centred, draws, normal

__all__ = ["Gaussian"]


class Gaussian(Measure):
    """Normal distribution N(m, S).

    log p(x) = -1/2 (x - m)' S^-1 (x - m) - 1/2 log det(2 pi S).

    Parameters
    ----------
    mean : array-like of shape (d,), default=None
        m, for use without `fit`; needs `covariance`.
    covariance : array-like of shape (d, d), default=None
        S, symmetric positive definite.
    ridge : float, default=1e-6
        `fit` adds ridge * s_j^2 to the j-th variance, s_j being the column's standard deviation
        (within a `ClassConditional`: that of the classes pooled; for a constant column: the root
        mean square of the others). So one row, constant columns and n <= d all give a density.

    Attributes
    ----------
    mean_, covariance_ : ndarray of shape (d,) and (d, d)
        The weighted mean, and the population covariance (divisor n) plus the ridge.

    Examples
    --------
    >>> from drojko.measures import Gaussian
    >>> g = Gaussian(mean=[0.0, 1.0], covariance=[[2.0, 0.0], [0.0, 1.0]])
    >>> round(float(g.log_prob([[0.0, 1.0]])), 4)
    -2.1845
    >>> g.marginal([0]).covariance
    tensor([[2.]], dtype=torch.float64)
    """

    _state = "factor_"
    _remedy = "call fit(X) first, or give mean= and covariance="

    def __init__(self, mean: Any = None, covariance: Any = None, *, ridge: float = 1e-6):
        self.mean = mean
        self.covariance = covariance
        self.ridge = ridge

    # `mean` is a setting and, of every measure, a property: the setting lives in `_mean`.
    def get_params(self, deep: bool = True) -> dict:
        """Return the settings (those given, not the fitted values)."""
        return {"mean": self._mean, "covariance": self._covariance, "ridge": self.ridge}

    @property
    def mean(self) -> Tensor:
        return double(self._ready().mean_)

    @mean.setter
    def mean(self, value: Any) -> None:
        self._mean = value

    @property
    def covariance(self) -> Tensor:
        return double(self._ready().covariance_)

    @covariance.setter
    def covariance(self, value: Any) -> None:
        self._covariance = value

    @property
    def dim(self) -> int:
        return len(self._ready().mean_)

    def _fit(self, rows: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> Self:
        check_number("Gaussian: ridge", self.ridge, least=0)
        mean, covariance = moments(rows, weights)
        return self._set(mean, covariance + np.diag(self.ridge * positive(scale) ** 2))

    def _construct(self) -> None:
        if self._mean is not None and self._covariance is not None:
            covariance = matrix(self._covariance, name="covariance")
            mean = matrix(np.atleast_2d(floats(self._mean, "mean")), len(covariance), "mean")[0]
            self._set(mean, covariance)

    def _set(self, mean: np.ndarray, covariance: np.ndarray) -> Self:
        self.factor_ = cholesky(covariance)
        self.mean_, self.covariance_ = mean, covariance
        return self

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, shape (n, d)."""
        n, generator = draws(n, generator)
        return self._place(normal((n, self.dim), generator))

    def points(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return n draws of weight 1/n whose mean is m exactly (for n > 1)."""
        return self._points(n, generator, centred)

    def mirrored_points(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return n draws of weight 1/n in pairs m +- u: symmetric, as particles of flows."""
        return self._points(n, generator, antithetic)

    def _points(self, n: int, generator: Any, noise: Any) -> tuple[Tensor, Tensor]:
        n, generator = draws(n, generator)
        x = self._place(noise(n, (self.dim,), generator))
        return x, torch.full((n,), 1 / n, dtype=torch.float64)

    def _place(self, noise: Tensor) -> Tensor:
        return double(self.mean_) + noise @ double(self.factor_).T

    def log_prob(self, x: Any) -> Tensor:
        x = queries(x, self.dim).double()
        return normal_log_prob(x, double(self.mean_, x), double(self.factor_, x))

    def marginal(self, columns: Any) -> Gaussian:
        """Return the normal distribution of some columns."""
        columns = indices(columns, self.dim)
        block = self.covariance_[np.ix_(columns, columns)]
        return Gaussian(self.mean_[columns], block, ridge=self.ridge)


def normal_log_prob(x: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Log density of N(mean, factor factor') at x of shape (n, d); batches of (..., d, d)."""
    white = torch.linalg.solve_triangular(factor, (x - mean.unsqueeze(-2)).mT, upper=False)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    return -0.5 * (white**2).sum(-2) - log_det - 0.5 * x.shape[-1] * math.log(2 * math.pi)


def cholesky(covariance: np.ndarray) -> np.ndarray:
    """Return lower factors of symmetric positive definite matrices (..., d, d)."""
    try:
        if covariance.shape[-1] != covariance.shape[-2]:
            raise np.linalg.LinAlgError(f"its shape is {covariance.shape}")
        rounding = 1e-8 * np.abs(covariance).max()
        if not np.allclose(covariance, covariance.swapaxes(-1, -2), rtol=0, atol=rounding):
            raise np.linalg.LinAlgError("it is not symmetric")
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise InvalidDataError(
            f"a covariance must be square, symmetric and positive definite: {error}; "
            "drop columns that others determine, or raise ridge"
        ) from error
