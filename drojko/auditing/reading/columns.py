"""Ambiguity sets that name the user's columns, in terms of the matrix that an audit moves."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from sklearn.base import clone

from drojko.ambiguity import AmbiguitySet
from drojko.auditing.reading.space import Space
from drojko.exceptions import InvalidDataError

__all__ = ["in_matrix"]


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
    if groups is not None:
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
