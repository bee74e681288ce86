"""Projected spectral gradient method: smooth losses, any projection, convex or not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from drojko._driver import Status
from drojko.exceptions import UnboundedRiskError
from drojko.problems.constraints import Region
from drojko.problems.oracle import Answer, Oracle

__all__ = ["SpectralGradient", "SpectralState"]

_MEMORY = 8
_ARMIJO = 1e-4
_BACKTRACKS = 40


@dataclass(frozen=True)
class SpectralState:
    """A point, its answer, the next step length, and the last values."""

    point: np.ndarray
    answer: Answer
    length: float
    recent: tuple[float, ...]
    residual: float
    stalled: bool = False


@dataclass(frozen=True)
class SpectralGradient:
    r""":math:`\theta \leftarrow \theta + t\,(P(\theta - \alpha g) - \theta)`, alpha after
    Barzilai and Borwein, t by a nonmonotone search.

    (E. Birgin, J. Martinez, M. Raydan, 2000, Nonmonotone spectral projected gradient methods on
    convex sets, SIAM Journal on Optimization 10.)
    """

    oracle: Oracle
    region: Region
    tol: float

    def _projected(self, point: np.ndarray) -> np.ndarray:
        return self.region.project(torch.from_numpy(point)).numpy()

    def init(self, problem: Any = None) -> SpectralState:
        """The first point, with a step that moves it by about its own size."""
        point = self._projected(self.oracle.start())
        answer = self.oracle(point)
        if not isinstance(answer, Answer):
            raise UnboundedRiskError(
                "the worst-case risk is infinite at the first decision; start at params whose "
                "worst case is finite, raise the penalty, or give a radius"
            )
        steep = float(np.abs(answer.gradient).max())
        length = max(1.0, float(np.abs(point).max())) / steep if steep > 0 else 1.0
        return SpectralState(
            point, answer, 0.1 * length, (answer.value,), self.residual(point, answer)
        )

    def residual(self, point: np.ndarray, answer: Answer) -> float:
        """Norm of the projected gradient, relative to 1 + |value|."""
        size = max(1.0, float(np.abs(point).max()))
        unit = size / max(float(np.abs(answer.gradient).max()), 1e-300)
        move = self._projected(point - unit * answer.gradient) - point
        return float(np.linalg.norm(move)) / unit / (1.0 + abs(answer.value))

    def step(self, state: SpectralState) -> SpectralState:
        """One projected step."""
        gradient = state.answer.gradient
        direction = self._projected(state.point - state.length * gradient) - state.point
        slope = float(gradient @ direction)
        share, highest = 1.0, max(state.recent)
        for _ in range(_BACKTRACKS):
            point = state.point + share * direction
            answer = self.oracle(point)
            if isinstance(answer, Answer) and answer.value <= highest + _ARMIJO * share * slope:
                break
            share *= 0.5 if isinstance(answer, Answer) else 0.3
        else:
            self.oracle.load(state.point)
            return replace(state, stalled=True)
        move, change = point - state.point, answer.gradient - gradient
        bend = float(move @ change)
        square = float(move @ move)
        length = square / bend if bend > 1e-14 * square / state.length else 4.0 * state.length
        length = min(max(length, 1e-10 * state.length), 1e10 * state.length)
        recent = (*state.recent, answer.value)[-_MEMORY:]
        return SpectralState(point, answer, length, recent, self.residual(point, answer))

    def finite(self, state: SpectralState) -> bool:
        """Whether the point and its value are."""
        return math.isfinite(state.answer.value) and bool(np.isfinite(state.point).all())

    def terminate(self, state: SpectralState) -> Status | None:
        """Converged when the projected gradient is within the tolerance, or no step gains."""
        if state.residual <= self.tol or state.stalled:
            return Status.CONVERGED if state.residual <= 1e3 * self.tol else Status.MAX_ITER
        return None

    def record(self, state: SpectralState) -> dict[str, float]:
        """A row of the history."""
        return {"robust_risk": state.answer.value, "stationarity": state.residual}
