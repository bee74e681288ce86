"""The distance of two samples, class by class, and its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drojko.estimators.observed.given import Part
from drojko.estimators.observed.halves import Halves, by_columns, by_rows
from drojko.estimators.observed.law import interval_of
from drojko.estimators.observed.moments import (
    Moments,
    compared_means,
    compared_moments,
    has_covariance,
)
from drojko.estimators.observed.units import Units

__all__ = ["Compared", "compare"]

_SURE, _SEEN = 1.96, 3.0


@dataclass(frozen=True, eq=False)
class Compared:
    """See `ObservedShift`; moved (d,) is the cost by column."""

    distance: float
    interval: tuple[float, float]
    at_most: float
    noise: float
    moved: np.ndarray
    rows: int


@dataclass(frozen=True, eq=False)
class _Square:
    """A squared distance of one class: an estimate, and the law of its error (`law`)."""

    square: float
    bias: float
    pairs: float
    pulls: tuple[np.ndarray, np.ndarray]
    moved: np.ndarray


@dataclass(frozen=True, eq=False)
class _Left:
    """What is left of a squared distance, beyond chance, and its variance where it is none."""

    found: float
    second: float
    pulls: tuple[np.ndarray, np.ndarray]
    within: float
    moved: np.ndarray
    rows: int

    @staticmethod
    def of(halves: Halves, order: int) -> _Left:
        slopes, found = np.ones(3), halves.across - float(halves.within.mean())
        within = float(halves.within.mean())
        if order == 1:
            slopes = 2.0 * np.array([halves.across, *halves.within])
            within = float((halves.within**2).mean())
            found = halves.across**2 - within
        pulls, second = halves.errors(slopes)
        return _Left(found, second, pulls, within, halves.moved, halves.rows)


def compare(
    units: Units, parts: list[tuple[Part, Part]], most: int, rng: np.random.Generator
) -> Compared:
    """Distance of samples of the classes ``parts``, each by its mass in the new one."""
    shuffled = [(_shuffled(old, rng), _shuffled(new, rng)) for old, new in parts]
    sizes = np.array([len(new[0]) for _, new in parts], dtype=float)
    mass = sizes / sizes.sum()
    each = [_Class(units, old, new, most, rng) for old, new in shuffled]
    squares = [one.base for one in each]
    lefts = [[one.left[k] for one in each] for k in range(len(each[0].left))]
    totals = [
        (
            sum(share * one.found for share, one in zip(mass, left, strict=True)),
            sum(share**2 * one.second for share, one in zip(mass, left, strict=True)),
        )
        for left in lefts
    ]
    seen = [k for k, (found, second) in enumerate(totals) if found > _SEEN * math.sqrt(second)]
    counted: list[Any] = [None] * len(each)
    more = 0.0
    if units.order == 1:
        beyond = [one.beyond_means for one in each]
        part = float(mass @ [one[0] for one in beyond])
        chance = math.sqrt(float(mass**2 @ [one[1] for one in beyond]))
        if seen or not each[0].translates or part > _SEEN * chance:
            squares = [one.whole() for one in each]
    elif seen:
        best = max(seen, key=lambda k: totals[k][0])
        counted, more = lefts[best], totals[best][1]
    square, bias, pairs, linear, moved, values = 0.0, 0.0, 0.0, more, 0.0, []
    for share, one, left in zip(mass, squares, counted, strict=True):
        found, pulls, by_column = one.square, one.pulls, one.moved
        excess = 0.0
        if left is not None:
            found, excess = found + left.found, 1.5 * left.second
            pulls = tuple(a + b for a, b in zip(pulls, left.pulls, strict=True))
            by_column = by_column + left.moved
        square, bias, pairs = (
            square + share * found,
            bias + share * one.bias,
            pairs + share**2 * one.pairs,
        )
        own = sum(float(pull @ pull) for pull in pulls)
        linear += share**2 * max(own - excess, 0.0)
        moved = moved + share * by_column
        values.append(found - one.bias)
    about = np.array(values) - mass @ values
    linear += float(mass @ about**2) / float(sizes.sum())  # shares are a sample as well
    distance, interval = interval_of(square, bias, pairs, linear)
    hidden = max((f + _SURE * math.sqrt(s) for f, s in totals), default=0.0)
    within = sum(share * one.left[0].within for share, one in zip(mass, each, strict=True))
    known = not seen and squares[0] is each[0].base
    return Compared(
        distance,
        interval,
        math.sqrt(interval[1] ** 2 + max(hidden, 0.0)) if known else interval[1],
        math.sqrt(max(within, 0.0)),
        _spread(units, moved),
        each[0].left[0].rows,
    )


class _Class:
    """Rows of one class of both samples."""

    def __init__(self, units: Units, old: Part, new: Part, most: int, rng: Any) -> None:
        self.units, self.most, self.rng = units, most, rng
        self.points = units.points(old[0]), units.points(new[0])
        self.labels = old[1], new[1]
        self.translates = units.euclidean and not math.isfinite(units.label_cost)
        moments = compared_moments(*self.points)
        self.beyond_means = moments.beyond_means
        if units.order == 2:
            self.base = _square(moments)
            halfway = moments.halfway
            self.left = [
                _Left.of(self._halves(by_rows(units, halfway, self.labels)), 2),
                _Left.of(self._halves(by_columns(halfway), all_rows=True), 2),
            ]
            whole = has_covariance(*self.points)
            self.left.append(self._columns(moments) if whole else self.left[1])
        else:
            self.base = _square(compared_means(*self.points))
            about = tuple(rows - rows.mean(0) for rows in self.points)
            self.left = [_Left.of(self._halves(by_rows(units, about, self.labels)), 1)]

    def _columns(self, moments: Moments) -> _Left:
        """What the columns one by one show more than means and covariances, as categories do."""
        alone = compared_moments(*self.points, whole=False)
        left = _Left.of(self._halves(by_columns(alone.halfway), all_rows=True), 2)
        less = alone.square - alone.bias - moments.square + moments.bias
        parts = zip(left.pulls, alone.pulls, moments.pulls, strict=True)
        pulls = tuple(a + b - c for a, b, c in parts)
        moved = left.moved + alone.moved - moments.moved
        second = left.second + 2.0 * moments.pairs
        return replace(left, found=left.found + less, second=second, pulls=pulls, moved=moved)

    def whole(self) -> _Square:
        """Order 1: everything, by halves alone."""
        left = _Left.of(self._halves(by_rows(self.units, self.points, self.labels)), 1)
        return _Square(left.found, 0.0, 0.5 * left.second, left.pulls, left.moved)

    def _halves(self, pair: Any, *, all_rows: bool = False) -> Halves:
        sizes = len(self.points[0]), len(self.points[1])
        return Halves.of(sizes, max(sizes) if all_rows else self.most, self.rng, pair)


def _square(moments: Moments) -> _Square:
    return _Square(moments.square, moments.bias, moments.pairs, moments.pulls, moments.moved)


def _shuffled(part: Part, rng: np.random.Generator) -> Part:
    order = rng.permutation(len(part[0]))
    return part[0][order], part[1][order]


def _spread(units: Units, moved: Any) -> np.ndarray:
    """Of all columns: those that cannot move do not."""
    total = np.zeros(len(units.mutable))
    total[units.mutable] = moved
    return total
