"""Kinds of models that people have, each made anew, and what of the pipelines they can take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC

from drojko import DROClassifier
from drojko.ambiguity import Wasserstein

__all__ = ["MODELS", "NATIVE", "Module"]


class Module(ClassifierMixin, BaseEstimator):
    """Marks a torch module, which is audited on plain numbers."""

    def __init__(self, scripted: bool = False):
        self.scripted = scripted

    def fit(self, X: Any, y: Any) -> Any:
        width = X.shape[1]
        gen = torch.Generator().manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(width, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        ).double()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=gen))
            spread = torch.as_tensor(np.asarray(X, float).std(0))
            net[0].weight /= spread
        self.module_ = torch.jit.script(net) if self.scripted else net
        return self


def _lightgbm(native: bool) -> Any:
    found = pytest.importorskip("lightgbm")
    return found.LGBMClassifier(n_estimators=15, verbose=-1, n_jobs=1, min_child_samples=5)


def _xgboost(native: bool) -> Any:
    found = pytest.importorskip("xgboost")
    model = found.XGBClassifier(n_estimators=15, n_jobs=1, enable_categorical=native)
    return Labelled(model)


def _catboost(native: bool) -> Any:
    found = pytest.importorskip("catboost")
    cats = ["carrier", "origin"] if native else None
    return found.CatBoostClassifier(
        iterations=15, verbose=False, thread_count=1, allow_writing_files=False, cat_features=cats
    )


def _skorch(native: bool) -> Any:
    found = pytest.importorskip("skorch")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    torch_net = found.NeuralNetBinaryClassifier(
        torch.nn.LazyLinear, module__out_features=1, max_epochs=5, verbose=0, lr=0.1,
        train_split=None,
    )  # fmt: skip
    cast = FunctionTransformer(np.asarray, kw_args={"dtype": np.float32})
    return Labelled(make_pipeline(StandardScaler(), cast, torch_net), float)


class Labelled(ClassifierMixin, BaseEstimator):
    """Text labels for models that take 0 and 1 alone, as people write it."""

    def __init__(self, model: Any, kind: type = int):
        self.model, self.kind = model, kind

    def fit(self, X: Any, y: Any) -> Any:
        self.classes_, index = np.unique(y, return_inverse=True)
        self.model.fit(X, index.astype(np.float32 if self.kind is float else int))
        return self

    def predict(self, X: Any) -> Any:
        return self.classes_[np.asarray(self.model.predict(X)).astype(int)]

    def predict_proba(self, X: Any) -> Any:
        return self.model.predict_proba(X)


def _boosting(native: bool) -> Any:
    how = "from_dtype" if native else None
    return HistGradientBoostingClassifier(max_iter=15, categorical_features=how, random_state=0)


def _drojko(**settings: Any) -> Callable[[bool], Any]:
    return lambda native: DROClassifier(
        Wasserstein(radius=0.1), reference="empirical", random_state=0, **settings
    )


class TwoOutputs(Ridge):
    """Predicts two numbers a row."""

    def fit(self, X: Any, y: Any) -> Any:
        return super().fit(X, np.column_stack([y, -y]))


#: Name: a new model; its argument says whether the table holds pandas categories.
MODELS: dict[str, Callable[[bool], Any]] = {
    "logistic": lambda native: LogisticRegression(max_iter=3000),
    "svc": lambda native: LinearSVC(),
    "sgd": lambda native: SGDClassifier(loss="modified_huber", random_state=0),
    "forest": lambda native: RandomForestClassifier(15, random_state=0),
    "boosting": _boosting,
    "mlp": lambda native: MLPClassifier((8,), max_iter=60, random_state=0),
    "calibrated": lambda native: CalibratedClassifierCV(LogisticRegression(max_iter=3000)),
    "threshold": lambda native: FixedThresholdClassifier(
        LogisticRegression(max_iter=3000), threshold=0.3
    ),
    "neighbours": lambda native: KNeighborsClassifier(),
    "drojko linear": _drojko(),
    "drojko mlp": _drojko(model="mlp", hidden_layer_sizes=(8,), max_iter=20, effort="fast"),
    "lightgbm": _lightgbm,
    "xgboost": _xgboost,
    "catboost": _catboost,
    "skorch": _skorch,
    "torch": lambda native: Module(),
    "torchscript": lambda native: Module(scripted=True),
    "ridge": lambda native: Ridge(),
    "boosted numbers": lambda native: HistGradientBoostingRegressor(
        max_iter=15, categorical_features="from_dtype" if native else None, random_state=0
    ),
    "two outputs": lambda native: TwoOutputs(),
}

#: What takes pandas categories as they are.
NATIVE = ("boosting", "lightgbm", "xgboost", "catboost", "boosted numbers")
#: What predicts numbers.
REGRESSORS = ("ridge", "boosted numbers", "two outputs")
MODULES = ("torch", "torchscript")
