"""Sets of density ratios on given support points: their exact duals, and smoothed ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from drojko.ambiguity.divergence import Levels
from drojko.ambiguity.duals.point import Dual
from drojko.ambiguity.duals.scaling import floats
from drojko.exceptions import InvalidDataError

__all__ = ["Reweighting"]


class Reweighting:
    r"""A set of density ratios on n weighted points: what `DensityRatioSet.on` returns.

    Parameters
    ----------
    ambiguity : DensityRatioSet
    weights : array of shape (n,)
        The reference P0: nonnegative, normalised here.

    Examples
    --------
    >>> from drojko.ambiguity import CVaR
    >>> bound = CVaR(alpha=0.5).on(None, [0.25, 0.25, 0.25, 0.25])
    >>> bound.dual([0.0, 1.0, 2.0, 5.0]).value
    3.5
    >>> smooth = bound.dual([0.0, 1.0, 2.0, 5.0], smoothing=0.5)
    >>> smooth.value <= 3.5 <= smooth.value + 0.5
    True
    """

    def __init__(self, ambiguity: Any, weights: Any):
        ambiguity._validate_params()
        mass = floats(weights, "weights")
        if mass.ndim != 1 or not (np.isfinite(mass).all() and (mass >= 0).all() and mass.any()):
            raise InvalidDataError("weights must be finite, >= 0, and positive somewhere")
        self.ambiguity = ambiguity
        self.weights = mass / mass.sum()
        self.least = float(self.weights[self.weights > 0].min())
        self.positive = bool((self.weights > 1e-300).all())
        #: Where the last search of a threshold ended; the next one, on losses nearby, starts there.
        self.start: float | None = None

    def dual(self, losses: Any, smoothing: float = 0.0) -> Dual:
        """Return the exact `Dual`, or one whose ratio is continuous in the losses.

        Parameters
        ----------
        losses : array or tensor of shape (n,)
        smoothing : float
            In the units of the losses. The smoothed value is at most that much below the exact one
            and never above it. Divergences keep their multiplier above ``smoothing / radius``;
            total variation and CVaR get an entropy.
        """
        values = floats(losses, "losses")
        if values.shape != self.weights.shape or not np.isfinite(values).all():
            raise InvalidDataError(f"losses must be {len(self.weights)} finite numbers")
        if smoothing > 0.0:
            return self.ambiguity._smoothed(self, values, float(smoothing))
        return self.ambiguity.dual(values, self.weights)  # which a set of one's own may override

    #: How rows make up cells, (n, cells); None: every row is one.
    cells = None

    def levels(self, unit: float) -> Levels:
        """Return the set as a minimum over levels; ``unit`` is a typical loss."""
        return self.ambiguity.levels(self.weights, unit)
