"""Transport between halves of samples: what laws differ by, less what chance adds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from drojko.estimators.observed.given import classes_of
from drojko.estimators.observed.moments import alike, has_covariance
from drojko.estimators.observed.units import Units

__all__ = ["Halves", "by_columns", "by_rows", "distance_of_halves"]

_REPEATS = 10  # random halves, of `distance_of_halves`
_SPLITS = 4  # of both samples, into random halves
_SWEEPS = 50  # of potentials
#: Mean cost of the best pairs, potentials of both sides (m,), and cost by column (d,).
Pairing = Callable[[int, np.ndarray, int, np.ndarray], tuple[float, np.ndarray, np.ndarray, Any]]


@dataclass(frozen=True, eq=False)
class Halves:
    """Costs between halves of two samples, and what each row adds to them."""

    across: float  # between halves of different samples
    within: np.ndarray  # (2,): between the halves of one
    pulls: tuple[np.ndarray, np.ndarray]  # (splits, n, 2), (splits, m, 2); NaN: not drawn
    moved: np.ndarray  # (d,): cost across by column, less that within
    rows: int

    @property
    def beyond_chance(self) -> float:
        return self.across - float(self.within.mean())

    def errors(self, slopes: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        """What each row adds to slopes (3,) times the costs, and the variance that stays at 0.

        The latter from what halvings differ by, row by row: it is counted in the former, too.
        """
        rows, second = [], 0.0
        for side, pull in enumerate(self.pulls):
            drawn = ~np.isnan(pull[:, :, 0])
            each = slopes[0] * pull[:, :, 0] - slopes[1 + side] * pull[:, :, 1]
            row = np.nansum(each, 0) / _SPLITS
            times = drawn.sum(0)
            about = np.where(drawn, each - _SPLITS * row / np.maximum(times, 1), 0.0)
            again = times > 1
            own = (about[:, again] ** 2).sum(0) / (times[again] - 1)
            second += 2 * self.rows * float(own.mean())
            rows.append(row)
        return (rows[0], rows[1]), second

    @staticmethod
    def of(sizes: tuple[int, int], most: int, rng: np.random.Generator, pair: Pairing) -> Halves:
        """Compare halves by pair(side, rows, side, rows), of the first 4 ``most`` rows."""
        m = min(*(size // 2 for size in sizes), most)
        pools = [min(size, _SPLITS * m) for size in sizes]
        across, within, moved = 0.0, np.zeros(2), 0.0
        pulls = tuple(np.full((_SPLITS, size, 2), np.nan) for size in sizes)
        for k in range(_SPLITS):
            halves = [rng.permutation(size)[: 2 * m].reshape(2, m) for size in pools]
            for pull, both in zip(pulls, halves, strict=True):
                pull[k, both.ravel()] = 0.0
            for a in halves[0]:
                for b in halves[1]:
                    cost, u, v, by_column = pair(0, a, 1, b)
                    across += cost / (4 * _SPLITS)
                    moved = moved + by_column / (4 * _SPLITS)
                    pulls[0][k, a, 0] += u / (4 * m)
                    pulls[1][k, b, 0] += v / (4 * m)
            for side, (a, b) in enumerate(halves):
                cost, u, v, by_column = pair(side, a, side, b)
                within[side] += cost / _SPLITS
                moved = moved - by_column / (2 * _SPLITS)
                pulls[side][k, a, 1] = u / (2 * m)
                pulls[side][k, b, 1] = v / (2 * m)
        return Halves(across, within, (pulls[0], pulls[1]), np.maximum(moved, 0.0), m)


def by_rows(units: Units, points: Any, labels: Any) -> Pairing:
    """Best pairs of rows of two samples of points (n, k) and labels (n,), by an assignment.

    In order 2 beyond means and covariances: halves are made alike in them first.
    """
    whole = has_covariance(*points)

    def pair(side: int, a: np.ndarray, other: int, b: np.ndarray) -> Any:
        x, z = points[side][a], points[other][b]
        if units.order == 2:
            x, z = alike(x, z, whole)
        costs = units.costs(x, z, labels[side][a], labels[other][b])
        partner = linear_sum_assignment(costs)[1]
        u, v = _potentials(costs, partner)
        move = np.abs(x - z[partner]) ** units.order
        return float(costs[np.arange(len(x)), partner].mean()), u, v, move.mean(0)

    return pair


def by_columns(points: Any) -> Pairing:
    """Each column for itself, in order 2: less than the distance of the rows, and less noisy.

    Beyond means and spreads: halves are made alike in them first.
    """

    def pair(side: int, a: np.ndarray, other: int, b: np.ndarray) -> Any:
        x, z = alike(points[side][a], points[other][b], False)
        first, second = np.argsort(x, 0), np.argsort(z, 0)
        x, z = np.take_along_axis(x, first, 0), np.take_along_axis(z, second, 0)
        gap = x - z
        cost = (gap**2).mean(0)
        total = []
        # the potential's slope is twice the gap
        for line, sign, order in ((x, 1.0, first), (z, -1.0, second)):
            steps = np.diff(line, axis=0) * sign * (gap[1:] + gap[:-1])
            potential = np.vstack([np.zeros(line.shape[1]), np.cumsum(steps, 0)])
            back = np.empty_like(potential)
            np.put_along_axis(back, order, potential, 0)
            total.append(back.sum(1))
        u, v = total
        return float(cost.sum()), u - u.mean(), v - v.mean(), cost

    return pair


def _potentials(costs: np.ndarray, partner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows and the columns of costs (m, m), with mean 0.

    u_i + v_j <= c_ij, with equality for pairs: u_i <= u_j + c_ij - c_jj (Bellman and Ford).
    """
    costs = costs[:, partner]
    own = costs.diagonal().copy()
    u, steps = np.zeros(len(costs)), costs - own
    for _ in range(_SWEEPS):
        before, u = u, (u + steps).min(1)
        if np.allclose(u, before, rtol=1e-6, atol=0.0):
            break
    v = np.empty_like(u)
    v[partner] = own - u
    return u - u.mean(), v - v.mean()


def distance_of_halves(
    ambiguity: Any, X: np.ndarray, y: np.ndarray | None = None, *, max_rows: int, seed: int = 0
) -> tuple[float, int]:
    """Mean distance of random halves of rows X (n, d), and how many rows a half has.

    In the units of `observed_shift`: within the classes y (n,), of at least 16 rows each.
    """
    names = [f"x{k}" for k in range(X.shape[1])]
    units, rng = Units.of(ambiguity, names, X), np.random.default_rng(seed)
    if y is not None:
        kinds, index, count = np.unique(y, return_inverse=True, return_counts=True)
        kept = (count >= 16)[index]
        X, y = X[kept], (index[kept].astype(float) if len(kinds) <= 100 else None)
    if len(X) < 16:
        return math.nan, 0
    found, rows, mass = 0.0, 0, []
    for (part, label), _ in classes_of(y, y, X, X, units.label_cost):
        mass.append(len(part) / len(X))
        m = min(len(part) // 2, max_rows)
        points, costs = units.points(part), []
        for _ in range(_REPEATS):
            order = rng.permutation(len(part))
            a, b = order[:m], order[m : 2 * m]
            cost = units.costs(points[a], points[b], label[a], label[b])
            costs.append(float(cost[linear_sum_assignment(cost)].mean()))
        found, rows = found + mass[-1] * float(np.mean(costs)), rows + m
    return found ** (1.0 / units.order), rows
