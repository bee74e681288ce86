"""Order-1 Wasserstein sets: linear models against Lipschitz losses, exactly."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._numerics import standard_error
from drojko._random import spawn
from drojko.ambiguity import AmbiguitySet
from drojko.approaches.base import Approach, Assessment, FittedModel
from drojko.approaches.plan import Plan
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
_COLUMNS = ("iteration", "robust_risk", "penalty", "transport_cost", "stationarity", "seconds")


class OrderOne(Approach):
    """Wasserstein sets of order 1 with a radius > 0 or a penalty."""

    name = "order-one"

    def serves(self, ambiguity: AmbiguitySet) -> bool:
        """Of radius 0 both orders are the reference alone."""
        return ambiguity.moves and ambiguity.order == 1 and ambiguity.radius != 0

    def smoothing(self, ambiguity: AmbiguitySet) -> float | None:
        """A tenth of the radius."""
        return None if ambiguity.radius is None else INSIDE * ambiguity.radius

    def reject(self, plan: Plan, model: TabularModel) -> None:
        """Only linear models and Lipschitz losses have the closed form."""
        if not is_linear(model):
            raise UnsupportedError(
                "order=1 needs a linear model: the slope of a network has no closed form. Use "
                "model='linear', or order=2"
            )
        slope_bound(plan.loss)

    def train(self, plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
        """Interior-point training on the draws; the best parameters are left in the model."""
        x, y, w = _arrays(plan, model, plan.n_draws)

        def load(coef: np.ndarray, intercept: np.ndarray) -> None:
            weight, bias = model.weights[0], model.biases[0]  # type: ignore[index]
            weight.data.copy_(torch.as_tensor(coef))
            bias.data.copy_(torch.as_tensor(intercept))

        def callback(iteration: int, info: dict[str, Any]) -> bool:
            if plan.callback is None:
                return False
            load(info["coef"], info["intercept"])
            return plan.callback(iteration, info)

        solution = solve_lipschitz(
            x,
            y,
            loss=plan.loss,
            weight=w,
            n_outputs=model.n_outputs,
            radius=plan.radius,
            penalty=plan.penalty,
            norm=plan.ambiguity.norm,
            inverse_weights=plan.cost.inverse_weights,
            label_cost=plan.label_cost,
            alpha=plan.alpha,
            fit_intercept=plan.fit_intercept,
            tol=plan.tol,
            max_iter=plan.max_iter,
            max_time=plan.max_time,
            warm_start=None if start is None else _parameters(model),
            callback=callback,
        )
        coef = solution.coef
        if plan.penalty is not None and plan.dtype != torch.float64:
            coef = coef * (1.0 - 1e-6)  # rounding must not lift the slope above the penalty
        load(coef, solution.intercept)
        columns = {
            name: np.array([row.get(name, math.nan) for row in solution.history])
            for name in _COLUMNS
        }
        return TrainResult(
            solution.status,
            solution.message,
            solution.n_iter,
            solution.lam,
            solution.stationarity,
            columns,
            solution.gap,
        )

    def assess(
        self, plan: Plan, model: TabularModel, result: TrainResult, sampled: bool, atoms: int
    ) -> Assessment:
        """Both sides of the certificate from the closed form, on fresh draws or on the atoms."""
        points = _arrays(plan, model, DRAWS if sampled else atoms)
        certificate, plan_found = _measure(plan, model, points, sampled, result.stationarity)
        state = {
            "plan": asdict(plan_found),
            "attained_risk": certificate.worst_case_risk,
            "inverse_weights": plan.cost.inverse_weights,
            "norm": plan.ambiguity.norm,
            "label_cost": plan.label_cost,
        }
        return Assessment(certificate, state)

    def certify(
        self,
        plan: Plan,
        model: TabularModel,
        points: tuple[Tensor, Tensor, Tensor],
        generator: torch.Generator,
    ) -> Certificate:
        """The closed form at the points themselves."""
        self.reject(plan, model)
        return _measure(plan, model, _numpy(*points), False, math.nan)[0]

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> FarWorstCase:
        """The stored plan, applied to the reference."""
        coef, intercept = _parameters(fitted.model)
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


def _parameters(model: TabularModel) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = model.weights[0], model.biases[0]  # type: ignore[index]
    return (
        weight.detach().double().cpu().numpy().copy(),
        bias.detach().double().cpu().numpy().copy(),
    )


def _numpy(x: Tensor, y: Tensor, w: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = y.cpu().numpy()
    labels = labels if labels.dtype.kind in "iu" else labels.astype(np.float64)
    return x.double().cpu().numpy(), np.array(labels), w.double().cpu().numpy()


def _arrays(plan: Plan, model: TabularModel, count: int):
    return _numpy(*plan.problem(model).draw(count, spawn(plan.generator)))


def _measure(
    plan: Plan, model: TabularModel, points: Any, sampled: bool, stationarity: float
) -> tuple[Certificate, FarPlan]:
    x, y, w = points
    coef, intercept = _parameters(model)
    adversary = LinearAdversary(
        coef, intercept, plan.loss, plan.cost.inverse_weights, plan.ambiguity.norm, plan.label_cost
    )
    found = adversary.risk(x, y, w, radius=plan.radius, penalty=plan.penalty)
    error = standard_error(found.spread, w) if sampled else 0.0
    certificate = Certificate(
        nominal_risk=found.nominal,
        lower=min(found.attained, found.value),
        upper=found.value,
        worst_case_risk=found.worst_risk,
        radius=plan.radius,
        penalty=found.penalty,
        transport_cost=found.transport_cost,
        standard_error=error,
        stationarity=stationarity,
        proof="dual",
    )
    return certificate, found.plan
