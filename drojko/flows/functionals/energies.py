"""Functionals of one measure: energies, entropies, divergences from a known density.

In what follows rho is the moving measure, z ~ rho its particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from drojko._validation import check_number, chosen, is_real, shown
from drojko.exceptions import InvalidDataError
from drojko.flows.functionals.base import Energy, Functional, checked_values

__all__ = [
    "Entropy",
    "FDivergence",
    "InternalEnergy",
    "KLDivergence",
    "PotentialEnergy",
    "scale_and_order",
]

_LARGEST = 600.0  # of an exponent


def _gradient(fn: Callable[[Tensor], Tensor], z: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Values (n,) and gradients (n, d) of a function of points."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        values = checked_values(fn(leaf), z, what)
        if not values.requires_grad:
            return values, torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
    return values.detach(), torch.zeros_like(z) if gradient is None else gradient


class PotentialEnergy(Functional):
    r"""F(rho) = E V(z).

    Parameters
    ----------
    potential : callable
        V: points (n, d) -> (n,), by torch.
    gradient : callable, default=None
        Its gradient, (n, d) -> (n, d); None: by automatic differentiation.

    Examples
    --------
    >>> z = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    >>> PotentialEnergy(lambda z: z[:, 0] ** 2).value(z, torch.zeros(2))
    5.0
    """

    def __init__(
        self,
        potential: Callable[[Tensor], Tensor],
        gradient: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.potential, self.gradient = potential, gradient

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        if self.gradient is None:
            values, slope = _gradient(self.potential, z, "the potential")
        else:
            values = checked_values(self.potential(z), z, "the potential")
            slope = checked_values(self.gradient(z), z, "the gradient", z.shape)
        value = float((weights * values).sum())
        return Energy(value, weights.unsqueeze(1) * slope, torch.zeros_like(weights))

    def first_variation(self, z: Tensor, log_density: Tensor) -> Tensor:
        with torch.no_grad():
            return checked_values(self.potential(z), z, "the potential")

    def __repr__(self) -> str:
        return "PotentialEnergy(...)"


class Entropy(Functional):
    r"""F(rho) = E log rho(z): the negative entropy, whose flow is the heat flow.

    Examples
    --------
    >>> Entropy().value(torch.zeros(2, 1), torch.tensor([0.0, -1.0]))
    -0.5
    """

    density = "relative"

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        return Energy(float((weights * log_density).sum()), torch.zeros_like(z), weights)

    def first_variation(self, z: Tensor, log_density: Tensor) -> Tensor:
        return log_density


def scale_and_order(kind: str, k: float) -> tuple[float, float]:
    """c, k with f(r) = c (r^k - k r + k - 1) / (k (k - 1)), which is r log r - r + 1 for k = 1."""
    return {"chi-square": (2.0, 2.0), "kl": (1.0, 1.0)}.get(kind, (1.0, k))


class FDivergence(Functional):
    r"""F(rho) = E_p f(r), r = rho/p, evaluated as E_rho[f(r)/r].

    Parameters
    ----------
    log_prob : callable
        log p with its constant: points (n, d) -> (n,), by torch.
    kind : {"chi-square", "cressie-read", "kl"}, default="chi-square"
        f(r) = (r - 1)^2, (r^k - k r + k - 1) / (k (k - 1)), or r log r.
    k : float, default=2
        Order of the Cressie-Read divergence, not 0 or 1; k = 2 is half the chi-square one.

    Examples
    --------
    >>> chi = FDivergence(lambda z: torch.zeros(len(z)))
    >>> round(chi.value(torch.zeros(1, 1), torch.tensor([math.log(2.0)])), 6)  # (2 - 1)^2 / 2
    0.5
    """

    density = "absolute"

    def __init__(
        self, log_prob: Callable[[Tensor], Tensor], kind: str = "chi-square", k: float = 2.0
    ) -> None:
        chosen("FDivergence: kind", kind, ("chi-square", "cressie-read", "kl"))
        if kind == "cressie-read" and not (is_real(k) and 1e-9 < abs(k * (k - 1.0)) < math.inf):
            raise InvalidDataError(f"k={shown(k)}; give a finite order other than 0 and 1")
        self.log_prob, self.kind, self.k = log_prob, kind, float(k)

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        values, slope = _gradient(self.log_prob, z, "log_prob")
        u, (scale, k) = log_density - values, scale_and_order(self.kind, self.k)
        if k == 1.0:
            g, change = u, torch.ones_like(u)
        else:
            power = ((k - 1.0) * u).clamp_max(_LARGEST).exp()
            inverse = (-u).clamp_max(_LARGEST).exp()
            g = scale * (power - k + (k - 1.0) * inverse) / (k * (k - 1.0))
            change = scale * (power - inverse) / k
        rate = weights * change
        return Energy(float((weights * g).sum()), -rate.unsqueeze(1) * slope, rate)

    def first_variation(self, z: Tensor, log_density: Tensor) -> Tensor:
        with torch.no_grad():
            u = log_density - checked_values(self.log_prob(z), z, "log_prob")
        scale, k = scale_and_order(self.kind, self.k)
        return u if k == 1.0 else scale * ((k - 1.0) * u).clamp_max(_LARGEST).exp() / (k - 1.0)

    def __repr__(self) -> str:
        order = f", k={self.k:g}" if self.kind == "cressie-read" else ""
        return f"FDivergence(..., {self.kind!r}{order})"


class KLDivergence(FDivergence):
    r"""F(rho) = E[log rho(z) - log p(z)]: the Kullback-Leibler divergence from p, in nats.

    Its flow is the Fokker-Planck equation, dz = grad log p dt + sqrt(2) dW.

    Parameters
    ----------
    log_prob : callable
        log p: points (n, d) -> (n,), by torch; may lack its constant, which shifts F.

    Examples
    --------
    >>> KLDivergence(lambda z: -0.5 * (z**2).sum(1)).value(torch.ones(1, 2), torch.zeros(1))
    1.0
    """

    density = "relative"

    def __init__(self, log_prob: Callable[[Tensor], Tensor]) -> None:
        super().__init__(log_prob, "kl")

    def __repr__(self) -> str:
        return "KLDivergence(...)"


class InternalEnergy(Functional):
    r"""F(rho) = E rho(z)^(m-1) / (m - 1), the integral of rho^m / (m - 1).

    Its flow is the porous-medium equation du/dt = Laplacian(u^m).

    Parameters
    ----------
    m : float
        Above 1; the limit 1 is `Entropy` up to a constant.

    Examples
    --------
    >>> InternalEnergy(2.0).value(torch.zeros(1, 1), torch.zeros(1))  # density 1
    1.0
    """

    density = "absolute"

    def __init__(self, m: float) -> None:
        self.m = check_number("InternalEnergy: m", m, above=1)

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        power = weights * ((self.m - 1.0) * log_density).clamp_max(_LARGEST).exp()
        return Energy(float(power.sum()) / (self.m - 1.0), torch.zeros_like(z), power)

    def first_variation(self, z: Tensor, log_density: Tensor) -> Tensor:
        power = ((self.m - 1.0) * log_density).clamp_max(_LARGEST).exp()
        return self.m / (self.m - 1.0) * power

    def __repr__(self) -> str:
        return f"InternalEnergy({self.m:g})"
