"""Robust problems on small real data, and their exact solutions where there are any."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_iris

from drojko.ambiguity import Wasserstein
from drojko.inner import Pointwise
from drojko.losses import get_loss
from drojko.measures import ClassConditional, Empirical, Joint
from drojko.minimax.problem import RobustProblem
from drojko.minimax.transport.linear import RidgeData, solve_ridge
from drojko.models import MLP, Linear


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def iris():
    X, y = load_iris(return_X_y=True)
    return X[50:], y[50:] - 1


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X[:100, :4], y[:100]


def classification(model=None, loss="logistic", *, radius=None, penalty=None, **settings):
    """Versicolor against virginica around the data."""
    X, y = iris()
    bounds = settings.pop("bounds", None)
    cost = Wasserstein(1.0, bounds=bounds, immutable=settings.pop("immutable", None)).resolve(4)
    loss = get_loss(loss, "classification", 2) if isinstance(loss, str) else loss
    return RobustProblem(
        ClassConditional(Empirical()).fit(X, y),
        Linear(4) if model is None else model,
        loss,
        cost,
        settings.pop("inner", Pointwise()),
        radius=radius,
        penalty=penalty,
        n_labels=2,
        **settings,
    )


def regression(model=None, loss="squared", *, radius=None, penalty=None, **settings):
    """Four columns of diabetes around the data."""
    X, y = diabetes()
    return RobustProblem(
        Joint(Empirical()).fit(X, y),
        Linear(4) if model is None else model,
        get_loss(loss, "regression") if isinstance(loss, str) else loss,
        Wasserstein(1.0, bounds=settings.pop("bounds", None)).resolve(4),
        settings.pop("inner", Pointwise()),
        radius=radius,
        penalty=penalty,
        **settings,
    )


def net(n_inputs=4, n_outputs=1, seed=0, **settings):
    return MLP(n_inputs, n_outputs, hidden=(6,), generator=gen(seed), **settings)


def exact(loss="logistic", **form):
    """Objective of the exact linear solver on the iris problem."""
    X, y = iris()
    return solve_ridge(RidgeData(X, y, loss=get_loss(loss)), **form)


def randomised(problem, seed=3, size=1.0):
    """The problem with random parameters, and the problem itself."""
    for parameter in problem.model.parameters():
        noise = torch.randn(parameter.shape, generator=gen(seed), dtype=parameter.dtype)
        parameter.data.add_(noise, alpha=size)
    return problem


def state(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
