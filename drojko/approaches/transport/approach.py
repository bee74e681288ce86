"""Transport sets: maps of the reference, exact for linear models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.approaches.base import Approach, Assessment, FittedModel, NoWorstCase
from drojko.approaches.plan import Plan, Points
from drojko.approaches.transport.evaluation import assess, certify_points
from drojko.approaches.transport.training import most_iterations, reject, train
from drojko.certificates import Certificate
from drojko.inner.transport.storage import pack, unpack
from drojko.inner.transport.transported import TransportedWorstCase
from drojko.minimax.problem import TrainResult
from drojko.models import TabularModel

__all__ = ["Transport"]

#: Share of the radius that smoothing may spend: the reference is not the worst case already.
INSIDE = 0.1


class Transport(Approach):
    """Wasserstein sets of order 2."""

    name = "transport"

    def serves(self, ambiguity: AmbiguitySet) -> bool:
        """Points that move at a squared cost, or not at all."""
        return ambiguity.moves and (ambiguity.order == 2 or ambiguity.radius == 0)

    def resolve(self, ambiguity: AmbiguitySet, X: np.ndarray, names: Any) -> GroundCost:
        """The ground cost, within whose bounds the data must lie, with the data's categories."""
        cost = super().resolve(ambiguity, X, names)
        cost.check_inside(X)
        return cost.observed(X)

    def smoothing(self, ambiguity: AmbiguitySet) -> float | None:
        """A tenth of the radius."""
        return None if ambiguity.radius is None else INSIDE * ambiguity.radius

    def reject(self, plan: Plan, model: TabularModel) -> None:
        """Targets of a regression that move need the exact solver."""
        reject(plan, model)

    def most_iterations(self, plan: Plan, model: TabularModel) -> int:
        """The limit of a staged solver is one per stage."""
        return most_iterations(plan, model)

    def train(self, plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
        """Exact for ridge losses, quasi-Newton or subgradient steps otherwise."""
        return train(plan, model, start)

    def assess(
        self, plan: Plan, model: TabularModel, result: TrainResult, sampled: bool, atoms: int
    ) -> Assessment:
        """Learn the worst-case map on some draws and certify it on fresh ones."""
        found = assess(plan, model, result, sampled, atoms)
        state = {
            "adversary": pack(found.adversary),
            "low_penalty": found.low_penalty,
            "high_penalty": found.high_penalty,
            "share": found.share,
            "attained_risk": found.certificate.worst_case_risk,
            "cost_weights": plan.cost.weights,
        }
        return Assessment(found.certificate, state, found.constant, found.advice)

    def certify(
        self, plan: Plan, model: TabularModel, points: Points, generator: torch.Generator
    ) -> Certificate:
        """Learn the worst case of the points themselves."""
        return certify_points(plan, model, *points, generator)

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> TransportedWorstCase:
        """The image of the reference under the stored maps."""
        adversary = unpack(
            state["adversary"],
            fitted.model,
            fitted.loss,
            dtype=fitted.dtype,
            device=fitted.device,
        )
        if fitted.classes is None and np.isfinite(adversary.label_cost):
            raise NoWorstCase(
                "worst_case_: targets move under this label_cost, and a map of X alone does not "
                "say how; certificate_ is exact. Use label_cost=inf to see a worst case"
            )
        return TransportedWorstCase(
            adversary,
            fitted.reference,
            state["low_penalty"],
            state["high_penalty"],
            state["share"],
            state["attained_risk"],
            None,
            fitted.classes,
            fitted.feature_names,
            state["cost_weights"],
        )
