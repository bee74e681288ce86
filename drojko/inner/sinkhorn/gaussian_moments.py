r"""Entropic risk of squared errors around Gaussian components: where it is finite, and its value.

With an error e = y - theta'x that is N(m_k, s_k^2) with probability pi_k,

.. math:: E\,e^{e^2/\lambda} = \sum_k \pi_k (1 - 2 s_k^2/\lambda)^{-1/2}
          \exp\frac{m_k^2}{\lambda - 2 s_k^2},

finite for lambda > 2 max_k s_k^2 only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from drojko.measures import KDE, Gaussian, GaussianMixture

__all__ = ["ErrorLaw", "error_law"]


@dataclass(frozen=True)
class ErrorLaw:
    """A mixture of Gaussians on the line: shares, means and variances of shape (K,)."""

    shares: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @property
    def least(self) -> float:
        """The penalty above which the entropic risk is finite: 2 max s^2."""
        return 2.0 * float(self.variances.max())

    def value(self, penalty: float) -> float:
        """Return penalty * log E exp(e^2 / penalty); infinite from `least` downwards."""
        left = penalty - 2.0 * self.variances
        if not (left > 0).all():
            return math.inf
        logs = np.log(self.shares) - 0.5 * np.log(left / penalty) + self.means**2 / left
        total: Any = logsumexp(logs)
        return penalty * float(total)

    def ball(self, radius: float) -> tuple[float, float]:
        """Least upper bound of E e^2 within a divergence of ``radius``, and its multiplier."""
        least = max(self.least, 1e-12 * float(self.shares @ self.means**2), 1e-290)

        def dual(log_gap: float) -> float:
            penalty = least * (1.0 + math.exp(log_gap))
            return penalty * radius + self.value(penalty)

        grid = np.linspace(-12.0, 25.0, 75)
        centre = float(grid[int(np.argmin([dual(g) for g in grid]))])
        found = minimize_scalar(dual, bounds=(centre - 0.5, centre + 0.5), method="bounded")
        return float(found.fun), least * (1.0 + math.exp(float(found.x)))


def error_law(measure: Any, coef: np.ndarray, intercept: float) -> ErrorLaw | None:
    """Law of y - coef'x - intercept under a measure of (x, y); None if it is not known."""
    v = np.append(-coef, 1.0)
    if isinstance(measure, Gaussian):
        mean, covariance = measure.mean.numpy(), measure.covariance.numpy()
        return ErrorLaw(
            np.ones(1), np.array([mean @ v - intercept]), np.array([v @ covariance @ v])
        )
    if isinstance(measure, KDE):
        spread = float(measure.bandwidth_**2 @ v**2)
        means = measure.atoms_ @ v - intercept
        return ErrorLaw(measure.weights_, means, np.full(len(means), spread))
    if isinstance(measure, GaussianMixture):
        variances = np.einsum("i,kij,j->k", v, measure.covariances_, v)
        return ErrorLaw(measure.weights_, measure.means_ @ v - intercept, variances)
    return None
