"""The total variation ball."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import expit

from drojko.ambiguity.base import Dual
from drojko.ambiguity.cvar import capped
from drojko.ambiguity.divergence import Levels, Tail, Tails
from drojko.ambiguity.duals.density_ratio import (
    DensityRatioSet,
    Reweighting,
    flat,
    reweighted,
    soft_maximum,
)
from drojko.ambiguity.duals.scaling import Sample, Worst, cumulate, floats, nonnegative

__all__ = ["TotalVariation"]


class TotalVariation(DensityRatioSet):
    r"""Distributions that differ from the reference by a limited mass.

    .. math:: D(P, P_0) = \tfrac12 \int |dP - dP_0| \le \mathrm{radius}, \quad P \ll P_0, \qquad
        \sup_P E_P \ell = \mathrm{radius} \cdot \max \ell
        + (1 - \mathrm{radius})\, \mathrm{CVaR}_{1 - \mathrm{radius}}(\ell)

    The worst case takes the mass of the smallest losses and puts it on the largest one; in the
    penalised form all losses below max - penalty, with value E0 max(loss, max - penalty).

    Around a continuous reference a loss without a bound has no largest value, and the supremum is
    infinite. Estimators take the largest loss among their draws for it, so that the value grows
    with the number of draws, and call the upper side of the certificate a "local-estimate". With
    ``reference="empirical"`` everything is exact.

    Parameters
    ----------
    radius : float, default=None
        Mass that may move, in [0, 1]; from 1 - P0(largest loss) on, the worst case is the largest
        loss. Exactly one of radius and penalty must be given.
    penalty : float, default=None
        Price of moving all mass, in the units of the loss.

    Notes
    -----
    Sorted losses and cumulative sums; no iteration.

    References
    ----------
    R. Jiang, Y. Guan, 2018, Risk-Averse Two-Stage Stochastic Program with Distributional Ambiguity.

    Examples
    --------
    >>> from drojko.ambiguity import TotalVariation
    >>> dual = TotalVariation(radius=0.3).dual([0.0, 1.0, 2.0, 5.0])
    >>> dual
    Dual(value=3.45, penalty=4, shift=3, attained=3.45, radius=0.3, n=4, proof='dual')
    >>> dual.ratio
    array([0. , 0.8, 1. , 2.2])
    """

    _largest_radius = 1.0
    _hints = {"radius": " and at most 1, where every distribution is inside"}
    jumps = True
    conic_form = "total-variation"

    def candidates(self, X: np.ndarray, names: Any, weight: np.ndarray) -> np.ndarray:
        """Shares of the mass."""
        return np.geomspace(0.005, 0.5, 8)

    def needs_largest(self, penalty: float) -> bool:
        """Always, but without any room to move."""
        return self.radius != 0

    def discrepancy(self, ratio: np.ndarray, weights: np.ndarray) -> float:
        """Half the mean of ``|ratio - 1|``."""
        nonnegative(ratio)
        return 0.5 * float(weights @ np.abs(ratio - 1.0))

    def _nominal(self, sample: Sample) -> Worst:
        slope = float(sample.h[-1])
        return Worst(0.0, slope, sample.top - slope / 2.0, None, 0.0)

    def bounds_at(self, losses: Any, penalty: float, shift: float) -> np.ndarray:
        """Return what each loss contributes to the dual bound; see `DensityRatioSet.bounds_at`.

        Infinite beyond the largest loss of the dual point, shift + penalty / 2, up to rounding.
        """
        values = floats(losses, "losses")
        if 0 < penalty < np.inf:
            largest = shift + 0.5 * penalty
            rounding = 1e-9 * penalty + 8.0 * np.finfo(float).eps * abs(largest)
            beyond = values > largest + rounding
            # A little lower, so that rounding in (loss - shift) / penalty does not matter either.
            inside = np.minimum(values, largest - rounding)
            bounds = super().bounds_at(inside, penalty, shift) + (values - inside)
            return np.where(beyond, np.inf, bounds)
        return super().bounds_at(values, penalty, shift)

    def log_ratio(self, t: np.ndarray) -> np.ndarray:
        return np.where(t >= -0.5, 0.0, -np.inf)  # and what is missing is on the largest loss

    def conjugate(self, t: np.ndarray) -> np.ndarray:
        # The dual point has the largest loss at t = 1/2.
        return np.where(t <= 0.5 + 1e-9, np.maximum(t, -0.5), np.inf)

    def _levels(self, weights: np.ndarray, unit: float) -> Levels:
        if self.penalty is not None:
            price = float(self.penalty)
            tails = [Tail("cap", 1.0, 0, price, None), Tail("top", 1.0 / weights, 0, 0.0, None)]
            return Tails(self, weights, tails, [1.0], -price)
        radius = self._size()
        tails = [
            Tail("cap", 1.0, 1, 0.0, 1.0 - radius),
            Tail("top", radius / weights, 0, 0.0, radius),
        ]
        return Tails(self, weights, tails, [radius, 1.0 - radius])

    def _smoothed(self, bound: Reweighting, losses: np.ndarray, smoothing: float) -> Dual:
        w = bound.weights
        if self.penalty is not None:
            # E max(loss, M - penalty), M the maximum, each smoothed by half.
            high, penalty = soft_maximum(bound, losses, 0.5 * smoothing), float(self.penalty)
            kappa = 0.5 * smoothing / math.log(2.0)
            t = (losses - high.value + penalty) / kappa
            share = expit(t)
            ratio = share + (1.0 - float(w @ share)) * high.ratio
            excess = kappa * float(w @ np.logaddexp(0.0, t)) - 0.5 * smoothing
            ends = high.value - penalty + excess, penalty, high.value - 0.5 * penalty
            return reweighted(bound, losses, *ends, ratio)
        # The maximum and the CVaR, each smoothed, with shares radius and 1 - radius.
        radius = self._size()
        if radius == 0.0:
            return flat(bound, losses)
        high, rest = soft_maximum(bound, losses, smoothing), flat(bound, losses)
        if radius < 1.0:
            rest = capped(bound, losses, 1.0 - radius, smoothing)
        value = radius * high.value + (1.0 - radius) * rest.value
        ratio = radius * high.ratio + (1.0 - radius) * rest.ratio
        penalty = max(high.shift - rest.shift, 0.0)
        return reweighted(bound, losses, value, penalty, 0.5 * (high.shift + rest.shift), ratio)

    def _ball(self, sample: Sample, radius: float) -> Worst:
        ends, _ = _removal(sample)
        if radius >= ends[-1]:
            return sample.maximum(0.0, self.radius_of_maximum(sample.top_mass))
        # The run of equal losses in which the mass runs out keeps the same part of each.
        starts, weight = sample.distinct
        i = int(np.searchsorted(ends, radius))
        run = starts.size - 1 - i
        kept = min(max((float(ends[i]) - radius) / float(weight[run]), 0.0), 1.0)
        ratio = np.ones(sample.size)
        ratio[starts[run] :] = kept
        if run + 1 < starts.size:
            ratio[starts[run + 1] :] = 0.0
        slope = float(sample.h[starts[run]])
        ratio[: sample.n_top] += radius / sample.top_mass
        value = float(self._path(sample, np.array([radius]))[0])
        return Worst(value, slope, sample.top - slope / 2.0, ratio, radius)

    def _penalised(self, sample: Sample, penalty: float) -> Worst:
        ratio = np.where(sample.h > penalty, 0.0, 1.0)
        radius = float(sample.w[sample.h > penalty].sum())
        ratio[: sample.n_top] += radius / sample.top_mass
        value = float((sample.w * np.maximum(sample.h - penalty, 0.0)).sum())
        return Worst(value, penalty, sample.top - penalty / 2.0, ratio, radius)

    def _path(self, sample: Sample, radii: np.ndarray) -> np.ndarray:
        ends, gains = _removal(sample)
        starts, _ = sample.distinct
        h = sample.h[starts][:0:-1]
        i = np.minimum(np.searchsorted(ends, radii), ends.size - 1)
        values = gains[i] - np.maximum(ends[i] - radii, 0.0) * h[i]
        return np.where(radii >= ends[-1], sample.top, values)


def _removal(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return mass taken and value gained once each distinct loss is gone, smallest first."""
    starts, weight = sample.distinct
    weight, h = weight[:0:-1], sample.h[starts][:0:-1]
    return cumulate(weight), cumulate(weight * h)
