"""Sets that know their points: the groups that rows belong to, the kernel between them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import spawn
from drojko.ambiguity import MMD, AmbiguitySet, Group
from drojko.ambiguity.group import membership
from drojko.approaches.base import Approach, Assessment, FittedModel
from drojko.approaches.plan import Plan
from drojko.certificates import Certificate, reweighted_certificate
from drojko.exceptions import InvalidDataError
from drojko.inner.reweighting.measured import MeasuredWorstCase
from drojko.measures import ClassConditional, Empirical, Grouped, Joint, LabelledMeasure
from drojko.minimax.limits import Limits
from drojko.minimax.problem import TrainResult, bind
from drojko.minimax.reweighting.solve import solve_reweighted
from drojko.models import TabularModel

__all__ = ["OnSupport"]

#: Draws of a continuous reference for a certificate, and those of MMD sets (quadratic programs).
DRAWS, KERNEL_DRAWS = 10_000, 500


class OnSupport(Approach):
    """Group and MMD sets.

    A `Group` set has a measure for each group (`Grouped`), and its worst case is a mixture of
    them. An `MMD` set compares pairs (x, y): the kernel of the points times one of the labels.
    """

    name = "support"

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
        if not isinstance(ambiguity, Group):
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
        n_draws = plan.n_draws
        if isinstance(plan.ambiguity, MMD):
            n_draws = min(n_draws, KERNEL_DRAWS)  # an empirical reference has its atoms anyway
        return solve_reweighted(
            plan.problem(model),
            plan.ambiguity,
            spawn(plan.generator),
            n_draws=n_draws,
            outer=plan.outer,
            limits=Limits(plan.max_iter, plan.tol, plan.max_time, plan.callback),
        )

    def assess(
        self, plan: Plan, model: TabularModel, result: TrainResult, sampled: bool, atoms: int
    ) -> Assessment:
        """The exact dual on atoms, or on draws that training has not seen."""
        most = KERNEL_DRAWS if isinstance(plan.ambiguity, MMD) else DRAWS
        x, y, w, bound = plan.problem(model).support(
            plan.ambiguity, most if sampled else atoms, spawn(plan.generator)
        )
        certificate, dual = _certificate(
            plan, model, (x, y, w), bound, sampled, result.stationarity
        )
        state: dict[str, Any] = {"attained_risk": certificate.worst_case_risk}
        if isinstance(plan.ambiguity, Group):
            state["group_weights"] = dual.group_weights
        else:
            mass = w.cpu().numpy() * dual.ratio
            kept = mass > 0
            state["x"] = x.double().cpu().numpy()[kept]
            state["y"] = y.cpu().numpy()[kept]
            state["mass"] = mass[kept]
        return Assessment(certificate, state)

    def certify(
        self,
        plan: Plan,
        model: TabularModel,
        points: tuple[Tensor, Tensor, Tensor],
        generator: torch.Generator,
    ) -> Certificate:
        """The exact dual of the points."""
        x, y, w = points
        index = None
        if isinstance(plan.ambiguity, Group):
            members, _ = _membership(plan.groups, w.cpu().numpy())
            # A row in several groups stands once for each, as in the centre of the set.
            rows, index = np.nonzero(members)
            x, y, w = x[rows], y[rows], w[rows]
            w = w / w.sum()
        bound = bind(plan.ambiguity, x, y, w, index)
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
    points: tuple[Tensor, Tensor, Tensor],
    bound: Any,
    sampled: bool,
    stationarity: float,
) -> tuple[Certificate, Any]:
    x, y, w = points
    parts = [
        plan.loss.value(model.linearise(a)[0], b).detach().double().cpu()
        for a, b in zip(x.split(65_536), y.split(65_536), strict=True)
    ]
    losses, weights = torch.cat(parts).numpy(), w.cpu().numpy()
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
