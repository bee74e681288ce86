"""From whatever holds numbers to checked arrays: the one door into the measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._validation import check_scale, floats, is_whole, plain_tensor, refuse, shown
from drojko.exceptions import InvalidDataError


def matrix(X: Any, dim: int | None = None, name: str = "X", single: bool = False) -> np.ndarray:
    """Return X (array, list, frame or tensor) as a finite float64 array of shape (n, dim).

    With ``single``, an array in float32 stays that.
    """
    kept = single and type(X) is np.ndarray and X.dtype == np.float32
    rows = np.ascontiguousarray(X if kept else floats(X, name))
    _check_shape(rows.shape, dim, name)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(rows.sum()):  # as it is not if an entry is not
            return rows
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=0))
    if bad.size:
        labels = getattr(X, "columns", range(rows.shape[1]))
        raise InvalidDataError(
            f"{name} contains NaN or infinity in column {labels[bad[0]]!r}; impute or drop it"
        )
    return rows


def queries(x: Any, dim: int, name: str = "x") -> Tensor:
    """Return points of shape (n, dim) as a tensor, float32 or float64, gradients kept."""
    refuse(x, name)
    if not isinstance(x, Tensor):
        single = getattr(x, "dtype", None) == np.float32
        return torch.tensor(matrix(x, dim, name), dtype=torch.float32 if single else torch.float64)
    _check_shape(tuple(x.shape), dim, name)
    if not bool(torch.isfinite(x).all()):
        raise InvalidDataError(f"{name} contains NaN or infinity; look at the step that made it")
    return x if x.dtype in (torch.float32, torch.float64) else x.double()


def vector(y: Any, n: int, name: str = "y") -> Tensor:
    """Return one finite number per row as a tensor of shape (n,); a scalar is repeated."""
    refuse(y, name)
    if not isinstance(y, Tensor):
        kind = getattr(getattr(y, "dtype", None), "kind", "O")
        y = np.asarray(y) if kind in "fiub" and not hasattr(y, "nnz") else floats(y, name)
        y = torch.tensor(np.array(y, dtype=y.dtype.newbyteorder("="), order="C"))
    if y.ndim == 0:
        y = y.expand(n)
    if y.shape != (n,):
        raise InvalidDataError(f"{name} has shape {tuple(y.shape)}; expected ({n},)")
    if not bool(torch.isfinite(y).all()):
        raise InvalidDataError(f"{name} contains NaN or infinity; impute or drop those rows")
    return y


def masses(sample_weight: Any, n: int, name: str = "sample_weight") -> np.ndarray:
    """Return n nonnegative weights, not all zero; ones for None."""
    if sample_weight is None:
        return np.ones(n)
    weights = floats(sample_weight, name)
    if weights.shape != (n,):
        raise InvalidDataError(f"{name} has shape {weights.shape}; expected ({n},)")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise InvalidDataError(f"{name} must be finite and >= 0, and not all zero")
    return weights


#: What a `Group` set says without them.
NO_GROUPS = (
    "a Group set needs the groups of the rows: give groups=, a label per row or columns of 0 "
    "and 1. A search or a pipeline hands them on after "
    "sklearn.set_config(enable_metadata_routing=True) and "
    "estimator.set_fit_request(groups=True)"
)


def membership(groups: Any) -> tuple[np.ndarray, list[Any]]:
    """Return the indicator matrix (n, G) of groups given in any form, and their names.

    Parameters
    ----------
    groups : array-like of shape (n,) or (n, G)
        Labels (numbers, strings, categories; none missing), or columns of 0 and 1.

    Raises
    ------
    InvalidDataError
        For missing labels, other numbers than 0 and 1, rows without a group.
    """
    groups = plain_tensor(groups, "groups")
    columns = getattr(groups, "columns", None)
    try:
        table = np.asarray(groups)
    except ValueError as error:  # rows of different lengths
        raise InvalidDataError(f"groups={shown(groups)} is no array: {error}") from None
    if table.ndim == 1 and table.size:
        names, index = label_index(table)
        return np.eye(names.size)[index], names.tolist()
    if table.ndim != 2 or 0 in table.shape:
        raise InvalidDataError(
            f"groups has shape {table.shape}; expected labels of shape (n,), or one column of 0 "
            "and 1 per group"
        )
    try:
        members = table.astype(np.float64)
    except (TypeError, ValueError):
        members = np.full(table.shape, np.nan)
    if not ((members == 0) | (members == 1)).all():
        raise InvalidDataError(
            "groups with several columns must hold 0 and 1 (a row may be in several groups); one "
            "column of labels has shape (n,)"
        )
    outside = np.flatnonzero(members.sum(1) == 0)
    if outside.size:
        raise InvalidDataError(
            f"row {int(outside[0])} of groups is in no group ({outside.size} such rows): there "
            "must be a 1 in every row; add a column for the rest, or drop these rows"
        )
    names = list(range(table.shape[1])) if columns is None else list(columns)
    return members, names


def label_index(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted labels of groups, and the position (n,) of that of each row; none is missing."""
    missing = np.flatnonzero(_missing(table))
    if missing.size:
        raise InvalidDataError(
            f"groups[{missing[0]}] is missing: name a group of its own for such rows, or drop them"
        )
    try:
        return np.unique(table, return_inverse=True)
    except TypeError:
        raise InvalidDataError(
            "groups mixes labels that have no order: make them all numbers or all strings"
        ) from None


def group_names(groups: Any) -> list[Any] | None:
    """Names of groups given in any form that names them: labels, or the columns of a frame."""
    columns = getattr(groups, "columns", None)
    if columns is not None:
        return list(columns)
    return None if np.ndim(groups) != 1 else label_index(np.asarray(groups))[0].tolist()


def strange_groups(known: list[Any] | None, groups: Any) -> str:
    """Words on groups of rows that are not among the known ones; empty where there are none.

    >>> strange_groups(["a", "b"], ["b", "c", "d"])
    "'c', 'd' (of a fit to 'a', 'b')"
    """
    names = group_names(groups)
    if not known or names is None:
        return ""
    new = [repr(name) for name in names if name not in known]
    if not new:
        return ""
    few = [*new[:3], *(["..."] if len(new) > 3 else [])]
    told = [*map(repr, known[:3]), *(["..."] if len(known) > 3 else [])]
    return f"{', '.join(few)} (of a fit to {', '.join(told)})"


def members_of(groups: Any, weights: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """`membership` of weighted rows, none of whose groups is without weight."""
    if groups is None:
        raise InvalidDataError(NO_GROUPS)
    members, names = membership(groups)
    if len(members) != len(weights):
        raise InvalidDataError(
            f"groups has {len(members)} rows and X has {len(weights)}: give one per row"
        )
    mass = weights @ members
    if not mass.all():
        raise InvalidDataError(
            f"group {names[int(mass.argmin())]!r} has no row of positive weight: drop it, or give "
            "its rows weight"
        )
    return members, names


def _missing(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind != "O":
        return labels != labels  # NaN alone differs from itself
    import pandas as pd

    return np.asarray(pd.isna(labels))


def weighted_rows(X: Any, sample_weight: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of positive weight and their weights, not normalised."""
    rows = matrix(X)
    check_scale(rows, "X")
    weights = masses(sample_weight, len(rows))
    kept = weights > 0
    return rows[kept], weights[kept]


def distinct(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge equal rows, in the order of first appearance; the weights returned sum to 1.

    A fit that sees its data only through this cannot tell weight k from k copies.
    """
    marks = _marks(rows)
    whole, first, group = np.unique(marks, return_index=True, return_inverse=True)
    if len(whole) == len(rows):
        return rows, weights / weights.sum()
    if not np.array_equal(rows[first[group]], rows):  # different rows with one mark
        _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    mass = np.bincount(group.ravel(), weights=weights)[order]
    return rows[first[order]], mass / mass.sum()


def _marks(rows: np.ndarray) -> np.ndarray:
    """A number for each row, the same for equal ones and hardly ever for others."""
    odd = np.random.default_rng(0).integers(0, 2**63, rows.shape[1], np.uint64) * 2 + 1
    out = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), 4096):
        part = rows[start : start + 4096].astype(np.float64) + 0.0  # -0 is 0
        bits = part.view(np.uint64)
        bits ^= bits >> np.uint64(32)
        out[start : start + 4096] = (bits * odd).sum(axis=1)
    return out


def moments(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the population covariance under weights that sum to 1."""
    mean = weights @ rows
    centred = rows - mean
    covariance = (weights[:, None] * centred).T @ centred
    return mean, (covariance + covariance.T) / 2


def spread(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each column's population standard deviation; exactly 0 for a constant column."""
    parts = [slice(start, start + 4096) for start in range(0, len(rows), 4096)]
    if rows.dtype == np.float64:
        mean = weights @ rows
    else:
        mean = sum(weights[part] @ rows[part] for part in parts)
    square = np.zeros(rows.shape[1])
    for some in parts:
        part = rows[some] - mean
        square += weights[some] @ np.square(part, out=part)
    deviation = np.sqrt(square)
    return np.where(np.ptp(rows, axis=0) > 0, deviation, 0.0)


def positive(scale: np.ndarray) -> np.ndarray:
    """Replace zeros by the root mean square of the positive entries (by 1 if there are none)."""
    used = scale[scale > 0]
    return np.where(scale > 0, scale, np.sqrt(np.mean(used**2)) if used.size else 1.0)


def scott(weights: np.ndarray, dim: int) -> float:
    """Return Scott's factor n_eff^(-1/(dim+4)), n_eff = 1 / sum of squared normalised weights."""
    return float((1 / np.sum(weights**2)) ** (-1 / (dim + 4)))


def indices(columns: Any, dim: int, name: str = "columns") -> np.ndarray:
    """Return column indices (negative ones count from the end, a mask is fine) in 0..dim-1."""
    try:
        chosen = np.atleast_1d(np.asarray([] if columns is None else columns))
    except (TypeError, ValueError, RuntimeError):
        raise InvalidDataError(f"{name} is {shown(columns)}; expected column indices") from None
    if chosen.dtype == bool and chosen.shape == (dim,):
        return np.flatnonzero(chosen)
    if chosen.size == 0:
        return np.empty(0, dtype=int)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
        raise InvalidDataError(f"{name} is {shown(columns)}; expected column indices")
    if chosen.min() < -dim or chosen.max() >= dim:
        raise InvalidDataError(f"{name} is {columns!r}, but there are {dim} columns")
    return chosen % dim


def count(n: Any) -> int:
    """Return a number of draws, at least 1."""
    if not is_whole(n, 1):
        raise InvalidDataError(f"n is {shown(n)}; expected an integer >= 1")
    return int(n)


def double(values: Any, like: Tensor | None = None) -> Tensor:
    """Copy an array (a read-only memory map, too) into a float64 tensor on `like`'s device."""
    return torch.tensor(values, dtype=torch.float64, device=None if like is None else like.device)


def _check_shape(shape: tuple[int, ...], dim: int | None, name: str) -> None:
    if len(shape) != 2:
        raise InvalidDataError(
            f"{name} has shape {shape}; expected (n, {'d' if dim is None else dim}): "
            f"a single column is {name}.reshape(-1, 1)"
        )
    if dim is not None and shape[1] != dim:
        raise InvalidDataError(f"{name} has {shape[1]} columns; this measure lives on {dim}")
    if dim is None and 0 in shape:
        raise InvalidDataError(f"{name} has {shape[0]} samples and {shape[1]} columns; it is empty")
