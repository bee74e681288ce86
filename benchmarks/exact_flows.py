"""Flows and JKO chains known in closed form: what tests and benchmarks compare schemes with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.exceptions import InvalidDataError
from drojko.flows.semidual.nets import affine_step
from drojko.measures._arrays import queries
from drojko.measures.base import Measure, draws, normal
from drojko.measures.gaussian import Gaussian

__all__ = [
    "Barenblatt",
    "barenblatt_step",
    "gaussian_step",
    "ornstein_uhlenbeck_law",
    "symmetric_kl",
]


def _power(matrix: Tensor, fn: Any) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * fn(values)) @ vectors.T


def gaussian_step(
    measure: Gaussian, target: Gaussian, step_size: float, temperature: float = 1.0
) -> Gaussian:
    r"""Take the exact JKO step of F(rho) = E (z-b)'A(z-b)/2 + temperature E log rho, from N(m, S).

    With :math:`\eta` = temperature h and :math:`R = I + hA`:

    .. math:: m' = R^{-1}(m + hAb), \quad G = R^{-1/2} S R^{-1/2}, \quad
        S' = R^{-1/2} \tfrac12\big(G + 2\eta + (G^2 + 4\eta G)^{1/2}\big) R^{-1/2}.

    ``target`` is N(b, A^-1), where the flow goes at temperature 1. Matrices need not commute.

    Examples
    --------
    >>> start, target = Gaussian([0.0], [[1.0]]), Gaussian([2.0], [[4.0]])
    >>> step = gaussian_step(start, target, 0.5)
    >>> round(float(step.mean), 6), round(float(step.covariance), 6)
    (0.222222, 1.551714)
    """
    if not 0.0 < step_size < math.inf:
        raise InvalidDataError(f"step_size={step_size!r}; it must be a positive number")
    matrix, shift = affine_step(
        measure.mean, measure.covariance, target.mean, target.covariance, step_size, temperature
    )
    covariance = matrix @ measure.covariance @ matrix
    mean = matrix @ measure.mean + shift
    return Gaussian(mean.numpy(), (0.5 * (covariance + covariance.T)).numpy())


def ornstein_uhlenbeck_law(measure: Gaussian, target: Gaussian, time: float) -> Gaussian:
    r"""Law at a time of dz = -A (z - b) dt + sqrt(2) dW from N(m, S), target N(b, A^-1).

    With E = exp(-At): mean :math:`b + E(m - b)`, covariance :math:`ESE + (I - E^2)A^{-1}`.

    Examples
    --------
    >>> law = ornstein_uhlenbeck_law(Gaussian([0.0], [[1.0]]), Gaussian([2.0], [[4.0]]), 1e9)
    >>> float(law.mean), float(law.covariance)
    (2.0, 4.0)
    """
    if not 0.0 <= time < math.inf:
        raise InvalidDataError(f"time={time!r}; it must be a number >= 0")
    precision = torch.linalg.inv(target.covariance)
    decay = _power(precision, lambda a: (-a * time).exp())
    eye = torch.eye(measure.dim, dtype=torch.float64)
    mean = target.mean + decay @ (measure.mean - target.mean)
    covariance = decay @ measure.covariance @ decay + (eye - decay @ decay) @ target.covariance
    return Gaussian(mean.numpy(), (0.5 * (covariance + covariance.T)).numpy())


def symmetric_kl(first: Gaussian, second: Gaussian) -> float:
    """KL(p|q) + KL(q|p) of two normal distributions, in nats.

    Examples
    --------
    >>> symmetric_kl(Gaussian([0.0], [[1.0]]), Gaussian([1.0], [[1.0]]))
    1.0
    """
    gap = first.mean - second.mean
    a, b = first.covariance, second.covariance
    # tr(B^-1 A) + tr(A^-1 B) - 2d = tr(B^-1 (A - B) A^-1 (A - B)): no cancellation.
    change = torch.linalg.solve(b, a - b) @ torch.linalg.solve(a, a - b)
    pull = torch.linalg.solve(a, gap) + torch.linalg.solve(b, gap)
    return float(0.5 * (change.trace() + gap @ pull))


# Porous medium ----------------------------------------------------------------------------------


class Barenblatt(Measure):
    r"""The self-similar solution of du/dt = Laplacian(u^m), m > 1.

    .. math:: u(x) = s^{-d} \big(C - \kappa |x|^2 / s^2\big)_+^{1/(m-1)}, \qquad s = t^{\beta},
        \quad \beta = \frac1{d(m-1)+2}, \quad \kappa = \beta \frac{m-1}{2m},

    C for unit mass. Its JKO steps keep the profile, see `barenblatt_step`.

    Parameters
    ----------
    dim : int
    m : float, default=2
        Above 1.
    scale : float, default=1
        s; the radius of the support is s sqrt(C / kappa).

    Notes
    -----
    ``points`` takes the radii at the midpoints of equal masses and the directions in pairs u, -u.
    Source: Barenblatt (1952); Vazquez (2007), The Porous Medium Equation.

    Examples
    --------
    >>> b = Barenblatt(1)
    >>> round(b.radius, 6), round(float(b.log_prob([[0.0]]).exp()), 7)
    (2.080084, 0.3605624)
    """

    _state = "constant_"

    def __init__(self, dim: int, m: float = 2.0, scale: float = 1.0):
        if not (dim >= 1 and 1.0 < m < math.inf and 0.0 < scale < math.inf):
            raise InvalidDataError(
                f"Barenblatt got dim={dim!r}, m={m!r}, scale={scale!r}; it needs dim >= 1, m > 1 "
                "and a positive scale"
            )
        self.m, self.scale = float(m), float(scale)
        self._dim = int(dim)
        self.power_ = 1.0 / (self.m - 1.0)
        self.rate_ = 1.0 / (dim * (self.m - 1.0) + 2.0)
        self.kappa_ = self.rate_ * (self.m - 1.0) / (2.0 * self.m)
        p, half = self.power_, 0.5 * dim
        logarithm = half * math.log(self.kappa_ / math.pi)
        logarithm += math.lgamma(p + 1.0 + half) - math.lgamma(p + 1.0)
        self.constant_ = math.exp(logarithm / (p + half))

    def get_params(self, deep: bool = True) -> dict:
        """Return the settings."""
        return {"dim": self._dim, "m": self.m, "scale": self.scale}

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def radius(self) -> float:
        """Radius of the support."""
        return self.scale * math.sqrt(self.constant_ / self.kappa_)

    @property
    def mean(self) -> Tensor:
        """Zero, shape (d,)."""
        return torch.zeros(self._dim, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """A multiple of the identity, shape (d, d)."""
        share = 0.5 * self._dim / (0.5 * self._dim + self.power_ + 1.0)  # E of Beta(d/2, p + 1)
        return torch.eye(self._dim, dtype=torch.float64) * (self.radius**2 * share / self._dim)

    def log_prob(self, x: Any) -> Tensor:
        """Log density at the rows of x, shape (n, d) -> (n,); -inf outside of the support."""
        rows = queries(x, self._dim) / self.scale
        rest = (self.constant_ - self.kappa_ * rows.square().sum(1)).clamp_min(0.0)
        return self.power_ * rest.log() - self._dim * math.log(self.scale)

    def _at(self, quantiles: Tensor, directions: Tensor) -> Tensor:
        from scipy.special import betaincinv

        u = betaincinv(0.5 * self._dim, self.power_ + 1.0, quantiles.numpy())
        unit = directions / directions.norm(dim=1, keepdim=True)
        return self.radius * torch.as_tensor(np.sqrt(u)).unsqueeze(1) * unit

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, shape (n, d)."""
        n, gen = draws(n, generator)
        quantiles = torch.rand(n, generator=gen, dtype=torch.float64)
        return self._at(quantiles, normal((n, self._dim), gen))

    def points(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Stratified points (n, d), n even, with equal weights."""
        n, gen = draws(n, generator)
        half = (n + 1) // 2
        quantiles = (torch.arange(half, dtype=torch.float64) + 0.5) / half
        x = self._at(quantiles, normal((half, self._dim), gen))
        return torch.cat([x, -x]), torch.full((2 * half,), 0.5 / half, dtype=torch.float64)


def barenblatt_step(scale: float, dim: int, m: float, step_size: float) -> float:
    r"""Scale of the exact JKO step of E rho^(m-1)/(m-1) from a Barenblatt profile of scale s.

    The profile stays; the new scale is the root of
    :math:`s' - \beta h s'^{-(d(m-1)+1)} = s`, :math:`\beta = 1/(d(m-1)+2)`.

    Examples
    --------
    >>> round(barenblatt_step(1.0, 1, 2.0, 0.05), 6)  # the flow itself: 1.05^(1/3) = 1.016396
    1.016141
    """
    if not (scale > 0.0 and step_size > 0.0):
        raise InvalidDataError(f"scale={scale!r}, step_size={step_size!r}; both must be positive")
    power = dim * (m - 1.0) + 1.0
    rate = step_size / (power + 1.0)
    s = scale
    for _ in range(100):  # Newton's method on a convex increasing function, from the left
        change = (s - rate * s**-power - scale) / (1.0 + rate * power * s ** (-power - 1.0))
        s -= change
        if abs(change) <= 1e-15 * s:
            break
    return s
