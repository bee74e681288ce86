"""What a user says about columns, turned into arrays: names, masks, bounds, and categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from drojko._validation import did_you_mean, floats, is_real, is_whole, shown
from drojko.exceptions import InvalidDataError

__all__ = [
    "Categories", "Columns", "one_hot_groups", "resolve_bounds", "resolve_categories",
    "resolve_weights",
]  # fmt: skip

#: Columns and categories of groups.
Known = list[tuple[np.ndarray, np.ndarray]]


class Columns:
    """The columns of the data: turns names and indices into positions."""

    def __init__(self, n_features: int, names: Sequence[str] | None):
        if not is_whole(n_features, 1):
            raise InvalidDataError(f"n_features={shown(n_features)}; expected an integer above 0")
        if isinstance(names, str) or not (names is None or hasattr(names, "__iter__")):
            raise InvalidDataError(f"feature_names={shown(names)}; expected a sequence of names")
        self.n = n_features
        self.names = None if names is None else tuple(map(str, _listed("feature_names", names)))
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
                raise InvalidDataError(
                    f"{parameter} names the unknown feature {key!r}; "
                    f"{did_you_mean(key, self.names, 'the known ones are: ')}"
                )
            return self.names.index(key)
        if isinstance(key, Integral) and not isinstance(key, bool | np.bool_):
            if not -self.n <= int(key) < self.n:
                raise InvalidDataError(
                    f"{parameter} got the column index {shown(key)}; the data have {self.n} "
                    f"columns, 0 to {self.n - 1}"
                )
            return int(key) % self.n
        raise InvalidDataError(
            f"{parameter} got {shown(key)} as a column; use a feature name or an integer index"
        )

    def selection(self, parameter: str, chosen: Any) -> list[int]:
        """Return the indices that a name, an index, a list of those, or a mask stands for."""
        if isinstance(chosen, str | Integral) and not isinstance(chosen, bool | np.bool_):
            return [self.position(parameter, chosen)]
        if isinstance(chosen, bool | np.bool_) or not hasattr(chosen, "__iter__"):
            raise InvalidDataError(
                f"{parameter} got {shown(chosen)}; use a list of feature names or indices, or a "
                "mask"
            )
        array = isinstance(chosen, np.ndarray)
        chosen = _listed(parameter, chosen)
        if chosen and all(isinstance(item, bool | np.bool_) for item in chosen):
            if len(chosen) != self.n:
                raise InvalidDataError(
                    f"{parameter} got a mask of length {len(chosen)}; the data have {self.n} "
                    "columns"
                )
            return np.flatnonzero(chosen).tolist()
        found = [self.position(parameter, item) for item in chosen]
        zeros_and_ones = array and len(found) == self.n > 1 and set(found) <= {0, 1}
        if zeros_and_ones or len(set(found)) < len(found):
            mask = [self.label(j) for j, item in enumerate(chosen) if item]
            also = (
                f"as a mask it would be {parameter}=np.array({chosen}, dtype=bool), the columns "
                f"{', '.join(mask) or 'none'}; "
                if len(found) == self.n
                else ""
            )
            raise InvalidDataError(
                f"{parameter} got {chosen}, which names columns twice or reads like a mask: {also}"
                f"as indices it would be {parameter}={sorted(set(found))}. Give one of these"
            )
        return found

    def label(self, column: int) -> str:
        """How messages call a column: its name where there is one, its index otherwise."""
        return str(column) if self.names is None else repr(self.names[column])


def resolve_weights(given: Any, immutable: Any, columns: Columns) -> tuple[np.ndarray, list[int]]:
    """Return positive weights of shape (d,) from None, a number, numbers or a dict.

    Those of ``immutable`` columns are infinite; which ones these are is returned, too.
    """
    weights = np.ones(columns.n)
    if isinstance(given, Mapping):
        for key, value in given.items():
            weights[columns.position("weights", key)] = _number("weights", value)
    elif given is not None:
        values = floats(given, "weights")
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
    fixed = [] if immutable is None else columns.selection("immutable", immutable)
    weights[fixed] = np.inf
    return weights, fixed


def resolve_bounds(
    given: Any, columns: Columns
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Return lower and upper, each of shape (d,), from None, a pair, pairs or a dict of pairs."""
    if given is None:
        return None, None
    if isinstance(given, Mapping):
        pairs = [(columns.position("bounds", key), pair) for key, pair in given.items()]
    else:
        one = isinstance(given, str) or not hasattr(given, "__iter__")
        rows = [given] if one else _listed("bounds", given)
        if len(rows) == 2 and all(row is None or isinstance(row, Real) for row in rows):
            rows = [rows] * columns.n
        elif len(rows) != columns.n:
            raise InvalidDataError(
                f"bounds got {len(rows)} entries; expected one (lower, upper) pair, a pair for "
                f"each of the {columns.n} columns, or a dict"
            )
        pairs = list(enumerate(rows))
    lower, upper = np.full(columns.n, -np.inf), np.full(columns.n, np.inf)
    for column, pair in pairs:
        lower[column], upper[column] = _pair(pair)
    bad = ~(lower <= upper) | (lower == np.inf) | (upper == -np.inf)
    if bad.any():
        column = int(bad.argmax())
        raise InvalidDataError(
            f"bounds: column {columns.label(column)} has lower={lower[column]:g} and "
            f"upper={upper[column]:g}; expected lower <= upper"
        )
    return lower, upper


def _listed(parameter: str, values: Any) -> list[Any]:
    """The entries of a container, numpy's numbers as Python's."""
    try:
        return list(np.ndarray.tolist(values) if isinstance(values, np.ndarray) else values)
    except (TypeError, RuntimeError) as error:  # a tensor without dimensions, say
        raise InvalidDataError(f"{parameter} got {shown(values)}: {error}") from None


def _pair(pair: Any) -> tuple[float, float]:
    one = isinstance(pair, str) or not hasattr(pair, "__iter__")
    items = [] if one else _listed("bounds", pair)
    if len(items) != 2:
        raise InvalidDataError(f"bounds got {shown(pair)}; expected a pair (lower, upper)")
    lower, upper = items
    return (
        -np.inf if lower is None else _number("bounds", lower),
        np.inf if upper is None else _number("bounds", upper),
    )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and value != value


def _number(parameter: str, value: Any) -> float:
    if not (is_real(value, infinite=True) or _is_nan(value)):  # whose message comes later
        raise InvalidDataError(f"{parameter} got {shown(value)}; expected a number")
    return float(value)


@dataclass(frozen=True, eq=False)
class Categories:
    """Groups of columns that change together, by a swap of one category for another.

    A group of several columns is one-hot: a 1 in one of them, or in none where the data have
    such rows. A single column holds the codes that the data show.

    Attributes
    ----------
    columns : tuple of int arrays
        The columns of each group.
    values : tuple of arrays of shape (K_g, columns), or None
        The rows that are categories of each group; None until `observed` has seen data.
    costs : array of shape (G,)
        Ground cost of a swap; infinite: the group stays as it is.
    one_hot : tuple of bool
        Which groups hold 0 and 1 with at most one 1.
    names : tuple of str
        How messages and tables call the groups.
    """

    columns: tuple[np.ndarray, ...]
    costs: np.ndarray
    one_hot: tuple[bool, ...]
    names: tuple[str, ...]
    values: tuple[np.ndarray, ...] | None = None

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def every_column(self) -> np.ndarray:
        """All columns of all groups, sorted."""
        return np.sort(np.concatenate(self.columns))

    @property
    def swappable(self) -> bool:
        """Whether any group can change."""
        return bool(np.isfinite(self.costs).any())

    def observed(self, X: np.ndarray, before: Known | None = None) -> Categories:
        """The categories that rows X of shape (n, d) show, and those of `known` in ``before``.

        Raises `InvalidDataError` for a group that is not one-hot.
        """
        self.check(X)
        more = {tuple(c.tolist()): v for c, v in before or ()}
        values = []
        for columns, hot in zip(self.columns, self.one_hot, strict=True):
            part = np.asarray(X)[:, columns]
            if hot:  # every column is a category; so are the rows without a 1, where there are any
                blank = bool((~part.any(1)).any())
                rows = np.eye(len(columns) + blank, len(columns))
            else:
                rows = np.unique(part.astype(np.float64), axis=0)
            if tuple(columns.tolist()) in more:
                rows = np.concatenate([rows, more[tuple(columns.tolist())]])
            values.append(np.unique(rows, axis=0))
        return replace(self, values=tuple(values))

    @property
    def known(self) -> Known:
        """Columns and categories of each group, as plain arrays."""
        return list(zip(self.columns, self.values or (), strict=self.values is not None))

    def check(self, X: np.ndarray) -> None:
        """Raise `InvalidDataError` naming the first one-hot group that X does not keep."""
        for columns, hot, name in zip(self.columns, self.one_hot, self.names, strict=True):
            part = np.asarray(X)[:, columns]
            bad = ~((part == 0) | (part == 1)).all(1) | (part.sum(1) > 1)
            if hot and bad.any():
                row = int(bad.argmax())
                raise InvalidDataError(
                    f"categorical_features: the group {name} is not one-hot: row {row} of X holds "
                    f"{part[row].tolist()}; expected 0 and 1 with at most one 1. Leave one-hot "
                    "columns unscaled, or list columns that are codes one by one"
                )

    def rescaled(self, centre: np.ndarray, scale: float) -> Categories:
        """The same categories of (x - centre) / scale, costs in those units squared."""
        values = self.values and tuple(
            (v - centre[c]) / scale for c, v in zip(self.columns, self.values, strict=True)
        )
        return replace(self, values=values, costs=self.costs / scale**2)


def resolve_categories(
    features: Any, swap_cost: Any, immutable: Sequence[int], columns: Columns
) -> Categories | None:
    """Return the groups of ``categorical_features`` with their swap costs; None: there are none."""
    for name, value in (("categorical_features", features), ("swap_cost", swap_cost)):
        if isinstance(value, str) and value == "auto":
            raise InvalidDataError(
                f"{name}='auto' follows from rows, and there are none here: give a list, or ask "
                "ambiguity.settled(X)"
            )
    groups, hot = _groups(features, columns)
    if not groups:
        if isinstance(swap_cost, Mapping) and swap_cost:
            raise InvalidDataError("swap_cost prices groups: name them in categorical_features")
        _cost(swap_cost, "") if not isinstance(swap_cost, Mapping) else None
        return None
    owner: dict[int, int] = {}
    for g, group in enumerate(groups):
        for column in group:
            if column in owner:
                raise InvalidDataError(
                    f"categorical_features lists column {columns.label(column)} twice"
                )
            owner[column] = g
    names = tuple(_name(group, columns) for group in groups)
    costs = np.full(len(groups), np.inf)
    if isinstance(swap_cost, Mapping):
        for key, value in swap_cost.items():
            members = [key] if isinstance(key, str | Integral) else list(key)
            found = {owner.get(columns.position("swap_cost", member)) for member in members}
            if None in found or len(found) != 1:
                raise InvalidDataError(
                    f"swap_cost prices {key!r}, which is no group of categorical_features; the "
                    f"groups are: {', '.join(names)}"
                )
            costs[found.pop()] = _cost(value, f" of {key!r}")
    else:
        costs[:] = _cost(swap_cost, "")
    for column in immutable:
        if column in owner:
            costs[owner[column]] = np.inf
    return Categories(tuple(np.array(g) for g in groups), costs, tuple(hot), names)


def _groups(features: Any, columns: Columns) -> tuple[list[list[int]], list[bool]]:
    if features is None:
        return [], []
    if isinstance(features, str) or not hasattr(features, "__iter__"):
        raise InvalidDataError(
            f"categorical_features got {shown(features)}; expected a list of column names, indices "
            "and groups of those (a sequence is a one-hot group), a boolean mask, or 'auto'"
        )
    entries = _listed("categorical_features", features)
    if entries and all(isinstance(entry, bool | np.bool_) for entry in entries):
        return [[j] for j in columns.selection("categorical_features", entries)], [False] * sum(
            bool(entry) for entry in entries
        )
    groups, hot = [], []
    for entry in entries:
        group = not isinstance(entry, str) and hasattr(entry, "__iter__")
        members = _listed("categorical_features", entry) if group else [entry]
        if not members:
            raise InvalidDataError("categorical_features holds an empty group")
        groups.append([columns.position("categorical_features", m) for m in members])
        hot.append(group)
    return groups, hot


def _name(group: list[int], columns: Columns) -> str:
    labels = [columns.label(column) for column in group]
    shown = labels if len(labels) <= 4 else [*labels[:2], "...", labels[-1]]
    return labels[0] if len(labels) == 1 else f"({', '.join(shown)})"


def _cost(value: Any, which: str) -> float:
    cost = _number("swap_cost", value)
    if not cost > 0:
        raise InvalidDataError(
            f"swap_cost{which} is {cost:g}; it must be positive (infinity: no swaps)"
        )
    return cost


def one_hot_groups(encoder: Any) -> list[list[str]]:
    r"""Return the columns of each one-hot group, by their names in the encoder's output.

    Parameters
    ----------
    encoder : fitted OneHotEncoder or ColumnTransformer, or a sequence of names
        A ColumnTransformer gives the groups of all its OneHotEncoders, also at the end of
        Pipelines. Names must be of the form ``feature_category``, as `get_feature_names_out`
        gives them: the part before the last underscore names the group, so a category with an
        underscore needs the encoder itself.

    Returns
    -------
    list of lists of str
        For ``categorical_features`` of `Wasserstein`, with the frames of
        ``set_output(transform="pandas")`` as data. A feature that is left with a single column
        (``drop="if_binary"``) is a group of one.

    Raises
    ------
    InvalidDataError
        For an encoder that is not fitted, or another object.

    Examples
    --------
    >>> from sklearn.preprocessing import OneHotEncoder
    >>> encoder = OneHotEncoder().fit([["red", "s"], ["blue", "m"]])
    >>> one_hot_groups(encoder)
    [['x0_blue', 'x0_red'], ['x1_m', 'x1_s']]
    >>> one_hot_groups(["size_m", "size_s", "age"])
    [['size_m', 'size_s']]
    """
    parts = None
    if hasattr(encoder, "transformers_"):
        parts = [
            (part.steps[-1][1] if hasattr(part, "steps") else part, encoder.output_indices_[name])
            for name, part, _ in encoder.transformers_
        ]
    elif _is_one_hot(encoder):
        parts = [(encoder, slice(None))]
    if parts is not None:
        names = encoder.get_feature_names_out().tolist()
        groups = []
        for part, where in parts:
            if _is_one_hot(part):
                own = iter(names[where])
                groups += [[next(own) for _ in range(n)] for n in part._n_features_outs if n]
        return groups
    if isinstance(encoder, str) or not hasattr(encoder, "__iter__"):
        raise InvalidDataError(
            f"one_hot_groups got {type(encoder).__name__}; expected a fitted OneHotEncoder or "
            "ColumnTransformer, or the names of its columns"
        )
    named: dict[str, list[str]] = {}
    for name in map(str, _listed("one_hot_groups", encoder)):
        if "_" in name:
            named.setdefault(name.rpartition("_")[0], []).append(name)
    return [group for group in named.values() if len(group) > 1]


def _is_one_hot(encoder: Any) -> bool:
    return hasattr(encoder, "categories_") and hasattr(encoder, "_n_features_outs")
