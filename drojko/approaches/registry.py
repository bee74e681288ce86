"""Which approach belongs to which ambiguity set: the one place that chooses, by what a set offers.

Estimators, problems and audits ask `approach_to`. An approach says itself which sets it serves;
one of a user's own, of a family that the package does not have, is added by `register`.
"""

from __future__ import annotations

from typing import Any

from drojko._validation import shown
from drojko.ambiguity import AmbiguitySet
from drojko.approaches.base import Approach
from drojko.approaches.order_one import OrderOne
from drojko.approaches.reweighting.density_ratio import DensityRatio
from drojko.approaches.reweighting.support import OnSupport
from drojko.approaches.sinkhorn import SinkhornApproach
from drojko.approaches.transport.approach import Transport
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["approach_named", "approach_to", "register"]

#: Asked in this order: the more that an approach needs of a set, the earlier.
_APPROACHES: dict[str, Approach] = {
    approach.name: approach
    for approach in (OrderOne(), SinkhornApproach(), Transport(), DensityRatio(), OnSupport())
}


def register(approach: Approach) -> None:
    """Add an approach, which is asked before all others, or replace the one of its name."""
    others = {name: one for name, one in _APPROACHES.items() if name != approach.name}
    _APPROACHES.clear()
    _APPROACHES.update({approach.name: approach, **others})


def approach_to(ambiguity: Any) -> Approach:
    """The approach to an ambiguity set; a clear error for what is none."""
    if not isinstance(ambiguity, AmbiguitySet):
        raise InvalidDataError(
            f"ambiguity={shown(ambiguity)}; expected an ambiguity set such as those of "
            "drojko.ambiguity"
            f"{AmbiguitySet._instead(ambiguity)}"
        )
    for approach in _APPROACHES.values():
        if approach.serves(ambiguity):
            return approach
    ambiguity._validate_params()  # settings out of range, perhaps
    raise UnsupportedError(
        f"{type(ambiguity).__name__} offers nothing to train against: neither on(x, weights, "
        "groups), which solvers for sets that reweight need, nor moves = True with order = 2 and "
        "resolve(n_features, feature_names) -> GroundCost, which transport needs"
    )


def approach_named(name: str) -> Approach:
    """The approach that a stored state belongs to."""
    if name not in _APPROACHES:
        raise UnsupportedError(
            f"the worst case was stored by the approach {name!r}, which is not registered here: "
            "import the module that calls drojko.approaches.registry.register"
        )
    return _APPROACHES[name]
