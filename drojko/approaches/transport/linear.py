"""Linear models against transport sets of order 2: the worst case is a search on a line."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from drojko._numerics import standard_error
from drojko.approaches.base import Assessment, LinearProblem, Parameters, Plan
from drojko.certificates import Certificate
from drojko.minimax.problem import TrainResult
from drojko.minimax.transport.linear import solve_ridge
from drojko.minimax.transport.risk import RidgeData, RidgeRisk, ridge_robust_risk

__all__ = ["DRAWS", "ExactTransport", "certify_ridge"]

#: Draws of a continuous reference for a certificate.
DRAWS = 10_000


@dataclass(frozen=True)
class ExactTransport(LinearProblem):
    """A loss of one output whose worst cases are known."""

    def fit(self, start: tuple[Parameters, float] | None) -> tuple[Parameters, TrainResult]:
        """Newton's method with a proven gap."""
        warm = None if start is None else (start[0][0][0], float(start[0][1][0]))
        data = self.plan.ridge(self.plan.draw(self.plan.n_draws))
        parameters, result = self.solved(solve_ridge, data, warm_start=warm)
        # Draws are not kept: the certificate has its own.
        return parameters, replace(result, risk=None) if self.plan.sampled else result

    def assess(self, parameters: Parameters, result: TrainResult) -> Assessment:
        """Both sides from one root."""
        plan, known = self.plan, result.risk
        guess = result.penalty if 0 < result.penalty < math.inf else None
        if known is None or not known.of(parameters[0][0], parameters[1][0]):
            known = None
        data = plan.ridge(plan.draw(DRAWS)) if known is None else known.model.data
        certificate, (low, high, share) = certify_ridge(
            plan, data, parameters, guess=guess, result=result, known=known
        )
        state = {
            "low_penalty": low,
            "high_penalty": high,
            "share": share,
            "attained_risk": certificate.worst_case_risk,
            "cost_weights": plan.cost.weights,
            "n_labels": plan.n_labels,
            "label_cost": plan.label_cost,
        }
        if data.swaps is not None:
            from drojko.inner.transport.storage import pack_swaps

            state["swaps"] = pack_swaps(data.swaps.swaps)
        if data.box is not None:
            state["lower"], state["upper"] = data.box.lower, data.box.upper
        return Assessment(certificate, state)


def certify_ridge(
    plan: Plan,
    data: RidgeData,
    parameters: Parameters,
    guess: float | None = None,
    result: TrainResult | None = None,
    known: RidgeRisk | None = None,
) -> tuple[Certificate, tuple[float, float, float]]:
    """Exact certificate: both sides from one root; and the plan (two penalties and a share).

    ``known`` is the worst case of this model at these points, if training has found it.
    """
    coef, intercept = parameters[0][0], float(parameters[1][0])
    if plan.radius == 0.0:
        u = torch.from_numpy(data.predictions(coef, intercept))
        spread = plan.loss.value(u, torch.from_numpy(data.y)).numpy()
        value = lower = nominal = risk = float(data.weight @ spread)
        cost, penalty, worst, own = 0.0, math.inf, (math.inf, math.inf, 0.0), spread
    else:
        form: dict[str, Any] = {"radius": plan.radius or None, "penalty": plan.penalty}
        found = known or ridge_robust_risk(data, coef, intercept, **form, guess=guess)
        value, lower, nominal = found.value, found.attained, found.nominal
        cost, penalty = found.transport_cost, found.penalty
        priced = penalty * cost if cost > 0 else 0.0
        risk = lower if plan.penalty is None else lower + priced
        worst = (found.penalty_low, found.penalty_high, found.mixture)
        spread, own = data.y, data.y
        if plan.sampled:
            spread, own = _spread(found, penalty)
    own = standard_error(own, data.weight) if plan.sampled else 0.0
    certificate = Certificate(
        nominal_risk=nominal,
        lower=min(lower, value),
        upper=value,
        worst_case_risk=risk,
        radius=plan.radius,
        penalty=penalty,
        transport_cost=cost,
        standard_error=max(standard_error(spread, data.weight), own) if plan.sampled else 0.0,
        risk_error=own,
        stationarity=math.nan if result is None else result.stationarity,
        proof="ridge-1d",
    )
    return certificate, worst


def _spread(found: Any, penalty: float) -> Any:
    """Loss - penalty * cost of each point, and the loss: what Monte-Carlo errors are about."""
    losses, cost = found.model.each(penalty)
    return (losses if math.isinf(penalty) else losses - penalty * cost), losses
