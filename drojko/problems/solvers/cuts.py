"""Cutting planes of a convex risk: their least value, bounds that need no box, level sets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from drojko.problems.constraints import Region
from drojko.problems.families.oracle import Answer
from drojko.problems.solvers.program import Program, View

__all__ = ["Cuts", "Relaxed"]

_CANCELLED = 1e-10  # what is left of slopes that cancel, relative to their sizes
_NOISE = 1e-13  # rounding of a mean of slopes, relative to the slopes


@dataclass(frozen=True)
class Relaxed:
    """Least value ``low`` of the cuts in a box of half-width ``width``, attained at ``point``.

    ``proven`` holds everywhere: -inf where the cuts have no lower bound outside of the box.
    """

    low: float
    proven: float
    point: np.ndarray
    width: np.ndarray


@dataclass(frozen=True)
class Cuts:
    """Affine functions below the risk: f(x) >= heights + slopes @ (x - points).

    Each is kept with its own point: far from the origin an intercept would lose its digits.
    ``walls`` are rows and right-hand sides that every decision with a finite risk meets.
    """

    slopes: np.ndarray
    points: np.ndarray
    heights: np.ndarray
    walls: tuple[tuple[np.ndarray, float], ...] = ()

    @staticmethod
    def first(point: np.ndarray, answer: Answer) -> Cuts:
        return Cuts(answer.gradient[None], point[None], np.array([answer.attained]))

    def add(self, point: np.ndarray, answer: Answer, kept: np.ndarray) -> Cuts:
        """Those that are kept and a new one."""
        return replace(
            self,
            slopes=np.vstack([self.slopes[kept], answer.gradient]),
            points=np.vstack([self.points[kept], point]),
            heights=np.append(self.heights[kept], answer.attained),
        )

    def at(self, point: np.ndarray) -> np.ndarray:
        """Value of each cut at a point."""
        return self.heights + ((point - self.points) * self.slopes).sum(1)

    def relax(
        self, view: View, upper: float, width: np.ndarray, noise: np.ndarray
    ) -> Relaxed | None:
        """Least value in the box of half-width ``width`` around the best point; None: failed.

        ``noise`` are the sizes of the slopes whose mean a cut is.
        """
        best, scale, unit = view.best, view.scale, view.unit
        n, m = len(scale), len(self.heights)
        program = self._program(view, width, 1)
        values = self.at(best)
        matrix = np.column_stack([self.slopes * scale / unit, -np.ones(m)])
        program.add("rows", matrix, (upper - values) / unit)
        found, multipliers, dual = program.solve(np.zeros(n + 1), np.append(np.zeros(n), 1.0))
        if found is None or multipliers is None:
            return None
        low = upper + unit * min(float(found[-1]), dual)
        point = best + scale * found[:n]
        scaled = multipliers * np.append(np.full(len(multipliers) - m, unit), np.ones(m))
        proven = self._bound(view, values, width, point, scaled, noise)
        return Relaxed(low, proven, point, width)

    def _bound(
        self,
        view: View,
        values: np.ndarray,
        width: np.ndarray,
        point: np.ndarray,
        multipliers: np.ndarray,
        noise: np.ndarray,
    ) -> float:
        """A bound from any multipliers: what solvers get wrong makes it weaker, never false.

        The cuts' convex combination is affine; on boxes and balls its minimum is a formula, and
        where a variable may go anywhere its slope has to vanish. The multipliers of sums may have
        any sign, those of walls are clipped at zero.
        """
        region, best = view.region, view.best
        m, k = len(values), len(self.walls)
        sums = np.zeros((len(region.sums), len(best)))
        for row, (where, _) in zip(sums, region.sums, strict=True):
            row[where] = 1.0  # the best point has the right sum: no part in the value
        walls = np.array([row for row, _ in self.walls]).reshape(k, len(best))
        past = walls @ best - np.array([bound for _, bound in self.walls])
        rows = np.vstack([self.slopes, walls, sums])
        prices = np.concatenate(
            [multipliers[-m:], multipliers[-m - k : -m], multipliers[: len(sums)]]
        )
        free = np.ones(len(best), bool)
        free &= np.abs(point - region.lower) > 1e-6 * width
        free &= np.abs(point - region.upper) > 1e-6 * width
        for where, _, _ in region.balls:
            free[where] = False
        low, high = _reach(region, best)
        found = -math.inf
        # Interior points leave small prices on every cut; where few of them do not cancel, take in
        # more: a cut from next to the optimum needs a price as small as its slope.
        for least in (1e-7, 1e-11, 1e-15):
            tried = _balanced(rows * np.where(free, width, 0.0), prices, m, m + k, least)
            shares = tried[:m]
            if not shares.sum() > 0:
                continue
            tried = tried / np.append(np.full(m, shares.sum()), np.ones(len(tried) - m))
            slope, value = tried @ rows, float(tried[: m + k] @ np.append(values, past))
            end = np.where(slope > 0, low, high)
            left = _CANCELLED * (np.abs(tried) @ np.abs(rows)) + _NOISE * noise
            if (np.isinf(end) & (np.abs(slope) > left)).any():
                continue
            # What is left is rounding, as far as moves of some widths go.
            lost = np.where(np.isinf(end), -10.0 * width * np.abs(slope), 0.0)
            inside = np.isfinite(end)
            lost[inside] = slope[inside] * end[inside]
            for where, centre, radius in region.balls:
                part = slope[where]
                ball = float(part @ (centre - best[where]) - radius * np.linalg.norm(part))
                if ball > float(lost[where].sum()):
                    lost[where] = 0.0
                    value += ball
            found = max(found, value + float(lost.sum()))
            break
        return found

    def project(
        self, view: View, target: float, width: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Nearest point of the level set to the best one, and the cuts' slack there.

        It is no farther than the corners of the box that reaches the level.
        """
        best, scale, unit = view.best, view.scale, view.unit
        program = self._program(view, math.sqrt(len(best)) * width, 0)
        program.add("rows", self.slopes * scale / unit, (target - self.at(best)) / unit)
        found, _, _ = program.solve(np.ones(len(scale)), np.zeros(len(scale)))
        if found is None:
            return None, None
        point = best + scale * found
        return point, target - self.at(point)

    def _program(self, view: View, width: np.ndarray, extra: int) -> Program:
        """The region, a box and the walls."""
        program = Program.of(view, width, extra)
        if self.walls:
            slopes = np.vstack([slope for slope, _ in self.walls])
            bounds = np.array([bound for _, bound in self.walls]) - slopes @ view.best
            program.add("rows", np.pad(slopes * view.scale, ((0, 0), (0, extra))), bounds)
        return program


def _reach(region: Region, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each variable can go from the best point inside the region, either way."""
    low, high = region.lower.copy(), region.upper.copy()
    for where, total in region.sums:
        others = (_others(low[where]), _others(-high[where]))
        high[where] = np.minimum(high[where], total - others[0])
        low[where] = np.maximum(low[where], total + others[1])
    for where, centre, radius in region.balls:
        low[where] = np.maximum(low[where], centre - radius)
        high[where] = np.minimum(high[where], centre + radius)
    return np.minimum(low - best, 0.0), np.maximum(high - best, 0.0)


def _others(bounds: np.ndarray) -> np.ndarray:
    """Sum of the other entries, each finite or -inf."""
    missing = np.isinf(bounds)
    known = np.where(missing, 0.0, bounds)
    return np.where(missing.sum() - missing > 0, -math.inf, known.sum() - known)


def _balanced(
    rows: np.ndarray, prices: np.ndarray, cuts: int, signed: int, least: float
) -> np.ndarray:
    """Prices nearby whose combination of rows vanishes, their cuts' share being one.

    Interior-point multipliers leave a slope of 1e-8, which a wide box makes a large error of.
    """
    prices = prices.copy()
    prices[:signed] = np.maximum(prices[:signed], 0.0)
    total = prices[:cuts].sum()
    if not total > 0:
        return prices
    prices[:cuts] /= total
    used = prices > least
    used[signed:] = True
    size = np.abs(rows).max() or 1.0
    ones = np.append(np.ones(cuts), np.zeros(len(prices) - cuts))
    system = np.vstack([rows[used].T / size, ones[used]])
    start = np.where(used, prices, 0.0)
    for _ in range(2):
        left = np.append(np.zeros(rows.shape[1]), 1.0) - system @ start[used]
        # Small prices move little.
        weights = np.sqrt(np.maximum(np.abs(start[used]), 1e-12))
        start[used] += weights * np.linalg.lstsq(system * weights, left, rcond=1e-14)[0]
    start[:signed] = np.maximum(start[:signed], 0.0)
    return start
