"""From validated arrays to a trained model: which outer solver, and the units it works in."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drojko._driver import Status
from drojko._random import spawn
from drojko.ambiguity import GroundCost
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.inner.solvers import InnerSolver
from drojko.losses import CallableLoss, CrammerSinger, Logistic, Loss, Softmax
from drojko.measures import LabelledMeasure
from drojko.minimax.conditioning import Conditioned
from drojko.minimax.linear_classes import LinearClasses
from drojko.minimax.problem import Callback, RobustProblem, TrainResult
from drojko.minimax.quasi_newton import QuasiNewton
from drojko.minimax.ridge import solve_ridge
from drojko.minimax.ridge_data import RidgeData
from drojko.minimax.subgradient import Subgradient
from drojko.models import MLP, Linear, ModuleModel, TabularModel

__all__ = [
    "Plan",
    "build_model",
    "is_exact",
    "is_linear",
    "most_iterations",
    "reject",
    "ridge_data",
    "train",
]


_FACTORY = threading.Lock()

_SEPARABLE = (
    "The classes can be separated, so without alpha or a radius the risk falls to zero as the "
    "coefficients grow and no minimum exists: add alpha > 0 or a radius > 0."
)


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

    @property
    def relaxes(self) -> bool:
        """Whether the exact linear solver applies once the bounds are left out."""
        named = self.loss.scalar and not isinstance(self.loss, CallableLoss)
        return named and self.cost.bounded

    @property
    def classes(self) -> bool:
        """Whether the exact multi-class solver applies (for a linear model)."""
        named = isinstance(self.loss, Softmax | CrammerSinger)
        return named and not self.cost.bounded and math.isinf(self.label_cost)

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
    binary: bool = False,
    **like: Any,
) -> TabularModel:
    """The model of a name or a factory, at its initial parameters.

    ``binary``: one output stands for two classes, and a module may give both logits.
    """
    gen = spawn(generator)
    if model == "linear":
        return Linear(n_features, n_outputs, bias=bias, generator=gen, **like)
    if model == "mlp":
        sizes: tuple[Any, ...] = (
            (hidden,) if isinstance(hidden, int | np.integer) else tuple(hidden)
        )
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
    # A user's module draws its weights from the global generator: seed it for a moment, one fit
    # at a time, and give the caller's state back.
    with _FACTORY, torch.random.fork_rng(devices=[]):  # noqa: TID251
        seed = torch.randint(2**31 - 1, (1,), generator=gen)
        torch.default_generator.manual_seed(int(seed))
        module = model()
    if not isinstance(module, nn.Module):
        raise InvalidDataError(
            f"model() returned {type(module).__name__}; expected a torch.nn.Module"
        )
    return _module_model(module.to(**like).eval(), n_features, n_outputs, binary, like)


class _LogitDifference(nn.Module):
    """Two logits as one: what a binary loss takes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        f = self.module(x)
        return f[:, 1] - f[:, 0]


def _module_model(
    module: nn.Module, n_features: int, n_outputs: int, binary: bool, like: dict[str, Any]
) -> ModuleModel:
    """A user's module after a trial: shapes, and a forward pass that is a function of its row."""
    trial = torch.linspace(-1.0, 1.0, 3 * n_features, **like).reshape(3, n_features)
    try:
        with torch.no_grad():
            outputs = [module(trial), module(trial), module(trial[1:])]
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InvalidDataError(
            f"the module that model() returned fails on X of shape (3, {n_features}) and dtype "
            f"{like['dtype']}: {error}"
        ) from error
    first, again, part = outputs
    if not isinstance(first, Tensor):
        raise InvalidDataError(
            f"the module that model() returned gives {type(first).__name__}; expected a tensor"
        )
    allowed = {(3,), (3, 1)} if n_outputs == 1 else {(3, n_outputs)}
    shapes = allowed | ({(3, 2)} if binary else set())
    if tuple(first.shape) not in shapes:
        raise InvalidDataError(
            f"the module that model() returned gives shape {tuple(first.shape)} for 3 rows; "
            f"expected {' or '.join(map(str, sorted(shapes, key=len)))}"
        )
    finite = bool(torch.isfinite(first).all())
    if finite and not torch.equal(first, again):
        raise InvalidDataError(
            "the module that model() returned gives other values when it is called again on the "
            "same X: robust training needs a deterministic forward pass"
        )
    if finite and not torch.allclose(first[1:], part, rtol=1e-4, atol=1e-6):
        raise InvalidDataError(
            "the module that model() returned mixes rows: its output for a row depends on the "
            "other rows of the batch. Replace batch statistics by LayerNorm or fixed statistics"
        )
    return ModuleModel(_LogitDifference(module) if first.shape[1:] == (2,) else module, n_outputs)


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
    return plan.max_iter * len(LinearClasses().smoothings) if staged else plan.max_iter


def _separated(plan: Plan, model: TabularModel) -> bool:
    """Whether scaling a linear model up drives its cross-entropy to zero: there is no minimum."""
    still = plan.radius == 0.0 and plan.alpha == 0.0
    if not (still and is_linear(model) and isinstance(plan.loss, Logistic | Softmax)):
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
            max_iter=plan.max_iter,
            tol=plan.tol,
            max_time=plan.max_time,
            callback=plan.callback,
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
        max_iter=plan.max_iter,
        tol=plan.tol,
        max_time=plan.max_time,
        callback=run.wrap(plan.callback),
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
    """Start from the exact answer without the bounds: near the answer, also at its kinks."""
    result = _ridge(replace(plan, callback=None), model, None)
    if result.status == Status.INTERRUPTED:
        raise KeyboardInterrupt(result.message)
    model.warm = True
    return result.penalty if 0.0 < result.penalty < math.inf else None


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
        warm = (weight.data[0].double().cpu().numpy().copy(), bias.detach().item())
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


def reject(plan: Plan, model: TabularModel) -> None:
    """Raise for combinations without a meaning or not yet supported."""
    regression = plan.n_labels == 0
    if regression and math.isfinite(plan.label_cost) and not is_exact(plan, model):
        raise UnsupportedError(
            "a finite label_cost in regression needs a linear model without bounds: "
            "set label_cost=inf"
        )
