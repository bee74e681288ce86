"""One measure of features and a real label together."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from drojko._validation import check_scale
from drojko.exceptions import UnsupportedError
from drojko.measures._arrays import masses, matrix, queries, vector
from drojko.measures.base import LabelledMeasure, Measure
from drojko.measures.kde import KDE

__all__ = ["Joint"]


class Joint(LabelledMeasure):
    """A measure of z = (x, y) in R^(d+1), y real: the reference for regression.

    Parameters
    ----------
    measure : Measure, default=None
        Template, cloned and fitted to the rows (x, y), label last; None: `KDE()`. A KDE leaves
        the label column without noise: each label stays attached to its atom. A measure that is
        fitted already, on d + 1 columns, can be used without `fit`.

    Attributes
    ----------
    measure_ : Measure
        The measure of z.

    Examples
    --------
    >>> from drojko.measures import Gaussian, Joint
    >>> P = Joint(Gaussian(mean=[0.0, 0.0], covariance=[[1.0, 0.6], [0.6, 1.0]]))
    >>> log_p = P.log_prob([[0.6]], [1.0])              # x given y = 1 is N(0.6, 0.64)
    >>> round(float(log_p), 4)
    -0.6958
    """

    _state = "measure_"
    _remedy = "call fit(X, y) first, or give a fitted measure of (x, y)"

    def __init__(self, measure: Measure | None = None):
        self.measure = measure

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to the rows (x, y).

        Parameters
        ----------
        X : (n, d)
        y : (n,), finite numbers.
        sample_weight : (n,), default=None
        """
        x = matrix(X, single=True)
        labels = vector(y, len(x)).detach().cpu().numpy()
        weights = masses(sample_weight, len(x))
        rows = np.empty((len(x), x.shape[1] + 1))
        rows[:, :-1], rows[:, -1] = x, labels
        if not weights.all():
            rows, weights = rows[weights > 0], weights[weights > 0]
        template = KDE() if self.measure is None else self.measure
        measure = template._with_label(x.shape[1])
        if measure._fit is None:
            self.measure_ = measure.fit(rows, weights)
            return self
        check_scale(rows, "X")
        self.measure_ = measure._fit_rows(rows, weights)
        return self

    def _construct(self) -> None:
        if self.measure is not None and self.measure.__sklearn_is_fitted__():
            self.measure_ = self.measure

    @property
    def dim(self) -> int:
        return self._ready().measure_.dim - 1

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        z = self._ready().measure_.sample(n, generator)
        return z[:, :-1], z[:, -1]

    def points(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the points of the measure of (x, y), label split off."""
        z, w = self._ready().measure_.points(n, generator)
        return z[:, :-1], z[:, -1], w

    def log_prob(self, x: Any, y: Any) -> Tensor:
        """Log density of x given y, shape (n,): log p(x, y) - log p(y).

        For a KDE, p(y) is the weight of the atoms with that label: -inf for other labels.
        Raises UnsupportedError for a measure without density or without marginals (a flow).
        """
        x = queries(x, self.dim)
        y = vector(y, len(x)).to(x.device)
        # Labels are compared in the dtype of the query: the coarser of the two.
        dtype = torch.float32 if torch.float32 in (x.dtype, y.dtype) else torch.float64
        x, y = x.to(dtype), y.to(dtype)[:, None]
        joint = self.measure_.log_prob(torch.cat([x, y], dim=1))
        try:
            label = self.measure_.marginal([self.dim])
        except UnsupportedError as error:
            raise UnsupportedError(
                f"log p(x | y) = log p(x, y) - log p(y), and {type(self.measure_).__name__} has "
                "no closed-form p(y); use KDE, Gaussian or GaussianMixture, or "
                "joint.measure_.log_prob for log p(x, y)"
            ) from error
        density = label.log_prob(y)
        return torch.where(density > -torch.inf, joint - density, -torch.inf)
