"""Training against a transport set: which outer solver, and the units it works in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Status
from drojko._random import spawn
from drojko.approaches.plan import Plan
from drojko.exceptions import UnsupportedError
from drojko.minimax.conditioning import Conditioned
from drojko.minimax.kinked import DETOURS
from drojko.minimax.problem import TrainResult
from drojko.minimax.transport.classes import LinearClasses
from drojko.minimax.transport.data import RidgeData
from drojko.minimax.transport.linear import solve_ridge
from drojko.minimax.transport.quasi_newton import QuasiNewton
from drojko.models import TabularModel, is_linear

__all__ = ["is_exact", "most_iterations", "parameters", "reject", "ridge_data", "train"]

_SEPARABLE = (
    "The classes can be separated, so without alpha or a radius the risk falls to zero as the "
    "coefficients grow and no minimum exists: add alpha > 0 or a radius > 0."
)


def train(plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
    """Train ``model`` in place with the outer solver that suits it."""
    if is_exact(plan, model):
        return _ridge(plan, model, start)
    result = _iterate(plan, model, start)
    if result.status == Status.CONVERGED and _separated(plan, model):
        return replace(result, status="unbounded", message=_SEPARABLE)
    return result


def most_iterations(plan: Plan, model: TabularModel) -> int:
    """How many iterations a callback may see; the limit of a staged solver is one per stage."""
    staged = is_linear(model) and model.n_outputs > 1 and plan.classes
    if staged:
        return plan.max_iter * len(LinearClasses().smoothings)
    kinked = is_linear(model) and plan.cost.swaps
    return plan.max_iter * (1 + len(DETOURS)) if kinked else plan.max_iter


def _separated(plan: Plan, model: TabularModel) -> bool:
    """Whether scaling a linear model up drives its cross-entropy to zero: there is no minimum."""
    still = plan.radius == 0.0 and plan.alpha == 0.0
    if not (still and is_linear(model) and not plan.loss.attained):
        return False
    x, y, w = plan.problem(model).draw(plan.n_draws, spawn(plan.generator))
    with torch.no_grad():
        f = model(x)
    if f.ndim == 1:
        margin = f * (2.0 * y.to(f.dtype) - 1.0)
    else:
        own = f.gather(1, y[:, None])
        margin = own[:, 0] - f.scatter(1, y[:, None], -math.inf).amax(1)
    return bool((margin[w > 0] > 0).all())


def _iterate(plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
    if is_linear(model) and plan.classes:
        return LinearClasses().solve(
            plan.problem(model),
            spawn(plan.generator),
            plan.limits,
            n_draws=plan.n_draws,
            penalty=start,
        )
    if is_linear(model) and start is None and plan.relaxes:
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
    }
    history = {k: v * units.get(k, 1.0) for k, v in result.history.items()}
    return replace(result, penalty=result.penalty / run.penalty_unit, history=history)


def _relaxed_start(plan: Plan, model: Any) -> float | None:
    """Start from the exact answer without bounds and swaps: near the answer, also at its kinks."""
    result = _ridge(replace(plan, callback=None), model, None)
    if result.status == Status.INTERRUPTED:
        raise KeyboardInterrupt(result.message)
    model.warm = True
    return result.penalty if 0.0 < result.penalty < math.inf else None


def is_exact(plan: Plan, model: TabularModel) -> bool:
    """Whether one linear combination decides, whose worst case is known, and nothing is bounded."""
    return is_linear(model) and plan.ridge and model.n_outputs == 1


def _ridge(plan: Plan, model: Any, start: float | None) -> TrainResult:
    data = ridge_data(plan, *plan.problem(model).draw(plan.n_draws, spawn(plan.generator)))
    warm = None if start is None else parameters(model)
    return plan.solve_linear(solve_ridge, (data,), model, warm_start=warm)


def parameters(model: Any) -> tuple[np.ndarray, float]:
    """Coefficients of shape (d,) and intercept of a linear model with one output."""
    return model.weights[0].detach().double().cpu().numpy()[0].copy(), model.biases[0].item()


def ridge_data(plan: Plan, x: Tensor, y: Tensor, w: Tensor) -> RidgeData:
    """Weighted points as the exact linear solver takes them; shares memory with ``x``."""
    return RidgeData(
        x.cpu().numpy(),
        y.cpu().numpy(),
        weight=w.cpu().numpy(),
        inverse_cost=plan.cost.inverse_weights,
        label_cost=plan.label_cost,
        loss=plan.loss,
    )


def reject(plan: Plan, model: TabularModel) -> None:
    """Raise for combinations without a meaning or not yet supported."""
    regression = plan.n_labels == 0
    if regression and math.isfinite(plan.label_cost) and not is_exact(plan, model):
        raise UnsupportedError(
            "a finite label_cost in regression needs a linear model without bounds "
            "and swaps: "
            "set label_cost=inf"
        )
