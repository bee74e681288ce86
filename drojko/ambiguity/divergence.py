"""Which f-divergence a set is about, for solvers that have formulas for a few of them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Divergence"]


@dataclass(frozen=True)
class Divergence:
    """D(P, P0) = E0 f(dP/dP0) by name: "kl", "chi-square", or "cressie-read" of an order.

    ``curvature`` is f''(1) in the conventions of the set: nats, E (r - 1)^2, and E phi_k.
    """

    kind: str
    order: float
    curvature: float
