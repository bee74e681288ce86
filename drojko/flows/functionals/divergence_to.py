"""Divergences from a measure that is known by samples only."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows.functionals.base import Energy, Functional, Scaled, Sum
from drojko.flows.functionals.conjugates import conjugate_named
from drojko.measures.base import Measure
from drojko.measures.empirical import Empirical

__all__ = ["DivergenceTo", "split"]


class DivergenceTo(Functional):
    r"""F(rho) = D_f(rho, nu) of a target nu that only has to be sampled.

    .. math:: D_f(\rho, \nu) = \sup_u\; E_\rho u - E_\nu f^*(u)

    Where nu has a density, `KLDivergence` and `FDivergence` need no critic u; here it is learned,
    by a flow with ``scheme=SemiDualScheme()``.

    Parameters
    ----------
    target : Measure or array of shape (n, d)
        nu: a measure, drawn anew in each step, or its samples.
    kind : {"kl", "chi-square", "jensen-shannon", "softplus"}, default="kl"
        f(r) = r log r - r + 1, (r - 1)^2, r log r - (r + 1) log((r + 1)/2), or, on r <= 2,
        r log r + (2 - r) log(2 - r).

    Raises
    ------
    InvalidDataError
        For an unknown kind, and samples that are no finite table.
    UnsupportedError
        From `evaluate`: without densities the value is not known point by point.

    Examples
    --------
    >>> DivergenceTo([[0.0], [1.0]])
    DivergenceTo(Empirical, 'kl')
    """

    def __init__(self, target: Measure | Any, kind: str = "kl") -> None:
        conjugate_named(kind)
        self.target = target if isinstance(target, Measure) else Empirical().fit(target)
        self.kind = kind

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        raise UnsupportedError(
            f"{self!r} knows its target by samples: its flow needs a learned critic, "
            "JKOFlow(..., scheme=SemiDualScheme()); where the target has a density, use "
            "KLDivergence(log_prob) or FDivergence(log_prob)"
        )

    def __repr__(self) -> str:
        return f"DivergenceTo({type(self.target).__name__}, {self.kind!r})"


def split(functional: Functional) -> tuple[float, DivergenceTo, Functional | None]:
    """A functional as (factor, its one `DivergenceTo`, what else acts point by point).

    Raises `UnsupportedError` for another number of divergences, and for other terms that need
    densities.

    >>> factor, divergence, rest = split(2.0 * DivergenceTo([[0.0], [1.0]]))
    >>> factor, divergence.kind, rest
    (2.0, 'kl', None)
    """
    found: list[tuple[float, DivergenceTo]] = []
    rest: list[Functional] = []
    for factor, term in _flatten(functional, 1.0):
        if isinstance(term, DivergenceTo):
            found.append((factor, term))
        elif term.density != "none":
            raise UnsupportedError(
                f"SemiDualScheme: {term!r} is a functional of the density, which this scheme does "
                "not have; use ICNNScheme, or a DivergenceTo in its place"
            )
        else:
            rest.append(term if factor == 1.0 else factor * term)
    if len(found) != 1 or found[0][0] == 0.0:
        raise UnsupportedError(
            f"SemiDualScheme: {functional!r} has {len(found)} terms DivergenceTo(...); it needs "
            "exactly one, with a positive factor. Without any, use ICNNScheme"
        )
    if any(term.majorised for term in rest):
        raise InvalidDataError(
            f"SemiDualScheme: a term of {functional!r} is a distance between whole measures; use "
            "ICNNScheme for it"
        )
    whole = None if not rest else rest[0] if len(rest) == 1 else Sum(tuple(rest))
    return found[0][0], found[0][1], whole


def _flatten(functional: Functional, factor: float) -> list[tuple[float, Functional]]:
    if isinstance(functional, Sum):
        return [part for term in functional.terms for part in _flatten(term, factor)]
    if isinstance(functional, Scaled):
        return _flatten(functional.functional, factor * functional.factor)
    return [(factor, functional)]
