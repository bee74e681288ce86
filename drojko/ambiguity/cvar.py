"""The conditional value at risk as an ambiguity set."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import entr, expit, logit

from drojko._numerics import root
from drojko.ambiguity.base import Dual
from drojko.ambiguity.divergence import Levels, Tail, Tails
from drojko.ambiguity.duals.density_ratio import DensityRatioSet, Reweighting, flat, reweighted
from drojko.ambiguity.duals.nearby import tail_near
from drojko.ambiguity.duals.scaling import Sample, Worst, cumulate, floats, nonnegative
from drojko.exceptions import InvalidDataError

__all__ = ["CVaR"]


class CVaR(DensityRatioSet):
    r"""Distributions whose density ratio is at most 1 / alpha: the worst subpopulations.

    .. math:: \frac{dP}{dP_0} \le \frac1\alpha, \qquad
        \sup_P E_P \ell = \min_t\; t + \frac{1}{\alpha} E_0 (\ell - t)_+

    the mean of the largest losses of total mass alpha. As a ball it is
    ess sup dP/dP0 - 1 <= 1/alpha - 1, which is what `budget` and a `Dual`'s ``radius`` say;
    ``penalty`` is the derivative in that radius, E0 (loss - t*)_+, and ``shift`` is t*, the value
    at risk.

    Parameters
    ----------
    alpha : float
        Tail mass, in (0, 1]: 1 is the mean, up to the mass of the largest loss it is the largest
        loss. It is the only size: there is neither a radius nor a penalty to set.

    Notes
    -----
    Sorted losses and cumulative sums; no iteration. `dual_path` takes values of alpha in the place
    of radii.

    References
    ----------
    R. T. Rockafellar, S. Uryasev, 2000, Optimization of Conditional Value-at-Risk.

    Examples
    --------
    >>> from drojko.ambiguity import CVaR
    >>> dual = CVaR(alpha=0.4).dual([0.0, 1.0, 2.0, 5.0])
    >>> dual
    Dual(value=3.875, penalty=0.75, shift=2, attained=3.875, radius=1.5, n=4, proof='dual')
    >>> dual.ratio
    array([0. , 0. , 1.5, 2.5])
    >>> CVaR(alpha=0.4).dual_path([0.0, 1.0, 2.0, 5.0], [0.1, 0.4, 1.0])
    array([5.   , 3.875, 2.   ])
    """

    radius = None
    penalty = None
    size_name = "alpha"
    nothing = 1.0
    conic_form = "cvar"
    _hints = {"alpha": ", the tail mass in (0, 1]"}

    def __init__(self, alpha: float):
        self.alpha = alpha

    @property
    def budget(self) -> float:
        """Bound of ess sup dP/dP0 - 1: the radius in the units of the discrepancy."""
        return 1.0 / self.alpha - 1.0

    def _validate_params(self) -> None:
        self._check_number("alpha", self.alpha, zero="refused")
        self._check_radii(np.asarray([self.alpha], dtype=np.float64))

    def _check_radii(self, radii: np.ndarray) -> None:
        wrong = ~((radii > 0) & (radii <= 1))
        if wrong.any():
            raise InvalidDataError(
                f"CVaR got alpha={float(radii[wrong][0])!r}; the tail mass must be in (0, 1], "
                "for instance 0.05 for the worst twentieth"
            )

    def _worst(self, sample: Sample) -> Worst:
        return self._ball(sample, float(self.alpha))

    def discrepancy(self, ratio: np.ndarray, weights: np.ndarray) -> float:
        """The largest ratio, minus 1."""
        nonnegative(ratio)
        return max(float(ratio[weights > 0].max(initial=1.0)) - 1.0, 0.0)

    @property
    def curvature(self) -> None:
        """None: the ratio is capped, not bent."""

    @property
    def ratio_bound(self) -> float:
        """1 / alpha."""
        return 1.0 / float(self.alpha)

    def log_ratio(self, t: np.ndarray) -> np.ndarray:
        return np.where(t >= 0.0, -np.log(float(self.alpha)), -np.inf)

    def conjugate(self, t: np.ndarray) -> np.ndarray:
        return np.maximum(t, 0.0) / float(self.alpha)

    def candidates(self, X: np.ndarray, names: Any, weight: np.ndarray) -> np.ndarray:
        """Tails from nearly all to a twentieth."""
        return np.array([0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05])

    def dual_near(self, losses: np.ndarray, weights: np.ndarray, levels: Any) -> Dual | None:
        """See `DensityRatioSet`."""
        return tail_near(float(self.alpha), losses, weights, float(levels[0]))

    def needs_largest(self, penalty: float) -> bool:
        """Never: the bound t + E(loss - t)_+ / alpha holds for losses of any size."""
        return False

    def bounds_at(self, losses: Any, penalty: float, shift: float) -> np.ndarray:
        """Return t + (loss - t)_+ / alpha at t = ``shift``; there is no multiplier in it."""
        return shift + self.conjugate(floats(losses, "losses") - shift)

    def _levels(self, weights: np.ndarray, unit: float) -> Levels:
        return Tails(self, weights, [Tail("cap", 1.0 / float(self.alpha), 0, 0.0, 1.0)], [1.0])

    def _smoothed(self, bound: Reweighting, losses: np.ndarray, smoothing: float) -> Dual:
        return capped(bound, losses, float(self.alpha), smoothing)

    def _ball(self, sample: Sample, radius: float) -> Worst:
        alpha = radius
        starts, weight = sample.distinct
        mass = cumulate(weight)
        i = min(int(np.searchsorted(mass, alpha)), mass.size - 1)
        if i == 0:
            return sample.maximum(0.0, self.radius_of_maximum(sample.top_mass))
        # The run of equal losses in which the tail begins shares what is left of its mass.
        ratio = np.zeros(sample.size)
        ratio[: starts[i]] = 1.0 / alpha
        end = starts[i + 1] if i + 1 < starts.size else sample.size
        left = max(alpha - float(mass[i - 1]), 0.0)
        ratio[starts[i] : end] = min(left / float(weight[i]), 1.0) / alpha
        shift = float(sample.y[starts[i]])
        above = slice(0, starts[i])
        excess = float((sample.w[above] * (sample.y[above] - shift)).sum())
        value = float(self._path(sample, np.array([alpha]))[0])
        return Worst(value, excess, shift, ratio, 1.0 / alpha - 1.0)

    def _path(self, sample: Sample, radii: np.ndarray) -> np.ndarray:
        starts, weight = sample.distinct
        y, mass = sample.y[starts], cumulate(weight)
        total = cumulate(weight * y)
        i = np.minimum(np.searchsorted(mass, radii), mass.size - 1)
        before, sums = np.append(0.0, mass)[i], np.append(0.0, total)[i]
        values = (sums + np.maximum(radii - before, 0.0) * y[i]) / radii
        return np.where(i == 0, sample.top, values)


def capped(bound: Any, losses: np.ndarray, alpha: float, smoothing: float) -> Dual:
    r"""Smoothed CVaR: ratios below 1 / alpha with an entropy in the place of the two bounds.

    .. math:: V_\delta = \min_\eta\; \eta
              + \frac{\kappa}{\alpha} E_0 \log(1 + e^{(\ell - \eta) / \kappa}) - \delta,
              \qquad \kappa = \delta \alpha / h(\alpha)

    with the entropy h of a coin: h(alpha q) lies between 0 and, on average, h(alpha).
    """
    if alpha >= 1.0:
        return flat(bound, losses)
    w = bound.weights
    entropy = float(entr(alpha) + entr(1.0 - alpha))
    kappa = smoothing * alpha / entropy
    eta = _threshold(losses, w, alpha, kappa, bound.start)
    bound.start = eta
    t = (losses - eta) / kappa
    ratio = expit(t) / alpha
    value = eta + kappa / alpha * float(w @ np.logaddexp(0.0, t)) - smoothing
    return reweighted(bound, losses, value, kappa, eta, ratio)


def _threshold(
    losses: np.ndarray, w: np.ndarray, alpha: float, kappa: float, start: float | None
) -> float:
    """Return eta with E expit((losses - eta) / kappa) = alpha."""
    offset = kappa * float(logit(alpha))
    low, high = float(losses.min()) - offset, float(losses.max()) - offset
    if start is None or not low < start < high:
        order = np.argsort(losses)
        cut = int(np.searchsorted(np.cumsum(w[order]), 1.0 - alpha))
        start = float(losses[order[min(cut, losses.size - 1)]])
        start = min(max(start, low), high)

    centred, first = (losses - start) / kappa, start

    def excess(u: float) -> tuple[float, float]:
        share = expit(centred - u)
        return alpha - float(w @ share), float(w @ (share * (1.0 - share)))

    low, high = (low - first) / kappa, (high - first) / kappa
    return first + kappa * root(excess, 0.0, low=low, high=high, tol=1e-14)
