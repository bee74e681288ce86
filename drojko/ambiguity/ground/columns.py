"""Feature names, indices, masks and pairs of a user turned into arrays over columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np

from drojko.exceptions import InvalidDataError

__all__ = ["Columns", "resolve_bounds", "resolve_weights"]


class Columns:
    """The columns of the data: turns names and indices into positions."""

    def __init__(self, n_features: int, names: Sequence[str] | None):
        self.n = n_features
        self.names = None if names is None else tuple(str(name) for name in names)
        if self.names is not None and len(self.names) != n_features:
            raise InvalidDataError(f"got {len(self.names)} feature names for {n_features} columns")

    def position(self, parameter: str, key: Any) -> int:
        """Return the index of a feature name or index; a wrong one is an error naming both."""
        if isinstance(key, str):
            if self.names is None:
                raise InvalidDataError(
                    f"{parameter} names the feature {key!r}, but the data came without feature "
                    "names: pass a data frame, or use column indices"
                )
            if key not in self.names:
                close = get_close_matches(key, self.names, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise InvalidDataError(
                    f"{parameter} names the unknown feature {key!r}; {hint}the known ones are: "
                    f"{', '.join(self.names)}"
                )
            return self.names.index(key)
        if isinstance(key, Integral) and not isinstance(key, bool | np.bool_):
            if not -self.n <= int(key) < self.n:
                raise InvalidDataError(
                    f"{parameter} got the column index {key}; the data have {self.n} columns, "
                    f"0 to {self.n - 1}"
                )
            return int(key) % self.n
        raise InvalidDataError(
            f"{parameter} got {key!r} as a column; use a feature name or an integer index"
        )

    def selection(self, parameter: str, chosen: Any) -> list[int]:
        """Return the indices that a name, an index, a list of those, or a mask stands for."""
        if isinstance(chosen, str | Integral) and not isinstance(chosen, bool | np.bool_):
            return [self.position(parameter, chosen)]
        if isinstance(chosen, bool | np.bool_) or not hasattr(chosen, "__iter__"):
            raise InvalidDataError(
                f"{parameter} got {chosen!r}; use a list of feature names or indices, or a mask"
            )
        chosen = list(chosen)
        if chosen and all(isinstance(item, bool | np.bool_) for item in chosen):
            if len(chosen) != self.n:
                raise InvalidDataError(
                    f"{parameter} got a mask of length {len(chosen)}; the data have {self.n} "
                    "columns"
                )
            return np.flatnonzero(chosen).tolist()
        return [self.position(parameter, item) for item in chosen]

    def label(self, column: int) -> str:
        """How messages call a column: its name where there is one, its index otherwise."""
        return str(column) if self.names is None else repr(self.names[column])


def resolve_weights(given: Any, columns: Columns) -> np.ndarray:
    """Return positive weights of shape (d,) from None, a number, numbers or a dict."""
    weights = np.ones(columns.n)
    if isinstance(given, Mapping):
        for key, value in given.items():
            weights[columns.position("weights", key)] = _number("weights", value)
    elif given is not None:
        values = _floats("weights", given)
        if values.shape not in ((), (columns.n,)):
            raise InvalidDataError(
                f"weights has shape {values.shape}; expected one weight for each of the "
                f"{columns.n} columns, a dict, or one number"
            )
        weights[:] = values
    bad = ~(weights > 0)
    if bad.any():
        column = int(bad.argmax())
        raise InvalidDataError(
            f"weights: column {columns.label(column)} has weight {weights[column]:g}; weights must "
            "be positive (infinity makes a column immutable)"
        )
    return weights


def resolve_bounds(
    given: Any, columns: Columns
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Return lower and upper, each of shape (d,), from None, a pair, pairs or a dict of pairs."""
    if given is None:
        return None, None
    lower, upper = np.full(columns.n, -np.inf), np.full(columns.n, np.inf)
    if isinstance(given, Mapping):
        for key, pair in given.items():
            column = columns.position("bounds", key)
            lower[column], upper[column] = _pair(pair)
    else:
        rows = list(given) if hasattr(given, "__iter__") and not isinstance(given, str) else [given]
        if len(rows) == 2 and all(row is None or isinstance(row, Real) for row in rows):
            lower[:], upper[:] = _pair(rows)
        elif len(rows) == columns.n:
            for column, pair in enumerate(rows):
                lower[column], upper[column] = _pair(pair)
        else:
            raise InvalidDataError(
                f"bounds got {len(rows)} entries; expected one (lower, upper) pair, a pair for "
                f"each of the {columns.n} columns, or a dict"
            )
    bad = ~(lower <= upper) | (lower == np.inf) | (upper == -np.inf)
    if bad.any():
        column = int(bad.argmax())
        raise InvalidDataError(
            f"bounds: column {columns.label(column)} has lower={lower[column]:g} and "
            f"upper={upper[column]:g}; expected lower <= upper"
        )
    return lower, upper


def _pair(pair: Any) -> tuple[float, float]:
    items = list(pair) if hasattr(pair, "__iter__") and not isinstance(pair, str) else []
    if len(items) != 2:
        raise InvalidDataError(f"bounds got {pair!r}; expected a pair (lower, upper)")
    lower, upper = items
    return (
        -np.inf if lower is None else _number("bounds", lower),
        np.inf if upper is None else _number("bounds", upper),
    )


def _number(parameter: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise InvalidDataError(f"{parameter} got {value!r}; expected a number")
    return float(value)


def _floats(parameter: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidDataError(f"{parameter} got {value!r}; expected numbers") from None
