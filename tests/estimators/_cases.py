"""Small real data, cheap settings and one estimator of every kind, for the tests of estimators."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.preprocessing import scale
from torch import nn

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Wasserstein
from drojko.inner import ICNNJKO

#: Few steps of a small map: the tests are about what holds after any number of them.
CHEAP = ICNNJKO(steps=5, hidden=(4,), corrections=20, anchors=4, support=30, rounds=1)


def binary():
    """Versicolor against virginica: 100 rows, 4 columns, not separable."""
    X, y = load_iris(return_X_y=True)
    return X[50:], y[50:] - 1


def classes():
    """Every other row of wine, three standardised columns: 3 classes that overlap."""
    X, y = load_wine(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    return np.ascontiguousarray(X[::2, [1, 4, 7]]), y[::2]


def regression():
    """120 rows of diabetes, 10 standardised columns."""
    X, y = load_diabetes(return_X_y=True)
    return scale(X[:120]), y[:120]


def ball(radius=0.2, **settings):
    return Wasserstein(radius, **settings)


def linear(kind=DROClassifier, radius=0.2, **settings):
    """A linear model around the data themselves."""
    return kind(ball(radius), **{"reference": "empirical", "inner": CHEAP, **settings})


def mlp(kind=DROClassifier, radius=0.2, **settings):
    """A small perceptron, a few passes."""
    defaults = {
        "model": "mlp",
        "hidden_layer_sizes": (6,),
        "inner": CHEAP,
        "max_iter": 4,
        "reference": "empirical",
        "random_state": 0,
    }
    return kind(ball(radius), **{**defaults, **settings})


def small_net(n_inputs=4, n_outputs=1):
    return nn.Sequential(nn.Linear(n_inputs, 5), nn.Tanh(), nn.Linear(5, n_outputs))


def one_logit():
    return small_net()


def three_logits():
    return small_net(3, 3)


def softplus_loss(f, y):
    return nn.functional.softplus(-(2.0 * y - 1.0) * f)


DRAWN = {"n_draws": 200, "random_state": 0}

#: name -> (unfitted estimator, X, y): one of every kind.
KINDS = {
    "linear": (linear(), *binary()),
    "linear-hinge": (linear(loss="hinge"), *binary()),
    "linear-penalty": (linear().set_params(ambiguity=Wasserstein(penalty=2.0)), *binary()),
    "linear-kde": (linear(reference="kde", **DRAWN), *binary()),
    "linear-gaussian": (linear(reference="gaussian", **DRAWN), *binary()),
    "linear-mixture": (linear(reference="mixture", **DRAWN), *binary()),
    "linear-classes": (linear(max_iter=20), *classes()),
    "linear-classes-hinge": (linear(max_iter=20, loss="hinge"), *classes()),
    "linear-bounds": (linear().set_params(ambiguity=ball(bounds=(0.0, 9.0))), *binary()),
    "linear-flips": (linear().set_params(ambiguity=ball(label_cost=0.5)), *binary()),
    "squared": (linear(DRORegressor, 0.02), *regression()),
    "absolute": (linear(DRORegressor, 0.02, loss="absolute"), *regression()),
    "huber": (linear(DRORegressor, 0.02, loss="huber", delta=20.0), *regression()),
    "quantile": (linear(DRORegressor, 0.02, loss="quantile", quantile=0.8), *regression()),
    "squared-kde": (linear(DRORegressor, 0.02, reference="kde", **DRAWN), *regression()),
    "mlp": (mlp(), *binary()),
    "mlp-hinge": (mlp(loss="hinge"), *binary()),
    "mlp-relu": (mlp(activation="relu"), *binary()),
    "mlp-kde": (mlp(reference="kde", n_draws=150), *binary()),
    "mlp-gaussian": (mlp(reference="gaussian", n_draws=150), *binary()),
    "mlp-pointwise": (mlp(inner="pointwise"), *binary()),
    "mlp-classes": (mlp(), *classes()),
    "mlp-classes-hinge": (mlp(loss="hinge"), *classes()),
    "mlp-flips": (mlp().set_params(ambiguity=ball(label_cost=0.5)), *binary()),
    "mlp-squared": (mlp(DRORegressor, 0.02), *regression()),
    "mlp-absolute": (mlp(DRORegressor, 0.02, loss="absolute"), *regression()),
    "module": (mlp(model=one_logit), *binary()),
    "module-classes": (mlp(model=three_logits), *classes()),
    "callable-linear": (linear(loss=softplus_loss), *binary()),
    "callable-loss": (mlp(loss=softplus_loss), *binary()),
}

#: One of each solver, for tests that need no more.
FEW = ["linear", "linear-classes", "squared", "mlp-kde", "mlp-squared"]


def unfitted(name):
    estimator, X, y = KINDS[name]
    return clone(estimator), X, y


_fitted: dict = {}


def fitted(name):
    """A fitted one of every kind with its data, shared by tests that only read it."""
    if name not in _fitted:
        estimator, X, y = unfitted(name)
        _fitted[name] = estimator.fit(X, y)
    _, X, y = KINDS[name]
    return _fitted[name], X, y


def losses(model, X, y):
    """Loss of a fitted model per row, from its public predictions."""
    if isinstance(model, DRORegressor):
        f, target = model.predict(X), np.asarray(y, dtype=float)
    else:
        f = model.decision_function(X)
        target = np.searchsorted(model.classes_, y)
    loss = model._get_loss(1 if f.ndim == 1 else f.shape[1])
    return loss.value(torch.tensor(f, dtype=torch.float64), torch.tensor(target)).numpy()


def frame(X, names="abcdefghij"):
    return pd.DataFrame(X, columns=list(names[: X.shape[1]]))


def numbers(value, path=""):
    """Every (path, array) of floats inside a nested state."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f":
            yield path, value
    elif isinstance(value, float):
        yield path, np.array(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for k, item in enumerate(value):
            yield from numbers(item, f"{path}[{k}]")
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from numbers(vars(value), path)
