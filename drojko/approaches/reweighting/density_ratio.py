"""Density ratios that are functions of the loss: a dual point says what happens anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from sklearn.base import clone
from torch import Tensor

from drojko.ambiguity.duals.bounded import BoundedRatio
from drojko.approaches.base import Assessment, FittedModel, Parameters, Plan, parameters_of
from drojko.approaches.reweighting.support import Draw, OnSupport
from drojko.certificates import Certificate, reweighted_certificate
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from drojko.inner.reweighting.importance import Importance, ImportanceWorstCase
from drojko.inner.reweighting.semidual import SemiDual, SemiDualWorstCase
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.inner.sinkhorn.gaussian_moments import ErrorLaw, TiltedNormals, error_law
from drojko.measures.base import components
from drojko.models import TabularModel

__all__ = ["DensityRatio"]


_FEW = (
    "a few draws of the reference carry the worst case: its upper side is an estimate that may be "
    "far too low, or infinite, and its lower side is that of a bounded reweighting. Raise the "
    "penalty or shrink the radius, or take reference='empirical'"
)


class DensityRatio(OnSupport):
    """Density ratios (KL, chi-square, Cressie-Read, total variation, CVaR), and sets like them.

    A kernel density reference has Scott's bandwidth: these sets have no distance that would say
    how far smoothing may move a sample.
    """

    name = "reweighting"
    methods = ("on", "dual", "bounds_at", "log_ratio_at", "bounded", "discrepancy")

    def reject(self, plan: Plan, model: TabularModel | Any) -> None:
        """Flows of the reference need a density, and a ratio without jumps."""
        if isinstance(plan.inner, Importance):
            plan.inner.check(plan.ambiguity)
            if not plan.sampled:
                raise UnsupportedError(
                    "inner='importance' samples a worst case that has a density; the atoms of this "
                    "reference are reweighted exactly without it: leave inner at its default, or "
                    "give reference='mixture', 'kde' or 'gaussian'"
                )

    def judge(
        self,
        plan: Plan,
        draw: Callable[[], Draw],
        stationarity: float,
        parameters: Parameters | None = None,
        near: Any = None,
    ) -> Assessment:
        """The exact dual of atoms; on draws, bounds of a dual point that other draws gave."""
        law, fitted = None, None
        if plan.sampled:
            law = None if parameters is None else _error_law(plan, parameters)
            (_, _, w), _, losses = draw()
            fitted = losses, w
        (_, _, w), bound, losses = draw()
        certificate, point, bounded = reweighted_certificate(
            plan.ambiguity, bound, losses, w, fitted=fitted, stationarity=stationarity, near=near
        )
        if law is not None:
            bounded = None
            certificate, point = _closed_form(plan, law, certificate, point)
        elif plan.sampled and math.isinf(plan.loss.growth) and _tilts(plan):
            # A loss that may outgrow the logarithm of the density has no exponential moment.
            certificate = replace(certificate, proof="local-estimate")
        state = {
            "ambiguity": clone(plan.ambiguity),
            "penalty": float(point.penalty),
            "shift": float(point.shift),
            "attained_risk": certificate.worst_case_risk,
            "bounded": None if bounded is None else asdict(bounded),
            "closed_form": law is not None,
        }
        if isinstance(plan.inner, Importance):
            state["importance"] = plan.inner.get_params(deep=False)
        if isinstance(plan.inner, SemiDual):
            settings = plan.inner.get_params(deep=False)
            state["semidual"] = {**settings, "hidden": list(settings["hidden"])}
        needs = plan.ambiguity.needs_largest(certificate.penalty)
        few = certificate.proof == "local-estimate" and not needs
        return Assessment(certificate, state, advice=_FEW if few else None)

    def worst_case(self, fitted: FittedModel, state: dict[str, Any]) -> ReweightedWorstCase:
        """The reference with the ratios of the stored dual point."""
        model, loss = fitted.model, fitted.loss

        def losses(x: Tensor, y: Tensor) -> Tensor:
            x = x.to(fitted.device, fitted.dtype)
            y = y.to(fitted.device)
            y = y if fitted.classes is not None else y.to(fitted.dtype)
            return loss.value(model.linearise(x)[0], y)

        own: dict[str, Any] = {"bounded": None, "law": None}
        if state.get("bounded") is not None:
            own["bounded"] = BoundedRatio(**state["bounded"])
        if state.get("closed_form"):
            (coef, intercept), (measure, *_) = parameters_of(model), components(fitted.reference)
            own["law"] = TiltedNormals.of(measure, coef[0], float(intercept[0]), state["penalty"])
            own["bounded"] = BoundedRatio()
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


def _tilts(plan: Plan) -> bool:
    """Whether densities are tilted by the exponential of the loss."""
    divergence = plan.ambiguity.divergence
    return plan.radius != 0.0 and divergence is not None and divergence.kind == "kl"


def _error_law(plan: Plan, parameters: Parameters) -> ErrorLaw | None:
    """Law of the error where the exponential moments of the loss have a closed form."""
    if not plan.loss.quadratic or not _tilts(plan):
        return None
    law = error_law(components(plan.reference)[0], parameters[0][0], float(parameters[1][0]))
    if law is not None and plan.penalty is not None and plan.penalty <= law.least:
        raise UnboundedRiskError(
            f"KL: under the squared loss and a reference of Gaussian components, the worst "
            f"case of this model is infinite for penalty={plan.penalty:g}; the smallest "
            f"penalty that is finite is {law.least:.6g}: raise the penalty above it, give "
            "radius= instead, or use reference='empirical'"
        )
    return law


def _closed_form(
    plan: Plan, law: ErrorLaw, found: Certificate, point: Any
) -> tuple[Certificate, Any]:
    """Both sides without sampling, at a multiplier above the least finite one."""
    if plan.radius is None:
        value, penalty = law.value(float(plan.penalty or 0.0)), float(plan.penalty or 0.0)
        shift = value
    else:
        value, penalty = law.ball(plan.radius)
        shift = value - penalty * plan.radius
    risk = law.tilted(penalty).risk
    spent = max((risk - shift) / penalty, 0.0)
    certificate = replace(
        found,
        nominal_risk=law.risk,
        lower=min(risk if plan.penalty is None else value, value),
        upper=value,
        worst_case_risk=risk,
        penalty=penalty,
        transport_cost=spent,
        standard_error=0.0,
        risk_error=0.0,
        proof="dual",
    )
    return certificate, replace(point, penalty=penalty, shift=shift)
