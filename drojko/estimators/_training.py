"""From validated arrays to a trained model: which outer solver, and the units it works in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drojko._random import spawn
from drojko.ambiguity import GroundCost
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.inner.solvers import InnerSolver
from drojko.losses import CallableLoss, Loss
from drojko.measures import LabelledMeasure
from drojko.minimax.problem import Callback, RobustProblem, TrainResult
from drojko.minimax.quasi_newton import QuasiNewton
from drojko.minimax.ridge import solve_ridge
from drojko.minimax.ridge_data import RidgeData
from drojko.minimax.subgradient import Subgradient
from drojko.models import MLP, Linear, ModuleModel, TabularModel

__all__ = ["Plan", "build_model", "is_exact", "reject", "ridge_data", "train"]


@dataclass(frozen=True)
class Plan:
    """Everything a fit or an evaluation needs, in the units of the data."""

    reference: LabelledMeasure
    cost: GroundCost
    loss: Loss
    inner: InnerSolver
    radius: float | None
    penalty: float | None
    label_cost: float
    n_labels: int
    dtype: torch.dtype
    device: str
    generator: torch.Generator
    alpha: float = 0.0
    fit_intercept: bool = True
    max_iter: int = 200
    tol: float = 1e-3
    max_time: float | None = None
    n_draws: int = 2000
    outer: Subgradient = field(default_factory=Subgradient)
    callback: Callback | None = None

    @property
    def ridge(self) -> bool:
        """Whether the exact linear solver applies (for a linear model)."""
        named = self.loss.scalar and not isinstance(self.loss, CallableLoss)
        return named and not self.cost.bounded

    def problem(self, model: TabularModel) -> RobustProblem:
        return RobustProblem(
            self.reference,
            model,
            self.loss,
            self.cost,
            self.inner,
            radius=self.radius,
            penalty=self.penalty,
            alpha=self.alpha,
            label_cost=self.label_cost,
            n_labels=self.n_labels,
            dtype=self.dtype,
            device=self.device,
        )


def build_model(
    model: Any,
    n_features: int,
    n_outputs: int,
    *,
    hidden: Any,
    activation: str,
    bias: bool,
    generator: torch.Generator,
    **like: Any,
) -> TabularModel:
    """The model of a name or a factory, at its initial parameters."""
    gen = spawn(generator)
    if model == "linear":
        return Linear(n_features, n_outputs, bias=bias, generator=gen, **like)
    if model == "mlp":
        sizes = (hidden,) if isinstance(hidden, int | np.integer) else tuple(hidden)
        if not all(isinstance(h, int | np.integer) and h > 0 for h in sizes):
            raise InvalidDataError(f"hidden_layer_sizes={hidden!r}; expected positive integers")
        return MLP(
            n_features,
            n_outputs,
            hidden=sizes,
            activation=activation,
            bias=bias,
            generator=gen,
            **like,
        )
    if isinstance(model, nn.Module):
        raise InvalidDataError(
            "model is a module; give a callable that returns a new one, such as "
            "model=lambda: MyNet(), so that a fit does not change your object"
        )
    if not callable(model):
        raise InvalidDataError(
            f"model={model!r}; expected 'linear', 'mlp' or a callable that returns a torch module"
        )
    with torch.random.fork_rng(devices=[]):  # a user's module draws its weights globally
        seed = torch.randint(2**31 - 1, (1,), generator=gen)
        torch.default_generator.manual_seed(int(seed))
        module = model()
    if not isinstance(module, nn.Module):
        raise InvalidDataError(
            f"model() returned {type(module).__name__}; expected a torch.nn.Module"
        )
    return ModuleModel(module.to(**like), n_outputs)


def train(plan: Plan, model: TabularModel, start: float | None) -> TrainResult:
    """Train ``model`` in place with the outer solver that suits it."""
    if is_exact(plan, model):
        return _ridge(plan, model, start)
    settings = QuasiNewton() if is_linear(model) else plan.outer
    run = _Conditioned.of(plan, model)
    result = settings.solve(
        run.problem,
        spawn(plan.generator),
        max_iter=plan.max_iter,
        tol=plan.tol,
        max_time=plan.max_time,
        callback=run.wrap(plan.callback),
        n_draws=plan.n_draws,
        penalty=None if start is None else start * run.scale**2,
    )
    run.undo()
    history = dict(result.history)
    for name, power in (("penalty", -2), ("transport_cost", 2)):
        if name in history:
            history[name] = history[name] * run.scale**power
    return replace(result, penalty=result.penalty / run.scale**2, history=history)


def is_linear(model: TabularModel) -> bool:
    return isinstance(model, MLP) and len(model.weights) == 1


def is_exact(plan: Plan, model: TabularModel) -> bool:
    """Whether the loss is a named function of one linear combination, and nothing is bounded."""
    return is_linear(model) and plan.ridge and model.n_outputs == 1


def _ridge(plan: Plan, model: Any, start: float | None) -> TrainResult:
    data = ridge_data(plan, *plan.problem(model).draw(plan.n_draws, spawn(plan.generator)))
    weight, bias = model.weights[0], model.biases[0]

    def callback(iteration: int, info: dict[str, Any]) -> bool:
        if plan.callback is None:
            return False
        load(info["coef"], info["intercept"])
        return plan.callback(iteration, info)

    def load(coef: np.ndarray, intercept: float) -> None:
        weight.data.copy_(torch.as_tensor(coef)[None])
        bias.data.fill_(float(intercept))

    warm = None
    if start is not None:
        warm = (weight.data[0].double().cpu().numpy().copy(), float(bias))
    solution = solve_ridge(
        data,
        radius=plan.radius,
        penalty=plan.penalty,
        alpha=plan.alpha,
        fit_intercept=plan.fit_intercept,
        tol=min(1e-6, plan.tol),
        max_iter=plan.max_iter,
        max_time=plan.max_time,
        warm_start=warm,
        callback=callback,
    )
    load(solution.coef, solution.intercept)
    names = ("iteration", "robust_risk", "penalty", "transport_cost", "stationarity", "seconds")
    history = {
        name: np.array([row.get(name, math.nan) for row in solution.history]) for name in names
    }
    return TrainResult(
        solution.status,
        solution.message,
        solution.n_iter,
        solution.penalty,
        solution.stationarity,
        history,
    )


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


@dataclass(frozen=True)
class _Conditioned:
    """The problem in x' = (x - centre) / scale, one scalar, undone exactly in the first layer.

    Distances only change by the scalar, so the ambiguity set is the same set.
    """

    problem: RobustProblem
    centre: Tensor
    scale: float

    @staticmethod
    def of(plan: Plan, model: TabularModel) -> _Conditioned:
        problem = plan.problem(model)
        if not isinstance(model, MLP):
            return _Conditioned(problem, torch.zeros(()), 1.0)
        x, _, w = problem.draw(min(plan.n_draws, 2000), spawn(plan.generator))
        mean = (w.to(x.dtype)[:, None] * x).sum(0)
        spread = float((w.to(x.dtype)[:, None] * (x - mean).square()).sum(0).mean().sqrt())
        scale = spread if math.isfinite(spread) and spread > 0 else 1.0
        centre = mean if plan.fit_intercept else torch.zeros_like(mean)
        if model.warm:
            _to_scaled(model, centre, scale)
        shift = centre.double().cpu().numpy()
        lower = None if plan.cost.lower is None else (plan.cost.lower - shift) / scale
        upper = None if plan.cost.upper is None else (plan.cost.upper - shift) / scale
        first = plan.alpha / scale**2
        problem = replace(
            problem,
            cost=replace(plan.cost, lower=lower, upper=upper),
            radius=None if plan.radius is None else plan.radius / scale,
            penalty=None if plan.penalty is None else plan.penalty * scale**2,
            label_cost=plan.label_cost / scale**2,
            first_alpha=first,
            centre=centre,
            scale=scale,
        )
        return _Conditioned(problem, centre, scale)

    def wrap(self, callback: Callback | None) -> Callback | None:
        """A callback sees the model in the units of the data."""
        model = self.problem.model
        if callback is None or not isinstance(model, MLP):
            return callback

        def wrapped(iteration: int, info: dict[str, Any]) -> bool:
            before = [p.detach().clone() for p in (model.weights[0], model.biases[0])]
            self.undo()
            stop = callback(iteration, info)
            model.weights[0].data.copy_(before[0])
            model.biases[0].data.copy_(before[1])
            return stop

        return wrapped

    def undo(self) -> None:
        """Fold the conditioning into the first layer: f'((x - m) / s) = f(x)."""
        model = self.problem.model
        if isinstance(model, MLP):
            weight, bias = model.weights[0].data, model.biases[0].data
            weight.div_(self.scale)
            bias.sub_(weight @ self.centre.to(weight))


def _to_scaled(model: MLP, centre: Tensor, scale: float) -> None:
    weight, bias = model.weights[0].data, model.biases[0].data
    bias.add_(weight @ centre.to(weight))
    weight.mul_(scale)


def reject(plan: Plan, model: TabularModel) -> None:
    """Raise for combinations without a meaning or not yet supported."""
    regression = plan.n_labels == 0
    if regression and math.isfinite(plan.label_cost) and not is_exact(plan, model):
        raise UnsupportedError(
            "a finite label_cost in regression needs a linear model without bounds: "
            "set label_cost=inf"
        )
