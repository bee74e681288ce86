"""Ambiguity sets: which distributions count as near the reference.

    { P : D(P, P0) <= radius }     or     the penalty  penalty * D(P, P0)

Each set is one file: its discrepancy D, what `radius` means, its geometry. A set is a plain
settings object with `get_params` and `set_params`, so it can be searched over.
"""

from drojko.ambiguity.base import AmbiguitySet
from drojko.ambiguity.ground_cost import GroundCost
from drojko.ambiguity.wasserstein import Wasserstein

__all__ = ["AmbiguitySet", "GroundCost", "Wasserstein"]
