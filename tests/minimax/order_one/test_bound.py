"""The proven gap of order 1: never smaller than the true one, however early a run ends."""

import math

import numpy as np
import pytest

from drojko._driver import Limits
from drojko.losses import get_loss
from drojko.minimax.order_one.linear import solve_lipschitz

LOSSES = ["logistic", "hinge", "absolute", "huber", "quantile"]


def problem(seed, name, norm):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(6, 60)), int(rng.integers(1, 6))
    X = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-3, 3)
    size = float(np.abs(X).mean())
    y = X[:, 0] / size + rng.normal(size=n)
    classes = name in ("logistic", "hinge")
    if classes:
        y = (y > 0).astype(int)
        y[:2] = [0, 1]
    settings = {
        "loss": get_loss(name, task="classification" if classes else "regression", n_classes=2),
        "weight": rng.uniform(0.1, 1.0, n),
        "norm": norm,
        "alpha": float(rng.choice([0.0, 0.1])) * size**2,
        "fit_intercept": bool(rng.integers(4)),
    }
    if rng.integers(2):
        settings["radius"] = size * float(rng.choice([0.01, 0.1, 1.0]))
    else:
        settings["penalty"] = float(rng.choice([0.3, 3.0])) / size
    if rng.integers(3) == 0 and classes:
        settings["label_cost"] = 3.0 * size
    return X, y, settings


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_the_gap_is_a_bound(name, norm):
    proven = 0
    for seed in range(6):
        X, y, settings = problem(seed, name, norm)
        best = solve_lipschitz(X, y, limits=Limits(tol=1e-8), **settings)
        for steps in (1, 3, 6, 200):
            found = solve_lipschitz(X, y, limits=Limits(steps, 1e-6), **settings)
            if math.isnan(found.relative_gap):
                continue
            lower = found.objective * (1.0 - found.relative_gap)
            assert lower <= best.objective * (1.0 + 1e-9) + 1e-12
            assert (found.status == "converged") == (found.relative_gap <= 1e-6)
            proven += found.status == "converged"
    assert proven >= 5


def test_columns_that_cannot_move_need_a_ridge():
    X, y, settings = problem(0, "hinge", 2)
    X = np.column_stack([X, np.sin(np.arange(len(X)))])
    settings |= {"inverse_weights": np.append(np.ones(X.shape[1] - 1), 0.0), "alpha": 0.0}
    assert math.isnan(solve_lipschitz(X, y, **settings).relative_gap)
    assert solve_lipschitz(X, y, **{**settings, "alpha": 0.1}).relative_gap <= 1e-6


def test_several_outputs_have_no_proof():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 2)), np.arange(30) % 3
    loss = get_loss("logistic", task="classification", n_classes=3)
    found = solve_lipschitz(X, y, loss=loss, n_outputs=3, radius=0.1)
    assert found.status == "converged"
    assert math.isnan(found.relative_gap)
