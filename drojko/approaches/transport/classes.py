"""Linear models of several classes against transport sets of order 2."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from drojko._numerics import standard_error
from drojko.approaches.base import Assessment, LinearProblem, Parameters
from drojko.certificates import Certificate
from drojko.minimax.problem import TrainResult
from drojko.minimax.transport.class_risk import class_robust_risk
from drojko.minimax.transport.classes import solve_classes

__all__ = ["ClassTransport"]

_DRAWS = 2_000  # of a continuous reference for a certificate: rows are bounded one by one


@dataclass(frozen=True)
class ClassTransport(LinearProblem):
    """A loss of several outputs with known worst cases; columns without bounds or swaps."""

    def fit(self, start: tuple[Parameters, float] | None) -> tuple[Parameters, TrainResult]:
        """Newton steps by conjugate gradients, with a proven gap."""
        warm = None if start is None else (*start[0], start[1])
        data = self.plan.ridge(self.plan.draw(self.plan.n_draws))
        parameters, result = self.solved(solve_classes, data, self.plan.n_outputs, warm_start=warm)
        # Draws are not kept: the certificate has its own.
        return parameters, replace(result, risk=None) if self.plan.sampled else result

    def assess(self, parameters: Parameters, result: TrainResult) -> Assessment:
        """Both sides: what two maps attain, and branch and bound."""
        plan, (coef, intercept) = self.plan, parameters
        guess = result.penalty if 0 < result.penalty < math.inf else None
        found = result.risk
        if found is None or not found.of(coef, intercept):
            data = plan.ridge(plan.draw(_DRAWS))
            found = class_robust_risk(
                data, coef, intercept, radius=plan.radius, penalty=plan.penalty, guess=guess
            )
        own = error = 0.0
        if plan.sampled:
            own = standard_error(found.losses, found.weight)
            error = max(standard_error(np.asarray(found.spread), found.weight), own)
        certificate = Certificate(
            nominal_risk=found.nominal,
            lower=found.attained,
            upper=found.value,
            worst_case_risk=found.risk,
            radius=plan.radius,
            penalty=found.penalty,
            transport_cost=found.cost,
            standard_error=error,
            risk_error=own,
            stationarity=result.stationarity,
            proof=found.proof,
        )
        state = {
            "low_penalty": found.low_penalty,
            "high_penalty": found.high_penalty,
            "share": found.share,
            "attained_risk": found.risk,
            "cost_weights": plan.cost.weights,
            "n_labels": plan.n_labels,
            "label_cost": plan.label_cost,
        }
        return Assessment(certificate, state)
