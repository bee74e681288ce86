"""Samples of weighted rows."""

from __future__ import annotations

import numpy as np

from drojko.rows.rows import Rows

__all__ = ["drawn", "stratified", "without_repeats"]

_RARE = 0.5  # share of a column's variance that a sample is to have, ...
_EXTREME = 32  # ... or so many of its largest entries


def stratified(
    y: np.ndarray, w: np.ndarray, size: int, classes: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a sample of rows, and their weights.

    Each of two classes gives half of the sample, or all it has: a rare one counts for little in
    the mean and for much in the curvature. Within a class rows are drawn by weight, one from each
    of as many slices of equal weight: rows in any order are represented.
    """
    random = np.random.default_rng(0)  # the same sample in every fit
    strata = [y == k for k in (0, 1)] if classes else [np.ones(len(y), dtype=bool)]
    index, weight, equal = [], [], w.strides == (0,)
    for inside in strata:
        rows = np.flatnonzero(inside if equal else inside & (w > 0))
        count, mass = -(-size // len(strata)), w[rows]
        if rows.size > count:
            at = (np.arange(count) + random.random(count)) / count
            total = rows.size * w[0] if equal else np.cumsum(mass)
            if equal:
                picked = (at * rows.size).astype(int)
            else:
                picked = np.searchsorted(total, at * total[-1], side="right")
                total = total[-1]
            rows = rows[np.minimum(picked, rows.size - 1)]
            mass = np.full(count, total / count)
        index.append(rows)
        weight.append(mass)
    return np.concatenate(index), np.concatenate(weight)


def without_repeats(index: np.ndarray) -> np.ndarray:
    """Without repeats; of runs that are in order this is a merge."""
    index = np.sort(index, kind="stable")
    return index[np.append(True, index[1:] != index[:-1])]


def drawn(rows: Rows, size: int, classes: bool) -> tuple[np.ndarray, Rows]:
    """A sample of so many rows, with the largest entries of columns that it hardly meets.

    Indices do not fall, and depend on the rows alone, not on how many processes share them.
    """
    index, weights = stratified(rows.y, rows.w, size, classes)
    index, weights = _in_order(index, weights)
    some = rows.take(index, weights)
    rare = np.flatnonzero((some.squares(some.w) < _RARE) & rows.free)[: size // _EXTREME]
    if not rare.size:
        return index, some
    top = rows.extremes(rare, _EXTREME)
    top = np.setdiff1d(top[rows.w[top] > 0], index)
    index, weights = np.append(index, top), np.append(weights, rows.w[top])
    index, weights = _in_order(index, weights)
    return index, rows.take(index, weights)


def _in_order(index: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as they lie, so that those of a process are a run."""
    order = np.argsort(index, kind="stable")
    return index[order], weights[order]
