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
_HALVINGS = 60


@dataclass(frozen=True)
class LevelState:
    """Cuts f >= slopes @ x + offsets, the best point, and bounds of the optimum on both sides.

    ``span`` is the half-width of the box (in units of 1 / slope) that keeps the relaxation bounded
    until the cuts do; ``relative`` the scale that the tolerance refers to; ``walls`` rows and
    right-hand sides that every decision with a finite worst case meets.
    """

    slopes: np.ndarray
    offsets: np.ndarray
    best: np.ndarray
    upper: float
    lower: float
    span: float
    relative: float
    stalled: int = 0
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
    value found as the upper one. It needs O((1 / gap)^2) steps at most, in practice some per
    variable and digit. (C. Lemarechal, A. Nemirovskii, Y. Nesterov, 1995, New variants of bundle
    methods, Mathematical Programming 69.)
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
        with torch.no_grad():
            self.oracle.load(point)
            losses = self.oracle.model.linearise(self.oracle.draws.x)[0]
        # A loss that is zero at the first decision has the size of what a unit step changes.
        steep = float(np.abs(answer.gradient).max())
        relative = float(self.oracle.draws.w @ losses.double().abs())
        relative = relative if relative > 1e-9 * steep else steep
        offset = answer.attained - answer.gradient @ point
        return LevelState(
            answer.gradient[None],
            np.array([offset]),
            point,
            answer.value,
            -math.inf,
            1.0,
            relative,
        )

    def step(self, state: LevelState) -> LevelState:
        """One relaxation, one projection, one answer."""
        scale = _scales(state)
        low, active, at_low = self._relax(state, scale)
        span = state.span * (8.0 if active else 1.0)
        lower = state.lower if active else max(state.lower, min(low, state.upper))
        target = max(low, state.lower)
        target = target + _LEVEL * (state.upper - target)
        state = replace(state, lower=lower, span=span)
        if state.gap <= self._allowed(state):
            return state
        candidate, slack = self._project(state, target, scale)
        if candidate is None:
            candidate = at_low
        candidate = self.region.project(torch.from_numpy(candidate)).numpy()
        for _ in range(_HALVINGS):
            answer = self.oracle(candidate)
            if isinstance(answer, Wall):
                wall = (answer.gradient, answer.gradient @ candidate - answer.excess)
                return replace(state, walls=(*state.walls, wall))
            if answer is not None:
                break
            candidate = 0.5 * (candidate + state.best)  # infinite there: nearer to what is finite
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
        found = replace(found, stalled=state.stalled + 1 if still else 0)
        if answer.value < state.upper:
            found = replace(found, best=candidate, upper=answer.value)
        return found

    def _allowed(self, state: LevelState) -> float:
        return self.tol * (abs(state.upper) + 0.01 * state.relative) + 1e-300

    def finite(self, state: LevelState) -> bool:
        """Whether the point and its value are; the lower bound may be infinite."""
        return math.isfinite(state.upper) and bool(np.isfinite(state.best).all())

    def terminate(self, state: LevelState) -> Status | None:
        """Converged when the gap is within the tolerance."""
        if state.gap <= self._allowed(state):
            return Status.CONVERGED
        return Status.MAX_ITER if state.stalled >= 5 else None

    def record(self, state: LevelState) -> dict[str, float]:
        """A row of the history."""
        return {"robust_risk": state.upper, "lower_bound": state.lower, "gap": state.gap}

    # -- the two programs --------------------------------------------------------------------

    def _relax(self, state: LevelState, scale: np.ndarray) -> tuple[float, bool, np.ndarray]:
        """Minimum of the cuts over the region and the box; whether the box takes part."""
        n, m = len(scale), len(state.offsets)
        unit = _unit(state)
        matrix = np.column_stack([state.slopes * scale / unit, -np.ones(m)])
        bound = -(state.slopes @ state.best + state.offsets - state.upper) / unit
        program = _Program.of(self.region, state.best, scale, 1)
        _wall_in(program, state, scale)
        program.rows(matrix, bound)
        eye = np.column_stack([np.eye(n), np.zeros(n)])
        program.rows(np.vstack([eye, -eye]), np.full(2 * n, state.span))
        linear = np.append(np.zeros(n), 1.0)
        found, dual = program.solve(np.zeros(n + 1), linear)
        if found is None or dual is None:
            return state.lower, True, state.best
        active = bool((np.abs(found[:n]) > state.span * (1.0 - 1e-6)).any())
        low = state.upper + unit * (min(float(found[-1]), dual) - 1e-9)
        return low, active, state.best + scale * found[:n]

    def _project(
        self, state: LevelState, target: float, scale: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Nearest point of the level set to the best one, and the cuts' slack there."""
        unit = _unit(state)
        values = state.slopes @ state.best + state.offsets
        program = _Program.of(self.region, state.best, scale, 0)
        _wall_in(program, state, scale)
        program.rows(state.slopes * scale / unit, (target - values) / unit)
        found, _ = program.solve(np.ones(len(scale)), np.zeros(len(scale)))
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
    return value / np.maximum(steep, floor)


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

    @staticmethod
    def of(region: Region, centre: np.ndarray, scale: np.ndarray, extra: int) -> _Program:
        """The constraints of the region on centre + scale * y."""
        n = len(scale)
        program = _Program(n + extra, [], [], [])
        pad = np.zeros((n, extra))
        for where, total in region.sums:
            row = np.zeros((1, n + extra))
            row[0, where] = scale[where]
            size = np.abs(row).max()
            program.add("zero", row / size, np.array([total - centre[where].sum()]) / size)
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
            program.add("ball", rows / radius, bound / radius)
        return program

    def add(self, kind: str, matrix: np.ndarray, bound: np.ndarray) -> None:
        """Rows bound - matrix @ y in a cone."""
        self.matrices.append(matrix)
        self.bounds.append(bound)
        self.cones.append((kind, len(bound)))

    def rows(self, matrix: np.ndarray, bound: np.ndarray) -> None:
        """matrix @ y <= bound."""
        size = np.maximum(np.abs(matrix).max(1), 1e-300)
        self.add("rows", matrix / size[:, None], bound / size)

    def solve(
        self, quadratic: np.ndarray, linear: np.ndarray
    ) -> tuple[np.ndarray | None, float | None]:
        """Minimiser of y' diag(quadratic) y / 2 + linear'y and the dual value; None: failed."""
        import clarabel
        from scipy.sparse import csc_array, diags_array

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
            return None, None
        return np.array(found.x), float(found.obj_val_dual)
