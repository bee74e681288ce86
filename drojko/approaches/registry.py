"""Which approach belongs to which ambiguity set: the one place that chooses, by what a set offers.

Estimators, problems and audits ask `approach_to`. An approach says itself which sets it serves;
one of a user's own, of a family that the package does not have, is added by `register`.
"""

from __future__ import annotations

from drojko.approaches.base import APPROACHES, Approach, approach_to
from drojko.approaches.order_one import OrderOne
from drojko.approaches.reweighting.density_ratio import DensityRatio
from drojko.approaches.reweighting.support import OnSupport
from drojko.approaches.sinkhorn import SinkhornApproach
from drojko.approaches.transport.approach import Transport
from drojko.exceptions import UnsupportedError

__all__ = ["approach_named", "approach_to", "register"]

# Asked in this order: the more that an approach needs of a set, the earlier.
APPROACHES.update(
    (approach.name, approach)
    for approach in (OrderOne(), SinkhornApproach(), Transport(), DensityRatio(), OnSupport())
)


def register(approach: Approach) -> None:
    """Add an approach, which is asked before all others, or replace the one of its name."""
    others = {name: one for name, one in APPROACHES.items() if name != approach.name}
    APPROACHES.clear()
    APPROACHES.update({approach.name: approach, **others})


def approach_named(name: str) -> Approach:
    """The approach that a stored state belongs to."""
    if name not in APPROACHES:
        raise UnsupportedError(
            f"the worst case was stored by the approach {name!r}, which is not registered here: "
            "import the module that calls drojko.approaches.registry.register"
        )
    return APPROACHES[name]
