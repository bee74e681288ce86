"""The image of a measure under a map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drojko.measures._arrays import queries
from drojko.measures.base import Measure

__all__ = ["Pushforward"]


class Pushforward(Measure):
    """T#P, the law of T(x) for x drawn from P.

    ``log q(y) = log p(T^-1(y)) - log |det DT(T^-1(y))|``.

    Parameters
    ----------
    base : Measure
        P, ready to use.
    map : object
        T, with `map(x)` of shape (n, d) -> (n, d); for the density also `inverse(y)` and
        `log_abs_det_jacobian(x)` of shape (n, d) -> (n,). Without them `log_prob` raises
        UnsupportedError.

    Examples
    --------
    >>> import math, torch
    >>> from drojko.measures import Gaussian, Pushforward
    >>> class Double:
    ...     def map(self, x): return 2 * x
    ...     def inverse(self, y): return y / 2
    ...     def log_abs_det_jacobian(self, x): return torch.full((len(x),), math.log(2.0))
    >>> wide = Pushforward(Gaussian(mean=[0.0], covariance=[[1.0]]), Double())
    >>> exact = Gaussian(mean=[0.0], covariance=[[4.0]])
    >>> y = torch.tensor([[-1.0], [3.0]])
    >>> torch.allclose(wide.log_prob(y), exact.log_prob(y))
    True
    """

    _remedy = "fit its base and its map"

    def __init__(self, base: Measure, map: Any):
        self.base = base
        self.map = map

    def __sklearn_is_fitted__(self) -> bool:
        return self.base.__sklearn_is_fitted__()

    @property
    def dim(self) -> int:
        return self.base.dim

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of the base and move them."""
        return self.map.map(self.base.sample(n, generator)).detach()

    def points(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the base's points, moved, with their weights."""
        x, w = self.base.points(n, generator)
        return self.map.map(x).detach(), w

    def log_prob(self, x: Any) -> Tensor:
        for needed in ("inverse", "log_abs_det_jacobian"):
            if not hasattr(self.map, needed):
                raise self._lacks("density", f"{type(self.map).__name__} has no {needed}")
        source = self.map.inverse(queries(x, self.dim))
        return self.base.log_prob(source) - self.map.log_abs_det_jacobian(source)
