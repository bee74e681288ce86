"""Certificates of a trained model: learn the worst case, measure it on draws it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import spawn
from drojko.certificates import Certificate, certify
from drojko.estimators._training import Plan, is_exact, ridge_data
from drojko.inner.adversary import Adversary
from drojko.inner.radius import BallSolution
from drojko.measures import LabelledMeasure
from drojko.minimax.problem import TrainResult
from drojko.minimax.ridge_risk import ridge_robust_risk
from drojko.models import MLP, TabularModel

__all__ = ["Assessment", "assess", "certify_points", "count_atoms"]

EXACT_DRAWS, LEARNED_DRAWS, MOST_ATOMS = 10_000, 1_000, 20_000


@dataclass(frozen=True)
class Assessment:
    """A certificate, and the adversary with the penalties and share of its worst-case plan."""

    certificate: Certificate
    adversary: Adversary
    low_penalty: float
    high_penalty: float
    share: float
    points: tuple[np.ndarray, np.ndarray, np.ndarray]


def count_atoms(reference: LabelledMeasure, n: int) -> int:
    """How many points an empirical reference has; ``n`` for other ones."""
    parts = getattr(reference, "measures_", None) or [getattr(reference, "measure_", None)]
    sizes = [len(part.atoms_) for part in parts if hasattr(part, "atoms_")]
    return sum(sizes) if len(sizes) == len(parts) else n


def assess(
    plan: Plan, model: TabularModel, result: TrainResult, sampled: bool, atoms: int
) -> Assessment:
    """Learn the worst-case map on some draws and certify it on fresh ones."""
    exact = is_exact(plan, model)
    penalty = result.penalty if 0 < result.penalty < math.inf else 1.0
    count = (EXACT_DRAWS if exact else LEARNED_DRAWS) if sampled else atoms
    adversary = learn(plan, model, plan.problem(model).draw(count, spawn(plan.generator)), penalty)
    x, y, w = plan.problem(model).draw(count, spawn(plan.generator))
    subset = not exact and len(x) > MOST_ATOMS
    if subset:
        x, y, w = _subset((x, y, w), MOST_ATOMS, spawn(plan.generator))
    return _measure(plan, model, adversary, (x, y, w), sampled or subset, result.stationarity)


def certify_points(
    plan: Plan, model: TabularModel, x: Tensor, y: Tensor, w: Tensor, generator: torch.Generator
) -> Certificate:
    """Certificate of a fixed model on the empirical measure of given points."""
    problem = plan.problem(model)
    objective = problem.objective(x, 1.0)
    penalty = problem.first_penalty(objective, objective.batch(x, y), w)
    plan = replace(plan, generator=generator)
    adversary = learn(plan, model, (x, y, w), penalty if penalty < math.inf else 1.0)
    return _measure(plan, model, adversary, (x, y, w), False, math.nan).certificate


def learn(
    plan: Plan, model: TabularModel, draws: tuple[Tensor, Tensor, Tensor], penalty: float
) -> Adversary:
    """The adversary of a model at a penalty, learned on (at most some thousand) draws."""
    if len(draws[0]) > LEARNED_DRAWS:
        draws = _subset(draws, LEARNED_DRAWS, spawn(plan.generator))
    x, y, _ = draws
    objective = plan.problem(model).objective(x, penalty)
    return plan.inner.fit(
        objective,
        objective.batch(x, y),
        spawn(plan.generator),
        n_labels=plan.n_labels,
        label_cost=plan.label_cost,
    )


def _subset(draws: tuple[Tensor, Tensor, Tensor], size: int, generator: torch.Generator) -> Any:
    """Draws picked by mass; every label that occurs stays present."""
    x, y, w = draws
    rows = torch.multinomial(w.cpu(), size, replacement=False, generator=generator).to(x.device)
    w = w[rows]
    return x[rows], y[rows], w / w.sum()


def _measure(
    plan: Plan,
    model: TabularModel,
    adversary: Adversary,
    points: tuple[Tensor, Tensor, Tensor],
    sampled: bool,
    stationarity: float,
) -> Assessment:
    x, y, w = points
    arrays = (x.cpu().numpy(), y.cpu().numpy(), w.cpu().numpy())
    if is_exact(plan, model):
        certificate, worst = _ridge(plan, model, points, sampled, stationarity)
        return Assessment(certificate, adversary, *worst, arrays)
    evaluation = certify(
        adversary,
        adversary.objective.batch(x, y),
        w,
        radius=plan.radius,
        start=adversary.objective.penalty,
        sampled=sampled,
        stationarity=stationarity,
    )
    worst = evaluation.worst
    if isinstance(worst, BallSolution):
        plan_of = (worst.low_penalty, worst.high_penalty, worst.share)
    else:
        plan_of = (adversary.objective.penalty, adversary.objective.penalty, 0.0)
    return Assessment(evaluation.certificate, adversary, *plan_of, arrays)


def _ridge(
    plan: Plan,
    model: TabularModel,
    points: tuple[Tensor, Tensor, Tensor],
    sampled: bool,
    stationarity: float,
) -> tuple[Certificate, tuple[float, float, float]]:
    """Exact certificate of a linear model with a scalar loss: both sides from one root."""
    if not isinstance(model, MLP):
        raise TypeError("the exact certificate is for linear models")
    coef = model.weights[0].detach().double().cpu().numpy()[0]
    intercept = float(model.biases[0].detach())
    data = ridge_data(plan, *points)
    radius = plan.radius or None
    if plan.radius == 0.0:
        losses = plan.loss.value(
            torch.from_numpy(data.predictions(coef, intercept)), torch.from_numpy(data.y)
        ).numpy()
        value = lower = float(data.weight @ losses)
        nominal, cost, risk, spread = value, 0.0, value, losses
        worst = (math.inf, math.inf, 0.0)
        penalty = math.inf
    else:
        found = ridge_robust_risk(data, coef, intercept, radius=radius, penalty=plan.penalty)
        value, lower, nominal = found.value, found.attained, found.nominal
        cost, penalty = found.transport_cost, found.penalty
        priced = penalty * cost if cost > 0 else 0.0
        risk = lower if plan.penalty is None else lower + priced
        worst = (found.penalty_low, found.penalty_high, found.mixture)
        spread = _spread(data, coef, intercept, found, penalty)
    error = 0.0
    if sampled:
        centred = spread - data.weight @ spread
        error = float(np.sqrt(np.sum((data.weight * centred) ** 2)))
    certificate = Certificate(
        nominal_risk=nominal,
        lower=min(lower, value),
        upper=value,
        worst_case_risk=risk,
        radius=plan.radius,
        penalty=penalty,
        transport_cost=cost,
        standard_error=error,
        stationarity=stationarity,
        proof="ridge-1d",
    )
    return certificate, worst


def _spread(data: Any, coef: np.ndarray, intercept: float, found: Any, penalty: float) -> Any:
    """Loss - penalty * cost per point: what the Monte-Carlo error is about."""
    norm = data.squared_norm(coef)
    u = data.predictions(coef, intercept) + found.shift
    y = np.where(found.flip, 1.0 - data.y, data.y) if data.flips else data.y
    losses = data.loss.value(torch.from_numpy(u), torch.from_numpy(y)).numpy()
    if norm == 0 or math.isinf(penalty):
        return losses
    cost = found.shift**2 / norm
    if data.flips:
        cost = cost + data.label_cost * found.flip
    return losses - penalty * cost
