"""Level bundle method: convex problems with few variables, smooth or not, with a proven gap."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from drojko._driver import Status
from drojko.exceptions import UnboundedRiskError
from drojko.problems.constraints import Region
from drojko.problems.oracle import Answer, Oracle, Wall

__all__ = ["LevelBundle", "LevelState"]

_LEVEL = 0.3  # where the level lies between the two bounds
_STALLED, _PATIENCE = 5, 60  # steps that end a run: without a new point, without a smaller gap
_ROUNDING = 1e-6  # a relative gap that such a run may end with


@dataclass(frozen=True)
class LevelState:
    """Cuts f >= slopes @ x + offsets, the best point, and bounds of the optimum on both sides.

    ``width`` is the half-width of the box around the best point that keeps the relaxation bounded
    until the cuts do; ``relative`` the scale that the tolerance refers to; ``walls`` rows and
    right-hand sides that every decision with a finite worst case meets; ``waited`` counts the steps
    since the gap last fell clearly below ``mark``.
    """

    slopes: np.ndarray
    offsets: np.ndarray
    best: np.ndarray
    upper: float
    lower: float
    width: np.ndarray
    relative: float
    stalled: int = 0
    mark: float = math.inf
    waited: int = 0
    walls: tuple[tuple[np.ndarray, float], ...] = ()

    @property
    def gap(self) -> float:
        """Proven distance of the best value from the optimum."""
        return max(0.0, self.upper - self.lower)


@dataclass(frozen=True)
class LevelBundle:
    r"""Project the best point onto a level set of the cuts:

    .. math:: \theta_{k+1} = \arg\min\{\|\theta - \hat\theta\|_D : m_k(\theta) \le
        0.3\,\overline v + 0.7\,\underline v,\; \theta \in \Theta\}

    with the model m_k, the largest of all cuts, its minimum as the lower bound v and the best
    value found as the upper one. Where nothing bounds the decision, the lower bound holds in a box
    at least ten times as wide as the steps so far. It needs O((1 / gap)^2) steps at most, in
    practice some per variable and digit. (C. Lemarechal, A. Nemirovskii, Y. Nesterov, 1995, New
    variants of bundle methods, Mathematical Programming 69.)
    """

    oracle: Oracle
    region: Region
    tol: float

    def init(self, problem: Any = None) -> LevelState:
        """The first point and its cut."""
        point = self.region.project(torch.from_numpy(self.oracle.start())).numpy()
        answer = self.oracle(point)
        if not isinstance(answer, Answer):
            raise UnboundedRiskError(
                "the worst-case risk is infinite at the first decision; start at params whose "
                "worst case is finite, raise the penalty, or give a radius"
            )
        # A loss that is zero at the first decision has the size of what a unit step changes.
        steep = float(np.abs(answer.gradient).max())
        relative = self._mean_size(point)
        relative = relative if relative > 1e-9 * steep else steep
        offset = answer.attained - answer.gradient @ point
        return LevelState(
            answer.gradient[None],
            np.array([offset]),
            point,
            answer.value,
            -math.inf,
            np.zeros(len(point)),
            relative,
        )

    def step(self, state: LevelState) -> LevelState:
        """One relaxation, one projection, one answer."""
        state = self._advance(state)
        if state.gap < 0.95 * state.mark:
            return replace(state, mark=state.gap, waited=0)
        return replace(state, waited=state.waited + 1)

    def _advance(self, state: LevelState) -> LevelState:
        scale = _scales(state)
        state = replace(state, width=np.maximum(state.width, scale))
        low, sure, at_low = self._relax(state, scale)
        # Where the bound depends on the box, the box is too small.
        missing = state.upper - sure
        active = not missing <= max(2.0 * (state.upper - low), 0.5 * self._allowed(state))
        touched = bool((np.abs(at_low - state.best) > 0.99 * state.width).any())
        width = state.width * (8.0 if active and touched else 1.0)
        lower = max(state.lower, min(sure, state.upper))
        target = max(low, state.lower)
        target = target + _LEVEL * (state.upper - target)
        state = replace(state, lower=lower, width=width)
        if state.gap <= self._allowed(state):
            return state
        candidate, slack = self._project(state, target, scale)
        if candidate is None:
            candidate = at_low
        candidate = self.region.project(torch.from_numpy(candidate)).numpy()
        # Where the worst case is infinite: back towards the best point, first by a little.
        aim, shares = candidate, (1.0, 0.9999, 0.99, 0.9, *0.5 ** np.arange(1.0, 50.0))
        for share in shares:
            candidate = state.best + share * (aim - state.best)
            answer = self.oracle(candidate)
            if isinstance(answer, Answer):
                break
            if isinstance(answer, Wall):
                bound = float(answer.gradient @ candidate) - answer.excess
                state = replace(state, walls=(*state.walls, (answer.gradient, bound)))
        else:
            return replace(state, stalled=state.stalled + 1)
        kept = np.ones(len(state.offsets), bool)
        most = 3 * len(candidate) + 60
        if slack is not None and len(slack) >= most:
            kept[np.argsort(-slack)[: len(slack) - most + 20]] = False
        slopes = np.vstack([state.slopes[kept], answer.gradient])
        offsets = np.append(state.offsets[kept], answer.attained - answer.gradient @ candidate)
        found = replace(state, slopes=slopes, offsets=offsets)
        still = bool(np.allclose(candidate, state.best, rtol=1e-14, atol=0.0))
        found = replace(found, stalled=state.stalled + 1 if still and not active else 0)
        if answer.value < state.upper:
            relative = max(self._mean_size(candidate), 1e-9 * state.relative)
            found = replace(found, best=candidate, upper=answer.value, relative=relative)
        return found

    def _mean_size(self, point: np.ndarray) -> float:
        """Mean of |loss| at a decision."""
        with torch.no_grad():
            self.oracle.load(point)
            losses = self.oracle.module(self.oracle.draws.x)
        return float(self.oracle.draws.w @ losses.double().abs())

    def _allowed(self, state: LevelState) -> float:
        return self.tol * self._size(state) + 1e-300

    @staticmethod
    def _size(state: LevelState) -> float:
        return abs(state.upper) + 0.01 * state.relative

    def finite(self, state: LevelState) -> bool:
        """Whether the point and its value are; the lower bound may be infinite."""
        return math.isfinite(state.upper) and bool(np.isfinite(state.best).all())

    def terminate(self, state: LevelState) -> Status | None:
        """Converged when the gap is within the tolerance."""
        if state.gap <= self._allowed(state):
            return Status.CONVERGED
        if state.stalled < _STALLED and state.waited < _PATIENCE + 2 * len(state.best):
            return None
        # Rounding: no step closes the gap any more.
        close = state.gap <= max(_ROUNDING, self.tol) * self._size(state)
        return Status.CONVERGED if close else Status.MAX_ITER

    def record(self, state: LevelState) -> dict[str, float]:
        """A row of the history."""
        return {"robust_risk": state.upper, "lower_bound": state.lower, "gap": state.gap}

    # -- the two programs --------------------------------------------------------------------

    def _relax(self, state: LevelState, scale: np.ndarray) -> tuple[float, float, np.ndarray]:
        """Least value of the cuts in the box, a proven bound in one ten times as wide, a point."""
        n, m = len(scale), len(state.offsets)
        unit = _unit(state)
        program = _Program.of(self.region, state.best, scale, 1)
        _wall_in(program, state, scale)
        values = state.slopes @ state.best + state.offsets
        matrix = np.column_stack([state.slopes * scale / unit, -np.ones(m)])
        program.rows(matrix, (state.upper - values) / unit)
        eye = np.column_stack([np.eye(n), np.zeros(n)])
        program.rows(np.vstack([eye, -eye]), np.tile(state.width / scale, 2))
        found, multipliers, dual = program.solve(np.zeros(n + 1), np.append(np.zeros(n), 1.0))
        if found is None or multipliers is None:
            return state.lower, -math.inf, state.best
        low = state.upper + unit * min(float(found[-1]), dual)
        point = state.best + scale * found[:n]
        scaled = multipliers[: -2 * n] * np.append(
            np.full(len(multipliers) - 2 * n - m, unit), np.ones(m)
        )
        return low, self._bound(state, values, point, scaled), point

    def _bound(
        self, state: LevelState, values: np.ndarray, point: np.ndarray, multipliers: np.ndarray
    ) -> float:
        """A bound from any multipliers: what solvers get wrong makes it weaker, never false.

        The cuts' convex combination is affine; on boxes and balls its minimum is a formula. The
        multipliers of sums may have any sign, those of walls are clipped at zero.
        """
        region, best, m, k = self.region, state.best, len(values), len(state.walls)
        sums = np.zeros((len(region.sums), len(best)))
        for row, (where, _) in zip(sums, region.sums, strict=True):
            row[where] = 1.0  # the best point has the right sum: no part in the value
        walls = np.array([row for row, _ in state.walls]).reshape(k, len(best))
        past = walls @ best - np.array([bound for _, bound in state.walls])
        rows = np.vstack([state.slopes, walls, sums])
        prices = np.concatenate(
            [multipliers[-m:], multipliers[-m - k : -m], multipliers[: len(sums)]]
        )
        free = np.ones(len(best), bool)
        free &= np.abs(point - region.lower) > 1e-6 * state.width
        free &= np.abs(point - region.upper) > 1e-6 * state.width
        for where, _, _ in region.balls:
            free[where] = False
        prices = _balanced(rows * np.where(free, state.width, 0.0), prices, m, m + k)
        shares = prices[:m]
        if not shares.sum() > 0:
            return -math.inf
        prices = prices / np.append(np.full(m, shares.sum()), np.ones(len(prices) - m))
        slope, value = prices @ rows, float(prices[: m + k] @ np.append(values, past))
        low = np.maximum(np.minimum(region.lower - best, 0.0), -10.0 * state.width)
        high = np.minimum(np.maximum(region.upper - best, 0.0), 10.0 * state.width)
        least = np.minimum(slope * low, slope * high)
        for where, centre, radius in region.balls:
            part = slope[where]
            ball = float(part @ (centre - best[where]) - radius * np.linalg.norm(part))
            if ball > float(least[where].sum()):
                least[where] = 0.0
                value += ball
        return value + float(least.sum())

    def _project(
        self, state: LevelState, target: float, scale: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Nearest point of the level set to the best one, and the cuts' slack there."""
        unit = _unit(state)
        values = state.slopes @ state.best + state.offsets
        program = _Program.of(self.region, state.best, scale, 0)
        _wall_in(program, state, scale)
        program.rows(state.slopes * scale / unit, (target - values) / unit)
        found, _, _ = program.solve(np.ones(len(scale)), np.zeros(len(scale)))
        if found is None:
            return None, None
        point = state.best + scale * found
        return point, target - (state.slopes @ point + state.offsets)


def _scales(state: LevelState) -> np.ndarray:
    """Size of a move in each variable that changes the value by one unit of it."""
    # The median: cuts far away, where a dual variable is near zero, are steeper by orders.
    steep = np.median(np.abs(state.slopes), axis=0)
    floor = 1e-6 * steep.max() if steep.max() > 0 else 1.0
    value = max(abs(state.upper), state.relative, 1e-300)
    # Near an optimum slopes say nothing of scales: no farther than ten times what there is.
    return np.minimum(value / np.maximum(steep, floor), 10.0 * max(1.0, np.abs(state.best).max()))


def _balanced(rows: np.ndarray, prices: np.ndarray, cuts: int, signed: int) -> np.ndarray:
    """Prices nearby whose combination of rows vanishes, their cuts' share being one.

    Interior-point multipliers leave a slope of 1e-8, which a wide box makes a large error of.
    """
    prices = prices.copy()
    prices[:signed] = np.maximum(prices[:signed], 0.0)
    total = prices[:cuts].sum()
    if not total > 0:
        return prices
    prices[:cuts] /= total
    used = prices > 1e-7
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


def _wall_in(program: _Program, state: LevelState, scale: np.ndarray) -> None:
    if state.walls:
        slopes = np.vstack([slope for slope, _ in state.walls])
        bounds = np.array([bound for _, bound in state.walls]) - slopes @ state.best
        extra = np.zeros((len(slopes), program.size - len(scale)))
        program.rows(np.column_stack([slopes * scale, extra]), bounds)


def _unit(state: LevelState) -> float:
    gap = state.gap
    return gap if 0.0 < gap < math.inf else max(abs(state.upper), state.relative, 1e-300)


@dataclass
class _Program:
    """A quadratic program in scaled moves y from a centre, for Clarabel."""

    size: int
    matrices: list[np.ndarray]
    bounds: list[np.ndarray]
    cones: list[tuple[str, int]]
    sizes: list[np.ndarray]

    @staticmethod
    def of(region: Region, centre: np.ndarray, scale: np.ndarray, extra: int) -> _Program:
        """The constraints of the region on centre + scale * y."""
        n = len(scale)
        program = _Program(n + extra, [], [], [], [])
        pad = np.zeros((n, extra))
        for where, total in region.sums:
            row = np.zeros((1, n + extra))
            row[0, where] = scale[where]
            program.add("zero", row, np.array([total - centre[where].sum()]))
        eye = np.column_stack([np.eye(n), pad])
        high, low = np.isfinite(region.upper), np.isfinite(region.lower)
        if high.any():
            program.rows(eye[high], np.maximum((region.upper - centre) / scale, 0.0)[high])
        if low.any():
            program.rows(-eye[low], np.maximum((centre - region.lower) / scale, 0.0)[low])
        for where, middle, radius in region.balls:
            rows = np.zeros((where.stop - where.start + 1, n + extra))
            rows[1:, where] = -np.diag(scale[where])
            bound = np.append(radius, centre[where] - middle)
            program.add("ball", rows, bound, radius)
        return program

    def add(
        self, kind: str, matrix: np.ndarray, bound: np.ndarray, size: float | None = None
    ) -> None:
        """Rows bound - matrix @ y in a cone, each divided by its size."""
        sizes = np.full(len(bound), size)
        if size is None:
            sizes = np.maximum(np.abs(matrix).max(1), 1e-300)
        self.matrices.append(matrix / sizes[:, None])
        self.bounds.append(bound / sizes)
        self.cones.append((kind, len(bound)))
        self.sizes.append(sizes)

    def rows(self, matrix: np.ndarray, bound: np.ndarray) -> None:
        """Rows with ``matrix @ y <= bound``."""
        self.add("rows", matrix, bound)

    def solve(
        self, quadratic: np.ndarray, linear: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None, float]:
        """Minimiser of y' diag(quadratic) y / 2 + linear'y, multipliers, dual; None: failed."""
        import clarabel as clarabel_module
        from scipy.sparse import csc_array, diags_array

        clarabel: Any = clarabel_module
        kinds = {
            "zero": clarabel.ZeroConeT,
            "rows": clarabel.NonnegativeConeT,
            "ball": clarabel.SecondOrderConeT,
        }
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.max_threads = 1
        solver = clarabel.DefaultSolver(
            csc_array(diags_array(quadratic)),
            linear,
            csc_array(np.vstack(self.matrices)),
            np.concatenate(self.bounds),
            [kinds[kind](size) for kind, size in self.cones],
            settings,
        )
        found = solver.solve()
        if str(found.status) not in ("Solved", "AlmostSolved"):
            return None, None, -math.inf
        multipliers = np.array(found.z) / np.concatenate(self.sizes)
        return np.array(found.x), multipliers, float(found.obj_val_dual)
