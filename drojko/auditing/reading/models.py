"""Any model as what an audit needs: its own answers, and a differentiable copy where one exists."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drojko._validation import plain_tensor, shown
from drojko.auditing.reading.channels import Affine, Key, NotAffine, channels_of
from drojko.auditing.reading.space import Space
from drojko.exceptions import InvalidDataError
from drojko.models import MLP, LogitDifference, ModuleModel, TabularModel

__all__ = ["AuditedModel", "audited_model"]

#: Probabilities are read between this and one: a forest that answers 0 has no finite log loss.
CLIP = 1e-6


@dataclass(frozen=True, eq=False)
class AuditedModel:
    """A fitted model, as the audit sees it.

    Attributes
    ----------
    scores : callable
        Matrix (n, d) of the space -> logits (n,) or (n, K), or predictions (n,), by the model's
        own code.
    tabular : TabularModel or None
        The same function with derivatives, equal to ``scores`` to rounding; None: without.
    space : Space
    classes : ndarray or None
        Labels in the order of the logits; None for regression.
    probabilities : bool
        Whether the logits come from probabilities.
    note : str
        How it was read, in words.
    """

    scores: Callable[[np.ndarray], np.ndarray]
    tabular: TabularModel | None
    space: Space
    classes: np.ndarray | None
    probabilities: bool
    note: str

    @property
    def n_outputs(self) -> int:
        """1 for two classes and regression."""
        return 1 if self.classes is None or len(self.classes) == 2 else len(self.classes)


def audited_model(model: Any, X: Any, y: Any) -> AuditedModel:
    """Read a torch module, a drojko estimator or a scikit-learn model.

    Raises
    ------
    InvalidDataError
        For what is no fitted model, or whose answers do not fit X and y.
    """
    try:
        table = X if hasattr(X, "columns") else np.asarray(plain_tensor(X, "X"))
    except ValueError as error:  # rows of different lengths
        raise InvalidDataError(f"X={shown(X)} is no table: {error}") from None
    if getattr(table, "ndim", 0) != 2 or len(table) == 0:
        raise InvalidDataError(
            f"X has shape {getattr(table, 'shape', ())}; expected rows of shape (n, d), n >= 1"
        )
    if isinstance(model, nn.Module):
        return _torch(model, table, np.asarray(y))
    model = getattr(model, "best_estimator_", model)  # a search is its best model
    if not hasattr(model, "predict"):
        raise InvalidDataError(
            f"{type(model).__name__} has no predict: audit takes a torch module, a fitted drojko "
            "estimator or a fitted scikit-learn model"
        )
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(model)
    return _estimator(model, table)


# scikit-learn and drojko ------------------------------------------------------------------------


def _estimator(model: Any, X: Any) -> AuditedModel:
    from sklearn.base import is_classifier

    classifier = is_classifier(model)
    classes = np.asarray(model.classes_) if classifier else None
    if classes is not None and len(classes) < 2:
        raise InvalidDataError(f"the model knows one class only, {classes.tolist()}")
    probabilities = classifier and _answers(model, "predict_proba")
    try:
        tabular, space, note = _differentiable(model, X)
    except NotAffine as reason:
        tabular, space, note = None, Space.of(X, _keys_of_frame(X)), f"no gradients: {reason}"

    def scores(U: np.ndarray) -> np.ndarray:
        return _raw_scores(model, space.decode(U, X), classes, probabilities)

    found = AuditedModel(scores, tabular, space, classes, probabilities, note)
    return found if tabular is None else _verified(found, X)


def _answers(model: Any, method: str) -> bool:
    try:
        return callable(getattr(model, method, None))
    except (AttributeError, NotImplementedError):
        return False


def _raw_scores(model: Any, X: Any, classes: Any, probabilities: bool) -> np.ndarray:
    if classes is None:
        return np.asarray(model.predict(X), dtype=np.float64).reshape(len(X))
    if probabilities:
        p = np.asarray(model.predict_proba(X), dtype=np.float64)
        if p.shape != (len(X), len(classes)):
            raise InvalidDataError(
                f"predict_proba gives shape {p.shape}; expected {(len(X), len(classes))}"
            )
        logs = np.log(np.clip(p, CLIP, 1.0))
        return logs[:, 1] - logs[:, 0] if len(classes) == 2 else logs
    if _answers(model, "decision_function"):
        return np.asarray(model.decision_function(X), dtype=np.float64)
    raise InvalidDataError(
        f"{type(model).__name__} gives neither probabilities nor a decision function: wrap it in "
        "a CalibratedClassifierCV to audit it"
    )


def _keys_of_frame(X: Any) -> list[Any] | None:
    """Keys of a frame whose text and categories stay; None where all columns are numbers."""
    if not hasattr(X, "columns"):
        return None
    keys = []
    for j, name in enumerate(X.columns):
        if X[name].dtype.kind in "biuf" and X[name].dtype != bool:
            keys.append(Key(j))
        else:
            keys += [Key(j, category) for category in sorted(X[name].unique().tolist(), key=str)]
    return keys


def _differentiable(model: Any, X: Any) -> tuple[TabularModel, Space, str]:
    """The model as an affine map and a network; raises `NotAffine` where it is not."""
    channels = [Affine({Key(j): 1.0}) for j in range(X.shape[1])]
    last = model
    while type(last).__name__ == "Pipeline":
        for _, step in last.steps[:-1]:
            channels = channels_of(step, channels)
        last = last.steps[-1][1]
    network = _network(last)
    keys = {key for channel in channels for key in channel.terms}
    used = {key.column for key in keys}
    # Number columns that the model drops may be named in weights all the same.
    for j in range(X.shape[1]):
        if j not in used and (not hasattr(X, "columns") or X.iloc[:, j].dtype.kind in "iuf"):
            keys.add(Key(j))
    space = Space.of(X, list(keys))
    matrix, offset = space.affine(channels)
    return fold(network, matrix, offset), space, f"exact gradients of {type(last).__name__}"


def _network(model: Any) -> TabularModel:
    """A fitted final estimator as a network on its own inputs."""
    fitted = getattr(model, "_fitted_model", None)  # what drojko's own estimators offer
    if fitted is not None:
        return copy.deepcopy(fitted()).to("cpu", torch.float64)
    kind = type(model).__name__
    if not type(model).__module__.startswith("sklearn."):
        raise NotAffine(f"{kind} is not known here")
    if hasattr(model, "coef_") and hasattr(model, "intercept_"):  # the copy is compared later
        coef = np.atleast_2d(np.asarray(model.coef_, dtype=np.float64))
        bias = np.broadcast_to(np.asarray(model.intercept_, dtype=np.float64), len(coef))
        return network([coef], [np.array(bias)], "softplus")
    if kind in ("MLPClassifier", "MLPRegressor"):
        weights = [np.asarray(w, dtype=np.float64).T for w in model.coefs_]
        biases = [np.asarray(b, dtype=np.float64) for b in model.intercepts_]
        activation = "sigmoid" if model.activation == "logistic" else str(model.activation)
        if activation == "identity":
            while len(weights) > 1:
                biases[:2] = [weights[1] @ biases[0] + biases[1]]
                weights[:2] = [weights[1] @ weights[0]]
            activation = "softplus"
        return network(weights, biases, activation)
    raise NotAffine(f"{kind} is neither linear nor a perceptron")


def network(weights: list[np.ndarray], biases: list[np.ndarray], activation: str) -> MLP:
    hidden = [len(w) for w in weights[:-1]]
    gen = torch.Generator().manual_seed(0)
    net = MLP(
        weights[0].shape[1], len(weights[-1]), hidden=hidden, activation=activation, generator=gen
    )
    with torch.no_grad():
        for own, value in zip(net.parameters(), [*weights, *biases], strict=True):
            own.copy_(torch.as_tensor(value))
    return net


def fold(model: TabularModel, matrix: np.ndarray, offset: np.ndarray) -> TabularModel:
    """The model after an affine map: folded into the first layer of a perceptron."""
    if np.array_equal(matrix, np.eye(len(matrix), matrix.shape[1])) and not offset.any():
        return model
    if not isinstance(model, MLP):
        first: Any = nn.utils.skip_init(nn.Linear, *matrix.shape[::-1], dtype=torch.float64)
        with torch.no_grad():
            first.weight.copy_(torch.as_tensor(matrix))
            first.bias.copy_(torch.as_tensor(offset))
        return ModuleModel(nn.Sequential(first.requires_grad_(False), model), model.n_outputs)
    weights = [w.detach().double().numpy() for w in model.weights]
    biases = [b.detach().double().numpy() for b in model.biases]
    biases[0] = biases[0] + weights[0] @ offset
    weights[0] = weights[0] @ matrix
    return network(weights, biases, model.activation)


def _verified(found: AuditedModel, X: Any) -> AuditedModel:
    """Keep the differentiable copy only if it answers as the model does."""
    U = found.space.encode(X[:200] if not hasattr(X, "iloc") else X.iloc[:200])
    own = found.scores(U)
    assert found.tabular is not None
    with torch.no_grad():
        copied = found.tabular(torch.as_tensor(U)).numpy()
    if found.classes is not None and own.ndim == 2:  # log-probabilities against logits
        copied = copied - np.logaddexp.reduce(copied, axis=1, keepdims=True)
        own = own - np.logaddexp.reduce(own, axis=1, keepdims=True)
    limit = -np.log(CLIP)
    near = np.abs(copied) < 0.9 * limit if found.probabilities else np.isfinite(copied)
    scale = 1.0 + np.abs(own).max()
    if copied.shape == own.shape and (np.abs(copied - own)[near] <= 1e-6 * scale).all():
        return found
    note = "no gradients: the differentiable copy does not give the model's own answers"
    return replace(found, tabular=None, note=note)


# torch ------------------------------------------------------------------------------------------


def _torch(module: nn.Module, X: Any, y: np.ndarray) -> AuditedModel:
    """A module, copied: evaluation mode, float64, own parameters untouched."""
    space = Space.of(X)
    own = copy.deepcopy(module).double().eval().cpu()
    for parameter in own.parameters():
        parameter.requires_grad_(False)
    trial = torch.as_tensor(space.encode(X[:3] if not hasattr(X, "iloc") else X.iloc[:3]))
    try:
        with torch.no_grad():
            out = own(trial)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InvalidDataError(f"the module fails on rows of X: {error}") from error
    if not isinstance(out, Tensor) or out.ndim not in (1, 2) or len(out) != len(trial):
        shape = tuple(getattr(out, "shape", ()))
        raise InvalidDataError(
            f"the module gives shape {shape} for {len(trial)} rows; expected (n,), (n, 1) or "
            "(n, n_classes)"
        )
    width = 1 if out.ndim == 1 else out.shape[1]
    labels = np.unique(y)
    discrete = y.dtype.kind in "biuOUS" or (width > 1)
    classes: np.ndarray | None = None
    if discrete:
        if width == 1 and len(labels) > 2:
            raise InvalidDataError(f"the module has one output, y has {len(labels)} classes")
        named = len(labels) == 2 if width == 1 else y.dtype.kind not in "biu"
        classes = labels if named else np.arange(max(2, width))
        if len(classes) != max(2, width):
            raise InvalidDataError(
                f"the module has {width} outputs, y has {len(labels)} classes: give y as class "
                "indices 0 ... n_classes - 1"
            )
    tabular: TabularModel = _as_perceptron(own, X.shape[1]) or ModuleModel(
        LogitDifference(own) if width == 2 else own, 1 if width <= 2 else width
    )

    def scores(U: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return tabular(torch.as_tensor(U)).numpy()

    return AuditedModel(scores, tabular, space, classes, discrete, "a torch module")


_ACTIVATIONS = {"ReLU": "relu", "Tanh": "tanh", "SiLU": "silu", "Sigmoid": "sigmoid"}


def _as_perceptron(module: nn.Module, d: int) -> MLP | None:
    """An nn.Sequential of Linear layers with one activation as our own, with its proofs."""
    layers = list(module) if isinstance(module, nn.Sequential) else [module]
    layers = [m for m in layers if not isinstance(m, nn.Dropout | nn.Identity)]
    if layers and isinstance(layers[-1], nn.Flatten):
        layers = layers[:-1]
    between = layers[1::2]
    linear: list[Any] = layers[::2]
    if len(linear) != len(between) + 1 or not all(type(m) is nn.Linear for m in linear):
        return None
    names = {_activation(m) for m in between}
    if None in names or len(names) > 1 or linear[0].in_features != d:
        return None
    weights = [m.weight.detach().double().numpy() for m in linear]
    biases = [
        np.zeros(len(w)) if m.bias is None else m.bias.detach().double().numpy()
        for m, w in zip(linear, weights)
    ]
    if len(weights[-1]) == 2:
        weights[-1] = weights[-1][1:] - weights[-1][:1]
        biases[-1] = biases[-1][1:] - biases[-1][:1]
    return network(weights, biases, str(names.pop()) if names else "softplus")


def _activation(module: nn.Module) -> str | None:
    if isinstance(module, nn.Softplus):
        return "softplus" if module.beta == 1 and module.threshold >= 20 else None
    return _ACTIVATIONS.get(type(module).__name__)
