"""Order-1 Wasserstein sets: linear models against Lipschitz losses, exactly."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from drojko._numerics import standard_error
from drojko.ambiguity import AmbiguitySet
from drojko.approaches.base import (
    Approach,
    Assessment,
    FittedModel,
    LinearProblem,
    Parameters,
    Plan,
    parameters_of,
)
from drojko.certificates import Certificate
from drojko.exceptions import UnsupportedError
from drojko.inner.order_one.plan import FarPlan, LinearAdversary
from drojko.inner.order_one.worst_case import FarWorstCase
from drojko.minimax.order_one.linear import slope_bound, solve_lipschitz
from drojko.minimax.problem import TrainResult
from drojko.models import TabularModel, is_linear

__all__ = ["OrderOne"]

#: Share of the radius that smoothing may spend: the reference is not the worst case already.
INSIDE = 0.1
#: Draws of a continuous reference for a certificate.
DRAWS = 10_000


@dataclass(frozen=True)
class ClosedForm(LinearProblem):
    """Mean loss plus radius times slope, for one output or one per class."""

    def fit(self, start: tuple[Parameters, float] | None) -> tuple[Parameters, TrainResult]:
        """Interior-point training."""
        plan = self.plan
        x, y, w = plan.draw(plan.n_draws)
        (coef, intercept), result = self.solved(
            solve_lipschitz,
            x,
            y,
            loss=plan.loss,
            weight=w,
            n_outputs=plan.n_outputs,
            norm=plan.ambiguity.norm,
            inverse_weights=plan.cost.inverse_weights,
            label_cost=plan.label_cost,
            warm_start=None if start is None else start[0],
        )
        if plan.penalty is not None and plan.dtype != torch.float64:
            coef = coef * (1.0 - 1e-6)  # rounding must not lift the slope above the penalty
        return (coef, intercept), result

    def assess(self, parameters: Parameters, result: TrainResult) -> Assessment:
        """Both sides of the certificate from the closed form."""
        plan = self.plan
        x, y, w = plan.draw(DRAWS)
        adversary = LinearAdversary(
            *parameters, plan.loss, plan.cost.inverse_weights, plan.ambiguity.norm, plan.label_cost
        )
        found = adversary.risk(x, y, w, radius=plan.radius, penalty=plan.penalty)
        own = standard_error(found.losses, w) if plan.sampled else 0.0
        certificate = Certificate(
            nominal_risk=found.nominal,
            lower=min(found.attained, found.value),
            upper=found.value,
            worst_case_risk=found.worst_risk,
            radius=plan.radius,
            penalty=found.penalty,
            transport_cost=found.transport_cost,
            standard_error=max(standard_error(found.spread, w), own) if plan.sampled else 0.0,
            risk_error=own,
            stationarity=result.stationarity,
            proof="dual",
        )
        state = {
            "plan": asdict(found.plan),
            "attained_risk": certificate.worst_case_risk,
            "inverse_weights": plan.cost.inverse_weights,
            "norm": plan.ambiguity.norm,
            "label_cost": plan.label_cost,
        }
        return Assessment(certificate, state)


class OrderOne(Approach):
    """Wasserstein sets of order 1 with a radius > 0 or a penalty."""

    name = "order-one"
    moves = True
    orders = (1,)

    def smoothing(self, ambiguity: AmbiguitySet) -> float | None:
        """A tenth of the radius."""
        return None if ambiguity.radius is None else INSIDE * ambiguity.radius

    def reject(self, plan: Plan, model: TabularModel | Any) -> None:
        """Only linear models and Lipschitz losses have the closed form."""
        if not is_linear(model):
            raise UnsupportedError(
                "order=1 needs a linear model: the slope of a network has no closed form. Use "
                "model='linear', or order=2"
            )

    def linear(self, plan: Plan) -> ClosedForm:
        """Always: nothing else has the closed form."""
        slope_bound(plan.loss)
        return ClosedForm(plan)

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> FarWorstCase:
        """The stored plan, applied to the reference."""
        coef, intercept = parameters_of(fitted.model)
        adversary = LinearAdversary(
            coef,
            intercept,
            fitted.loss,
            np.asarray(state["inverse_weights"]),
            state["norm"],
            state["label_cost"],
        )
        return FarWorstCase(
            adversary,
            FarPlan(**state["plan"]),
            fitted.reference,
            state["attained_risk"],
            fitted.classes,
            fitted.feature_names,
        )
