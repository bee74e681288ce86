"""Kinks as short bends, for many rows: the optimum of Newton's method, with a proof."""

import numpy as np
import pytest

from drojko._driver import Limits
from drojko.losses import get_loss
from drojko.minimax.samples import fit_many
from drojko.minimax.transport import linear
from drojko.minimax.transport.bent import Bent
from drojko.minimax.transport.bound import Ground
from drojko.minimax.transport.risk import RidgeData
from drojko.rows import Rows

N = 24_000


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    X = random.standard_normal((N, 3)) * [1.0, 5.0, 0.2] + [0.0, 3.0, -1.0]
    f = X @ [1.0, -0.2, 2.0] + random.logistic(size=N) + 2.4
    return X, f, random.uniform(0.5, 2.0, size=N)


CASES = {
    "hinge": ("hinge", {"radius": 0.1}, {}),
    "hinge, weighted": ("hinge", {"radius": 0.1}, {"weight": True}),
    "hinge, priced": ("hinge", {"penalty": 3.0}, {}),
    "hinge, alpha": ("hinge", {"radius": 0.05, "alpha": 0.1}, {}),
    "hinge, a column stays": ("hinge", {"radius": 0.2}, {"cost": [1.0, 0.0, 1.0]}),
    "hinge, no intercept": ("hinge", {"radius": 0.1, "fit_intercept": False}, {}),
    "absolute": ("absolute", {"radius": 0.1}, {}),
    "absolute, priced": ("absolute", {"penalty": 2.0}, {}),
    "quantile": ("quantile", {"radius": 0.1}, {}),
    "quantile, labels move": ("quantile", {"radius": 0.1}, {"label_cost": 4.0}),
}


def data(rows, name):
    X, f, w = rows
    kind, call, options = CASES[name]
    loss = get_loss(kind)
    y = (f > 0).astype(float) if loss.task == "classification" else f
    options = {**options, "weight": w} if options.get("weight") is True else options
    cost = np.array(options.pop("cost")) if "cost" in (options := dict(options)) else np.ones(3)
    return RidgeData(X, y, loss=loss, inverse_cost=cost, **options), call


@pytest.mark.parametrize("name", CASES)
def test_few_passes_prove_what_newton_finds(rows, name, monkeypatch):
    problem, call = data(rows, name)
    found = linear.solve_ridge(problem, limits=Limits(500, 1e-3), **call)
    assert "passes" in found.history  # of the many rows, not Newton's
    assert found.history["passes"][-1] <= 25
    assert found.status == "converged"
    assert found.gap <= 1e-4 * found.objective
    monkeypatch.setattr(linear, "fit_many", lambda *args, **options: None)
    exact = linear.solve_ridge(problem, limits=Limits(500, 1e-8), **call)
    assert "passes" not in exact.history
    assert found.lower <= exact.objective * (1.0 + 1e-12)
    assert exact.lower <= found.objective * (1.0 + 1e-12)


def test_the_bend_costs_what_it_may(rows):
    """The objective at the optimum of the bend is above the exact one, by less than the goal."""
    problem, _ = data(rows, "hinge")
    some = Rows(problem.X, problem.y)
    objective = Bent(some, problem.loss, Ground.of(some, problem, radius=0.1), 1e-3)
    found = fit_many(objective, Limits(500, 1e-3), classes=True, goal=1e-3)
    assert found is not None
    risk = linear.ridge_robust_risk(problem, found.coef, found.intercept, radius=0.1).value
    assert risk <= found.objective <= risk * (1.0 + 1e-3)


def test_a_constant_optimum_is_left_to_others(rows):
    """All rows are at the kink."""
    problem, _ = data(rows, "hinge")
    y = (rows[1] > np.quantile(rows[1], 0.1)).astype(float)
    problem = RidgeData(problem.X, y, loss=problem.loss)
    found = linear.solve_ridge(problem, radius=1.0, limits=Limits(500, 1e-3))
    assert found.objective == pytest.approx(0.2, rel=1e-3)
    assert found.gap <= 1e-4 * found.objective


def test_too_few_rows_in_the_bend_are_another_solver_s(rows):
    problem, _ = data(rows, "hinge")
    some = Rows(problem.X, problem.y)
    objective = Bent(some, problem.loss, Ground.of(some, problem, radius=0.1), 1e-9)
    assert fit_many(objective, Limits(500, 1e-9), classes=True, goal=1e-9) is None
