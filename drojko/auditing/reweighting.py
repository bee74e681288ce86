"""Sets that reweight: exact for any model, from its losses alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import spawn
from drojko.auditing.reading.problem import Case
from drojko.auditing.reporting.row import Found, check
from drojko.certificates import reweighted_certificate
from drojko.inner.reweighting.worst_case import ReweightedWorstCase

__all__ = ["reweight"]

#: Random reweightings of the same size, whose mean risk is shown beside the worst one.
RANDOM = 8


@dataclass(frozen=True, eq=False)
class _Losses:
    """Losses of a case as a function of points."""

    case: Case

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.case.losses(x, y)


def reweight(case: Case, sets: list[tuple[float, Any]]) -> list[Found]:
    """The exact worst reweighting of the rows at every size."""
    losses, weights = case.losses(case.x, case.y).numpy(), case.w.numpy()
    fitted = None
    if case.sampled:  # the dual point comes from other draws than the bound
        x, y, w = case.reference.points(len(case.x), spawn(case.generator))
        fitted = (case.losses(case.cost.project(x), y).numpy(), w.numpy())
    names = case.model.space.names
    rng = np.random.default_rng(int(torch.randint(2**31 - 1, (1,), generator=case.generator)))
    noise = rng.standard_normal((RANDOM, len(losses)))
    result = []
    for size, ambiguity in case.progress.over(sets, "exact duals", 1.0):
        bound = ambiguity.on(None, weights)
        certificate, point = reweighted_certificate(
            ambiguity, bound, losses, weights, fitted=fitted
        )
        largest = math.inf
        if fitted is not None and ambiguity.needs_largest(point.penalty):
            largest = max(float(losses.max()), float(fitted[0].max()))
        worst = ReweightedWorstCase(
            ambiguity,
            float(point.penalty),
            float(point.shift),
            _Losses(case),
            case.reference,
            case.classes,
            names,
            certificate.worst_case_risk,
            largest=largest,
        )
        dual = bound.dual(losses)
        found = Found(size, certificate, worst, (case.x, case.y, weights * dual.ratio))
        found.random = float(
            np.mean([weights @ (ambiguity.dual(g, weights).ratio * losses) for g in noise])
        )
        share = 1.0 / max(float(weights @ dual.ratio**2), 1e-300)
        found.checks.append(
            check("effective share of the rows", share, None, "(E ratio)^2 / E ratio^2")
        )
        gap = certificate.upper - certificate.lower
        exact = gap <= 1e-8 * (1.0 + abs(certificate.upper))
        found.checks.append(check("duality gap", gap, bool(exact) or case.sampled, "upper - lower"))
        result.append(found)
    return result
