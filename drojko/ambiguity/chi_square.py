"""The chi-square ball."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drojko.ambiguity.base import Divergence
from drojko.ambiguity.duals.density_ratio import DensityRatioSet
from drojko.ambiguity.duals.scaling import Sample, Worst, cumulate

__all__ = ["ChiSquare"]


class ChiSquare(DensityRatioSet):
    r"""Distributions whose density ratio has a limited variance.

    .. math:: D(P, P_0) = E_0\left(\frac{dP}{dP_0} - 1\right)^2 \le \mathrm{radius}, \qquad
        \sup_P E_P \ell = \min_c\; c + \sqrt{1 + \mathrm{radius}}\, \sqrt{E_0 (\ell - c)_+^2}

    which is E0 loss + sqrt(radius * Var0 loss) as long as no ratio is 0; in the penalised form
    E0 loss + Var0 loss / (4 penalty). The worst case is dP*/dP0 = (loss - c)_+ / E0 (loss - c)_+.

    Parameters
    ----------
    radius : float, default=None
        Variance of dP/dP0, no unit: twice the radius of ``CressieRead(2)``. From
        1 / P0(largest loss) - 1 on, the worst case is the largest loss. Exactly one of radius and
        penalty must be given.
    penalty : float, default=None
        Price of one unit of that variance, in the units of the loss.

    Notes
    -----
    No iteration: among the sorted losses, prefix means and variances say which ones keep a positive
    ratio, and there the formula is explicit.

    References
    ----------
    J. Duchi, H. Namkoong, 2019, Variance-based Regularization with Convex Objectives,
    arXiv 1610.02581.

    Examples
    --------
    >>> import numpy as np
    >>> from drojko.ambiguity import ChiSquare
    >>> losses = np.array([0.0, 1.0, 2.0, 5.0])
    >>> dual = ChiSquare(radius=0.25).dual(losses)
    >>> dual
    Dual(value=2.93541, penalty=1.87083, shift=2, attained=2.93541, radius=0.25, n=4, proof='dual')
    >>> float(losses.mean() + np.sqrt(0.25 * losses.var())) - dual.value < 1e-12
    True
    """

    conic_form = "chi-square"
    divergence = Divergence("chi-square", 2.0, 2.0)

    def _ball(self, sample: Sample, radius: float) -> Worst:
        largest = self.radius_of_maximum(sample.top_mass)
        prefixes = _Prefixes.of(sample)
        if radius >= min(largest, prefixes.spent[0]):
            return sample.maximum(0.0, largest)
        i = int(prefixes.kept(np.array([radius]))[0])
        mean, deviation = float(prefixes.mean[i]), float(prefixes.deviation[i])
        root = math.sqrt(max(float(prefixes.mass[i] * radius - prefixes.rest[i]), 1e-300))
        # mean - c, with c between the last loss kept and the next one
        distance = min(max(deviation / root, mean - prefixes.y[i]), prefixes.until[i])
        value = mean + deviation * root
        return prefixes.worst(sample, i, distance, value, None, radius)

    def _penalised(self, sample: Sample, penalty: float) -> Worst:
        prefixes = _Prefixes.of(sample)
        # E (loss - c)_+ = 2 penalty, at the breakpoints c increasing in the number kept.
        i = int(np.searchsorted(prefixes.mass[:-1] * prefixes.until[:-1], 2.0 * penalty))
        mass, rest = float(prefixes.mass[i]), float(prefixes.rest[i])
        distance, deviation = 2.0 * penalty / mass, float(prefixes.deviation[i])
        radius = ((deviation / distance) ** 2 + rest) / mass
        value = prefixes.mean[i] + deviation / distance * deviation / 2.0 - penalty * rest / mass
        return prefixes.worst(sample, i, distance, float(value), penalty, radius)

    def _path(self, sample: Sample, radii: np.ndarray) -> np.ndarray:
        prefixes = _Prefixes.of(sample)
        largest = min(self.radius_of_maximum(sample.top_mass), prefixes.spent[0])
        k = prefixes.kept(radii)
        root = np.sqrt(np.maximum(prefixes.mass[k] * radii - prefixes.rest[k], 0.0))
        values = prefixes.mean[k] + prefixes.deviation[k] * root
        return np.where(radii < largest, np.where(radii > 0, values, 0.0), sample.top)


@dataclass(frozen=True, eq=False)
class _Prefixes:
    """Statistics of the losses from the largest one down to each distinct one.

    ``mass`` and ``rest`` (of the others), conditional ``mean`` and ``deviation``; ``until``: how
    far below the mean the next loss lies, infinite at the end; ``spent``: the radius there.
    """

    y: np.ndarray
    mass: np.ndarray
    rest: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    until: np.ndarray
    spent: np.ndarray

    @classmethod
    def of(cls, sample: Sample) -> _Prefixes:
        starts, weight = sample.distinct
        y = sample.y[starts]
        mass = cumulate(weight)
        rest = np.append(cumulate(weight[:0:-1])[::-1], 0.0)
        mass[-1] = 1.0
        mean = cumulate(weight * y) / mass
        mean[-1] = 0.0
        # West's update of a sum of squares: every term is positive, so that none cancels.
        below = mean[:-1] - y[1:]
        terms = np.zeros(y.size)
        terms[1:] = weight[1:] * mass[:-1] / mass[1:] * below**2
        deviation = np.sqrt(cumulate(terms) / mass)
        until = np.append(below, np.inf)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            spent = ((deviation / until) ** 2 + rest) / mass
        spent[np.isnan(spent)] = np.inf
        spent = np.minimum.accumulate(spent)
        return cls(y, mass, rest, mean, deviation, until, spent)

    def kept(self, radii: np.ndarray) -> np.ndarray:
        """Return the last loss of positive ratio: spent[k] <= radius < spent[k - 1]."""
        return np.minimum(np.searchsorted(-self.spent, -radii), self.spent.size - 1)

    def worst(
        self,
        sample: Sample,
        i: int,
        distance: float,
        value: float,
        penalty: float | None,
        radius: float,
    ) -> Worst:
        """Return the solution with c at ``distance`` below the mean of the first i + 1 losses."""
        mean, mass = float(self.mean[i]), float(self.mass[i])
        ratio = np.maximum((sample.y - mean) / distance + 1.0, 0.0)
        ratio /= (sample.w * ratio).sum()
        multiplier = mass * distance / 2.0 if penalty is None else penalty
        shift = mean - distance * float(self.rest[i])
        return Worst(value, multiplier, shift, ratio, radius)
