"""Rows of exact duals, and of sets of which an audit knows no more than their approach."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import spawn
from drojko.approaches.base import FittedModel, Plan
from drojko.approaches.registry import approach_to
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reading.setup import check_gradients
from drojko.auditing.reporting.row import Row, check
from drojko.certificates import Certificate, reweighted_certificate
from drojko.estimators._parallel import in_parallel, named
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from drojko.inner.reweighting.worst_case import Pool, ReweightedWorstCase
from drojko.inner.solver import InnerSolver
from drojko.inner.worst_case import WorstCase
from drojko.measures._arrays import members_of

__all__ = ["certified", "infinite", "plan_of", "reweight"]

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
        effort=problem.effort,
        max_time=problem.time_left,
    )


def certified(
    problem: AuditProblem, sizes: list[tuple[float, Any]], inner: InnerSolver, n_jobs: Any = None
) -> Iterator[Row]:
    """Certificates from the approaches of the estimators, made monotone in the radius."""
    check_gradients(problem.ambiguity, problem.model)
    points = (problem.x, problem.y, problem.w)
    jobs = []
    for size, ambiguity in sizes:  # random numbers are drawn before any size is worked on
        plan, generator = plan_of(problem, ambiguity, inner), spawn(problem.generator)
        where = f"{ambiguity.size_name}={size:g}"
        jobs.append((plan, copy.deepcopy(problem.tabular), points, generator, where))
    before = None
    with closing(in_parallel(_one_certificate, jobs, n_jobs)) as done:
        for k, (size, ambiguity) in enumerate(problem.progress.over(sizes, "certificates", 1.0)):
            c, state, error = next(done)
            if error is not None:
                yield infinite(problem, size, ambiguity, error)
                continue
            model, worst = jobs[k][1], None
            if state is not None:
                worst = approach_to(ambiguity).worst_case(_fitted(problem, model), state)
            one = Row(size, c, worst)
            if worst is not None:
                one.after = _after(worst, problem)
            before = _monotone(one, before)
            yield before


def _one_certificate(
    plan: Plan, model: Any, points: Any, generator: torch.Generator, where: str
) -> tuple[Certificate | None, Any, UnboundedRiskError | None]:
    """Certificate and state of the worst case at one size, or why there is none."""
    approach = approach_to(plan.ambiguity)
    with named(where), torch.no_grad():
        approach.reject(plan, model)
        try:
            c = approach.certify(plan, model, points, generator)
        except UnboundedRiskError as error:
            return None, None, error
        return c, approach.found(plan, model, c, points), None


def infinite(problem: AuditProblem, size: float, ambiguity: Any, why: Exception) -> Row:
    """The row of a size at which losses grow without end: both sides, and no proof of them."""
    price = math.inf if ambiguity.penalty is None else float(ambiguity.penalty)
    squared = ambiguity.order == 2 and ambiguity.epsilon is None  # what a ball may spend
    cost = math.inf if ambiguity.radius is None else float(ambiguity.radius) ** (1 + squared)
    nominal = float(problem.w @ problem.nominal)
    risk = (nominal, math.inf, math.inf, math.inf)
    certificate = Certificate(*risk, ambiguity.radius, price, cost, proof="local-estimate")
    text = str(why).replace("; ", ", ")  # which stands between findings
    return Row(size, certificate, None, findings=[f"infinite worst case: {text}"])


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


def _fitted(problem: AuditProblem, model: Any) -> FittedModel:
    names, reference = problem.model.space.names, problem.reference
    return FittedModel(model, problem.loss, reference, problem.classes, names, torch.float64, "cpu")


def _after(worst: WorstCase, problem: AuditProblem) -> tuple[Any, Any, Any]:
    """Points of the worst case with equal masses: for accuracies and areas."""
    if hasattr(worst, "measure"):
        return worst.measure.points(_SHOWN, torch.Generator().manual_seed(0))
    x, y = worst.sample(_SHOWN, 0)
    labels = worst._encode(y, torch.as_tensor(x))
    return x, labels, np.full(len(x), 1.0 / len(x))


#: Random reweightings of the same size, whose mean risk is shown beside the worst one.
RANDOM = 8


def reweight(
    problem: AuditProblem, sets: list[tuple[float, Any]], n_jobs: Any = None
) -> Iterator[Row]:
    """The exact worst reweighting of the rows at every size."""
    x, y, weights, groups, group_names = _rows(problem)
    losses = (problem.nominal if x is problem.x else problem.losses(x, y)).numpy()
    fitted, tilts = None, approach_to(problem.ambiguity).name == "reweighting"
    if problem.sampled:  # the dual point comes from other draws than the bound
        fitted = (losses, weights)
        if tilts:
            z, labels, w = problem.reference.points(len(x), spawn(problem.generator))
            fitted = (problem.losses(problem.cost.project(z), labels).numpy(), w.numpy())
    rng = np.random.default_rng(int(torch.randint(2**31 - 1, (1,), generator=problem.generator)))
    noise = rng.standard_normal((RANDOM, len(losses)))
    rows = (x, y, weights, groups, losses, fitted, noise)
    names, jobs = list(problem.model.space.names), []
    for size, ambiguity in sets:
        known = ambiguity.for_data(names, problem.classes)
        jobs.append((known, *rows, f"{ambiguity.size_name}={size:g}"))
    with closing(in_parallel(_one_dual, jobs, n_jobs)) as done:
        for size, ambiguity in problem.progress.over(sets, "exact duals", 1.0):
            yield _reweighted(problem, size, ambiguity, rows, group_names, next(done))


def _one_dual(
    ambiguity: Any, x: Tensor, y: Tensor, weights: np.ndarray, groups: Any, losses: np.ndarray,
    fitted: Any, noise: np.ndarray, where: str,
) -> tuple[Certificate, Any, Any, Any, float | None]:  # fmt: skip
    """Certificate, its dual point and bounded ratio, the exact dual, the mean of random ones."""
    with named(where):
        bound = ambiguity.bind(x, y, torch.from_numpy(weights), groups)
        certificate, point, bounded = reweighted_certificate(
            ambiguity, bound, losses, weights, fitted=fitted
        )
        dual, random = bound.dual(losses), None
        if len(losses) <= (ambiguity.most_draws or len(losses)):  # where duals are cheap
            random = float(np.mean([weights @ (bound.dual(g).ratio * losses) for g in noise]))
    return certificate, point, bounded, dual, random


def _reweighted(
    problem: AuditProblem, size: float, ambiguity: Any, rows: Any, group_names: list[Any], done: Any
) -> Row:
    """The row of a size, of what `_one_dual` found."""
    x, y, weights, _, losses, *_ = rows
    certificate, point, bounded, dual, random = done
    if ambiguity.radius is not None:  # in the units of the set's radius
        certificate = replace(certificate, radius=float(ambiguity.radius))
    approach, mass = approach_to(ambiguity), weights * dual.ratio
    if approach.name == "reweighting":
        worst: WorstCase = _tilted(problem, ambiguity, certificate, point, bounded)
    else:
        kept = mass > 0
        state = {"x": x.numpy()[kept], "y": y.numpy()[kept], "mass": mass[kept]}
        state["attained_risk"] = certificate.worst_case_risk
        measured: Any = approach.worst_case(_fitted(problem, problem.tabular), state)
        w, ratio = torch.from_numpy(weights), torch.from_numpy(dual.ratio)
        shares = getattr(dual, "group_weights", None)
        q = None if shares is None else dict(zip(group_names, shares.tolist(), strict=True))
        pool = Pool(x, y, w, torch.from_numpy(losses), ratio)
        worst = replace(measured, pool=pool, group_weights=q)
    found = Row(size, certificate, worst, (x, y, mass))
    if random is not None:
        found.random = random
    share = 1.0 / max(float(weights @ dual.ratio**2), 1e-300)
    gap = certificate.upper - certificate.lower
    # A set may itself bound its worst case from above only (smoothness= of `Marginal`).
    known = 0.0 if ambiguity.penalty else max(dual.value - dual.attained, 0.0)
    exact = gap <= known + 1e-8 * (1.0 + abs(certificate.upper))
    found.checks += [
        check("effective share of the rows", share, None, "(E ratio)^2 / E ratio^2"),
        check("duality gap", gap, bool(exact) or problem.sampled, "upper - lower"),
    ]
    return found


def _rows(problem: AuditProblem) -> tuple[Tensor, Tensor, np.ndarray, Any, list[Any]]:
    """Rows, labels and masses; their groups, each row once for each of its own, and their names."""
    x, y, weights = problem.x, problem.y, problem.w.numpy()
    if not problem.ambiguity.knows_groups:
        return x, y, weights, None, []
    if problem.sampled:
        raise UnsupportedError(
            f"{type(problem.ambiguity).__name__}: groups are known of the rows alone, not of draws "
            "of a continuous reference: use reference='kde' or 'empirical'"
        )
    members, names = members_of(problem.groups, weights)
    rows, index = np.nonzero(members)
    if len(rows) > len(x):  # the centre of the set counts a row once for each of its groups
        x, y, weights = x[rows], y[rows], weights[rows] / weights[rows].sum()
    return x, y, weights, index, names


def _tilted(
    problem: AuditProblem, ambiguity: Any, certificate: Any, point: Any, bounded: Any
) -> ReweightedWorstCase:
    return ReweightedWorstCase(
        ambiguity,
        float(point.penalty),
        float(point.shift),
        problem.losses,
        problem.reference,
        problem.classes,
        problem.model.space.names,
        certificate.worst_case_risk,
        bounded=bounded,
    )
