"""Training against a transport set: which outer solver, and the units it works in."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch

from drojko._driver import Status
from drojko._numerics import separated
from drojko._random import spawn
from drojko.approaches.base import Plan, parameters_of
from drojko.approaches.transport.linear import ExactTransport
from drojko.minimax.conditioning import Conditioned
from drojko.minimax.problem import TrainResult
from drojko.minimax.transport.objective import SEPARABLE
from drojko.minimax.transport.quasi_newton import QuasiNewton
from drojko.models import TabularModel, is_linear

__all__ = ["train"]

_FEW = 100  # draws that show how a loss grows


def train(plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
    """Train ``model`` in place with the outer solver that suits it."""
    if is_linear(model) and math.isinf(plan.loss.growth) and plan.radius != 0.0:
        _check_growth(plan, model)
    result = _iterate(plan, model, start)
    if result.status == Status.CONVERGED and _separated(plan, model):
        return replace(result, status="unbounded", message=SEPARABLE)
    return result


def _check_growth(plan: Plan, model: TabularModel) -> None:
    """Raise `UnboundedRiskError` where the loss outgrows the cost under all but constants."""
    steep: Any = copy.deepcopy(model)
    with torch.no_grad():
        steep.weights[0].copy_(torch.randn(steep.weights[0].shape, generator=plan.child))
    problem = plan.problem(steep)
    x, y, _ = problem.draw(plan.count(_FEW), spawn(plan.generator))
    objective = problem.objective(x, 1.0)
    problem.adversary(objective, 0).check_finite(objective.batch(x, y), ball=True)


def _separated(plan: Plan, model: TabularModel) -> bool:
    """Whether scaling a linear model up drives its cross-entropy to zero: there is no minimum."""
    still = plan.radius == 0.0 and plan.alpha == 0.0
    if not (still and is_linear(model) and not plan.loss.attained):
        return False
    x, y, w = plan.problem(model).draw(plan.n_draws, spawn(plan.generator))
    with torch.no_grad():
        f = model(x)
    return separated(*(part[w > 0].cpu().numpy() for part in (f, y)))


def _iterate(plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
    if is_linear(model) and plan.classes:
        from drojko.approaches.transport.classes import ClassTransport

        before = parameters_of(model), math.nan if start is None else start
        found, result = ClassTransport(plan).fit(before if start is not None else None)
        with torch.no_grad():
            for part, value in zip(model.parameters(), found, strict=False):
                part.copy_(torch.as_tensor(value))
        return result
    if is_linear(model) and start is None and plan.known:
        start = _relaxed_start(plan, model)
    settings = QuasiNewton() if is_linear(model) else plan.outer
    run = Conditioned.of(plan.problem(model), plan.fit_intercept, plan.n_draws, plan.generator)
    result = settings.solve(
        run.problem,
        spawn(plan.generator),
        replace(plan.limits, callback=run.wrap(plan.callback)),
        n_draws=plan.n_draws,
        penalty=None if start is None else start * run.penalty_unit,
    )
    run.undo()
    units = {
        "penalty": 1.0 / run.penalty_unit,
        "transport_cost": run.problem.scale**2,
        "robust_risk": run.loss_unit,
        "held_out_risk": run.loss_unit,
    }
    history = {k: v * units.get(k, 1.0) for k, v in result.history.items()}
    return replace(result, penalty=result.penalty / run.penalty_unit, history=history)


def _relaxed_start(plan: Plan, model: Any) -> float | None:
    """Start from the exact answer without bounds: near the answer, also at its kinks."""
    atoms: Any = plan.problem(model).draw(plan.n_draws, spawn(plan.generator))
    atoms = tuple(part.cpu().numpy() for part in atoms)
    free = replace(plan, callback=None, atoms=atoms, cost=plan.cost.unbounded)
    (coef, intercept), result = ExactTransport(free).fit(None)
    if result.status == Status.INTERRUPTED:
        raise KeyboardInterrupt(result.message)
    with torch.no_grad():
        model.weights[0].copy_(torch.as_tensor(coef))
        model.biases[0].copy_(torch.as_tensor(intercept))
    model.warm = True
    return result.penalty if 0.0 < result.penalty < math.inf else None
