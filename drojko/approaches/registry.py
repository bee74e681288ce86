"""Which approach belongs to which ambiguity set."""

from __future__ import annotations

from typing import Any

from drojko.ambiguity import MMD, AmbiguitySet, Group, Sinkhorn, Wasserstein
from drojko.approaches.base import Approach
from drojko.approaches.order_one import OrderOne
from drojko.approaches.reweighting import Reweighting
from drojko.approaches.sinkhorn import SinkhornApproach
from drojko.approaches.support import OnSupport
from drojko.approaches.transport import Transport
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["approach_named", "approach_to"]

_ALL: tuple[Approach, ...] = (
    Transport(),
    OrderOne(),
    SinkhornApproach(),
    Reweighting(),
    OnSupport(),
)
_APPROACHES: dict[str, Approach] = {approach.name: approach for approach in _ALL}


def approach_to(ambiguity: Any) -> Approach:
    """The approach to an ambiguity set; a clear error for what is none."""
    if not isinstance(ambiguity, AmbiguitySet):
        raise InvalidDataError(
            f"ambiguity={ambiguity!r}; expected an ambiguity set such as Wasserstein(radius=0.1)"
        )
    if isinstance(ambiguity, Wasserstein):
        # Of radius 0 both orders are the reference alone.
        exact = ambiguity.order == 1 and ambiguity.radius != 0
        return _APPROACHES["order-one" if exact else "transport"]
    if isinstance(ambiguity, Sinkhorn):
        return _APPROACHES["sinkhorn"]
    if isinstance(ambiguity, Group | MMD):
        return _APPROACHES["support"]
    if hasattr(ambiguity, "on"):
        return _APPROACHES["reweighting"]
    raise UnsupportedError(
        f"training and certificates for {type(ambiguity).__name__} are not available yet: use "
        "Wasserstein, or the set's own dual(losses) on the losses of a fitted model"
    )


def approach_named(name: str) -> Approach:
    """The approach that a stored state belongs to."""
    return _APPROACHES[name]
