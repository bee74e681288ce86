"""Density ratios that are functions of the loss: a dual point says what happens anywhere."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from drojko._random import spawn
from drojko.ambiguity import AmbiguitySet
from drojko.approaches.base import Assessment, FittedModel
from drojko.approaches.plan import Plan, Points
from drojko.approaches.reference import is_sampled
from drojko.approaches.reweighting.support import OnSupport, losses_of
from drojko.certificates import Certificate, reweighted_certificate
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from drojko.inner.reweighting.importance import Importance, ImportanceWorstCase, check_set
from drojko.inner.reweighting.semidual import SemiDual, SemiDualWorstCase
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.inner.sinkhorn.gaussian_moments import ErrorLaw, error_law
from drojko.measures.base import components
from drojko.minimax.problem import TrainResult
from drojko.models import MLP, TabularModel

__all__ = ["DensityRatio"]

#: Draws of a continuous reference: for the dual point, and as many for the certificate.
DRAWS = 10_000


class DensityRatio(OnSupport):
    """Density ratios (KL, chi-square, Cressie-Read, total variation, CVaR), and sets like them.

    A kernel density reference has Scott's bandwidth: these sets have no distance that would say
    how far smoothing may move a sample.
    """

    name = "reweighting"
    _needs = ("on", "dual", "bounds_at", "log_ratio_at", "without_atoms", "discrepancy")

    def serves(self, ambiguity: AmbiguitySet) -> bool:
        """Sets with the methods of a `DensityRatioSet`."""
        return all(callable(getattr(ambiguity, name, None)) for name in self._needs)

    def reject(self, plan: Plan, model: TabularModel) -> None:
        """Flows of the reference need a density, and a ratio without jumps."""
        if isinstance(plan.inner, Importance):
            check_set(plan.ambiguity)
            if not is_sampled(plan.reference):
                raise UnsupportedError(
                    "inner='importance' samples a worst case that has a density; the atoms of this "
                    "reference are reweighted exactly without it: leave inner at its default, or "
                    "give reference='mixture', 'kde' or 'gaussian'"
                )

    def assess(
        self, plan: Plan, model: TabularModel, result: TrainResult, sampled: bool, atoms: int
    ) -> Assessment:
        draws = plan.problem(model).draw(DRAWS if sampled else atoms, spawn(plan.generator))
        law = _error_law(plan, model) if sampled else None
        if law is not None and plan.penalty is not None and plan.penalty <= law.least:
            raise UnboundedRiskError(
                f"KL: under the squared loss and a reference of Gaussian components, the worst "
                f"case of this model is infinite for penalty={plan.penalty:g}; the smallest "
                f"penalty that is finite is {law.least:.6g}: raise the penalty above it, give "
                "radius= instead, or use reference='empirical'"
            )
        fitted = None
        if sampled:
            other = plan.problem(model).draw(DRAWS, spawn(plan.generator))
            fitted = (losses_of(plan, model, other), other[2].cpu().numpy())
        certificate, point = _certificate(plan, model, draws, fitted, result.stationarity)
        largest = math.inf
        if fitted is not None and plan.ambiguity.needs_largest(point.penalty):
            largest = max(float(losses_of(plan, model, draws).max()), float(fitted[0].max()))
        if law is not None:
            certificate, point = _closed_form(plan, law, certificate, point)
        state = {
            "ambiguity": clone(plan.ambiguity),
            "penalty": float(point.penalty),
            "shift": float(point.shift),
            "attained_risk": certificate.worst_case_risk,
            "largest": largest,
        }
        if isinstance(plan.inner, Importance):
            state["importance"] = plan.inner.get_params(deep=False)
        if isinstance(plan.inner, SemiDual):
            settings = plan.inner.get_params(deep=False)
            state["semidual"] = {**settings, "hidden": list(settings["hidden"])}
        return Assessment(certificate, state)

    def certify(
        self, plan: Plan, model: TabularModel, points: Points, generator: torch.Generator
    ) -> Certificate:
        return _certificate(plan, model, points, None, math.nan)[0]

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> ReweightedWorstCase:
        """The reference with the ratios of the stored dual point."""
        model, loss = fitted.model, fitted.loss

        def losses(x: Tensor, y: Tensor) -> Tensor:
            x = x.to(fitted.device, fitted.dtype)
            y = y.to(fitted.device)
            y = y if fitted.classes is not None else y.to(fitted.dtype)
            return loss.value(model.linearise(x)[0], y)

        own: dict[str, Any] = {"largest": state.get("largest", math.inf)}
        kind = ReweightedWorstCase
        if "importance" in state:
            kind, own["settings"] = ImportanceWorstCase, state["importance"]
        if "semidual" in state:
            kind, own["settings"] = SemiDualWorstCase, state["semidual"]
        return kind(
            state["ambiguity"],
            state["penalty"],
            state["shift"],
            losses,
            fitted.reference,
            fitted.classes,
            fitted.feature_names,
            state["attained_risk"],
            **own,
        )


def _certificate(
    plan: Plan,
    model: TabularModel,
    points: Points,
    fitted: tuple[np.ndarray, np.ndarray] | None,
    stationarity: float,
) -> tuple[Certificate, Any]:
    x, _, w = points
    bound = plan.ambiguity.bind(x, None, w)
    losses = losses_of(plan, model, points)
    return reweighted_certificate(
        plan.ambiguity, bound, losses, w.cpu().numpy(), fitted=fitted, stationarity=stationarity
    )


def _error_law(plan: Plan, model: TabularModel) -> ErrorLaw | None:
    """Law of the error where the exponential moments of the loss have a closed form."""
    if not (isinstance(model, MLP) and len(model.weights) == 1) or plan.radius == 0.0:
        return None
    divergence = plan.ambiguity.divergence
    if divergence is None or divergence.kind != "kl" or not plan.loss.quadratic:
        return None
    coef = model.weights[0].detach().double().cpu().numpy()[0]
    intercept = float(model.biases[0].detach())
    return error_law(components(plan.reference)[0], coef, intercept)


def _closed_form(
    plan: Plan, law: ErrorLaw, found: Certificate, point: Any
) -> tuple[Certificate, Any]:
    """The upper bound without sampling, at a multiplier above the least finite one."""
    if plan.radius is None:
        value, penalty = law.value(float(plan.penalty or 0.0)), found.penalty
        shift = value
    else:
        value, penalty = law.ball(plan.radius)
        shift = value - penalty * plan.radius
    upper = max(value, found.lower)
    return replace(found, upper=upper, penalty=penalty), replace(
        point, penalty=penalty, shift=shift
    )
