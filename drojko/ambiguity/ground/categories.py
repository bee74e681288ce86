"""Categorical columns: which columns are one category together, and what a swap costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from drojko.ambiguity.ground.columns import Columns, _number
from drojko.exceptions import InvalidDataError

__all__ = ["Categories", "one_hot_groups", "resolve_categories"]

#: Columns and categories of groups.
Known = list[tuple[np.ndarray, np.ndarray]]


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
            rows = np.unique(np.asarray(X)[:, columns].astype(np.float64), axis=0)
            if hot:  # every column is a category; so are the rows without a 1, where there are any
                rows = np.concatenate([rows, np.eye(len(columns))])
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
            f"categorical_features got {features!r}; expected a list of column names, indices and "
            "groups of those (a sequence is a one-hot group), or a boolean mask"
        )
    entries = list(features)
    if entries and all(isinstance(entry, bool | np.bool_) for entry in entries):
        return [[j] for j in columns.selection("categorical_features", entries)], [False] * sum(
            bool(entry) for entry in entries
        )
    groups, hot = [], []
    for entry in entries:
        group = not isinstance(entry, str) and hasattr(entry, "__iter__")
        members = list(entry) if group else [entry]
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
    if hasattr(encoder, "transformers_"):
        return _of_column_transformer(encoder)
    if hasattr(encoder, "categories_") and hasattr(encoder, "_n_features_outs"):
        names = iter(encoder.get_feature_names_out().tolist())
        sizes = encoder._n_features_outs
        return [part for part in ([next(names) for _ in range(n)] for n in sizes) if part]
    if isinstance(encoder, str) or not hasattr(encoder, "__iter__"):
        raise InvalidDataError(
            f"one_hot_groups got {type(encoder).__name__}; expected a fitted OneHotEncoder or "
            "ColumnTransformer, or the names of its columns"
        )
    groups: dict[str, list[str]] = {}
    for name in map(str, encoder):
        if "_" in name:
            groups.setdefault(name.rpartition("_")[0], []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _of_column_transformer(transformer: Any) -> list[list[str]]:
    names = transformer.get_feature_names_out().tolist()
    groups: list[list[str]] = []
    for name, part, _ in transformer.transformers_:
        last = part.steps[-1][1] if hasattr(part, "steps") else part
        if not (hasattr(last, "categories_") and hasattr(last, "_n_features_outs")):
            continue
        own = iter(names[transformer.output_indices_[name]])
        groups += [[next(own) for _ in range(n)] for n in last._n_features_outs if n]
    return groups
