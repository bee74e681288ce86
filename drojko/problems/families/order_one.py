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
from drojko._random import generator as make_generator
from drojko.ambiguity import Wasserstein
from drojko.certificates import Certificate
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from drojko.inner.transport.radius import mean
from drojko.inner.worst_case import WorstCase
from drojko.measures.base import LabelledMeasure
from drojko.models import ModuleModel
from drojko.problems.families.adversary import LABEL, Unlabelled
from drojko.problems.families.base import Decided, Family
from drojko.problems.families.oracle import Answer, Draws, Oracle, Wall
from drojko.problems.families.structured import Geometry, StructuredLoss

__all__ = ["OrderOne", "ThinnedWorstCase"]

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
            stationarity=of.stationarity,
            proof="dual",
        )
        distance = budget / share if slope > 0 else 0.0
        worst = ThinnedWorstCase(
            Unlabelled(of.reference), distance * direction, share, risk, LABEL, self.names
        )
        return certificate, worst


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


@dataclass(frozen=True, repr=False)
class ThinnedWorstCase(WorstCase):
    """A share of the reference's mass moves by ``move``, the rest stays.

    The supremum of order 1 is approached by ever less mass that moves ever farther; this measure
    misses at most a thousandth of the gain.
    """

    reference: LabelledMeasure
    move: np.ndarray
    share: float
    attained_risk: float
    classes: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    cost_weights: np.ndarray | None = None

    @property
    def n_features(self) -> int:
        return len(self.move)

    def sample(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        gen = make_generator(random_state)
        x, y = self.reference.sample(n, gen)
        coin = torch.rand(n, generator=gen, dtype=torch.float64).numpy() < self.share
        return x.numpy() + coin[:, None] * self.move, self._decode(y)

    def transport(self, X: Any, y: Any) -> np.ndarray:
        """Where the share that moves goes, shape (n, d)."""
        return self._points(X).numpy() + self.move

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log density of the mixture of the reference and its shifted image, shape (n,)."""
        x = np.asarray(X, dtype=np.float64)
        stay = self.reference.log_prob(x, y).numpy()
        came = self.reference.log_prob(x - self.move, y).numpy()
        with np.errstate(divide="ignore"):
            return np.logaddexp(np.log1p(-self.share) + stay, np.log(self.share) + came)

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        x, y, w = self.reference.points(2000, make_generator(0))
        x, w = x.numpy(), w.numpy()
        image = np.concatenate([x, x + self.move])
        mass = np.concatenate([w * (1.0 - self.share), w * self.share])
        labels = self._decode(y)
        return np.concatenate([x, x]), image, np.concatenate([labels, labels]), mass

    def __repr__(self) -> str:
        length = float(np.linalg.norm(self.move))
        return (
            f"ThinnedWorstCase(risk={self.attained_risk:.6g}, a share {self.share:.3g} of the mass "
            f"moves by {length:.4g}; order=2 shows a more plausible shift)"
        )
