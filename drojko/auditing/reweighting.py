"""Sets that reweight: exact for any model, from its losses alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from drojko._random import spawn
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reporting.row import Row, check
from drojko.certificates import reweighted_certificate
from drojko.inner.reweighting.worst_case import ReweightedWorstCase

__all__ = ["reweight"]

#: Random reweightings of the same size, whose mean risk is shown beside the worst one.
RANDOM = 8


def reweight(problem: AuditProblem, sets: list[tuple[float, Any]]) -> list[Row]:
    """The exact worst reweighting of the rows at every size."""
    losses, weights = problem.losses(problem.x, problem.y).numpy(), problem.w.numpy()
    fitted = None
    if problem.sampled:  # the dual point comes from other draws than the bound
        x, y, w = problem.reference.points(len(problem.x), spawn(problem.generator))
        fitted = (problem.losses(problem.cost.project(x), y).numpy(), w.numpy())
    names = problem.model.space.names
    rng = np.random.default_rng(int(torch.randint(2**31 - 1, (1,), generator=problem.generator)))
    noise = rng.standard_normal((RANDOM, len(losses)))
    result = []
    for size, ambiguity in problem.progress.over(sets, "exact duals", 1.0):
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
            problem.losses,
            problem.reference,
            problem.classes,
            names,
            certificate.worst_case_risk,
            largest=largest,
        )
        dual = bound.dual(losses)
        found = Row(size, certificate, worst, (problem.x, problem.y, weights * dual.ratio))
        found.random = float(
            np.mean([weights @ (ambiguity.dual(g, weights).ratio * losses) for g in noise])
        )
        share = 1.0 / max(float(weights @ dual.ratio**2), 1e-300)
        found.checks.append(
            check("effective share of the rows", share, None, "(E ratio)^2 / E ratio^2")
        )
        gap = certificate.upper - certificate.lower
        exact = gap <= 1e-8 * (1.0 + abs(certificate.upper))
        found.checks.append(
            check("duality gap", gap, bool(exact) or problem.sampled, "upper - lower")
        )
        result.append(found)
    return result
