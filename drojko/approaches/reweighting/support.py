"""Sets that reweight given points: groups of rows, kernels between them, sets of a user's own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from drojko._random import spawn
from drojko.ambiguity import AmbiguitySet
from drojko.ambiguity.group import membership
from drojko.approaches.base import Approach, Assessment, FittedModel
from drojko.approaches.plan import Plan, Points
from drojko.certificates import Certificate, reweighted_certificate
from drojko.exceptions import InvalidDataError
from drojko.inner.reweighting.measured import MeasuredWorstCase
from drojko.measures import ClassConditional, Empirical, Grouped, Joint, LabelledMeasure
from drojko.minimax.problem import TrainResult
from drojko.minimax.reweighting.solve import solve_reweighted
from drojko.models import TabularModel

__all__ = ["OnSupport", "losses_of"]

#: Draws of a continuous reference for a certificate, unless the set says less.
DRAWS = 10_000


class OnSupport(Approach):
    """Every set with ``on(x, weights, groups)``: its worst case are the points with other masses.

    A `Group` set has a measure for each group (`Grouped`), and its worst case is a mixture of
    them. An `MMD` set compares pairs (x, y): the kernel of the points times one of the labels.
    """

    name = "support"
    gradients = False

    def serves(self, ambiguity: AmbiguitySet) -> bool:
        """Sets that are a function of the losses of given points."""
        return callable(getattr(ambiguity, "on", None))

    def measure(
        self,
        ambiguity: AmbiguitySet,
        reference: LabelledMeasure,
        X: Any,
        y: Any,
        weight: Any,
        groups: Any,
    ) -> LabelledMeasure:
        """Fit the reference: one for each group where the set has groups."""
        if not ambiguity.knows_groups:
            return super().measure(ambiguity, reference, X, y, weight, groups)
        if isinstance(reference, Grouped) and reference.__sklearn_is_fitted__():
            return reference
        members, names = _membership(groups, np.asarray(weight))
        if reference.__sklearn_is_fitted__():
            raise InvalidDataError(
                "reference is fitted and knows no groups: give an unfitted one, which is fitted to "
                "each group, or a fitted drojko.measures.Grouped"
            )
        template = reference.template if isinstance(reference, Grouped) else reference
        fitted = Grouped(template).fit(X, y, sample_weight=weight, groups=members)
        fitted.names_ = names
        return fitted

    def train(self, plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
        """Newton's method or L-BFGS for linear models, stochastic steps otherwise."""
        return solve_reweighted(
            plan.problem(model),
            plan.ambiguity,
            spawn(plan.generator),
            n_draws=_at_most(plan, plan.n_draws),  # an empirical reference has its atoms anyway
            outer=plan.outer,
            limits=plan.limits,
        )

    def assess(
        self, plan: Plan, model: TabularModel, result: TrainResult, sampled: bool, atoms: int
    ) -> Assessment:
        count = _at_most(plan, DRAWS) if sampled else atoms
        x, y, w, bound = plan.problem(model).support(plan.ambiguity, count, spawn(plan.generator))
        certificate, dual = _certificate(
            plan, model, (x, y, w), bound, sampled, result.stationarity
        )
        state: dict[str, Any] = {"attained_risk": certificate.worst_case_risk}
        shares = getattr(dual, "group_weights", None)
        if shares is not None:
            state["group_weights"] = shares
        else:
            mass = w.cpu().numpy() * dual.ratio
            kept = mass > 0
            state["x"] = x.double().cpu().numpy()[kept]
            state["y"] = y.cpu().numpy()[kept]
            state["mass"] = mass[kept]
        return Assessment(certificate, state)

    def certify(
        self, plan: Plan, model: TabularModel, points: Points, generator: torch.Generator
    ) -> Certificate:
        """The exact dual of the points."""
        x, y, w = points
        index = None
        if plan.ambiguity.knows_groups:
            members, _ = _membership(plan.groups, w.cpu().numpy())
            # A row in several groups stands once for each, as in the centre of the set.
            rows, index = np.nonzero(members)
            x, y, w = x[rows], y[rows], w[rows]
            w = w / w.sum()
        bound = plan.ambiguity.bind(x, y, w, index)
        return _certificate(plan, model, (x, y, w), bound, False, math.nan)[0]

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> MeasuredWorstCase:
        """The worst mixture of the groups, or the points with their worst masses."""
        shares = None
        if "group_weights" in state:
            reference: Any = fitted.reference
            measure = reference.mixture(state["group_weights"])
            shares = dict(zip(reference.names_, state["group_weights"].tolist(), strict=True))
        elif fitted.classes is None:
            rows = np.column_stack([state["x"], state["y"]])
            measure = Joint(Empirical(rows, state["mass"]))
        else:
            measure = _by_class(state["x"], state["y"], state["mass"], len(fitted.classes))
        return MeasuredWorstCase(
            measure, state["attained_risk"], fitted.classes, fitted.feature_names, shares
        )


def losses_of(plan: Plan, model: TabularModel, points: Points) -> np.ndarray:
    """Losses of a model at weighted points, float64."""
    parts = [
        plan.loss.value(model.linearise(x)[0], y).detach().double().cpu()
        for x, y in zip(points[0].split(65_536), points[1].split(65_536), strict=True)
    ]
    return torch.cat(parts).numpy()


def _at_most(plan: Plan, count: int) -> int:
    return min(count, plan.ambiguity.most_draws or count)


def _membership(groups: Any, weight: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """Indicator matrix and names of groups, one row per weight, none without weight."""
    if groups is None:
        raise InvalidDataError(
            "a Group set needs the groups of the rows: give groups=, a label per row or columns "
            "of 0 and 1, to fit, robust_certificate and robust_score"
        )
    members, names = membership(groups)
    n = len(weight)
    if len(members) != n:
        raise InvalidDataError(f"groups has {len(members)} rows and X has {n}: give one per row")
    masses = weight @ members
    if not masses.all():
        raise InvalidDataError(
            f"group {names[int(masses.argmin())]!r} has no row of positive weight: drop it, or "
            "give its rows weight"
        )
    return members, names


def _by_class(x: np.ndarray, y: np.ndarray, mass: np.ndarray, n_classes: int) -> LabelledMeasure:
    """Atoms with masses, class by class; a class without any keeps an atom of mass 0."""
    parts = []
    for k in range(n_classes):
        inside = y == k
        parts.append(Empirical(x[inside], mass[inside]) if inside.any() else Empirical(x[:1]))
    return ClassConditional(measures=parts, weights=np.bincount(y, mass, n_classes))


def _certificate(
    plan: Plan,
    model: TabularModel,
    points: Points,
    bound: Any,
    sampled: bool,
    stationarity: float,
) -> tuple[Certificate, Any]:
    losses, weights = losses_of(plan, model, points), points[2].cpu().numpy()
    certificate, _ = reweighted_certificate(
        plan.ambiguity,
        bound,
        losses,
        weights,
        fitted=(losses, weights) if sampled else None,
        stationarity=stationarity,
    )
    if plan.radius is not None:  # in the units of the set's radius
        certificate = replace(certificate, radius=plan.radius)
    return certificate, bound.dual(losses)
