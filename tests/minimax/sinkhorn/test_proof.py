"""What is proven of Sinkhorn fits: random problems, and bounds below every model."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from drojko._driver import Limits
from drojko.losses import get_loss
from drojko.minimax.sinkhorn.linear import sinkhorn_risk, solve_sinkhorn
from drojko.minimax.transport.risk import RidgeData

NAMES = ["logistic", "hinge", "squared", "absolute", "huber", "quantile"]


def random_problem(seed):
    rng = np.random.default_rng(seed)
    name = NAMES[seed % 6]
    loss = get_loss(name, q=0.8) if name == "quantile" else get_loss(name)
    n, d = int(rng.integers(3, 31)), int(rng.choice([1, 2, 4]))
    X = rng.integers(-1, 2, size=(n, d)).astype(float) if seed % 5 == 0 else rng.normal(size=(n, d))
    X *= 10.0 ** rng.integers(-2, 3)
    size = float(np.abs(X).max()) or 1.0
    f = X @ rng.normal(size=d) / size
    y = f + rng.choice([0.0, 1.0, 1.0]) * rng.standard_t(3, size=n)
    if loss.task == "classification":
        y = (y + rng.logistic(size=n) > 0).astype(float)
        y[0] = 1.0 - y[1]
    else:
        y *= 10.0 ** rng.integers(-2, 3)
    weight = rng.exponential(size=n) if seed % 4 == 0 else None
    data = RidgeData(X, y, loss=loss, weight=weight)
    form = {"epsilon": size**2 * float(10.0 ** rng.uniform(-4, 0))}
    if rng.random() < 0.75:
        form["radius"] = (size * float(10.0 ** rng.uniform(-3, 0.5))) ** 2 * (rng.random() < 0.85)
    else:
        unit = 1.0 if loss.task == "classification" else float(np.mean(y * y))
        form["penalty"] = unit * float(10.0 ** rng.uniform(-1, 2)) / size**2
    if rng.random() < 0.3:
        form["alpha"] = float(10.0 ** rng.integers(-4, 1))
    return data, form


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_random_problems_are_proven(tol):
    ended = []
    for seed in range(90 if tol < 1e-4 else 36):
        data, form = random_problem(seed)
        found = solve_sinkhorn(data, limits=Limits(tol=tol), **form)
        proven = found.relative_gap <= tol
        assert 0.0 <= found.lower <= found.objective, seed
        if found.status != "unbounded":
            assert (found.status == "converged") == proven, (seed, found.status)
            ended.append(proven)
    assert np.mean(ended) >= 0.98, np.mean(ended)


def test_no_bound_exceeds_what_other_methods_find():
    for seed in range(12):
        data, form = random_problem(500 + seed)
        found = solve_sinkhorn(data, **form)
        alpha = form.get("alpha", 0.0)
        size = {name: form.get(name) for name in ("epsilon", "radius", "penalty")}

        def objective(v, data=data, size=size, alpha=alpha):
            try:
                value = sinkhorn_risk(data, v[:-1], v[-1], **size).value
            except Exception:
                return math.inf
            return value + 0.5 * alpha * float(v[:-1] @ v[:-1])

        at = np.append(found.coef, found.intercept)
        starts = [at, 1.1 * at]
        rivals = [
            minimize(objective, s, method="Nelder-Mead", options={"maxiter": 40}).fun
            for s in starts
        ]
        best = min(found.objective, *rivals)
        assert found.lower <= best * (1 + 1e-13), (seed, form)
        if found.status == "converged":
            assert found.objective <= best * (1 + 1.01e-6) + 1e-10 * found.unit, (seed, form)
