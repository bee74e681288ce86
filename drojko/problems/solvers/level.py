"""Level bundle method: convex problems with few variables, smooth or not, with a proven gap."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from drojko._driver import Status
from drojko.problems.constraints import Region
from drojko.problems.families.oracle import EPS, Answer, Gauge, Oracle, Wall
from drojko.problems.solvers.cuts import Cuts, Relaxed
from drojko.problems.solvers.program import View
from drojko.problems.solvers.recession import Horizon

__all__ = ["LevelBundle", "LevelState"]

_LEVEL = 0.3  # where the level lies between the two bounds
_STALLED, _PATIENCE = 5, 60  # steps that end a run: without a new point, without a smaller gap
_ROUNDING = 1e-6  # a relative gap that a box need not grow for
_GROWTH = 8.0  # of the box, where it is in the way
_FAR = 10.0  # a risk that rises by so many times what was hoped for says nothing of the optimum

_STEPS_BACK = 40
_LONG = 1e4  # a side of the box in units of moves that matter
_COARSER, _RETRIES = 30.0, 3  # programs that fail are tried again in coarser units


@dataclass(frozen=True)
class LevelState:
    """Cuts, the best point, and bounds of the optimum on both sides.

    ``lower`` holds everywhere: -inf until the cuts are bounded below without a box. ``width`` is
    the half-width of the box around the best point where their minimum is looked for until then,
    ``gauge`` the size of losses and slopes where it was last taken, ``largest`` the largest size of
    losses so far; ``waited`` counts the steps since the gap last fell clearly below ``mark``.
    ``direction`` is one along which the value falls without end.
    """

    cuts: Cuts
    point: np.ndarray
    value: float
    lower: float
    width: np.ndarray
    gauge: Gauge
    relative: float
    largest: float
    rounding: float
    horizon: Horizon
    direction: np.ndarray | None = None
    stalled: int = 0
    mark: float = math.inf
    waited: int = 0

    stationarity: ClassVar[float] = math.nan  # the gap is what is known

    @property
    def gap(self) -> float:
        """Proven distance of the best value from the optimum; inf while nothing is proven."""
        return max(0.0, self.value - self.lower)

    @property
    def size(self) -> float:
        """What gaps are measured in: the value, and a percent of the losses should that be zero."""
        return abs(self.value) + 0.01 * self.relative

    @property
    def relative_gap(self) -> float:
        """The gap beyond rounding in units of the size; NaN while nothing is proven."""
        left = max(0.0, self.gap - self.rounding)
        if math.isinf(left):
            return math.nan
        return left / self.size if self.size > 0.0 else (math.inf if left > 0.0 else 0.0)


@dataclass(frozen=True)
class LevelBundle:
    r"""Project the best point onto a level set of the cuts:

    .. math:: \theta_{k+1} = \arg\min\{\|\theta - \hat\theta\|_D : m_k(\theta) \le
        0.3\,\overline v + 0.7\,\underline v,\; \theta \in \Theta\}

    with the model m_k, the largest of all cuts, its minimum as the lower bound v and the best
    value found as the upper one. Until the cuts are bounded below, v is their minimum in a box,
    which grows as long as descent goes on at its border and proves nothing. Sizes of moves come
    from the slopes of the rows, so that units of losses and of decisions do not matter. It needs
    O((1 / gap)^2) steps at most, in practice some per variable and digit. (C. Lemarechal, A.
    Nemirovskii, Y. Nesterov, 1995, New variants of bundle methods, Mathematical Programming 69.)
    """

    oracle: Oracle
    region: Region
    tol: float

    def init(self, problem: Any = None) -> LevelState:
        """The first point and its cut."""
        point, answer = self.oracle.start(self.region)
        gauge = self.oracle.gauge(point, answer)
        lengths = gauge.lengths(point, answer.gradient)
        return LevelState(
            Cuts.first(point, answer),
            point,
            answer.value,
            -math.inf,
            lengths,
            gauge,
            gauge.size,
            gauge.size,
            gauge.rounding(point, answer.gradient),
            Horizon.of(point, lengths),
        )

    def step(self, state: LevelState) -> LevelState:
        """One relaxation, one projection, one answer."""
        upper, state = state.value, self._advance(state)
        descends = math.isinf(state.lower) and upper - state.value > 1e-3 * state.size
        if descends and state.horizon.beyond(state.point):
            found = state.horizon.direction(self.oracle, self.region, state.point, state.size)
            state = replace(state, direction=found, horizon=state.horizon.farther())
        if state.gap < 0.95 * state.mark or descends:
            return replace(state, mark=state.gap, waited=0)
        return replace(state, waited=state.waited + 1)

    def _advance(self, state: LevelState) -> LevelState:
        view = View(self.region, state.point, _scales(state), _unit(state))
        relaxed, state = self._relax(state, view)
        if state.relative_gap <= self.tol:
            return state
        low = max(relaxed.low, state.lower)
        target = low + _LEVEL * (state.value - low)
        candidate, slack = self._project(state, target, relaxed.width, view)
        if candidate is None:
            candidate = relaxed.point
        candidate = self.region.nearest(candidate)
        candidate, answer, state = self._ask(state, candidate, state.value - target)
        if answer is None:
            return replace(state, stalled=state.stalled + 1)
        hoped = state.value - target
        # Descent goes on, and so may the box; or nothing does, and it may be the reason.
        if answer.value <= state.value - 0.5 * hoped or state.waited > len(candidate):
            touched = np.abs(relaxed.point - state.point) > 0.99 * state.width
            state = replace(state, width=np.where(touched, _GROWTH, 1.0) * state.width)
        kept = np.ones(len(state.cuts.heights), bool)
        most = 3 * len(candidate) + 60
        if slack is not None and len(slack) >= most:
            kept[np.argsort(-slack)[: len(slack) - most + 20]] = False
        found = replace(state, cuts=state.cuts.add(candidate, answer, kept))
        still = bool(np.allclose(candidate, state.point, rtol=1e-14, atol=0.0))
        found = replace(found, stalled=state.stalled + 1 if still else 0)
        return self._moved(found, candidate, answer) if answer.value < state.value else found

    def _relax(self, state: LevelState, view: View) -> tuple[Relaxed, LevelState]:
        """The cuts' minimum, in a box that grows until it is not what closes the gap."""
        # Sides longer than the moves that matter by many orders cost digits.
        box, retries = np.minimum(state.width, _LONG * view.scale), 0
        while True:
            found = state.cuts.relax(view, state.value, box, state.gauge.slopes)
            if found is None:
                if retries == _RETRIES:
                    return Relaxed(state.lower, -math.inf, state.point, box), state
                view, retries = replace(view, scale=_COARSER * view.scale), retries + 1
                box = np.minimum(state.width, _LONG * view.scale)
                continue
            state = replace(state, lower=max(state.lower, min(found.proven, state.value)))
            touched = np.abs(found.point - state.point) > 0.99 * box
            if (touched & (box < state.width)).any():
                box = np.where(touched, np.minimum(_LONG * box, state.width), box)
                continue
            room = state.value - found.low > self.tol * state.size + state.rounding
            closed = state.relative_gap <= max(self.tol, _ROUNDING)
            if not touched.any():  # nor need it be, where the box is a speck
                touched = state.width < state.gauge.lengths(state.point, state.cuts.slopes[-1])
            if closed or room or not touched.any() or state.width.max() > 1e30 * view.scale.max():
                return found, state
            state = replace(state, width=np.where(touched, _GROWTH, 1.0) * state.width)
            box = np.where(touched, state.width, box)

    def _project(
        self, state: LevelState, target: float, width: np.ndarray, view: View
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        for power in range(_RETRIES + 1 if math.isfinite(target) else 0):
            coarser = replace(view, scale=_COARSER**power * view.scale)
            found = state.cuts.project(coarser, target, width)
            if found[0] is not None:
                return found
        return None, None

    def _ask(
        self, state: LevelState, aim: np.ndarray, hoped: float
    ) -> tuple[np.ndarray, Answer | None, LevelState]:
        """The answer at a point, or nearer to the best one.

        Where the worst case is infinite: back, first by a little. Where the risk is larger by
        orders the step was too long for a cut to tell much: back to where it rises by some units.
        """
        shares = iter((0.9999, 0.99, 0.9, *0.5 ** np.arange(1.0, 50.0)))
        share, shrunk = 1.0, 0
        while True:
            candidate = state.point + share * (aim - state.point)
            answer = self.oracle(candidate)
            if isinstance(answer, Answer):
                most = _FAR * max(share * hoped, state.relative)
                rise = answer.value - state.value
                if rise > _FAR * most and shrunk < _STEPS_BACK:
                    share, shrunk = share * max(math.sqrt(most / rise), 0.1), shrunk + 1
                    continue
                if _GROWTH * share < 1.0:  # and so was the box, where it was made use of
                    used = np.abs(aim - state.point) > 0.1 * state.width
                    width = np.where(used, _GROWTH * share, 1.0) * state.width
                    state = replace(state, width=width)
                return candidate, answer, state
            if isinstance(answer, Wall):
                bound = float(answer.gradient @ candidate) - answer.excess
                walls = (*state.cuts.walls, (answer.gradient, bound))
                state = replace(state, cuts=replace(state.cuts, walls=walls))
            following = next((s for s in shares if s < share), None)
            if following is None:
                return candidate, None, state
            share = following

    def _moved(self, state: LevelState, point: np.ndarray, answer: Answer) -> LevelState:
        """The state at a better point; sizes are measured anew where losses are of another one."""
        self.oracle.load(point)
        with torch.no_grad():
            losses = self.oracle.module(self.oracle.draws.x).double()
        size, gauge = max(float(self.oracle.draws.w @ losses.abs()), answer.size), state.gauge
        if not 0.5 * gauge.size < size < 2.0 * gauge.size:
            gauge = self.oracle.gauge(point, answer)
        largest = max(state.largest, size)
        return replace(
            state,
            point=point,
            value=answer.value,
            gauge=gauge,
            relative=max(size, 1e-9 * largest),
            largest=largest,
            rounding=gauge.rounding(point, answer.gradient),
        )

    def finite(self, state: LevelState) -> bool:
        """Whether the point and its value are; the lower bound may be infinite."""
        return math.isfinite(state.value) and bool(np.isfinite(state.point).all())

    def terminate(self, state: LevelState) -> Status | None:
        if state.relative_gap <= self.tol:
            return Status.CONVERGED
        if state.direction is not None:
            return Status.UNBOUNDED
        patient = state.stalled < _STALLED and state.waited < _PATIENCE + 2 * len(state.point)
        return None if patient else Status.STALLED

    def record(self, state: LevelState) -> dict[str, float]:
        return {"robust_risk": state.value, "lower_bound": state.lower, "gap": state.gap}


def _unit(state: LevelState) -> float:
    """Size of the differences of values that matter now."""
    if 0.0 < state.gap < math.inf:
        return state.gap
    # Losses that are zero up to rounding have no size: the decision's own has to do.
    size = state.relative if state.relative > state.rounding else state.rounding / EPS
    return size or float((np.abs(state.cuts.slopes) * state.width).max()) or 1.0


def _scales(state: LevelState) -> np.ndarray:
    """Size of a move in each variable that changes the value by about what matters now."""
    # The median: cuts far away, where a dual variable is near zero, are steeper by orders. Near an
    # optimum slopes vanish, and those of the rows say how little that may mean.
    steep = np.median(np.abs(state.cuts.slopes), axis=0)
    steep = np.maximum(steep, 1e-3 * state.gauge.slopes)
    return np.where(steep > 0, _unit(state) / np.where(steep > 0, steep, 1.0), state.width)
