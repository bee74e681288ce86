"""Functionals of measures whose gradient flows are run: energies, entropies, divergences."""

from drojko.flows.functionals.base import Energy, Functional
from drojko.flows.functionals.divergence_to import DivergenceTo
from drojko.flows.functionals.energies import (
    Entropy,
    FDivergence,
    InternalEnergy,
    KLDivergence,
    PotentialEnergy,
)
from drojko.flows.functionals.pairwise import InteractionEnergy, MMDTo, WassersteinTo

__all__ = [
    "DivergenceTo",
    "Energy",
    "Entropy",
    "FDivergence",
    "Functional",
    "InteractionEnergy",
    "InternalEnergy",
    "KLDivergence",
    "MMDTo",
    "PotentialEnergy",
    "WassersteinTo",
]
