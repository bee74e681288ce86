"""The rows of a batch as arrays, those of all ranks where there are several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from drojko._validation import floats, plain_tensor, shown
from drojko.ambiguity.duals.scaling import NonFiniteLossError
from drojko.distributed.ranks import exchanged, joined, world
from drojko.exceptions import DrojkoError, InvalidDataError

__all__ = ["Rows", "gathered"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Losses (n,) of all ranks, their masses (n,) that sum to one, and what else is known of them.

    ``own`` are the rows of this rank, of ``ranks`` in all.
    """

    losses: np.ndarray
    weights: np.ndarray
    groups: Any
    points: np.ndarray | None
    own: slice
    ranks: int


def gathered(losses: Tensor, weights: Any, groups: Any, points: Any, group: Any) -> Rows:
    """Rows of every rank, in the order of the ranks; bad ones are an error on all of them."""
    part: tuple[Any, ...] | DrojkoError
    try:
        part = _checked(losses, weights, groups, points)
    except DrojkoError as error:
        part = error
    parts = exchanged(part, group)  # one exchange: a rank that raised alone would leave others
    ranks, rank = world(group)
    sizes = [len(part[0]) for part in parts]
    start = sum(sizes[:rank])
    if not sum(sizes):
        raise InvalidDataError("losses is empty: a batch needs one row at least")
    every = [joined(name, column) for name, column in zip(_NAMES, zip(*parts))]
    values, mass = every[0], every[1]
    mass = np.ones(len(values)) if mass is None else mass
    if not mass.any():
        raise InvalidDataError("weights are all zero: a batch needs one row of positive weight")
    mass = mass / mass.max()  # the sum of huge weights overflows
    own = slice(start, start + sizes[rank])
    return Rows(values, mass / mass.sum(), every[2], every[3], own, ranks)


_NAMES = ("losses", "weights", "groups", "points")


def _checked(losses: Tensor, weights: Any, groups: Any, points: Any) -> tuple[Any, ...]:
    """The rows of one rank, none of them bad."""
    if not isinstance(losses, Tensor) or losses.ndim != 1 or not losses.is_floating_point():
        raise InvalidDataError(
            f"losses is {shown(losses)}; expected a floating tensor of shape (n,), a loss per row "
            "(in torch's own losses: reduction='none')"
        )
    values = floats(losses, "losses")
    n = len(values)
    bad = ~np.isfinite(values)
    if bad.any():
        i = int(bad.argmax())
        raise NonFiniteLossError(
            f"losses[{i}] is {values[i]}; a worst case needs finite losses: look at the model, the "
            "step size or the scale of the inputs"
        )
    mass = None
    if weights is not None:
        mass = floats(weights, "weights")
        if mass.shape != (n,) or not np.isfinite(mass).all() or (mass < 0).any():
            raise InvalidDataError(
                f"weights is {shown(weights)}; expected {n} finite numbers >= 0, one per row"
            )
    if groups is not None:
        groups = plain_tensor(groups, "groups")
        try:
            groups = groups if hasattr(groups, "columns") else np.asarray(groups)
        except ValueError as error:
            raise InvalidDataError(f"groups is {shown(groups)}: {error}") from error
        if len(np.shape(groups)) not in (1, 2) or len(groups) != n:
            raise InvalidDataError(
                f"groups is {shown(groups)}; expected a label for each of the {n} rows, or columns "
                "of 0 and 1"
            )
    if points is not None:
        points = floats(points, "points")
        if points.ndim != 2 or len(points) != n:
            raise InvalidDataError(f"points is {shown(points)}; expected shape ({n}, d)")
    return values, mass, groups, points
