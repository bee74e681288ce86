r"""Decisions and order-1 Wasserstein sets: the reference's risk plus radius times slope.

.. math:: \sup \{E_P \ell : W_1(P, P_0) \le r\} = E_0 \ell + r \max_i \|a_i(\theta)\|_*

for a maximum of affine functions of z without bounds (P. Mohajerin Esfahani, D. Kuhn, 2018,
Data-driven distributionally robust optimization using the Wasserstein metric, arXiv 1505.05116).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._numerics import standard_error
from drojko.ambiguity import Wasserstein
from drojko.certificates import Certificate
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from drojko.inner.order_one.plan import FarPlan
from drojko.inner.order_one.worst_case import FarWorstCase
from drojko.inner.transport.radius import mean
from drojko.inner.worst_case import WorstCase
from drojko.models import ModuleModel
from drojko.problems.families.adversary import LABEL, unlabelled
from drojko.problems.families.oracle import Answer, Decided, Draws, Family, Oracle, Wall
from drojko.problems.families.structured import Geometry, StructuredLoss

__all__ = ["OrderOne"]

#: Share of the gain that the attained measure may miss.
_MISSED = 1e-3


class _SlopeOracle(Oracle):
    """Mean loss and slope, both with their gradients."""

    def __init__(
        self, model: ModuleModel, draws: Draws, ambiguity: Wasserstein, geometry: Geometry
    ) -> None:
        super().__init__(model, draws)
        self.ambiguity, self.geometry = ambiguity, geometry

    def __call__(self, point: np.ndarray) -> Answer | Wall | None:
        self.load(point)
        module: Any = self.module
        with torch.enable_grad():
            slope = module.loss.slope(module.layout.split(module.flat), self.geometry)
            steep = torch.zeros_like(module.flat)
            if slope.requires_grad:
                (found,) = torch.autograd.grad(slope, module.flat, allow_unused=True)
                steep = steep if found is None else found
        slope = slope.detach()
        penalty = self.ambiguity.penalty
        if penalty is not None and float(slope) > penalty * (1 + 1e-9):
            return Wall(float(slope) - penalty, steep.detach().numpy().copy())
        losses, backward = self.model.linearise(self.draws.x)
        (gradient,) = backward(self.draws.w, parameters=True)
        radius = self.ambiguity.radius or 0.0
        value = mean(losses, self.draws.w) + radius * float(slope)
        if not math.isfinite(value):
            return None
        return Answer(value, value, (gradient + radius * steep).detach().numpy().copy())


@dataclass(frozen=True)
class OrderOne(Family):
    """Order-1 transport of losses with a known slope.

    Raises `UnsupportedError` for other losses and with bounds.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.loss, StructuredLoss) or not self.loss.has_slope:
            raise UnsupportedError(
                "order=1 is offered for losses whose slope in z is known (MaxAffine, "
                "SeparableMaxAffine: newsvendor and portfolio); use order=2"
            )
        if self.resolved.bounded:
            raise UnsupportedError("order=1 with bounds is not offered for decisions; use order=2")

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.resolved.inverse_weights, float(self.ambiguity.norm))

    def oracle(self, model: ModuleModel, draws: Draws) -> Oracle:
        return _SlopeOracle(model, draws, self.ambiguity, self.geometry)

    def certify(self, of: Decided) -> tuple[Certificate, WorstCase]:
        module: Any = of.model.module
        with torch.no_grad():
            losses = module(of.draws.x)
            slope = float(module.loss.slope(module.params, self.geometry))
            direction = module.loss.steepest(module.params, self.geometry)
        nominal, radius = mean(losses, of.draws.w), self.ambiguity.radius
        if radius is None and slope > float(self.ambiguity.penalty or 0.0) * (1 + 1e-9):
            raise UnboundedRiskError(
                f"the worst-case risk is infinite at penalty={self.ambiguity.penalty:g}: the loss "
                f"has slope {slope:.6g}. It is finite for penalties from there on; or give a radius"
            )
        budget = radius or 0.0
        share, risk = _thin(module, of.draws, nominal, budget, slope, direction)
        error = standard_error(losses, of.draws.w) if of.sampled else 0.0
        certificate = Certificate(
            nominal_risk=nominal,
            lower=risk,
            upper=max(nominal + budget * slope, risk),
            worst_case_risk=risk,
            radius=radius,
            penalty=slope if self.ambiguity.penalty is None else self.ambiguity.penalty,
            transport_cost=budget if slope > 0 else 0.0,
            standard_error=error,
            risk_error=error,
            stationarity=of.stationarity,
            proof="dual",
        )
        distance = budget / share if slope > 0 else 0.0
        moves: Any = _Shift(direction, self.geometry.inverse_weights, self.geometry.norm)
        plan = FarPlan(threshold=0.0, share=share, distance=distance, mass=share)
        worst = FarWorstCase(moves, plan, unlabelled(of.reference), risk, LABEL, self.names)
        return certificate, worst


@dataclass(frozen=True)
class _Shift:
    """One direction for every row, as a `FarWorstCase` asks for it."""

    direction: np.ndarray
    inverse_weights: np.ndarray
    norm: float
    flips = False
    moves_target = False

    @property
    def coef(self) -> np.ndarray:
        return self.direction[None]

    def directions(self) -> np.ndarray:
        return self.direction[None]

    def outputs(self, x: np.ndarray) -> np.ndarray:
        return x

    def slope(self) -> float:
        return 0.0

    def deficits(self, f: np.ndarray, y: np.ndarray, slope: float) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(f)), np.zeros(len(f), dtype=int)


def _thin(
    loss: Callable[[Tensor], Tensor],
    draws: Draws,
    nominal: float,
    radius: float,
    slope: float,
    direction: np.ndarray,
) -> tuple[float, float]:
    """The largest share of mass (a power of two) whose move gains enough, and the risk then."""
    gain = radius * slope
    if gain <= 0.0:
        return 1.0, nominal
    share, risk = 1.0, nominal
    with torch.no_grad():
        for _ in range(60):
            far = draws.x + torch.from_numpy(direction) * (radius / share)
            risk = nominal + share * (mean(loss(far), draws.w) - nominal)
            if risk >= nominal + (1.0 - _MISSED) * gain:
                break
            share *= 0.5
    return share, min(risk, nominal + gain)
