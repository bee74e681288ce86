"""What every measure offers: draws, weighted points, moments, a density where there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor

from drojko import _random
from drojko._validation import Checked, set_known
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.measures._arrays import count, distinct, spread, weighted_rows

__all__ = ["LabelledMeasure", "Measure"]

#: Draws from which on seeding another generator is worth it.
_MANY = 1 << 16
_LARGE = 1 << 21  # entries of a table that is kept in the precision of the data


class _Settings(Checked, BaseEstimator):
    """The bookkeeping that measures of both kinds share."""

    def set_params(self, **params: Any) -> Self:
        """Set parameters; an unknown name is an error that says which one may be meant."""
        return set_known(self, super().set_params, params)

    _state = ""  # the fitted attribute whose presence means "ready to use"
    _remedy = "call fit(X) first"

    def _construct(self) -> None:
        """Set the fitted attributes from the settings alone, if those suffice."""

    def __sklearn_is_fitted__(self) -> bool:
        if not hasattr(self, self._state):
            self._construct()
        return hasattr(self, self._state)

    def _ready(self) -> Self:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"this {type(self).__name__} is not fitted: {self._remedy}")
        return self

    @property
    def dim(self) -> int:
        """Number of columns d of x."""
        raise self._lacks("known dimension", "look at a sample")

    def _lacks(self, what: str, instead: str) -> UnsupportedError:
        return UnsupportedError(f"{type(self).__name__} has no {what}; {instead}")


class Measure(_Settings):
    """A probability measure on R^d.

    Settings are plain values, fitted attributes are numpy arrays: `clone`, `get_params`, pickle
    and skops work. Input may be an array, a list, a frame or a tensor; output is float64 tensors.
    `log_prob` of a tensor can be differentiated.

    In every `fit`, weight k means k copies and weight 0 means absence: equal rows are merged, so
    a fit cannot tell these apart, and the overall scale of the weights does not matter.

    A subclass sets `_state` and defines `dim`, `sample` and what else it has in closed form; it
    is fitted by `_fit(rows, weights, scale)` on distinct rows with weights that sum to 1, or has
    a `fit` of its own. `scale` are the standard deviations of the columns, for regularisation.
    """

    _fit: Any = None
    #: Whether rows of a table may stay in single precision, which holds them without loss.
    _single = False

    def fit(self, X: Any, sample_weight: Any = None) -> Self:
        """Fit to rows X of shape (n, d), with weights of shape (n,); returns self.

        Raises InvalidDataError for fewer than 2 distinct rows of positive weight, NaN, infinity,
        text, or weights that are negative or all zero.
        """
        if self._fit is None:
            raise self._lacks("fit", self._remedy)
        return self._fit_rows(*weighted_rows(X, sample_weight))

    def _fit_rows(self, rows: np.ndarray, weights: np.ndarray) -> Self:
        """Fit to rows of positive weight, which may be kept as they are."""
        rows, weights = distinct(rows, weights)
        if len(rows) < 2:
            raise InvalidDataError(
                f"{type(self).__name__} got 1 sample, counting distinct rows of positive weight; "
                "it needs 2 or more to have a scale (Empirical takes 1)"
            )
        return self._fit(rows, weights, spread(rows, weights))

    def _fit_class(self, rows: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> Self:
        """Fit to one class of a table; `scale` regularises, so that a single row will do."""
        if self._fit is None:
            return self.fit(rows, weights)
        return self._fit(*distinct(rows, weights), scale)

    def _with_label(self, dim: int) -> Measure:
        """Return an unfitted copy for rows (x, y), x having `dim` columns."""
        from sklearn.base import clone

        copy: Any = clone(self)
        return copy

    @property
    def mean(self) -> Tensor:
        """Mean, a tensor of shape (d,)."""
        raise self._lacks("closed-form mean", "average a sample")

    @property
    def covariance(self) -> Tensor:
        """Covariance, a tensor of shape (d, d)."""
        raise self._lacks("closed-form covariance", "use that of a sample")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, shape (n, d); None seeds a generator from the operating system."""
        raise self._lacks("sampler", "use another measure")

    def log_prob(self, x: Any) -> Tensor:
        """Log density at the rows of x, shape (n, d) -> (n,)."""
        raise self._lacks("density", "use a continuous measure, for instance KDE")

    def marginal(self, columns: Any) -> Measure:
        """Return the measure of some columns, given by indices."""
        raise self._lacks("closed-form marginal", "draw a sample and keep its columns")

    def _count(self, n: int) -> int | None:
        """How many `points` there are where n are asked for, if that is known before."""
        return None

    #: Of many points; few are in float64 whatever they are made of.
    _dtype = torch.float64

    def _points_into(self, out: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Write as many `points` as `_count` says, and return their weights."""
        out[:], w = self.points(n, generator)
        return w

    def points(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return about n points (m, d) with weights (m,) that sum to 1, of low variance.

        Averages sum(w * g(x)) are unbiased. Every atom or component is represented, so m may
        exceed n; a measure without such structure gives n draws of weight 1/n.
        """
        x = self.sample(n, generator)
        return x, torch.full((len(x),), 1 / len(x), dtype=torch.float64)


class LabelledMeasure(_Settings):
    """A probability measure of pairs (x, y): what solvers take as the reference."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows X of shape (n, d) and labels y of shape (n,); returns self."""
        raise self._lacks("fit", "build it from its parts")

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n pairs: x of shape (n, d), y of shape (n,)."""
        raise self._lacks("sampler", "use another measure")

    def points(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return about n stratified pairs and their weights, (x, y, w), sum(w) = 1."""
        x, y = self.sample(n, generator)
        return x, y, torch.full((len(x),), 1 / len(x), dtype=torch.float64)

    def log_prob(self, x: Any, y: Any) -> Tensor:
        """Log density of x given y, shape (n,)."""
        raise self._lacks("density", "use a continuous measure, for instance KDE")


def draws(n: int, generator: Any) -> tuple[int, torch.Generator]:
    """Check the two arguments that every sampler takes."""
    return count(n), _random.generator(generator)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal float64 draws; many by NumPy, in less than half the time."""
    if math.prod(shape) < _MANY:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return torch.from_numpy(np.random.Generator(np.random.SFC64(seed)).standard_normal(shape))


def room(measures: Sequence[Any], n: int, dim: int) -> Tensor:
    """An empty table (n, dim); in float32 where it is large and the measures are made of such."""
    single = n * dim >= _LARGE and all(one._dtype is torch.float32 for one in measures)
    return torch.empty((n, dim), dtype=torch.float32 if single else torch.float64)


def antithetic(k: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return k standard normal arrays (k, *shape) in pairs z, -z (one unpaired if k is odd)."""
    half = normal(((k + 1) // 2, *shape), generator)
    if k == 1:
        return half
    return torch.cat([half, -half])[:k]


def centred(k: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return k standard normal arrays (k, *shape) whose mean is zero, each standard normal.

    Unlike pairs z, -z they are as good as independent ones for even functions.
    """
    z = normal((k, *shape), generator)
    return z if k < 2 else (z - z.mean(0)) * (k / (k - 1.0)) ** 0.5


def choose(weights: np.ndarray, n: int, generator: torch.Generator) -> Tensor:
    """Draw n indices with probabilities `weights`."""
    return inverted(weights, torch.rand(n, generator=generator, dtype=torch.float64))


def inverted(weights: np.ndarray, u: Tensor) -> Tensor:
    """The indices at which the distribution function of `weights` passes u in (0, 1)."""
    edges = torch.cumsum(torch.tensor(weights, dtype=torch.float64), 0)
    return torch.searchsorted(edges, u * edges[-1], right=True).clamp_max_(len(edges) - 1)


def components(reference: LabelledMeasure) -> list[Any]:
    """The fitted measures that a labelled one is made of; itself, if it is of another kind."""
    return getattr(reference, "measures_", None) or [getattr(reference, "measure_", reference)]


def has_atoms(reference: LabelledMeasure) -> bool:
    """Whether `points` come around fixed atoms, in the same order at every call.

    Parameters
    ----------
    reference : LabelledMeasure

    Returns
    -------
    bool

    Examples
    --------
    >>> from drojko.measures import ClassConditional, Empirical, Gaussian
    >>> X, y = [[0.0], [1.0], [5.0], [6.0]], [0, 0, 1, 1]
    >>> [has_atoms(ClassConditional(m).fit(X, y)) for m in (Empirical(), Gaussian())]
    [True, False]
    """
    return all(hasattr(part, "atoms_") for part in components(reference))
