"""What a functional of measures offers: its value on particles and its gradients there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from drojko.exceptions import InvalidDataError

__all__ = ["Energy", "Functional", "Scaled", "Sum"]


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


class Functional(ABC):
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
        if weights is None:
            weights = torch.full((len(z),), 1.0 / len(z), dtype=z.dtype, device=z.device)
        return self.at(z, weights).evaluate(z, log_density, weights).value

    def __add__(self, other: Functional) -> Functional:
        if not isinstance(other, Functional):
            return NotImplemented
        return Sum((*_terms(self), *_terms(other)))

    def __mul__(self, factor: float) -> Functional:
        if not isinstance(factor, Real) or isinstance(factor, bool):
            return NotImplemented
        if not 0 <= float(factor) < float("inf"):
            raise InvalidDataError(f"a functional is scaled by a number >= 0; got {factor!r}")
        return Scaled(self, float(factor))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _terms(functional: Functional) -> tuple[Functional, ...]:
    return functional.terms if isinstance(functional, Sum) else (functional,)


class Sum(Functional):
    """F_1 + ... + F_k."""

    def __init__(self, terms: tuple[Functional, ...]) -> None:
        self.terms = terms
        kinds = {term.density for term in terms}
        self.density = next(k for k in ("absolute", "relative", "none") if k in kinds)
        self.majorised = any(term.majorised for term in terms)

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        parts = [term.evaluate(z, log_density, weights) for term in self.terms]
        point, log_part = parts[0].point, parts[0].log_density
        for part in parts[1:]:
            point, log_part = point + part.point, log_part + part.log_density
        return Energy(sum(part.value for part in parts), point, log_part)

    def at(self, z: Tensor, weights: Tensor) -> Functional:
        return Sum(tuple(term.at(z, weights) for term in self.terms))

    def take(self, rows: Tensor) -> Functional:
        return Sum(tuple(term.take(rows) for term in self.terms))

    def first_variation(self, z: Tensor, log_density: Tensor) -> Tensor | None:
        parts = [term.first_variation(z, log_density) for term in self.terms]
        known = [part for part in parts if part is not None]
        return torch.stack(known).sum(0) if len(known) == len(parts) else None

    def parts(self) -> list[tuple[float, Functional]]:
        return [part for term in self.terms for part in term.parts()]

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))


class Scaled(Functional):
    """factor * F."""

    def __init__(self, functional: Functional, factor: float) -> None:
        self.functional, self.factor = functional, factor
        self.density, self.majorised = functional.density, functional.majorised

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        part = self.functional.evaluate(z, log_density, weights)
        factor = self.factor
        return Energy(factor * part.value, factor * part.point, factor * part.log_density)

    def at(self, z: Tensor, weights: Tensor) -> Functional:
        return Scaled(self.functional.at(z, weights), self.factor)

    def take(self, rows: Tensor) -> Functional:
        return Scaled(self.functional.take(rows), self.factor)

    def first_variation(self, z: Tensor, log_density: Tensor) -> Tensor | None:
        part = self.functional.first_variation(z, log_density)
        return None if part is None else self.factor * part

    def parts(self) -> list[tuple[float, Functional]]:
        return [(self.factor * factor, term) for factor, term in self.functional.parts()]

    def __repr__(self) -> str:
        inner = repr(self.functional)
        return f"{self.factor:g} * " + (f"({inner})" if " + " in inner else inner)
