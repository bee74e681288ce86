"""Certificates of a transport set: learn the worst case, measure it on draws it has not seen."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Status
from drojko._random import spawn
from drojko.approaches.base import Assessment, Plan, Points, arrays, parameters_of
from drojko.approaches.transport.linear import certify_ridge
from drojko.certificates import Certificate, Evaluation, certify
from drojko.exceptions import UnboundedRiskError
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.bounds import is_ridge
from drojko.inner.transport.known import KnownRows
from drojko.inner.transport.storage import pack
from drojko.minimax.problem import TrainResult
from drojko.models import TabularModel, is_linear

__all__ = ["affordable", "assess", "certify_points", "compared", "learn", "stated"]

LEARNED_DRAWS, MOST_ATOMS = 1_000, 20_000
#: Rows that time is measured on; gradients of a row in a search; what that may take of the time.
_FEW, _GRADIENTS, _SEARCHED = 100, 1_500, 0.5
#: Gradients times parameters that a search takes at most, passes that cost as much as a search of
#: the same rows, and what a thorough one may take more.
_OPERATIONS, _PASSES, _THOROUGH = 2e11, 250, 10


def assess(plan: Plan, model: TabularModel, result: TrainResult) -> Assessment:
    """Learn the worst-case map on some draws and certify it on fresh ones.

    Atoms are what they are: their worst case is searched for, and no map is learned.

    Then compare with the best constant prediction, which no adversary can touch: a linear model
    whose attained worst case is no smaller is replaced by it; a model with more to learn is left
    as it is, with a word about it.
    """
    penalty = result.penalty if 0 < result.penalty < math.inf else 1.0
    count, sampled = plan.count(LEARNED_DRAWS), plan.sampled
    points = plan.problem(model).draw(count, spawn(plan.generator))
    adversary = learn(plan, model, points, penalty, atoms=not sampled)
    if sampled:  # atoms are what they are
        points = plan.problem(model).draw(count, spawn(plan.generator))
    points, few = affordable(plan, model, points, result.n_iter)
    sampled = sampled or few
    found = _measure(plan, model, adversary, points, sampled, result.stationarity)
    return compared(plan, model, result, found, points, sampled)


def compared(
    plan: Plan,
    model: TabularModel,
    result: TrainResult,
    found: Assessment,
    points: Points,
    sampled: bool,
) -> Assessment:
    """Next to the best constant prediction at these points."""
    if plan.effort == "none":  # the model is what it is
        return found
    (output, risk), certificate = best_constant(plan, model, points), found.certificate
    if certificate.lower < risk * (1.0 - 1e-12):
        exact = is_linear(model) and not sampled  # elsewhere training sees estimates
        return replace(found, missed=_missed(plan, certificate, result)) if exact else found
    if is_linear(model):
        constant = make_constant(model, output)
        penalty = result.penalty if 0 < result.penalty < math.inf else 1.0
        adversary = learn(plan, model, points, penalty, atoms=not sampled)
        return replace(_measure(plan, model, adversary, points, sampled, 0.0), constant=constant)
    if certificate.nominal_risk >= risk and result.status == Status.MAX_ITER:
        return found  # it has learned little so far, and the status says so
    advice = (
        f"the worst-case risk of the trained model, {certificate.lower:.4g}, is not below that of "
        f"the best constant prediction, {risk:.4g}: take a smaller radius or a larger penalty, or "
        "raise max_iter"
    )
    return replace(found, advice=advice)


def _missed(plan: Plan, certificate: Certificate, result: TrainResult) -> str | None:
    """A word where the certificate's search finds more than training saw on the same points."""
    seen = result.history.get("robust_risk", np.empty(0))
    if result.status != Status.CONVERGED or not len(seen):
        return None
    trained = float(np.min(seen))
    if certificate.lower <= trained + max(plan.tol, 1e-6) * abs(trained):
        return None
    return (
        f"The worst-case risk of this model, {certificate.lower:.4g}, is above the {trained:.4g} "
        "that training saw: its quick search for worst cases missed some, as it does at kinks of "
        "a loss. Take a loss by its name or a drojko.losses.Loss with its kinks stated, or "
        "smooth it."
    )


def make_constant(model: TabularModel, output: Tensor) -> str:
    """Turn a linear model into a constant prediction; a word on it."""
    with torch.no_grad():
        weight, bias = model.parameters()
        weight.zero_()
        bias.copy_(output)
    return (
        "No smaller worst-case risk than that of the best constant prediction was found, which is "
        "returned: the radius is large, or the penalty small, for these data."
    )


def best_constant(plan: Plan, model: TabularModel, points: Points) -> tuple[Tensor, float]:
    """Output of the best of a few constant predictions, shape (n_outputs,), and its risk."""
    like: dict[str, Any] = {"dtype": torch.float64}
    _, y, w = arrays(points)
    labels, mass = torch.as_tensor(y), torch.as_tensor(w)
    size = model.n_outputs
    options = [torch.zeros(size, **like)]
    if plan.fit_intercept:
        constants = plan.loss.constants(y, w, size)
        options += [torch.as_tensor(constant, **like) for constant in constants]

    def risk(output: Tensor) -> float:
        f = output.expand(len(labels), size)
        f = f[:, 0] if size == 1 else f
        return float(plan.loss.value(f.contiguous(), labels) @ mass)

    risks = np.nan_to_num([risk(option) for option in options], nan=math.inf)
    best = int(risks.argmin())
    return options[best], float(risks[best])


def certify_points(
    plan: Plan,
    model: TabularModel,
    points: Points,
    generator: torch.Generator,
) -> Certificate:
    """Certificate of a fixed model on the empirical measure of given points."""
    plan = replace(plan, generator=generator)
    points, sampled = affordable(plan, model, points)
    problem, (x, y, w) = plan.problem(model), points
    objective = problem.objective(x, 1.0)
    penalty = problem.first_penalty(objective, objective.batch(x, y), w)
    penalty = penalty if penalty < math.inf else 1.0
    adversary = learn(plan, model, points, penalty, atoms=True)
    return _measure(plan, model, adversary, points, sampled, math.nan).certificate


def affordable(
    plan: Plan, model: TabularModel, points: Points, passes: int | None = None
) -> tuple[Points, bool]:
    """The points, or as many of them, by mass, as can be searched.

    Without a limit of time it is a matter of counts, so that a seed gives the same sample: a fast
    search takes about as long as the ``passes`` of the training, or some minutes at most.
    """
    n, most = len(points[0]), MOST_ATOMS
    if not is_linear(model):
        most = min(most, _searchable(plan, model, points, passes))
    if n <= most:
        return points, False
    return _subset(points, most, spawn(plan.generator)), True


def _searchable(plan: Plan, model: TabularModel, points: Points, passes: int | None) -> int:
    """Rows of a network that a search can take: by counts and, with a limit, by the clock."""
    n, share = len(points[0]), _THOROUGH if plan.searched == "thorough" else 1
    size = sum(p.numel() for p in model.parameters())
    most = max(LEARNED_DRAWS, int(share * _OPERATIONS / (_GRADIENTS * size)))
    if passes is not None:
        most = min(most, max(LEARNED_DRAWS, share * n * passes // _PASSES))
    left = plan.whole.time_left
    if left is None or n <= _FEW:
        return most
    x, y, _ = (part[:_FEW] for part in points)
    objective = plan.problem(model).objective(x, 1.0)
    batch, began = objective.batch(x, y), time.perf_counter()
    objective.value_and_gradient(batch, batch.q0)
    row = (time.perf_counter() - began) / _FEW
    return min(most, max(_FEW, int(_SEARCHED * left / (_GRADIENTS * row))))


def learn(
    plan: Plan,
    model: TabularModel,
    draws: Points,
    penalty: float,
    *,
    atoms: bool = False,
) -> Adversary:
    """The adversary of a model at a penalty, learned on (at most some thousand) draws.

    ``atoms``: the draws are the reference itself, and nothing is learned for others.
    """
    if len(draws[0]) > LEARNED_DRAWS:
        draws = _subset(draws, LEARNED_DRAWS, spawn(plan.generator))
    x, y, _ = draws
    objective = plan.problem(model).objective(x, plan.penalty or penalty)
    bare = Adversary(objective, n_labels=plan.n_labels, label_cost=plan.label_cost)
    if plan.radius == 0.0:
        return bare
    bare.check_finite(objective.batch(x, y), plan.penalty is None)
    while True:
        objective = plan.problem(model).objective(x, penalty)
        try:
            return plan.inner.fit(
                objective,
                objective.batch(x, y),
                spawn(plan.generator),
                n_labels=plan.n_labels,
                label_cost=plan.label_cost,
                max_time=plan.whole.time_left,
                effort=plan.searched,
                atoms=atoms,
            )
        except UnboundedRiskError:
            # Of a ball only the multiplier is asked for, and that lies above the loss's growth.
            if plan.radius is None or penalty > 1e250:
                raise
            penalty *= 4.0


def _subset(draws: Points, size: int, generator: torch.Generator) -> Any:
    """Draws picked by mass; every label that occurs stays present."""
    x, y, w = draws
    rows = torch.multinomial(w.cpu(), size, replacement=False, generator=generator).to(x.device)
    w = w[rows]
    return x[rows], y[rows], w / w.sum()


def _measure(
    plan: Plan,
    model: TabularModel,
    adversary: Adversary,
    points: Points,
    sampled: bool,
    stationarity: float,
) -> Assessment:
    x, y, w = points
    evaluation = certify(
        adversary,
        adversary.objective.batch(x, y),
        w,
        radius=plan.radius,
        start=adversary.objective.penalty,
        sampled=sampled,
        stationarity=stationarity,
        effort=plan.searched,
        max_time=plan.whole.time_left,
    )
    certificate = evaluation.certificate
    relaxes = plan.cost.bounded and not plan.cost.swaps and is_ridge(adversary.objective)
    if relaxes and not adversary.exact and plan.radius != 0.0:
        certificate = _relaxed(plan, model, points, certificate)
    whole = not sampled and not adversary.exact
    return stated(plan, replace(evaluation, certificate=certificate), w if whole else None)


def stated(plan: Plan, evaluation: Evaluation, weights: Tensor | None) -> Assessment:
    """A certificate with its worst case, and what was found of rows that have masses here."""
    (low, high, share), certificate = evaluation.plan, evaluation.certificate
    state = {
        "adversary": pack(evaluation.adversary),
        "low_penalty": low,
        "high_penalty": high,
        "share": share,
        "attained_risk": certificate.worst_case_risk,
        "cost_weights": plan.cost.weights,
    }
    if weights is not None:
        decode = evaluation.adversary.objective.decode
        known = KnownRows.of(evaluation.worst, decode, weights)
        state["known"] = known.state()
    return Assessment(certificate, state)


def _relaxed(plan: Plan, model: TabularModel, points: Any, found: Certificate) -> Certificate:
    """The smaller upper bound of the one with and the exact one without bounds on the columns."""
    if math.isfinite(plan.label_cost) and not plan.n_labels:
        return found
    try:
        free = replace(plan, cost=plan.cost.unbounded)
        free, _ = certify_ridge(plan, free.ridge(points), parameters_of(model))
    except UnboundedRiskError:
        return found
    if free.upper >= found.upper:
        return found
    return replace(found, upper=max(found.lower, free.upper), proof=free.proof)
