"""The losses as convex expressions, with the structure that reformulations use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from drojko.exceptions import InvalidDataError

__all__ = ["ConvexLoss", "convex_loss"]


@dataclass(frozen=True)
class ConvexLoss:
    """A loss of u: the margin s f of a classifier, or the residual f - y of a regressor.

    ``pieces`` are the (slope, offset) of a maximum of affine functions of u, or empty.
    """

    name: str
    lipschitz: float
    pieces: tuple[tuple[float, float], ...] = ()
    delta: float = 1.0

    def value(self, u: Any) -> Any:
        """Loss of each entry, a convex expression of the affine expression ``u``."""
        import cvxpy as cp

        if self.name == "logistic":
            return cp.logistic(-u)
        if self.name == "squared":
            return cp.square(u)
        if self.name == "huber":
            return 0.5 * cp.huber(u, self.delta)  # pyright: ignore[reportArgumentType]
        return self.raised(u, 0.0)

    def raised(self, u: Any, sigma: Any) -> Any:
        """Max over pieces of slope * u + offset + slope^2 * sigma."""
        import cvxpy as cp

        parts = [slope * u + offset + slope**2 * sigma for slope, offset in self.pieces]
        return cp.maximum(*parts)

    def numeric(self, u: np.ndarray) -> np.ndarray:
        """The same loss of numbers."""
        if self.name == "logistic":
            return np.logaddexp(0.0, -u)
        if self.name == "squared":
            return u**2
        if self.name == "huber":
            inside = np.minimum(np.abs(u), self.delta)
            return inside * (np.abs(u) - 0.5 * inside)
        return np.max([slope * u + offset for slope, offset in self.pieces], axis=0)


def convex_loss(name: str, *, delta: float = 1.35, quantile: float = 0.5) -> ConvexLoss:
    """The loss of a name; ``delta`` of "huber", ``quantile`` of "quantile"."""
    if name == "logistic":
        return ConvexLoss(name, 1.0)
    if name == "hinge":
        return ConvexLoss(name, 1.0, ((0.0, 0.0), (-1.0, 1.0)))
    if name == "squared":
        return ConvexLoss(name, math.inf)
    if name == "absolute":
        return ConvexLoss(name, 1.0, ((1.0, 0.0), (-1.0, 0.0)))
    if name == "huber":
        return ConvexLoss(name, float(delta), delta=float(delta))
    if name == "quantile":
        q = float(quantile)
        return ConvexLoss(name, max(q, 1.0 - q), ((-q, 0.0), (1.0 - q, 0.0)))
    raise InvalidDataError(f"unknown loss {name!r}")
