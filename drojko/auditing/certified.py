"""Sets of which an audit knows no more than their approach: order 1, Sinkhorn, MMD, groups."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from drojko._random import spawn
from drojko.approaches.base import FittedModel, Plan, arrays
from drojko.approaches.reference import empirical
from drojko.approaches.registry import approach_to
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reporting.row import Row
from drojko.exceptions import UnsupportedError
from drojko.inner.solver import InnerSolver
from drojko.inner.worst_case import WorstCase

__all__ = ["certified", "plan_of"]

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
) -> list[Row]:
    """Certificates from the approaches of the estimators, made monotone in the radius."""
    if approach_to(problem.ambiguity).gradients and problem.model.tabular is None:
        raise UnsupportedError(
            f"{type(problem.ambiguity).__name__} needs gradients, and there are none "
            f"({problem.model.note}); {_SUPPORTED}"
        )
    found: list[Row] = []
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
        found.append(_monotone(one, found))
    return found


def _monotone(one: Row, before: list[Row]) -> Row:
    """A worst case of a smaller radius is inside a larger one."""
    if not before or before[-1].certificate.radius is None:
        return one
    last, c = before[-1].certificate, one.certificate
    if last.worst_case_risk <= c.worst_case_risk:
        return one
    c = replace(
        c,
        lower=last.lower,
        worst_case_risk=last.worst_case_risk,
        transport_cost=last.transport_cost,
        upper=max(c.upper, last.lower),
    )
    return Row(one.size, c, before[-1].worst, before[-1].after)


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
