"""The family of a set, by the name of its approach: transport of order 2 or 1, reweighting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.ambiguity import AmbiguitySet
from drojko.approaches.registry import approach_to
from drojko.certificates import Certificate, certify, reweighted_certificate
from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.inner.reweighting.worst_case import MeasuredWorstCase, ReweightedWorstCase
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.transported import TransportedWorstCase
from drojko.inner.worst_case import WorstCase
from drojko.measures import Empirical
from drojko.models import ModuleModel
from drojko.problems.families.adversary import LABEL, StructuredAdversary, unlabelled
from drojko.problems.families.oracle import (
    BallOracle,
    Decided,
    Draws,
    Family,
    Oracle,
    RatioOracle,
)
from drojko.problems.families.order_one import OrderOne
from drojko.problems.families.structured import StructuredLoss
from drojko.problems.families.tails import check_moment, warn_of_few

__all__ = ["family_of"]


class _Transport(Family):
    """Order-2 transport."""

    @property
    def exact(self) -> bool:
        structured = isinstance(self.loss, StructuredLoss)
        return structured and self.loss.applies(self.resolved.bounded)

    def inside(self, x: Tensor, w: Tensor, sampled: bool) -> Draws:
        if not sampled:
            self.resolved.check_inside(x)
        return Draws(self.resolved.project(x.double()), w.double())

    def oracle(self, model: ModuleModel, draws: Draws) -> Oracle:
        if self.ambiguity.radius == 0.0:
            return RatioOracle(model, draws, None)
        return self._ball(model, draws)

    def _ball(self, model: ModuleModel, draws: Draws) -> BallOracle:
        return BallOracle(model, draws, self.resolved, self.ambiguity, self.exact)

    def _adversary(self, tool: BallOracle, generator: torch.Generator) -> Adversary:
        penalty = tool.first_penalty()
        if self.exact:
            return tool.adversary(penalty)
        while True:
            try:
                found = self.inner.fit(tool.objective(penalty), tool.batch, generator)
                break
            except UnboundedRiskError:
                # Of a ball only the multiplier is asked for, and that is large enough.
                if self.ambiguity.radius is None or penalty > 1e250:
                    raise
                penalty *= 4.0
        if not isinstance(self.loss, StructuredLoss):
            return found
        known = {name: getattr(found, name) for name in found.__dataclass_fields__}
        return StructuredAdversary(**known)

    def certify(self, of: Decided) -> tuple[Certificate, WorstCase]:
        tool = self._ball(of.model, of.draws)
        adversary = self._adversary(tool, of.generator)
        found = certify(
            adversary,
            tool.batch,
            of.draws.w,
            radius=self.ambiguity.radius,
            start=adversary.objective.penalty,
            sampled=of.sampled,
            stationarity=of.stationarity,
        )
        arrays = (of.draws.x.numpy(), np.zeros(len(of.draws.x), dtype=np.int64), of.draws.w.numpy())
        measure = TransportedWorstCase(
            found.adversary,
            unlabelled(of.reference),
            *found.plan,
            found.certificate.worst_case_risk,
            arrays,
            LABEL,
            self.names,
            self.resolved.weights,
        )
        return found.certificate, measure


class _Tilted(Family):
    """Sets that limit the density ratio."""

    #: Whether the ratio is a function of the loss, at any point; else of given points.
    tilts = True

    def oracle(self, model: ModuleModel, draws: Draws) -> Oracle:
        return RatioOracle(model, draws, self.ambiguity)

    def certify(self, of: Decided) -> tuple[Certificate, WorstCase]:
        module: Any = of.model.module
        ambiguity = self.ambiguity
        if of.sampled and self.tilts:
            check_moment(ambiguity, module.loss, module.params, of.reference)
        with torch.no_grad():
            losses = of.model.linearise(of.draws.x)[0].double().numpy()
        w, bound = of.draws.w.numpy(), ambiguity.bind(of.draws.x, None, of.draws.w)
        fitted = (losses, w) if of.sampled else None
        certificate, dual, kept = reweighted_certificate(
            ambiguity, bound, losses, w, fitted=fitted, stationarity=of.stationarity
        )
        certificate = replace(certificate, radius=ambiguity.radius)
        mass = w * dual.ratio
        if not self.tilts:
            worst = unlabelled(Empirical(of.draws.x.numpy(), mass))
            return certificate, MeasuredWorstCase(
                worst,
                certificate.worst_case_risk,
                LABEL,
                self.names,
                reference=unlabelled(Empirical(of.draws.x.numpy(), w)),
            )
        needs = ambiguity.needs_largest(certificate.penalty)
        if of.sampled and certificate.proof == "local-estimate" and not needs:
            warn_of_few(ambiguity, mass)
        return certificate, ReweightedWorstCase(
            ambiguity,
            dual.penalty,
            dual.shift,
            module.of_labelled,
            unlabelled(of.reference),
            classes=LABEL,
            feature_names=self.names,
            attained_risk=certificate.worst_case_risk,
            bounded=kept,
        )


class _OnSupport(_Tilted):
    """Sets that reweight given points."""

    tilts = False


#: What an approach is called, and the family of its sets for decisions.
_FAMILIES: dict[str, type[Family]] = {
    "transport": _Transport,
    "order-one": OrderOne,
    "reweighting": _Tilted,
    "support": _OnSupport,
}


def family_of(
    ambiguity: AmbiguitySet, loss: Any, inner: InnerSolver, dim: int, names: Sequence[str] | None
) -> Family:
    """The family of a set, checked against the columns of z.

    Raises `UnsupportedError` for sets that decisions do not have yet.
    """
    resolved = ambiguity.validate(dim, names)
    build = _FAMILIES.get(approach_to(ambiguity).name)
    if build is None or ambiguity.knows_groups:
        raise UnsupportedError(
            f"{ambiguity!r} is not offered for decisions; use Wasserstein, KL, ChiSquare, "
            "CressieRead, TotalVariation, CVaR or MMD"
        )
    if not math.isinf(ambiguity.label_cost):
        raise InvalidDataError(
            f"label_cost={ambiguity.label_cost:g}: a decision's z has no label that could "
            "move; leave it infinite, and weigh columns with weights="
        )
    if getattr(resolved, "categories", None) is not None:
        raise UnsupportedError(
            "categorical_features are not offered for decisions; leave those columns immutable"
        )
    return build(ambiguity, resolved, loss, inner, None if names is None else tuple(names))
