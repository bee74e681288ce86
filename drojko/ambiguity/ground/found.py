"""Which columns hold categories, one-hot groups and whole numbers: what ``"auto"`` finds in rows.

Names help where values alone leave it open. Nothing here is imported unless somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from drojko.ambiguity.ground.columns import Categories, one_hot_groups

__all__ = ["Kinds", "kinds_of", "swap_price"]


@dataclass(frozen=True, eq=False)
class Kinds:
    """Columns by what they hold; each column is in one of these or a plain number.

    Attributes
    ----------
    groups : list of lists of int
        One-hot groups.
    codes : list of int
        Columns of two values: yes and no, or a category left with one column.
    whole : list of int
        Columns of whole numbers: counts, months, codes.
    """

    groups: list[list[int]]
    codes: list[int]
    whole: list[int]


def kinds_of(
    X: np.ndarray, names: Sequence[str] | None = None, known: Iterable[Sequence[int]] = ()
) -> Kinds:
    """What the columns of rows X (n, d) hold; ``known`` one-hot groups are taken as they are.

    A one-hot group is a run of columns of 0 and 1 with one 1 in each row, or columns of 0 and 1
    with at most one 1 in each row whose names share all but what follows the last underscore.

    Examples
    --------
    >>> X = np.array([[1, 0, 0.5, 3, 1], [0, 1, 0.1, 4, 1], [1, 0, 0.2, 9, 0.0]])
    >>> found = kinds_of(X)
    >>> found.groups, found.codes, found.whole
    ([[0, 1]], [4], [3])
    """
    d = X.shape[1]
    groups = [list(group) for group in known]
    taken = {column for group in groups for column in group}
    low, high = X.min(axis=0), X.max(axis=0)
    binary = ((X == 0) | (X == 1)).all(axis=0)
    start = 0
    while start < d:
        end = _run(X, binary, taken, start)
        if end is None:
            start += 1
        else:
            groups.append(list(range(start, end)))
            taken |= set(groups[-1])
            start = end
    if names is not None:
        place = {str(name): j for j, name in enumerate(names)}
        free = [str(n) for j, n in enumerate(names) if binary[j] and j not in taken]
        for group in one_hot_groups(free):
            columns = [place[name] for name in group]
            if X[:, columns].sum(axis=1).max() <= 1:
                groups.append(columns)
                taken |= set(columns)
    two = ((low == X) | (high == X)).all(axis=0) & (low < high)
    codes = [j for j in range(d) if two[j] and j not in taken]
    whole = (np.round(X) == X).all(axis=0)
    return Kinds(groups, codes, [j for j in range(d) if whole[j] and j not in {*taken, *codes}])


def _run(X: np.ndarray, binary: np.ndarray, taken: set[int], start: int) -> int | None:
    """Where the one-hot group ends that begins with a column, if one does."""
    total = np.zeros(len(X))
    for j in range(start, X.shape[1]):
        if not binary[j] or j in taken:
            return None
        total += X[:, j]
        if total.max() > 1:
            return None
        if total.min() == 1:
            return j + 1 if j > start else None
    return None


def swap_price(categories: Categories, X: np.ndarray, unit: float) -> np.ndarray:
    r"""The price of a swap in each group, shape (G,), that makes it as dear as a number.

    .. math:: c_g = \frac{2 u}{1 - \sum_k p_{gk}^2}

    with shares p of the categories in the rows X (n, d) and ``unit`` u the mean weighted variance
    of the columns that move. Two random rows are then as far apart, on average, in each category
    as in each number: 2 u. A category that hardly varies costs more.
    """
    prices = []
    for columns in categories.columns:
        _, counts = np.unique(X[:, columns], axis=0, return_counts=True)
        differ = 1.0 - float(np.sum((counts / len(X)) ** 2))
        prices.append(2.0 * unit / differ if differ > 0 else np.inf)
    return np.array(prices)
