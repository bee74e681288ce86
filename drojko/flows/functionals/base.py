"""What a functional of measures offers: its value on particles and its gradients there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from drojko._validation import Checked, check_number, shown
from drojko.exceptions import InvalidDataError, NonFiniteError

__all__ = ["Combination", "Energy", "Functional", "checked_values"]


@dataclass(frozen=True, eq=False)
class Energy:
    """A value and its derivatives on n weighted particles.

    Attributes
    ----------
    value : float
        F, in its own units.
    point : Tensor of shape (n, d)
        Derivative in the particles z, of the whole sum, weights included.
    log_density : Tensor of shape (n,)
        That in the values of log rho at them.

    Examples
    --------
    >>> from drojko.flows.functionals import Entropy
    >>> half = torch.full((2,), 0.5)
    >>> Entropy().evaluate(torch.zeros(2, 1), torch.tensor([0.0, -1.0]), half).log_density
    tensor([0.5000, 0.5000])
    """

    value: float
    point: Tensor
    log_density: Tensor


def checked_values(
    values: Any, z: Tensor, what: str, shape: Any = None, most: float = math.inf
) -> Tensor:
    """What a caller's function of points gave, one value for each; or an error that says why.

    NaN and what exceeds ``most`` is a `NonFiniteError` that names the point.
    """
    shape = z.shape[:1] if shape is None else shape
    if isinstance(values, Tensor) and values.shape == shape and values.is_floating_point():
        if not bool((values.detach() <= most).all()):
            row = int((~(values.detach() <= most)).reshape(len(z), -1).any(1).nonzero()[0])
            at = [round(v, 4) for v in z[row].tolist()[:5]]
            raise NonFiniteError(
                f"{what} is {shown(values[row].tolist())} at {at}: it overflows or is not defined "
                "there. Compute a logarithm directly (logsumexp instead of log(sum(exp))), or "
                "return -inf outside of the support of a density"
            )
        return values if values.dtype == z.dtype else values.to(z.dtype)
    raise InvalidDataError(
        f"{what} returned {shown(values)} for points of shape {tuple(z.shape)}; expected a tensor "
        f"of real numbers of shape {tuple(shape)}"
    )


class Functional(Checked, ABC):
    """A functional F(rho) that can be evaluated on particles z ~ rho whose log rho(z) is known.

    Along a map z = T(x), x ~ rho_0, the density is known without effort:
    log rho(T(x)) = log rho_0(x) - log det DT(x). Functionals are added with ``+`` and scaled by
    numbers with ``*``.

    Examples
    --------
    >>> from drojko.flows.functionals import Entropy, PotentialEnergy
    >>> free = PotentialEnergy(lambda z: 0.5 * (z**2).sum(1)) + 0.5 * Entropy()
    >>> free
    PotentialEnergy(...) + 0.5 * Entropy()
    """

    _shapes = {"z": "n d", "log_density": "n infinite", "weights": "n", "rows": "k index"}
    #: "none", "relative" (log rho up to a constant is enough) or "absolute".
    density = "none"
    #: Whether `at` freezes something that should be frozen anew as particles move.
    majorised = False

    @abstractmethod
    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        """Value and derivatives at particles z (n, d), log rho (n,) and weights (n,), sum 1."""

    def at(self, z: Tensor, weights: Tensor) -> Functional:
        """A functional to minimise from here: itself, or a bound that touches it at z."""
        return self

    def take(self, rows: Tensor) -> Functional:
        """The functional for some of the particles, where it holds something about each."""
        return self

    def first_variation(self, z: Tensor, log_density: Tensor) -> Tensor | None:
        """dF/drho at the particles, (n,), up to a constant; None where it is not known."""
        return None

    def parts(self) -> list[tuple[float, Functional]]:
        """The terms of a sum with their factors."""
        return [(1.0, self)]

    def value(self, z: Tensor, log_density: Tensor, weights: Tensor | None = None) -> float:
        """F on particles; equal weights by default."""
        if not len(z):
            raise InvalidDataError("there are no particles: z is empty")
        if weights is None:
            weights = torch.full((len(z),), 1.0 / len(z), dtype=z.dtype, device=z.device)
        found = self.at(z, weights).evaluate(z, log_density, weights).value
        if found != found:
            raise NonFiniteError(f"{self!r} is NaN at these particles: look at their scale")
        return found

    def __add__(self, other: Functional) -> Functional:
        if not isinstance(other, Functional):
            return NotImplemented
        return Combination([*self.parts(), *other.parts()])

    def __mul__(self, factor: float) -> Functional:
        if not isinstance(factor, Real) or isinstance(factor, bool):
            return NotImplemented
        check_number("a functional is scaled by factor", factor, least=0)
        return Combination([(float(factor) * own, term) for own, term in self.parts()])

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Combination(Functional):
    """factor_1 * F_1 + ... + factor_k * F_k."""

    def __init__(self, terms: list[tuple[float, Functional]]) -> None:
        self.terms = terms
        kinds = {term.density for _, term in terms}
        self.density = next(k for k in ("absolute", "relative", "none") if k in kinds)
        self.majorised = any(term.majorised for _, term in terms)

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        value, point, log_part = 0.0, torch.zeros_like(z), torch.zeros_like(weights)
        for factor, term in self.terms:
            part = term.evaluate(z, log_density, weights)
            value += factor * part.value
            point, log_part = point + factor * part.point, log_part + factor * part.log_density
        return Energy(value, point, log_part)

    def at(self, z: Tensor, weights: Tensor) -> Functional:
        return Combination([(factor, term.at(z, weights)) for factor, term in self.terms])

    def take(self, rows: Tensor) -> Functional:
        return Combination([(factor, term.take(rows)) for factor, term in self.terms])

    def first_variation(self, z: Tensor, log_density: Tensor) -> Tensor | None:
        total = torch.zeros_like(log_density)
        for factor, term in self.terms:
            part = term.first_variation(z, log_density)
            if part is None:
                return None
            total = total + factor * part
        return total

    def parts(self) -> list[tuple[float, Functional]]:
        return self.terms

    def __repr__(self) -> str:
        return " + ".join(f"{a:g} * {term}" if a != 1.0 else repr(term) for a, term in self.terms)
