"""Divergences from a measure that is known by samples only, by their convex conjugates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from drojko._validation import chosen
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows.functionals.base import Combination, Energy, Functional
from drojko.measures.base import Measure
from drojko.measures.empirical import Empirical

__all__ = ["CONJUGATES", "Conjugate", "DivergenceTo", "conjugate_named", "split"]

#: Exponent from which on e^u is continued by its tangent: gradients stay, overflow does not.
_LARGEST = 20.0


class Conjugate(ABC):
    r"""An f-divergence through f*, on the output w of a network.

    .. math:: D_f(\rho, \nu) = E_\nu f(r) = \sup_u E_\rho u - E_\nu f^*(u), \qquad
        r = \frac{d\rho}{d\nu} = (f^*)'(u)

    The network gives w and u = `potential` (w), an increasing function, so that u stays where f*
    is finite.
    """

    name: str
    #: Whether w is log r, so that the log ratio of two Gaussians can be added to a network.
    logarithmic = False

    def potential(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The potential u and du/dw, shapes (n,): w itself, where that may be any number."""
        return w, torch.ones_like(w)

    @abstractmethod
    def conjugate(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """f*(u(w)) and its derivative in w, shapes (n,)."""

    def ratio(self, w: Tensor) -> Tensor:
        """The ratio r = (f*)'(u(w)), shape (n,); where w is no logarithm, u is w."""
        return _exp(w)[0] if self.logarithmic else self.conjugate(w)[1]

    @abstractmethod
    def f(self, r: Tensor) -> Tensor:
        """f(r), infinite where it is not defined; f(1) = 0."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _exp(w: Tensor) -> tuple[Tensor, Tensor]:
    """e^w and its derivative, continued by the tangent."""
    slope = w.clamp_max(_LARGEST).exp()
    return slope * (1.0 + (w - _LARGEST).clamp_min(0.0)), slope


class KL(Conjugate):
    r"""f(r) = r log r - r + 1, f*(u) = e^u - 1; w = u = log r.

    >>> KL().conjugate(torch.tensor([0.0]))
    (tensor([0.]), tensor([1.]))
    """

    name = "kl"
    logarithmic = True

    def conjugate(self, w: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = _exp(w)
        return value - 1.0, slope

    def f(self, r: Tensor) -> Tensor:
        return torch.xlogy(r, r) - r + 1.0


class ChiSquare(Conjugate):
    r"""f(r) = (r - 1)^2, f*(u) = u + u^2/4 from u = -2 on and -1 below; w = u = 2 (r - 1).

    >>> ChiSquare().ratio(torch.tensor([-3.0, 0.0, 2.0]))
    tensor([0., 1., 2.])
    """

    name = "chi-square"

    def conjugate(self, w: Tensor) -> tuple[Tensor, Tensor]:
        u = w.clamp_min(-2.0)
        return u + 0.25 * u.square(), 1.0 + 0.5 * u

    def f(self, r: Tensor) -> Tensor:
        return (r - 1.0).square()


class JensenShannon(Conjugate):
    r"""f(r) = r log r - (r + 1) log((r + 1)/2), f*(u) = -log(2 - e^u); w = log r.

    Twice the Jensen-Shannon divergence, at most 2 log 2; u = log(2 sigmoid(w)) < log 2, which
    makes the critic's problem that of logistic regression between the two samples.

    >>> u, _ = JensenShannon().potential(torch.tensor([0.0]))
    >>> u, JensenShannon().ratio(torch.tensor([0.0]))
    (tensor([0.]), tensor([1.]))
    """

    name = "jensen-shannon"
    logarithmic = True

    def potential(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return math.log(2.0) + logsigmoid(w), torch.sigmoid(-w)

    def conjugate(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return -math.log(2.0) - logsigmoid(-w), torch.sigmoid(w)

    def f(self, r: Tensor) -> Tensor:
        return torch.xlogy(r, r) - (r + 1.0) * torch.log(0.5 * (r + 1.0))


class Softplus(Conjugate):
    r"""f(r) = r log r + (2 - r) log(2 - r) on [0, 2], f*(u) = 2 log(1 + e^u) - 2 log 2; w = u.

    Ratios above 2 are forbidden: rho gives no event more than twice its mass under nu.

    >>> Softplus().ratio(torch.tensor([-50.0, 0.0, 50.0])).round(decimals=6)
    tensor([0., 1., 2.])
    """

    name = "softplus"

    def conjugate(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return 2.0 * (softplus(w, threshold=40.0) - math.log(2.0)), 2.0 * torch.sigmoid(w)

    def f(self, r: Tensor) -> Tensor:
        inside = torch.xlogy(r, r) + torch.xlogy((2.0 - r).clamp_min(0.0), (2.0 - r).clamp_min(0.0))
        return torch.where(r <= 2.0, inside, torch.full_like(r, math.inf))


CONJUGATES: dict[str, Conjugate] = {
    c.name: c for c in (KL(), ChiSquare(), JensenShannon(), Softplus())
}


def conjugate_named(kind: str) -> Conjugate:
    """The conjugate of a name; `InvalidDataError` for another one.

    >>> conjugate_named("kl")
    KL()
    """
    chosen("kind", kind, CONJUGATES)
    return CONJUGATES[kind]


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
    rest = [part for part in functional.parts() if not isinstance(part[1], DivergenceTo)]
    for _, term in rest:
        if term.density != "none":
            raise UnsupportedError(
                f"SemiDualScheme: {term!r} is a functional of the density, which this scheme does "
                "not have; use ICNNScheme, or a DivergenceTo in its place"
            )
    found: list[Any] = [part for part in functional.parts() if isinstance(part[1], DivergenceTo)]
    if len(found) != 1 or found[0][0] == 0.0:
        raise UnsupportedError(
            f"SemiDualScheme: {functional!r} has {len(found)} terms DivergenceTo(...); it needs "
            "exactly one, with a positive factor. Without any, use ICNNScheme"
        )
    if any(term.majorised for _, term in rest):
        raise InvalidDataError(
            f"SemiDualScheme: a term of {functional!r} is a distance between whole measures; use "
            "ICNNScheme for it"
        )
    return *found[0], Combination(rest) if rest else None
