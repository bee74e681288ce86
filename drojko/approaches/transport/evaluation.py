"""Certificates of a transport set: learn the worst case, measure it on draws it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Status
from drojko._numerics import standard_error
from drojko._random import spawn
from drojko.approaches.plan import Plan
from drojko.approaches.transport.training import is_exact, ridge_data
from drojko.certificates import Certificate, certify
from drojko.exceptions import UnboundedRiskError
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.bounds import is_ridge
from drojko.inner.transport.radius import BallSolution
from drojko.minimax.problem import TrainResult
from drojko.minimax.transport.risk import ridge_robust_risk
from drojko.models import MLP, TabularModel, is_linear

__all__ = ["Measured", "assess", "certify_points"]

EXACT_DRAWS, LEARNED_DRAWS, MOST_ATOMS = 10_000, 1_000, 20_000


@dataclass(frozen=True)
class Measured:
    """A certificate, and the adversary with the penalties and share of its worst-case plan."""

    certificate: Certificate
    adversary: Adversary
    low_penalty: float
    high_penalty: float
    share: float
    points: tuple[np.ndarray, np.ndarray, np.ndarray]
    constant: str | None = None
    advice: str | None = None


def assess(
    plan: Plan, model: TabularModel, result: TrainResult, sampled: bool, atoms: int
) -> Measured:
    """Learn the worst-case map on some draws and certify it on fresh ones."""
    exact = is_exact(plan, model)
    penalty = result.penalty if 0 < result.penalty < math.inf else 1.0
    count = (EXACT_DRAWS if exact else LEARNED_DRAWS) if sampled else atoms
    draws = plan.problem(model).draw(count, spawn(plan.generator))
    adversary = learn(plan, model, draws, penalty)
    if sampled:  # atoms are what they are
        draws = plan.problem(model).draw(count, spawn(plan.generator))
    x, y, w = draws
    subset = not exact and len(x) > MOST_ATOMS
    if subset:
        x, y, w = _subset((x, y, w), MOST_ATOMS, spawn(plan.generator))
    found = _measure(plan, model, adversary, (x, y, w), sampled or subset, result.stationarity)
    if exact:
        return found
    return _against_constant(plan, model, found, penalty, result.status != Status.MAX_ITER)


def _against_constant(
    plan: Plan, model: TabularModel, found: Measured, penalty: float, ended: bool
) -> Measured:
    """Compare with the best constant prediction, which no adversary can touch.

    A linear model whose attained worst case is no smaller is replaced by it; a model with more
    to learn is left as it is, with a word about it.
    """
    output, risk = best_constant(plan, model, *found.points[1:])
    if found.certificate.lower < risk * (1.0 - 1e-12):
        return found
    if not is_linear(model):
        if found.certificate.nominal_risk >= risk and not ended:
            return found  # it has learned little so far, and the status says so
        advice = (
            f"the worst-case risk of the trained model, {found.certificate.lower:.4g}, is not "
            f"below that of the best constant prediction, {risk:.4g}: take a smaller radius or a "
            "larger penalty, or raise max_iter"
        )
        return replace(found, advice=advice)
    with torch.no_grad():
        weight, bias = model.parameters()
        weight.zero_()
        bias.copy_(output)
    note = (
        "No smaller worst-case risk than that of the best constant prediction was found, which is "
        "returned: the radius is large, or the penalty small, for these data."
    )
    like = {"dtype": plan.dtype, "device": plan.device}
    x, y, w = found.points
    labels = torch.as_tensor(y, device=plan.device)
    points = (torch.as_tensor(x, **like), labels, torch.as_tensor(w, device=plan.device))
    adversary = learn(plan, model, points, penalty)
    sampled = found.certificate.standard_error > 0
    return replace(_measure(plan, model, adversary, points, sampled, 0.0), constant=note)


def best_constant(
    plan: Plan, model: TabularModel, y: np.ndarray, w: np.ndarray
) -> tuple[Tensor, float]:
    """Output of the best of a few constant predictions, shape (n_outputs,), and its risk."""
    like: dict[str, Any] = {"dtype": torch.float64}
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
    while True:
        objective = plan.problem(model).objective(x, penalty)
        try:
            return plan.inner.fit(
                objective,
                objective.batch(x, y),
                spawn(plan.generator),
                n_labels=plan.n_labels,
                label_cost=plan.label_cost,
            )
        except UnboundedRiskError:
            # Of a ball only the multiplier is asked for, and that lies above the loss's growth.
            if plan.radius is None or penalty > 1e250:
                raise
            penalty *= 4.0


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
) -> Measured:
    x, y, w = points
    arrays = (x.cpu().numpy(), y.cpu().numpy(), w.cpu().numpy())
    if is_exact(plan, model):
        guess = adversary.objective.penalty
        certificate, worst = _ridge(plan, model, points, sampled, stationarity, guess)
        return Measured(certificate, adversary, *worst, arrays)
    evaluation = certify(
        adversary,
        adversary.objective.batch(x, y),
        w,
        radius=plan.radius,
        start=adversary.objective.penalty,
        sampled=sampled,
        stationarity=stationarity,
    )
    certificate = evaluation.certificate
    relaxes = plan.cost.bounded and not plan.cost.swaps and is_ridge(adversary.objective)
    if relaxes and plan.radius != 0.0:
        certificate = _relaxed(plan, model, points, certificate)
    worst = evaluation.worst
    if isinstance(worst, BallSolution):
        plan_of = (worst.low_penalty, worst.high_penalty, worst.share)
    else:
        plan_of = (adversary.objective.penalty, adversary.objective.penalty, 0.0)
    return Measured(certificate, evaluation.adversary, *plan_of, arrays)


def _relaxed(plan: Plan, model: TabularModel, points: Any, found: Certificate) -> Certificate:
    """The smaller upper bound of the one with and the exact one without bounds on the columns."""
    if math.isfinite(plan.label_cost) and not plan.n_labels:
        return found
    try:
        free, _ = _ridge(plan, model, points, False, math.nan)
    except UnboundedRiskError:
        return found
    if free.upper >= found.upper:
        return found
    return replace(found, upper=max(found.lower, free.upper), proof=free.proof)


def _ridge(
    plan: Plan,
    model: TabularModel,
    points: tuple[Tensor, Tensor, Tensor],
    sampled: bool,
    stationarity: float,
    guess: float | None = None,
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
        form: dict[str, Any] = {"radius": radius, "penalty": plan.penalty}
        found = ridge_robust_risk(data, coef, intercept, **form, guess=guess)
        value, lower, nominal = found.value, found.attained, found.nominal
        cost, penalty = found.transport_cost, found.penalty
        priced = penalty * cost if cost > 0 else 0.0
        risk = lower if plan.penalty is None else lower + priced
        worst = (found.penalty_low, found.penalty_high, found.mixture)
        spread = _spread(data, coef, intercept, found, penalty)
    error = standard_error(spread, data.weight) if sampled else 0.0
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
