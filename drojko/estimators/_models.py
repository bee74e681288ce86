"""Modules: by name or from a user's factory, at their initial parameters; their training."""

from __future__ import annotations

import copy
import math
import threading
import warnings
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drojko._driver import all_finite
from drojko._numerics import telling
from drojko._random import spawn
from drojko._sklearn import DEPTH
from drojko._validation import shown
from drojko.approaches.base import Approach, Assessment, Plan
from drojko.exceptions import InvalidDataError
from drojko.inner.transport.storage import pack_module
from drojko.minimax.problem import Callback, TrainResult
from drojko.models import MLP, Linear, LogitDifference, ModuleModel, TabularModel

__all__ = ["OnModule", "build_model", "check_device", "check_stored", "resting"]

_FACTORY = threading.Lock()


class OnModule:
    """Training of a module in place, by a plan of its own where not all rows are for it."""

    def __init__(
        self, approach: Approach, plan: Plan, model: TabularModel, training: Plan | None = None
    ) -> None:
        approach.reject(plan, model)
        self.approach, self.plan, self.model = approach, plan, model
        self.training = plan if training is None else training
        self.most = approach.most_iterations(plan, model)
        self.shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The present parameters."""
        return pack_module(self.model)

    def seen(self, info: dict[str, Any]) -> dict[str, np.ndarray]:
        """The parameters of an iterate."""
        return self.parameters

    def train(self, start: Any, report: Callback) -> tuple[dict[str, np.ndarray], TrainResult]:
        """Parameters and how training ended."""
        penalty = None
        if start is not None:
            before, penalty = start
            self.model.load_state_dict({k: torch.tensor(v) for k, v in before.items()})
            if isinstance(self.model, MLP):
                self.model.warm = True
            penalty = None if math.isnan(penalty) else penalty
        result = self.approach.train(replace(self.training, callback=report), self.model, penalty)
        return self.parameters, result

    def untrained(self) -> dict[str, np.ndarray]:
        """The parameters before the first step."""
        return self.parameters

    def assess(self, result: TrainResult) -> Assessment:
        """Certificate and worst case."""
        return self.approach.assess(self.plan, self.model, result)


def build_model(front: Any, n_outputs: int, generator: torch.Generator) -> TabularModel:
    """The model of an estimator's name or factory, at its initial parameters."""
    model, n_features, gen = front.model, front.n_features_in_, spawn(generator)
    like: dict[str, Any] = {"dtype": getattr(torch, front.dtype), "device": str(front.device)}
    own: dict[str, Any] = {"bias": front.fit_intercept, "generator": gen, **like}
    if model == "linear":
        return Linear(n_features, n_outputs, **own)
    if model == "mlp":
        hidden = front.hidden_layer_sizes
        listed = isinstance(hidden, list | tuple | range | np.ndarray) and np.ndim(hidden) == 1
        sizes: Any = tuple(hidden) if listed else (hidden,)
        return MLP(n_features, n_outputs, hidden=sizes, activation=front.activation, **own)
    if isinstance(model, nn.Module):
        raise InvalidDataError(
            "model is a module; give a callable that returns a new one, such as "
            "model=lambda: MyNet(), so that a fit does not change your object"
        )
    if not callable(model):
        raise InvalidDataError(
            f"model={shown(model)}; expected 'linear', 'mlp' or a callable that returns a torch "
            "module"
        )
    # A user's module draws its weights from the global generator: seed it for a moment, one fit
    # at a time, and give the caller's state back.
    with _FACTORY, torch.random.fork_rng(devices=[]):  # noqa: TID251
        seed = torch.randint(2**31 - 1, (1,), generator=gen)
        torch.default_generator.manual_seed(int(seed))
        try:
            module = model()
        except TypeError as error:
            raise InvalidDataError(
                f"model={shown(model)} cannot be called without arguments ({error}); give a "
                "callable that returns a new torch module"
            ) from error
        if not isinstance(module, nn.Module):
            raise InvalidDataError(
                f"model() returned {type(module).__name__}; expected a torch.nn.Module"
            )
        module = _own(module, model)
    # One output stands for two classes, and a module may give both logits.
    binary = front._classification and n_outputs == 1
    with _FACTORY, torch.random.fork_rng(devices=[]):  # noqa: TID251
        return _module_model(module.to(**like).eval(), n_features, n_outputs, binary, like)


def _own(module: nn.Module, factory: Any) -> nn.Module:
    """A copy of what the factory may return again, or the module itself where it is new."""
    try:
        return copy.deepcopy(module)
    except Exception as error:
        mine = {id(p) for p in module.parameters()}
        if not any(id(p) in mine for p in factory().parameters()):
            return module
        raise InvalidDataError(
            f"model() returns the same module again, which cannot be copied ({error}): return a "
            "new one, so that a fit does not change your object"
        ) from error


def resting(model: TabularModel) -> list[str]:
    """Layers of a module that do something in training mode only, and nothing here."""
    drop, norm = nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm
    return sorted(
        {
            type(m).__name__
            for m in model.modules()
            if (isinstance(m, drop) and m.p > 0)
            or (
                isinstance(m, norm)
                and m.num_batches_tracked is not None
                and not m.num_batches_tracked
            )
        }
    )


def _module_model(
    module: nn.Module, n_features: int, n_outputs: int, binary: bool, like: dict[str, Any]
) -> ModuleModel:
    """A user's module after a trial: shapes, and a forward pass that is a function of its row."""
    trial = torch.linspace(-1.0, 1.0, 3 * n_features, **like).reshape(3, n_features)
    try:
        with torch.no_grad():
            outputs = [module(trial), module(trial), module(trial[1:])]
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InvalidDataError(
            f"the module that model() returned fails on X of shape (3, {n_features}) and dtype "
            f"{like['dtype']}: {error}"
        ) from error
    first, again, part = outputs
    if not isinstance(first, Tensor) or not first.is_floating_point():
        got = shown(first) if isinstance(first, Tensor) else type(first).__name__
        some = "; of a tuple, return the part that predicts" if isinstance(first, tuple) else ""
        raise InvalidDataError(
            f"the module that model() returned gives {got}; expected a tensor of real numbers{some}"
        )
    allowed = {(3,), (3, 1)} if n_outputs == 1 else {(3, n_outputs)}
    shapes = allowed | ({(3, 2)} if binary else set())
    if tuple(first.shape) not in shapes:
        raise InvalidDataError(
            f"the module that model() returned gives shape {tuple(first.shape)} for 3 rows; "
            f"expected {' or '.join(map(str, sorted(shapes, key=len)))}"
        )
    finite = bool(torch.isfinite(first).all())
    if not torch.allclose(first, again, rtol=0.0, atol=0.0, equal_nan=True):
        raise InvalidDataError(
            "the module that model() returned gives other values when it is called again on the "
            "same X: robust training needs a deterministic forward pass. Draw what is random once, "
            "in the module's constructor, or leave it to layers such as nn.Dropout, which rest in "
            "eval()"
        )
    if finite and not torch.allclose(first[1:], part, rtol=1e-4, atol=1e-6):
        raise InvalidDataError(
            "the module that model() returned mixes rows: its output for a row depends on the "
            "other rows of the batch. Replace batch statistics by LayerNorm or fixed statistics"
        )
    return ModuleModel(LogitDifference(module) if first.shape[1:] == (2,) else module, n_outputs)


def warn_of_target(fitted: Any, X: Any, y: np.ndarray) -> None:
    """A named column of X that tells the target exactly is the target, most of the time."""
    names = getattr(fitted, "feature_names_in_", None)
    if names is None or not isinstance(X, np.ndarray):
        return
    found = telling(X, y, len(fitted.classes_) if fitted._classification else 0)
    if found:
        text = ", ".join(repr(str(names[column])) for column in found[:5])
        warnings.warn(
            f"{type(fitted).__name__}: the target is among the features: {text} tells it exactly. "
            "Leave it out of X, unless new rows have it, too",
            UserWarning,
            stacklevel=DEPTH + 2,
        )


def check_device(device: Any) -> None:
    """Raise `InvalidDataError` for a torch device that is unknown or absent."""
    try:
        if torch.empty(0, device=device).is_meta:
            raise TypeError("it holds no numbers")
    except (RuntimeError, AssertionError, TypeError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidDataError(
            f"device={shown(device)} cannot be used ({reason}); device='cpu' always can"
        ) from error


def check_stored(fitted: Any) -> None:
    """Raise `InvalidDataError` where what a file holds of a fit cannot come from one."""
    if not fitted.__sklearn_is_fitted__():
        return
    found, d, outputs = fitted.parameters_, fitted.n_features_in_, fitted._outputs()
    named = getattr(fitted, "feature_names_in_", np.empty(d))
    whole = fitted._n_outputs == outputs and len(named) == d
    if not callable(fitted.model):
        hidden = np.atleast_1d(fitted.hidden_layer_sizes) if fitted.model == "mlp" else []
        sizes = [d, *map(int, hidden), outputs]
        shapes = {f"weights.{k}": pair[::-1] for k, pair in enumerate(pairwise(sizes))}
        shapes |= {f"biases.{k}": (size,) for k, size in enumerate(sizes[1:])}
        whole &= shapes == {name: np.shape(value) for name, value in found.items()}
    own = fitted._attributes(found) if whole else {}
    whole &= all(
        np.array_equal(getattr(fitted, name), value)
        for name, value in own.items()
        if name != "parameters_"
    )
    whole &= len({np.shape(column) for column in fitted._history.values()}) < 2
    if isinstance(fitted._reference, tuple):
        x, y, w, _ = fitted._reference
        whole &= np.shape(x) == (len(w), d) and np.shape(y) == np.shape(w) == (len(w),)
    if not whole:
        raise InvalidDataError(
            f"{type(fitted).__name__} holds arrays whose shapes do not fit each other"
        )
    if not all_finite((found, fitted._reference)):
        raise InvalidDataError(f"{type(fitted).__name__} holds arrays that are not finite")
