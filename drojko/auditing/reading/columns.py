"""Ambiguity sets that name the user's columns, in terms of the matrix that an audit moves.

With ``categorical_features="auto"`` the columns are taken for what they hold: text, categories,
booleans and one-hot groups are swapped or stay, whole numbers move in whole steps, and what is
never negative stays so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from sklearn.base import clone

from drojko.ambiguity import AmbiguitySet
from drojko.ambiguity.ground.found import kinds_of
from drojko.auditing.reading.space import Space
from drojko.exceptions import InvalidDataError

__all__ = ["Kept", "in_matrix", "in_rows"]


@dataclass(frozen=True, eq=False)
class Kept:
    """A set with nothing left open, and what rows keep that it does not say: see `GroundCost`."""

    ambiguity: AmbiguitySet
    whole: np.ndarray | None = None
    floor: np.ndarray | None = None


def in_rows(
    ambiguity: AmbiguitySet, space: Space, U: np.ndarray, variance: np.ndarray | None
) -> Kept:
    """What ``"auto"`` finds in the rows U (n, d) of a table; see `AmbiguitySet.settled`."""
    given: Any = ambiguity.get_params(deep=False)
    how: dict[str, Any] = {"variance": variance}
    if not isinstance(given.get("categorical_features"), str):
        return Kept(ambiguity.settled(U, **how) if given.get("swap_cost") == "auto" else ambiguity)
    kinds = kinds_of(U, space.names, space.indicators)
    coded = {i for i, key in enumerate(space.keys) if key.column in space.codes}
    groups: list[Any] = [g for g in kinds.groups if not coded.intersection(g)]
    groups += [j for j in kinds.codes if j not in coded]
    flags = np.zeros(U.shape[1], dtype=bool)
    flags[[j for j in kinds.whole if j not in coded]] = True
    taken = {i for g in groups for i in np.atleast_1d(g).tolist()} | coded
    bounds, floor = given["bounds"], np.full(U.shape[1], -np.inf)
    if bounds is None or isinstance(bounds, dict):
        low, said = U.min(axis=0), set(bounds or ())
        for j in set(range(U.shape[1])) - taken:
            if low[j] >= 0 and not {j, space.names[j]} & said:
                floor[j] = 0.0
    found = cast(Any, clone(ambiguity)).set_params(categorical_features=groups or None)
    return Kept(found.settled(U, **how), flags, floor)


def in_matrix(ambiguity: AmbiguitySet, space: Space) -> AmbiguitySet:
    """The set with its columns named as the matrix names them.

    Raw columns of numbers keep their names; an index is one of the user's table. A column of
    categories stands for its indicators, which are immutable unless it is among
    ``categorical_features`` with a finite ``swap_cost``.
    """
    parameters = ambiguity.get_params(deep=False)
    plain = all(k.category is None and k.column == i for i, k in enumerate(space.keys))
    if plain and len(space.keys) == len(space.raw_names):
        return ambiguity
    lookup = _Lookup(space)
    changes: dict[str, Any] = {}
    if parameters.get("immutable") is not None:
        found = [lookup.indices(entry) for entry in _listed(parameters["immutable"])]
        changes["immutable"] = sorted({i for part in found for i in part})
    if parameters.get("columns") is not None:
        found = [lookup.indices(entry) for entry in _listed(parameters["columns"])]
        changes["columns"] = sorted({i for part in found for i in part})
    weights: Any = parameters.get("weights")
    if isinstance(weights, dict):
        pairs = weights.items()
        changes["weights"] = {i: v for c, v in pairs for i in lookup.indices(c)}
    elif weights is not None and np.ndim(weights) == 1:
        if len(weights) != len(space.raw_names):
            raise InvalidDataError(
                f"weights has {len(weights)} entries; X has {len(space.raw_names)} columns"
            )
        changes["weights"] = [float(weights[key.column]) for key in space.keys]
    bounds = parameters.get("bounds")
    if isinstance(bounds, dict):
        changes["bounds"] = {i: v for c, v in bounds.items() for i in lookup.numbers(c)}
    elif bounds is not None:
        raise InvalidDataError(
            "bounds: for a table with categories give a dict from column names to (lower, upper)"
        )
    groups = parameters.get("categorical_features")
    if groups is not None and not isinstance(groups, str):
        changes["categorical_features"] = [lookup.group(entry) for entry in _listed(groups)]
    if isinstance(parameters.get("swap_cost"), dict):
        pairs = parameters["swap_cost"].items()
        changes["swap_cost"] = {lookup.indices(c)[0]: v for c, v in pairs}
    return cast(AmbiguitySet, cast(Any, clone(ambiguity)).set_params(**changes))


def _listed(entries: Any) -> list[Any]:
    """The entries of a list, or of a mask."""
    if isinstance(entries, str):
        return [entries]
    if all(isinstance(entry, bool | np.bool_) for entry in entries):
        return [j for j, on in enumerate(entries) if on]
    return list(entries)


class _Lookup:
    """From names and indices of the user's table to indices of the matrix."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.places: dict[int, list[int]] = {j: [] for j in range(len(space.raw_names))}
        for i, key in enumerate(space.keys):
            self.places[key.column].append(i)

    def column(self, entry: Any) -> int:
        names = self.space.raw_names
        if isinstance(entry, str):
            if entry not in names:
                raise InvalidDataError(f"column {entry!r} is unknown; X has {', '.join(names[:8])}")
            return names.index(entry)
        if not isinstance(entry, int | np.integer) or not -len(names) <= entry < len(names):
            raise InvalidDataError(f"column {entry!r} is unknown; X has {len(names)} columns")
        return int(entry) % len(names)

    def indices(self, entry: Any) -> list[int]:
        """All columns of the matrix that a raw column stands for; one may be named itself."""
        raw, names = self.space.raw_names, self.space.names
        if isinstance(entry, str) and entry not in raw and entry in names:
            return [names.index(entry)]
        return self.places[self.column(entry)]

    def numbers(self, entry: Any) -> list[int]:
        found = [i for i in self.indices(entry) if self.space.keys[i].category is None]
        if not found:
            raise InvalidDataError(f"column {entry!r} holds categories: it has no bounds")
        return found

    def group(self, entry: Any) -> Any:
        if isinstance(entry, str | int | np.integer):
            found = self.indices(entry)
            return found if len(found) > 1 else found[0]
        return [i for part in entry for i in self.indices(part)]
