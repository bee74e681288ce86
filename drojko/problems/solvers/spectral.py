"""Projected spectral gradient method: smooth losses, any projection, convex or not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import nnls

from drojko._driver import Status
from drojko.problems.constraints import Region
from drojko.problems.families.oracle import Answer, Gauge, Oracle
from drojko.problems.solvers.recession import Horizon

__all__ = ["SpectralGradient", "SpectralState"]

_MEMORY = 8
_ARMIJO = 1e-4
_BACKTRACKS = 40
_REGAUGED = 20  # times that variables may turn out steeper than they looked
_LONGER = 1e3  # times that natural lengths may grow at once: a slope that vanishes is no unit
_SMALL = 1e-7  # sizes below this share of the first ones are rounding


@dataclass(frozen=True)
class _Metric:
    """Natural length of a move and steepness of the rows, per variable; size of the losses.

    One number each for variables that a projection ties together: it is a projection in units of
    these lengths, too.
    """

    lengths: np.ndarray
    slopes: np.ndarray
    size: float

    @staticmethod
    def of(region: Region, gauge: Gauge, point: np.ndarray, gradient: np.ndarray) -> _Metric:
        slopes = np.maximum(gauge.slopes, np.abs(gradient))
        for where in region.joined:
            slopes[where] = np.linalg.norm(slopes[where])
        lengths = Gauge(gauge.size, slopes).lengths(point, gradient)
        for where in region.joined:
            lengths[where] = lengths[where].max()
        return _Metric(lengths, slopes, gauge.size)

    def step(self, gradient: np.ndarray) -> float:
        """A step that moves by the natural lengths together, or less where slopes cancel."""
        steep = float(np.linalg.norm(self.lengths * gradient))
        return 1.0 / max(steep, self.size) if steep > 0 else 1.0

    def coarse(self) -> _Metric:
        """Lengths that differ from the usual one by powers of ten only.

        Estimates from random signs are not worth more, and variables that are alike stay so.
        """
        usual = float(np.median(self.lengths))
        lengths = usual * 10.0 ** np.round(np.log10(self.lengths / usual))
        return replace(self, lengths=lengths)

    def steeper(self, region: Region, gradient: np.ndarray, point: np.ndarray) -> _Metric | None:
        """With slopes that were met some steps away; None where these are of the known sizes."""
        found = _Metric.of(region, Gauge(self.size, self.slopes), point, gradient)
        grown = self.lengths / found.lengths
        return found.coarse() if grown.max() > 100.0 * max(grown.min(), 1.0) else None

    def above(self, least: _Metric) -> _Metric:
        """With sizes that are not lost in the rounding of earlier ones."""
        size, floor = max(self.size, _SMALL * least.size), _SMALL * least.slopes
        longest = np.where(floor > 0, size / np.where(floor > 0, floor, 1.0), math.inf)
        slopes, lengths = np.maximum(self.slopes, floor), np.minimum(self.lengths, longest)
        return _Metric(lengths, slopes, size)


@dataclass(frozen=True)
class SpectralState:
    """A point, its answer, the last step lengths (the next one last), and the last values.

    ``metric`` is what steps are measured in, ``judge`` what the residual is, ``first`` the sizes at
    the first point; ``trail`` holds the last points and gradients; ``direction`` is one along which
    the value falls without end.
    """

    point: np.ndarray
    answer: Answer
    lengths: tuple[float, ...]
    recent: tuple[float, ...]
    metric: _Metric
    judge: _Metric
    first: _Metric
    trail: tuple[tuple[np.ndarray, np.ndarray], ...]
    horizon: Horizon
    direction: np.ndarray | None = None
    count: int = 0
    regauged: int = 0
    stationarity: float = math.inf
    stalled: bool = False

    # Nothing is proven of other decisions.
    gap: ClassVar[float] = math.inf
    relative_gap: ClassVar[float] = math.nan

    @property
    def value(self) -> float:
        return self.answer.value


@dataclass(frozen=True)
class SpectralGradient:
    r""":math:`\theta \leftarrow \theta + t\,(P(\theta - \alpha D g) - \theta)`, alpha after
    Barzilai and Borwein, t by a nonmonotone search.

    The diagonal D holds squared natural lengths: moves that change losses by about their size, so
    that units of losses and of variables do not matter. (E. Birgin, J. Martinez, M. Raydan, 2000,
    Nonmonotone spectral projected gradient methods on convex sets, SIAM Journal on Optimization
    10.)
    """

    oracle: Oracle
    region: Region
    tol: float

    def init(self, problem: Any = None) -> SpectralState:
        """The first point, with a step of at most the natural lengths."""
        point, answer = self.oracle.start(self.region)
        metric = _Metric.of(self.region, self.oracle.gauge(point, answer), point, answer.gradient)
        length = metric.coarse().step(answer.gradient)
        first = ((length,), (answer.value,), metric.coarse(), metric, metric)
        trail, horizon = ((point, answer.gradient),), Horizon.of(point, metric.lengths)
        return self._judged(SpectralState(point, answer, *first, trail, horizon))

    def _judged(self, state: SpectralState) -> SpectralState:
        """With its residual, which counts as small only in the sizes of where it is."""
        residual = self._stationarity(state)
        # The sizes of the start may be far from those here: steps, too, follow now and then.
        afresh = state.count >= 8 and state.count & (state.count - 1) == 0
        if not (afresh or residual <= self.tol):
            return replace(state, stationarity=residual)
        gauge = self.oracle.gauge(state.point, state.answer)
        judge = _Metric.of(self.region, gauge, state.point, state.answer.gradient)
        judge = judge.above(state.first)
        state = replace(state, judge=judge)
        residual = self._stationarity(state)
        change = judge.lengths / state.metric.lengths
        if afresh and change.max() > 30.0 * change.min():
            grown = np.minimum(judge.lengths, _LONGER * state.metric.lengths)
            metric = replace(judge, lengths=grown).coarse()
            state = replace(state, metric=metric, lengths=(metric.step(state.answer.gradient),))
        return replace(state, stationarity=residual)

    def _stationarity(self, state: SpectralState) -> float:
        """The residual, at a kink that of a mixture of the gradients around.

        Around is what lies within the tolerance, in natural lengths (A. Goldstein, 1977,
        Optimization of Lipschitz continuous functions, Mathematical Programming 13).
        """
        plain = self._residual(state, state.answer.gradient)
        lengths = state.judge.lengths
        close = [
            gradient
            for point, gradient in state.trail
            if float((np.abs(point - state.point) / lengths).max()) <= self.tol
        ]
        if plain <= self.tol or len(close) < 2:
            return plain
        rows = np.stack(close) * lengths
        # Shares that sum to one, up to what a heavy row enforces.
        rows = np.column_stack([rows / (np.abs(rows).max() or 1.0), np.full(len(rows), 1e3)])
        shares = nnls(rows.T, np.append(np.zeros(len(lengths)), 1e3))[0]
        mixed = shares / (shares.sum() or 1.0) @ np.stack(close)
        return min(plain, self._residual(state, mixed))

    def _residual(self, state: SpectralState, gradient: np.ndarray) -> float:
        """Norm of the projected gradient, in units of the rows' slopes.

        Where all rows pull alike, as they do when a variable meets no data or all losses can
        vanish together, that does not get small: there it is the root of the decrease that the
        longest of the last secant steps promises, in units of the losses.
        """
        lengths = state.judge.lengths
        steep = np.where(state.judge.slopes > 0, state.judge.slopes, 1.0)
        ratio = np.abs(self.region.nearest(state.point - lengths * gradient / steep) - state.point)
        ratio = ratio / lengths
        if len(state.lengths) > 1 and state.judge.size > 0:
            scaled = max(state.lengths) * state.metric.lengths**2
            move = self.region.nearest(state.point - scaled * gradient) - state.point
            promised = np.sqrt(np.abs(move * gradient) / state.judge.size)
            ratio = np.where(ratio < 0.5, ratio, np.minimum(ratio, promised))
        return float(np.linalg.norm(ratio))

    def step(self, state: SpectralState) -> SpectralState:
        gradient, inverse = state.answer.gradient, state.metric.lengths**-2.0
        length = state.lengths[-1]
        direction = self.region.nearest(state.point - length / inverse * gradient) - state.point
        slope = float(gradient @ direction)
        share, highest = 1.0, max(state.recent)
        near: list[tuple[np.ndarray, np.ndarray]] = []
        for tries in range(_BACKTRACKS):
            point = state.point + share * direction
            answer: Any = self.oracle(point)
            found = isinstance(answer, Answer)
            if found and answer.value <= highest + _ARMIJO * share * slope:
                break
            if found and tries == 8 and state.regauged < _REGAUGED:
                metric = state.metric.steeper(self.region, answer.gradient, state.point)
                if metric is not None:  # variables that looked flat are not
                    first = metric.step(gradient)
                    again = state.regauged + 1
                    return replace(state, metric=metric, lengths=(first,), regauged=again)
            if found and 2 * tries > _BACKTRACKS:
                near.append((point, answer.gradient))
            share *= 0.5 if found else 0.3
        else:
            self.oracle.load(state.point)
            state = replace(state, trail=(*state.trail, *near))
            return replace(state, stalled=True, stationarity=self._stationarity(state))
        move, change = point - state.point, answer.gradient - gradient
        bend = float(move @ change)
        square = float(move @ (inverse * move))
        following = square / bend if bend > 1e-14 * square / length else 4.0 * length
        following = min(max(following, 1e-10 * length), 1e10 * length)
        recent = (*state.recent, answer.value)[-_MEMORY:]
        lengths = (*state.lengths, following)[-_MEMORY:]
        trail = (*state.trail, (point, answer.gradient))[-_MEMORY:]
        state = replace(state, point=point, answer=answer, lengths=lengths, recent=recent)
        if answer.value < state.recent[0] and state.horizon.beyond(point):
            found = state.horizon.direction(self.oracle, self.region, point, state.first.size)
            state = replace(state, direction=found, horizon=state.horizon.farther())
        return self._judged(replace(state, trail=trail, count=state.count + 1))

    def finite(self, state: SpectralState) -> bool:
        return math.isfinite(state.answer.value) and bool(np.isfinite(state.point).all())

    def terminate(self, state: SpectralState) -> Status | None:
        if state.direction is not None:
            return Status.UNBOUNDED
        if state.stationarity <= self.tol:
            return Status.CONVERGED
        return Status.STALLED if state.stalled else None

    def record(self, state: SpectralState) -> dict[str, float]:
        return {"robust_risk": state.answer.value, "stationarity": state.stationarity}
