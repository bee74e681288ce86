"""Transport sets: maps of the reference, exact for linear models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.approaches.base import (
    Approach,
    Assessment,
    FittedModel,
    LinearProblem,
    Plan,
    Points,
)
from drojko.approaches.transport.evaluation import assess, certify_points
from drojko.approaches.transport.linear import ExactTransport
from drojko.approaches.transport.training import train
from drojko.certificates import Certificate
from drojko.exceptions import UnsupportedError
from drojko.inner.reach import reachable
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.known import KnownRows
from drojko.inner.transport.storage import swapping, unpack
from drojko.inner.transport.transported import TransportedWorstCase
from drojko.minimax.kinked import DETOURS
from drojko.minimax.problem import TrainResult
from drojko.models import TabularModel, is_linear

__all__ = ["Transport"]

#: Share of the radius that smoothing may spend: the reference is not the worst case already.
INSIDE = 0.1


class Transport(Approach):
    """Wasserstein sets of order 2."""

    name = "transport"
    moves = True
    orders = (2, None)

    def resolve(self, ambiguity: AmbiguitySet, X: np.ndarray, names: Any) -> GroundCost:
        """The ground cost, within whose bounds the data must lie, with the data's categories."""
        cost = super().resolve(ambiguity, X, names)
        cost.check_inside(X)
        return cost.observed(X)

    def smoothing(self, ambiguity: AmbiguitySet) -> float | None:
        """A tenth of the radius."""
        return None if ambiguity.radius is None else INSIDE * ambiguity.radius

    def linear(self, plan: Plan) -> LinearProblem | None:
        """Exact where linear combinations decide."""
        if plan.classes:
            from drojko.approaches.transport.classes import ClassTransport

            return ClassTransport(plan)
        jumps = plan.cost.bounded or plan.cost.swaps
        if not plan.known or (jumps and not _jumping(plan)):
            return None
        return ExactTransport(plan)

    def reject(self, plan: Plan, model: TabularModel | Any) -> None:
        """Targets of a regression that move need the exact solver."""
        if plan.n_labels == 0 and math.isfinite(plan.label_cost):
            raise UnsupportedError(
                "a finite label_cost in regression needs a linear model without bounds "
                "and swaps: set label_cost=inf"
            )

    def shares(self, plan: Plan) -> bool:
        """Where rows move by themselves."""
        return not plan.cost.swaps

    def most_iterations(self, plan: Plan, model: TabularModel) -> int:
        """The limit of a staged solver is one per stage."""
        kinked = is_linear(model) and plan.cost.swaps
        return plan.max_iter * (1 + len(DETOURS)) if kinked else plan.max_iter

    def train(self, plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
        """Quasi-Newton for linear models, subgradient steps otherwise."""
        return train(plan, model, start)

    def assess(self, plan: Plan, model: TabularModel, result: TrainResult) -> Assessment:
        """Learn the worst-case map on some draws and certify it on fresh ones."""
        if plan.shards is not None:
            from drojko.approaches.transport.shards import assess_shared

            return assess_shared(plan, model, result)
        return assess(plan, model, result)

    def search(
        self, plan: Plan, model: TabularModel, points: Points, generator: torch.Generator
    ) -> Certificate:
        """Learn the worst case of the points themselves."""
        return certify_points(plan, model, points, generator)

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> TransportedWorstCase:
        """The image of the reference under the stored maps."""
        adversary = _adversary(fitted, state)
        if fitted.classes is None and np.isfinite(adversary.label_cost):
            return _moving_targets(fitted, state, adversary)
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
            KnownRows(**state["known"]) if state.get("known") else None,
        )


def _jumping(plan: Plan) -> bool:
    """Whether swaps and bounds are exact: rows of an array, inside the bounds; targets that stay.

    Draws may lie outside, and pay for their way in. Not for the squared loss where columns move
    without bounds: its place of the price next to the edge of its domain is lost to rounding where
    columns are of very different sizes.
    """
    table = plan.atoms is not None and hasattr(plan.atoms[0], "rows")
    moving = plan.n_labels == 0 and math.isfinite(plan.label_cost)
    cost = plan.cost
    if cost.bounded and plan.sampled:
        return False
    closed = bool(np.isfinite(cost.span[cost.mutable]).all()) if cost.bounded else False
    return reachable(plan.loss) and (closed or not plan.loss.growth) and not (table or moving)


def _moving_targets(
    fitted: FittedModel, state: dict[str, Any], adversary: Adversary
) -> TransportedWorstCase:
    """The line of a linear regression along which rows and targets move."""
    from drojko.inner.transport.targets import TargetsMove

    weights, biases = (p.detach().double().cpu().numpy() for p in fitted.model.parameters())
    costs = np.asarray(state["cost_weights"], dtype=np.float64)
    line = weights.ravel(), float(biases.ravel()[0]), 1.0 / costs, float(adversary.label_cost)
    return TargetsMove(
        adversary, fitted.reference, state["low_penalty"], state["high_penalty"], state["share"],
        state["attained_risk"], feature_names=fitted.feature_names,
        cost_weights=state["cost_weights"], line=line,
    )  # fmt: skip


def _adversary(fitted: FittedModel, state: dict[str, Any]) -> Adversary:
    """The stored adversary, or the exact one of a linear model."""
    if "adversary" in state:
        like: dict[str, Any] = {"dtype": fitted.dtype, "device": fitted.device}
        return unpack(state["adversary"], fitted.model, fitted.loss, **like)
    penalty = state["high_penalty"]
    bounds = (state["lower"], state["upper"]) if "lower" in state else ()
    price = penalty if math.isfinite(penalty) else 1.0
    objective = fitted.objective(state["cost_weights"], price, *bounds)
    if state.get("swaps"):
        objective = swapping(objective, state["swaps"])
    return Adversary(
        objective,
        n_labels=state["n_labels"],
        label_cost=state["label_cost"],
    )
