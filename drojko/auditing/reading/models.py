"""Any model as what an audit needs: its own answers, and a differentiable copy where one exists."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drojko._sklearn import odd_columns, pandas_table
from drojko._validation import plain_tensor, shown
from drojko.auditing.reading.categories import unknown_categories
from drojko.auditing.reading.channels import Affine, Key, NotAffine, channels_of
from drojko.auditing.reading.own import BLOCK, ONE, Held, Own, Tally, Watched
from drojko.auditing.reading.space import Space
from drojko.exceptions import InvalidDataError
from drojko.models import MLP, LogitDifference, ModuleModel, TabularModel

__all__ = ["AuditedModel", "audited_model", "whole_table"]

#: Categories of a column that are told apart one by one, and numbers of a matrix of indicators.
FEW, MOST = 64, 8_000_000
#: Rows of a table in another order that are predicted from as it is, and as the model knows it.
_TRIED = 1000


@dataclass(frozen=True, eq=False)
class AuditedModel:
    """A fitted model, as the audit sees it.

    Attributes
    ----------
    own : Own
        The model itself, by its own code.
    tabular : TabularModel or None
        The same function with derivatives; None: without.
    space : Space
    classes : ndarray or None
        Labels in the order of the logits; None for regression.
    note : str
        How it was read, in words.
    exact : TabularModel or None
        What a copy gives way to where it answers otherwise: a module itself, or nothing.
    compared, differing : int
        Points at which copy and model were compared, and those at which they differed: the model
        is audited by its own answers then.
    tally : Tally
        Answers that were no numbers, of all that the audit asked for.
    guide : TabularModel or None
        The copy of a model that is audited under a loss without gradients: where to search.
    unknown : list of str
        Columns with categories that the model's encoders have not seen, in words.
    """

    own: Own
    tabular: TabularModel | None
    space: Space
    classes: np.ndarray | None
    note: str
    exact: TabularModel | None = None
    compared: int = 0
    differing: int = 0
    tally: Tally = field(default_factory=Tally)
    guide: TabularModel | None = None
    unknown: list[str] = field(default_factory=list)

    @property
    def probabilities(self) -> bool:
        """Whether the logits come from probabilities, or may be taken for such."""
        return self.own.method in ("predict_proba", "logits") and self.classes is not None

    @property
    def n_outputs(self) -> int:
        """1 for two classes and regression."""
        return 1 if self.classes is None or len(self.classes) == 2 else len(self.classes)

    def compare(self, U: np.ndarray) -> AuditedModel:
        """The model, with its copy if that answers as the model does at the rows U, too."""
        copied = self.tabular
        if copied is None or copied is self.exact or not len(U):
            return self
        blocks = np.split(U, range(BLOCK, len(U), BLOCK))
        differing = sum(self.own.differs(copied, block) for block in blocks)
        found = replace(self, compared=self.compared + len(U), differing=differing)
        if not differing:
            return found
        note = "no gradients: the differentiable copy does not give the model's own answers"
        return replace(found, tabular=self.exact, note=note if self.exact is None else self.note)


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
    if np.ndim(y) == 2 and np.shape(y)[1] > 1:
        raise InvalidDataError(f"y has {np.shape(y)[1]} columns: {ONE}")
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


def whole_table(model: Any, X: Any) -> Any:
    """A table with the columns of the model's fit, in their order, where it reads them by name.

    A model that reads columns by name predicts from them in any order and beside others; what it
    drops a user need not have any more, and such columns say "absent" everywhere. Others refuse
    such a table, and so does the audit.
    """
    X = pandas_table(X)
    known = getattr(model, "feature_names_in_", None)
    columns = getattr(X, "columns", None)
    if known is None or columns is None or not len(X) or not columns.is_unique:
        return X
    if list(columns) == list(known) or not {*columns} & {*known}:
        return X
    some = X.iloc[:_TRIED]
    try:
        answers = model.predict(some)
        whole = X.reindex(columns=list(known), fill_value="absent")
        same = np.array_equal(answers, model.predict(whole.iloc[:_TRIED]))
    except Exception:  # of any step: the audit will say which column is amiss
        return X
    return whole if same else X  # else: a model that reads columns by their places


# scikit-learn and drojko ------------------------------------------------------------------------


def _estimator(model: Any, X: Any) -> AuditedModel:
    from sklearn.base import is_classifier

    classes = None
    if is_classifier(model):
        if isinstance(model.classes_, list):
            raise InvalidDataError(f"{type(model).__name__} predicts several labels a row: {ONE}")
        classes = np.asarray(model.classes_)
        if len(classes) < 2:
            raise InvalidDataError(f"the model knows one class only, {classes.tolist()}")
    odd = odd_columns(getattr(X, "columns", None), getattr(model, "feature_names_in_", None))
    if odd is not None:
        raise InvalidDataError(odd)
    mixed = isinstance(X, np.ndarray) and X.dtype == np.dtype(object)
    if hasattr(model, "feature_names_in_") and mixed:
        raise InvalidDataError(
            "X is an array of text and numbers, and the model was fitted on named columns: give "
            "it pd.DataFrame(X, columns=model.feature_names_in_)"
        )
    method = _method(model) if classes is not None else "predict"
    tally = Tally()
    try:
        copies, space, note = _differentiable(model, X, tally)
    except NotAffine as reason:
        copies, space, note = [], _searched(X), f"no gradients: {reason}"
    space = space.holding(X)
    if space.missing is not None:
        copies, note = [], "no gradients: rows with missing values"
    own = Own(model, space, X, classes, method)
    unknown = unknown_categories(model, X)
    found = AuditedModel(own, None, space, classes, note, tally=tally, unknown=unknown)
    rows = space.encode(X)
    try:  # what does not fit: of categories a model may refuse those of any row
        every = space.fixed.any() or space.missing is not None
        (own.scores if classes is not None else own.raw)(rows if every else rows[:1])
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, InvalidDataError):
            raise
        if "NaN" in str(error) and (where := _gap(X)) is not None:
            raise InvalidDataError(f"{type(model).__name__} {where}") from error
        said = str(error).strip().replace("\n", " ")
        hint = ' (OneHotEncoder(handle_unknown="ignore") takes them)' * ("unknown" in said)
        raise InvalidDataError(f"{type(model).__name__} refuses rows of X: {said}{hint}") from error
    for copied in copies:
        found = replace(found, tabular=copied, note=note, compared=0).compare(rows)
        if found.tabular is not None:
            break
    return found


def _gap(X: Any) -> str | None:
    """Words on the first missing value of a table; None where there is none."""
    import pandas as pd

    table = X if hasattr(X, "columns") else pd.DataFrame(np.asarray(X))
    gaps = np.argwhere(table.isna().to_numpy().T)
    if not len(gaps):
        return None
    column, row = gaps[0]
    return (
        f"takes no missing values, and column {str(table.columns[column])!r} of X has one in row "
        f"{row}: impute it in the pipeline, for instance with a SimpleImputer, or drop such rows"
    )


def _method(model: Any) -> str:
    """What a classifier is asked for."""
    for name in ("predict_proba", "decision_function"):
        try:
            if callable(getattr(model, name, None)):
                return name
        except (AttributeError, NotImplementedError):
            continue
    return "predict"


def _searched(X: Any) -> Space:
    """The space of a model without gradients: text and categories are such, dates stay.

    Of many categories a column holds the positions, and stays as well.
    """
    if not hasattr(X, "columns"):
        return Space.of(X)
    keys, codes = [], dict[int, Any]()
    for j, name in enumerate(X.columns):
        column = X[name]
        if column.dtype.kind in "iuf":
            keys.append(Key(j))
            continue
        try:
            found = list(column.unique())
        except TypeError:
            raise InvalidDataError(
                f"column {str(name)!r} holds {type(column.iloc[0]).__name__} objects: an audit "
                "takes numbers, text, categories, booleans and dates"
            ) from None
        if column.dtype.kind in "Mm" or len(found) > FEW:
            keys.append(Key(j))
            codes[j] = np.empty(len(found), dtype=object)
            codes[j][:] = found
        else:
            keys += [Key(j, category) for category in sorted(column.unique().tolist(), key=str)]
    return Space.of(X, keys, codes)


def _differentiable(model: Any, X: Any, tally: Tally) -> tuple[list[TabularModel], Space, str]:
    """Affine maps with a network that may be the model; raises `NotAffine` where none is."""
    channels = [Affine({Key(j): 1.0}) for j in range(X.shape[1])]
    last = model
    while (inside := _inside(last)) is not None:
        steps, last = inside
        for step in steps:
            channels = channels_of(step, channels)
    networks = _networks(last, tally)
    keys = {key for channel in channels for key in channel.terms}
    for j in {key.column for key in keys if key.category is not None}:  # those it does not know
        seen = X.iloc[:, j] if hasattr(X, "columns") else np.asarray(X)[:, j]
        keys |= {Key(j, category) for category in _distinct(seen)}
    if len(keys) * len(X) > MOST:
        raise NotAffine(f"{len(keys)} categories and numbers are too many to follow in all rows")
    used = {key.column for key in keys}
    # Number columns that the model drops may be named in weights all the same.
    for j in range(X.shape[1]):
        if j not in used and (not hasattr(X, "columns") or X.iloc[:, j].dtype.kind in "iuf"):
            keys.add(Key(j))
    space = Space.of(X, list(keys))
    matrix, offset = space.affine(channels)
    folded = [fold(network, matrix, offset) for network in networks]
    return folded, space, f"exact gradients of {type(last).__name__}"


def _distinct(column: Any) -> list[Any]:
    """The values of a column, NaN left out: an encoder has one of its own for it."""
    import pandas as pd

    return pd.unique(pd.Series(column).dropna()).tolist()


def _inside(model: Any) -> tuple[list[Any], Any] | None:
    """Steps before, and the estimator inside of a pipeline, a search or a threshold."""
    if type(model).__name__ == "Pipeline":
        return [step for _, step in model.steps[:-1]], model.steps[-1][1]
    if not type(model).__module__.startswith("sklearn.model_selection."):
        return None
    inside = getattr(model, "best_estimator_", getattr(model, "estimator_", None))
    return None if inside is None else ([], inside)


def _networks(model: Any, tally: Tally) -> list[TabularModel]:
    """A fitted final estimator as networks on its own inputs, one of which may answer as it."""
    fitted = getattr(model, "_fitted_model", None)  # what drojko's own estimators offer
    if fitted is not None:
        own = copy.deepcopy(fitted()).to("cpu", torch.float64)
        inside = own.module if isinstance(getattr(own, "module", None), LogitDifference) else own
        if hasattr(inside, "module"):  # a module of the user's
            inside.module = Watched(inside.module, tally)
        return [own]
    kind = type(model).__name__
    if not type(model).__module__.startswith("sklearn."):
        raise NotAffine(f"{kind} is not known here")
    parts = model.estimators_ if kind == "OneVsRestClassifier" else [model]
    if all(hasattr(m, "coef_") and hasattr(m, "intercept_") for m in parts):  # compared later
        coef = np.vstack([np.asarray(m.coef_, dtype=np.float64) for m in parts])
        bias = np.hstack([np.asarray(m.intercept_, dtype=np.float64) for m in parts])
        bias = np.broadcast_to(bias, len(coef))
        linear = network([coef], [np.array(bias)], "softplus")
        if len(coef) == 1:
            return [linear]
        # One class against the rest: sigmoids that are made to sum to 1.
        rest = nn.Sequential(copy.deepcopy(linear), nn.LogSigmoid()).requires_grad_(False)
        return [linear, ModuleModel(rest, len(coef))]
    if kind in ("MLPClassifier", "MLPRegressor"):
        weights = [np.asarray(w, dtype=np.float64).T for w in model.coefs_]
        biases = [np.asarray(b, dtype=np.float64) for b in model.intercepts_]
        activation = "sigmoid" if model.activation == "logistic" else str(model.activation)
        if activation == "identity":
            while len(weights) > 1:
                biases[:2] = [weights[1] @ biases[0] + biases[1]]
                weights[:2] = [weights[1] @ weights[0]]
            activation = "softplus"
        return [network(weights, biases, activation)]
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


# torch ------------------------------------------------------------------------------------------


def _torch(module: nn.Module, X: Any, y: np.ndarray) -> AuditedModel:
    """A module, copied: evaluation mode, float64, own parameters untouched."""
    space, tally = Space.of(X), Tally()
    rows = space.encode(X)
    own, out = _answering(module, torch.as_tensor(rows[:3]))
    if not isinstance(out, Tensor) or out.ndim not in (1, 2) or len(out) != len(rows[:3]):
        shape = tuple(getattr(out, "shape", ()))
        raise InvalidDataError(
            f"the module gives shape {shape} for {len(rows[:3])} rows; expected (n,), (n, 1) or "
            "(n, n_classes)"
        )
    width = 1 if out.ndim == 1 else out.shape[1]
    labels = np.unique(y)
    if width > 1 and y.dtype.kind == "f" and len(labels) > width:
        raise InvalidDataError(f"the module gives {width} numbers for each row of X: {ONE}")
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
    whole = Watched(LogitDifference(own) if width == 2 else own, tally)
    itself = ModuleModel(whole, 1 if width <= 2 else width)
    perceptron = _as_perceptron(own, X.shape[1]) or itself
    asked = Own(own, space, X, classes, "logits")
    found = AuditedModel(
        asked, perceptron, space, classes, "a torch module", exact=itself, tally=tally
    )
    return found.compare(rows)


def _answering(module: nn.Module, trial: Tensor) -> tuple[nn.Module, Any]:
    """A copy of a module in float64, or in its own precision where it insists, and its answers."""
    errors: list[Exception] = []
    for single in (False, True):
        try:
            with torch.no_grad():  # which keeps the parameters of scripted modules leaves
                own = copy.deepcopy(module).eval().cpu()
                own = own if single else own.double()
                if single or isinstance(own, torch.jit.ScriptModule):
                    own = Held(own, single)
                own.requires_grad_(False)
                return own, own(trial)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            errors.append(error)
    lines = str(errors[0]).strip().splitlines() or [repr(errors[0])]
    raise InvalidDataError(f"the module fails on rows of X: {lines[-1]}") from errors[0]


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
