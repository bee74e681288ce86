"""The modified JKO scheme with ICNN maps, as a solver of the driver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drojko._driver import Status
from drojko.flows.icnn.scheme import ICNNScheme, MapState
from drojko.inner.objective import Batch, Objective
from drojko.inner.transport.ascent import proximal_ascent
from drojko.inner.transport.candidates import Condition

if TYPE_CHECKING:
    from drojko.inner.transport.solvers import ICNNJKO

__all__ = ["JKOState", "ModifiedJKO"]


@dataclass(frozen=True)
class JKOState:
    """Map state with the measured value of the map and of its targets (exponential means)."""

    flow: MapState
    gain: float = 0.0
    corrected: float = 0.0
    step: int = 0

    @property
    def gap(self) -> float:
        """Share of the corrected gain that the map misses."""
        return (self.corrected - self.gain) / max(abs(self.corrected), 1e-300)


@dataclass(frozen=True)
class ModifiedJKO:
    """The modified JKO scheme as a solver: anchor T_k, base measure the reference throughout.

    Each step draws a mini-batch, finds the proximal targets of T_k sample by sample, and fits
    the map to them; it ends when the map's gain is within ``tol`` of the targets' gain.
    """

    settings: ICNNJKO
    objective: Objective
    batch: Batch
    generator: torch.Generator
    condition: Condition

    def init(self, problem: None) -> JKOState:
        """Near the identity map, or near the affine map that fits the first proximal targets."""
        s = self.settings
        scheme = ICNNScheme(s.hidden, s.fits, s.learning_rate)
        flow = scheme.init(self.batch.q0, self.condition.dim, self.generator)
        if s.initialisation == "bures":
            part = self._draw()
            found = proximal_ascent(self.objective, part, part.q0, s.proximal_steps)
            scheme.start_affine(flow, part.q0, found.q)
        return JKOState(flow)

    def _draw(self) -> Batch:
        size = (min(self.settings.batch_size, len(self.batch)),)
        rows = torch.randint(len(self.batch), size, generator=self.generator)
        return self.batch.take(rows.to(self.batch.x.device))

    def finite(self, state: JKOState) -> bool:
        """Whether the potential is finite."""
        return bool(torch.isfinite(state.flow.flat).all())

    def step(self, state: JKOState) -> JKOState:
        """One modified JKO step on a mini-batch; the potential is updated in place."""
        s = self.settings
        scheme = ICNNScheme(s.hidden, s.fits, s.learning_rate)
        part = self._draw()
        measured: list[Tensor] = []

        def target(points: Tensor) -> Tensor:
            # The step size tau is chosen sample by sample by the ascent's spectral rule.
            found = proximal_ascent(self.objective, part, points, s.proximal_steps)
            measured.append(self.objective.value(part, points))
            measured.append(found.value)
            return found.q

        phase = state.step / max(1, s.steps)
        rate = s.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * phase)))
        context = self.condition.context(part)
        with torch.no_grad():
            flow = scheme.step(state.flow, part.q0, context, target, rate)
            base = self.objective.value(part, part.q0)
            gain = float((torch.maximum(measured[0], base) - base).mean())
            corrected = float((torch.maximum(measured[1], base) - base).mean())
        keep = 0.8 if state.step else 0.0
        return JKOState(
            flow,
            keep * state.gain + (1 - keep) * gain,
            keep * state.corrected + (1 - keep) * corrected,
            state.step + 1,
        )

    def terminate(self, state: JKOState) -> Status | None:
        """Stop on the measured gap."""
        if state.step >= 10 and state.gap <= self.settings.tol:
            return Status.CONVERGED
        return None

    def record(self, state: JKOState) -> dict[str, float]:
        """Gains of the map and of its targets, and the gap between them."""
        return {"gain": state.gain, "corrected": state.corrected, "gap": state.gap}
