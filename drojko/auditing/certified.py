"""Rows of exact duals, and of sets of which an audit knows no more than their approach."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from drojko._random import spawn
from drojko.approaches.base import FittedModel, Plan, arrays
from drojko.approaches.reference import empirical
from drojko.approaches.registry import approach_to
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reporting.row import Row, check
from drojko.certificates import reweighted_certificate
from drojko.exceptions import UnsupportedError
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.inner.solver import InnerSolver
from drojko.inner.worst_case import WorstCase

__all__ = ["certified", "plan_of", "reweight"]

_SUPPORTED = (
    "without gradients: Wasserstein (order 2), KL, ChiSquare, CressieRead, TotalVariation, CVaR, "
    "MMD and Group"
)
#: Draws that show where mass goes, where a worst case is a law around each row.
_SHOWN = 2_000


def plan_of(problem: AuditProblem, ambiguity: Any, inner: InnerSolver) -> Plan:
    return Plan(
        reference=problem.reference,
        ambiguity=ambiguity,
        cost=problem.cost,
        loss=problem.loss,
        inner=inner,
        radius=None if ambiguity.radius is None else float(ambiguity.radius),
        penalty=None if ambiguity.penalty is None else float(ambiguity.penalty),
        label_cost=problem.ambiguity.label_cost,
        n_labels=problem.n_labels,
        dtype=torch.float64,
        device="cpu",
        generator=spawn(problem.generator),
        groups=problem.groups,
    )


def certified(
    problem: AuditProblem, sizes: list[tuple[float, Any]], inner: InnerSolver
) -> Iterator[Row]:
    """Certificates from the approaches of the estimators, made monotone in the radius."""
    if approach_to(problem.ambiguity).gradients and problem.model.tabular is None:
        raise UnsupportedError(
            f"{type(problem.ambiguity).__name__} needs gradients, and there are none "
            f"({problem.model.note}); {_SUPPORTED}"
        )
    before = None
    for size, ambiguity in problem.progress.over(sizes, "certificates", 1.0):
        plan = plan_of(problem, ambiguity, inner)
        approach = approach_to(ambiguity)
        model = copy.deepcopy(problem.tabular)
        approach.reject(plan, model)
        with torch.no_grad():
            c = approach.certify(
                plan, model, (problem.x, problem.y, problem.w), spawn(problem.generator)
            )
        worst = _worst(problem, plan, approach, model, c)
        one = Row(size, c, worst)
        if worst is not None:
            one.after = _after(worst, problem)
        before = _monotone(one, before)
        yield before


def _monotone(one: Row, before: Row | None) -> Row:
    """A worst case of a smaller radius is inside a larger one."""
    if before is None or before.certificate.radius is None:
        return one
    last, c = before.certificate, one.certificate
    if last.worst_case_risk <= c.worst_case_risk:
        return one
    c = replace(
        c,
        lower=last.lower,
        worst_case_risk=last.worst_case_risk,
        transport_cost=last.transport_cost,
        upper=max(c.upper, last.lower),
    )
    return Row(one.size, c, before.worst, before.after)


def _worst(
    problem: AuditProblem, plan: Plan, approach: Any, model: Any, c: Any
) -> WorstCase | None:
    if plan.ambiguity.knows_groups:
        x, y, w = arrays((problem.x, problem.y, problem.w))
        known = approach.groups(plan.ambiguity, problem.groups, w)
        plan = replace(plan, reference=empirical(x, y, w, known, problem.classes is not None))
    with torch.no_grad():
        state = approach.found(plan, model, c, (problem.x, problem.y, problem.w))
    if state is None:
        return None
    fitted = FittedModel(
        model,
        problem.loss,
        plan.reference,
        problem.classes,
        problem.model.space.names,
        torch.float64,
        "cpu",
    )
    return approach.worst_case(fitted, state)


def _after(worst: WorstCase, problem: AuditProblem) -> tuple[Any, Any, Any]:
    """Points of the worst case with equal masses: for accuracies and areas."""
    if hasattr(worst, "measure"):
        return worst.measure.points(_SHOWN, torch.Generator().manual_seed(0))
    x, y = worst.sample(_SHOWN, 0)
    labels = worst._encode(y, torch.as_tensor(x))
    return x, labels, np.full(len(x), 1.0 / len(x))


#: Random reweightings of the same size, whose mean risk is shown beside the worst one.
RANDOM = 8


def reweight(problem: AuditProblem, sets: list[tuple[float, Any]]) -> Iterator[Row]:
    """The exact worst reweighting of the rows at every size."""
    losses, weights = problem.losses(problem.x, problem.y).numpy(), problem.w.numpy()
    fitted = None
    if problem.sampled:  # the dual point comes from other draws than the bound
        x, y, w = problem.reference.points(len(problem.x), spawn(problem.generator))
        fitted = (problem.losses(problem.cost.project(x), y).numpy(), w.numpy())
    names = problem.model.space.names
    rng = np.random.default_rng(int(torch.randint(2**31 - 1, (1,), generator=problem.generator)))
    noise = rng.standard_normal((RANDOM, len(losses)))
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
        yield found
