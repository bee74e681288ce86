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
import torch
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax

from drojko.measures import KDE, Gaussian, GaussianMixture
from drojko.measures.base import choose, normal

__all__ = ["ErrorLaw", "TiltedNormals", "error_law"]


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

    @property
    def risk(self) -> float:
        """E e^2."""
        return float(self.shares @ (self.means**2 + self.variances))

    def tilted(self, penalty: float) -> ErrorLaw:
        """Return the law with the density ratio proportional to exp(e^2 / penalty): a mixture."""
        left = 1.0 - 2.0 * self.variances / penalty
        logs = np.log(self.shares) - 0.5 * np.log(left) + self.means**2 / (penalty * left)
        return ErrorLaw(softmax(logs), self.means / left, self.variances / left)

    def ball(self, radius: float) -> tuple[float, float]:
        """Least upper bound of E e^2 within a divergence of ``radius``, and its multiplier."""
        least = max(self.least, 1e-12 * float(self.shares @ self.means**2), 1e-290)

        def excess(log_gap: float) -> float:  # falls as the penalty grows
            penalty = least * (1.0 + math.exp(log_gap))
            return (self.tilted(penalty).risk - self.value(penalty)) / penalty - radius

        low, high = -12.0, 25.0
        at: Any = (
            low if excess(low) <= 0 else high if excess(high) >= 0 else brentq(excess, low, high)
        )
        penalty = least * (1.0 + math.exp(float(at)))
        return penalty * radius + self.value(penalty), penalty


@dataclass(frozen=True, eq=False)
class TiltedNormals:
    r"""Normal components of (x, y) under a tilt exp(e^2 / penalty) of e = (x, y)'v - b: exactly.

    A component's errors N(m, s^2) become N(m / k, s^2 / k), k = 1 - 2 s^2 / penalty, its share
    grows by their moment, and what is normal given the error stays: a draw moves by
    S v (e* - e) / s^2.
    """

    measure: Any
    v: np.ndarray
    intercept: float
    before: ErrorLaw
    after: ErrorLaw

    @classmethod
    def of(cls, measure: Any, coef: np.ndarray, intercept: float, penalty: float) -> TiltedNormals:
        """The tilt of squared errors of a linear model, of a measure that `error_law` knows."""
        law: Any = error_law(measure, coef, intercept)
        return cls(measure, np.append(-coef, 1.0), intercept, law, law.tilted(penalty))

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw n points (x, y), shape (n, d + 1)."""
        k = choose(self.after.shares, n, generator).numpy()
        z, along = _drawn(self.measure, k, self.v, generator)
        mean, variance = self.before.means[k], self.before.variances[k]
        e = z @ self.v - self.intercept
        stretch = np.sqrt(self.after.variances[k] / np.maximum(variance, 1e-300))
        moved = self.after.means[k] + np.where(variance > 0, stretch, 1.0) * (e - mean) - e
        step = np.where(variance > 0, moved / np.maximum(variance, 1e-300), 0.0)
        return torch.from_numpy(z + step[:, None] * along)


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


def _drawn(
    measure: Any, k: np.ndarray, v: np.ndarray, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the components k (n,), (n, d), and S_k v, which broadcasts to (n, d)."""
    noise = normal((len(k), measure.dim), generator)
    if isinstance(measure, Gaussian):
        return measure._place(noise).numpy(), measure.covariance.numpy() @ v
    if isinstance(measure, KDE):
        return measure.atoms_[k] + noise.numpy() * measure.bandwidth_, measure.bandwidth_**2 * v
    return measure._placed(torch.from_numpy(k), noise).numpy(), (measure.covariances_ @ v)[k]
