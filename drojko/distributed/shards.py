"""From the shards of all ranks to one table: what ranks agree on, classes, numbers by row."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from drojko._validation import floats, is_real
from drojko.distributed.ranks import Ranks, joined
from drojko.distributed.table import ShardedTable
from drojko.exceptions import InvalidDataError

__all__ = ["Shard"]

#: Parameters that may differ between ranks.
_OWN = ("device", "verbose")


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows of one rank, checked: X an array, a table or None (no batch came), y (k,).

    ``kind`` is what all ranks have to have: "an array", "a sparse matrix" or "batches".
    """

    X: Any
    y: np.ndarray
    weight: Any
    groups: Any
    kind: str

    @classmethod
    def of(cls, X: Any, y: np.ndarray, weight: Any, groups: Any) -> Shard:
        """Of the arguments of a fit."""
        n = len(y)
        if weight is not None:
            weight = np.full(n, weight) if is_real(weight) else floats(weight, "sample_weight")
            if weight.shape != (n,):
                raise InvalidDataError(f"sample_weight has shape {weight.shape}, expected ({n},)")
        if groups is not None:
            groups = groups if hasattr(groups, "columns") else np.asarray(groups)
            if len(groups) != n:
                raise InvalidDataError(f"groups has {len(groups)} rows, X has {n}")
        return cls(X, y, weight, groups, "a sparse matrix" if hasattr(X, "rows") else "an array")

    def joined(self, ranks: Ranks, fitted: Any) -> tuple[ShardedTable, Any, Any, Any, Any]:
        """Table, y, labels, weights and groups of all ranks, the same on each.

        ``fitted`` is the estimator: it gets the columns and classes that all agree on.
        """
        classes = _labels(fitted, self.y) if fitted._classification else None
        said = ranks.objects((self._facts(fitted), len(self.y), classes))
        facts = [part[0] for part in said]
        for what in facts[0]:
            _agree([part[what] for part in facts])
        count = sum(part[1] for part in said)
        if count < 2:
            raise InvalidDataError(f"the ranks hold {count} rows in all; a fit needs 2 or more")
        d, dtype, names = next(part["like"]["X"] for part in facts if part["like"] is not None)
        X = self.X
        if X is None:
            fitted.n_features_in_ = d
            if names is not None:
                fitted.feature_names_in_ = np.array(names, dtype=object)
        table = ShardedTable(ranks, X if len(self.y) else None, (d, np.dtype(dtype)))
        weight, groups = self.weight, self.groups
        if any(part["given"] is not None and part["given"]["sample_weight"] for part in facts):
            weight = table.joined(np.zeros(0) if weight is None else weight)
        if groups is not None:
            groups = joined("groups", [part for part in ranks.objects(groups) if len(part)])
        if classes is None:
            y = table.joined(self.y.astype(np.float64))
            return table, y, y, weight, groups
        # Several of each: labels are not taken for numbers because they are few.
        fitted._encode(np.tile(np.concatenate([part[2] for part in said if part[1]]), 3))
        own = np.zeros(0)
        if len(self.y):
            own = np.searchsorted(fitted.classes_, _plain_labels(self.y))
        # A byte a row is sent where that numbers the classes.
        few = len(fitted.classes_) <= np.iinfo(np.int8).max
        index = table.joined(own.astype(np.int8 if few else np.int64)).astype(np.int64)
        return table, index, fitted.classes_[index], weight, groups

    def _facts(self, fitted: Any) -> dict[str, Any]:
        """What ranks have to agree on, part by part; None: this one has no say."""
        known = getattr(fitted, "feature_names_in_", None)
        names = None if known is None else [str(name) for name in known]
        settings = {"the estimator": type(fitted).__name__}
        for name, value in fitted.get_params(deep=True).items():
            if name not in _OWN:
                settings[name] = _words(value)
        if fitted.warm_start and hasattr(fitted, "parameters_"):
            every = [np.ravel(value) for value in fitted.parameters_.values()]
            settings["the model to start from"] = _words(np.concatenate(every))
        rows, X = bool(len(self.y)), self.X
        columns = types = given = like = None
        dtype = ""
        if X is not None:
            dtype = str(X.dtype)
            columns = {"X": self.kind, "the number of columns": X.shape[1], "columns": names}
            given = {"sample_weight": self.weight is not None, "groups": self.groups is not None}
        if rows and X is not None:
            numbers = _plain_labels(self.y).dtype.kind in "biuf"
            types = {"the dtype of X": dtype, "y": "numbers" if numbers else "labels"}
            like = {"X": (X.shape[1], dtype, names)}
        return {
            "settings": settings, "columns": columns, "types": types, "given": given, "like": like,
        }  # fmt: skip


def _plain_labels(y: np.ndarray) -> np.ndarray:
    """Numbers where an object array holds such, as one process takes them."""
    if y.dtype == object and len({type(label) for label in y} - {str}) == 1:
        values = np.array(y.tolist())
        return values if values.dtype.kind in "biuf" else y
    return y


def _labels(fitted: Any, y: np.ndarray) -> np.ndarray:
    try:
        return np.unique(_plain_labels(y))
    except TypeError:
        fitted._encode(y)  # which says what is wrong with them
        raise


def _words(value: Any) -> str:
    """A setting in words that are the same on all ranks where it is."""
    if isinstance(value, np.ndarray) or (isinstance(value, list | tuple) and len(value) > 20):
        array = np.asarray(value)
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:8]
        return f"an array of shape {array.shape} ({digest})"
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _agree(parts: list[dict[str, Any] | None]) -> None:
    """Raise where ranks that have a say differ."""
    given = [(rank, part) for rank, part in enumerate(parts) if part is not None]
    for rank, part in given[1:]:
        first, known = given[0]
        for name in {**known, **part}:
            ours, theirs = known.get(name), part.get(name)
            if ours == theirs:
                continue
            if isinstance(ours, list) and isinstance(theirs, list):
                at = [a != b for a, b in zip(ours, theirs, strict=True)].index(True)
                name, ours, theirs = f"column {at}", repr(ours[at]), repr(theirs[at])
            if isinstance(ours, bool):
                ours, theirs = ("given" if flag else "not given" for flag in (ours, theirs))
            raise InvalidDataError(
                f"the ranks differ: {name} is {ours} on rank {first} and {theirs} on rank {rank}; "
                "all ranks give the same settings, columns and kinds of data"
            )
