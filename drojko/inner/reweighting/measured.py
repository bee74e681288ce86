"""Worst cases that are known as measures: mixtures of groups, reweighted atoms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from drojko._random import generator as make_generator
from drojko.inner.worst_case import WorstCase
from drojko.measures import LabelledMeasure

__all__ = ["MeasuredWorstCase"]


@dataclass(frozen=True, repr=False)
class MeasuredWorstCase(WorstCase):
    """A worst case given as a labelled measure: points keep their place, masses change.

    Of a `Group` set it is the worst mixture of the groups' measures, with a density where these
    have one; of an `MMD` set the points of the certificate with their worst masses, which has
    none.

    Parameters
    ----------
    measure : LabelledMeasure
        P*.
    attained_risk : float
        What `risk` returns.
    classes : ndarray of shape (K,), default=None
        Labels of the classes; None: regression.
    feature_names : tuple of str, default=None
    group_weights : dict, default=None
        Shares of the groups under P*, of a `Group` set.

    Examples
    --------
    >>> import numpy as np
    >>> from drojko.inner.reweighting.measured import MeasuredWorstCase
    >>> from drojko.measures import ClassConditional, Gaussian
    >>> P = ClassConditional(measures=[Gaussian(mean=[1.0], covariance=[[1.0]])])
    >>> worst = MeasuredWorstCase(P, 0.3, classes=np.array(["a"]))
    >>> X, y = worst.sample(3, random_state=0)
    >>> X.shape, y.tolist(), worst.risk()
    ((3, 1), ['a', 'a', 'a'], 0.3)
    """

    measure: LabelledMeasure
    attained_risk: float
    classes: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    group_weights: dict[Any, float] | None = None
    cost_weights: np.ndarray | None = None

    def __repr__(self) -> str:
        shares = ""
        if self.group_weights is not None:
            parts = (f"{name!r}: {share:.4g}" for name, share in self.group_weights.items())
            shares = f", group_weights={{{', '.join(parts)}}}"
        return f"{type(self).__name__}(risk={self.attained_risk:.6g}{shares})"

    @property
    def n_features(self) -> int:
        return self.measure.dim

    def sample(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.measure.sample(n, make_generator(random_state))
        return x.numpy(), self._decode(y)

    def transport(self, X: Any, y: Any) -> np.ndarray:
        """The rows themselves: this set moves masses, not points."""
        return np.array(X, dtype=np.float64)

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log density of X given y, shape (n,); UnsupportedError for atoms, which have none."""
        return self.measure.log_prob(*self._queries(X, y)).numpy()

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        x, y, w = self.measure.points(2000, make_generator(0))
        return x.numpy(), x.numpy(), self._decode(y), w.numpy()
