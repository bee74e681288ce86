"""What is proven of order-2 Wasserstein fits: random problems, wrong answers of old, own losses."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from drojko import DRORegressor
from drojko._driver import Limits
from drojko.ambiguity import Wasserstein
from drojko.exceptions import UnsupportedError
from drojko.losses import Loss, get_loss
from drojko.minimax.transport.linear import RidgeData, ridge_robust_risk, solve_ridge

NAMES = ["logistic", "hinge", "squared", "absolute", "huber", "quantile"]


def random_problem(seed, names=NAMES):
    """Small and awkward: ties, copies, constants, perfect fits, weights, units, label costs."""
    rng = np.random.default_rng(seed)
    name = names[seed % len(names)]
    loss = get_loss(name, q=float(rng.choice([0.1, 0.8]))) if name == "quantile" else get_loss(name)
    n, d = int(rng.integers(2, 41)), int(rng.choice([1, 1, 2, 5]))
    X = rng.normal(size=(n, d))
    kind = rng.random()
    if kind < 0.15:
        X = rng.integers(-1, 2, size=(n, d)).astype(float)
    elif kind < 0.25:
        X = np.repeat(X[: (n + 1) // 2], 2, axis=0)[:n]
    elif kind < 0.33:
        X[:, 0] = 1.5
    elif kind < 0.4 and d > 1:
        X[:, 1] = X[:, 0]
    X *= 10.0 ** rng.integers(-3, 4)
    size = float(np.abs(X).max()) or 1.0
    f = X @ rng.normal(size=d) / size
    if loss.task == "classification":
        y = (f + rng.choice([0.3, 2.0]) * rng.logistic(size=n) > np.median(f)).astype(float)
        y[0] = 1.0 - y[1]
    else:
        y = f + rng.choice([0.0, 1e-3, 1.0, 1.0]) * rng.standard_t(2, size=n)
        y = (np.round(y) if rng.random() < 0.15 else y) * 10.0 ** rng.integers(-3, 4)
    options = {}
    if rng.random() < 0.3:
        options["weight"] = rng.exponential(size=n)
        options["weight"][-1] *= rng.random() < 0.5
    if rng.random() < 0.2:
        options["inverse_cost"] = np.where(rng.random(d) < 0.3, 0.0, rng.exponential(size=d) + 0.1)
    if rng.random() < 0.2:
        options["label_cost"] = float(10.0 ** rng.integers(-1, 3))
    data = RidgeData(X, y, loss=loss, **options)
    if rng.random() < 0.75:
        form = {"radius": size * float(10.0 ** rng.uniform(-4, 1) * (rng.random() < 0.85))}
    else:
        unit = 1.0 if loss.task == "classification" else np.var(y) + 1e-6 * np.mean(y * y) + 1e-12
        form = {"penalty": float(unit * 10.0 ** rng.uniform(-1, 3) / size**2)}
        form["penalty"] = max(form["penalty"], 2.0 * data.label_norm)
    if rng.random() < 0.3:
        form["alpha"] = float(10.0 ** rng.integers(-4, 2))
    if rng.random() < 0.15:
        form["fit_intercept"] = False
    return data, form


def best_known(data, form, solution):
    """The lowest objective that other methods find, from the solution and from elsewhere."""
    radius, penalty, alpha = form.get("radius"), form.get("penalty"), form.get("alpha", 0.0)
    free = float(form.get("fit_intercept", True))
    scale = np.append(1.0 / np.maximum(data.X.std(axis=0), 1e-9), max(np.ptp(data.y), 1e-9))
    scale[:-1] *= max(np.ptp(data.y), 1e-9)

    def objective(v):
        v = v * scale
        try:
            risk = ridge_robust_risk(data, v[:-1], free * v[-1], radius=radius, penalty=penalty)
        except Exception:
            return 1e300
        return risk.value + 0.5 * alpha * float(v[:-1] @ v[:-1])

    at = np.append(solution.coef, solution.intercept) / scale
    starts = [at, 1.1 * at]
    found = [
        minimize(objective, s, method="Nelder-Mead", options={"maxiter": 40}).fun for s in starts
    ]
    return min(*found, *(objective(s) for s in starts), solution.objective)


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_random_problems_are_proven(tol):
    ended = []
    for seed in range(150 if tol < 1e-4 else 60):
        data, form = random_problem(seed)
        solution = solve_ridge(data, limits=Limits(500, tol), **form)
        proven = solution.relative_gap <= tol
        assert (solution.status == "converged") == proven, (seed, solution.status)
        assert 0.0 <= solution.lower <= solution.objective, seed
        if solution.status != "unbounded":  # there is no minimum there
            ended.append(proven)
    assert np.mean(ended) >= 0.99, np.mean(ended)


def test_no_bound_exceeds_what_other_methods_find():
    for seed in range(24):
        data, form = random_problem(1000 + seed)
        solution = solve_ridge(data, **form)
        best = best_known(data, form, solution)
        assert solution.lower <= best * (1 + 1e-13), (seed, form)
        if solution.status == "converged":
            size = max(best, 1e-10 * solution.unit)
            assert solution.objective - best <= 1.01e-6 * max(size, solution.unit * 1e-4), seed


@pytest.mark.parametrize("seed", range(12))
def test_bounds_against_conic_programs(seed):
    rng = np.random.default_rng(seed)
    name = ["hinge", "absolute", "quantile", "squared"][seed % 4]
    loss = get_loss(name, q=0.8) if name == "quantile" else get_loss(name)
    n, d, radius, alpha = 25, 3, float(10.0 ** rng.uniform(-2, 0.5)), 0.3 * (seed % 3)
    X, w = rng.normal(size=(n, d)), rng.exponential(size=n)
    w /= w.sum()
    y = X @ [1.0, -0.5, 0.0] + rng.logistic(size=n)
    y = (y > 0).astype(float) if loss.task == "classification" else y
    theta, b, sigma, ball = cp.Variable(d), cp.Variable(), cp.Variable(nonneg=True), cp.Variable()
    f = X @ theta + b
    held = [cp.SOC(ball + sigma, cp.hstack([radius * theta, ball - sigma]))]
    if name == "squared":
        root = cp.norm(cp.multiply(np.sqrt(w), f - y)) + radius * cp.norm(theta)
        objective = cp.square(root)
    elif name == "hinge":
        objective = ball + w @ cp.pos(1 - cp.multiply(2 * y - 1, f) + sigma)
    else:
        low, high = loss.slopes
        r = f - y
        lines = cp.maximum(low * r + low**2 * sigma, high * r + high**2 * sigma)
        objective = ball + w @ lines
    objective += 0.5 * alpha * cp.sum_squares(theta)
    best = cp.Problem(cp.Minimize(objective), held).solve(solver=cp.CLARABEL)
    found = solve_ridge(RidgeData(X, y, weight=w, loss=loss), radius=radius, alpha=alpha)
    assert found.status == "converged"
    assert found.lower <= best * (1 + 2e-7)  # the conic solver stops at about 1e-8
    assert found.objective == pytest.approx(best, rel=1.2e-6)


@pytest.mark.parametrize(("radius", "risk"), [(0.0, 0.0), (0.01, 0.5)])
def test_huber_fits_steep_lines(radius, risk):
    X = np.arange(8.0)[:, None]
    model = DRORegressor(Wasserstein(radius=radius), loss="huber", reference="empirical")
    model.fit(X, 100 * np.arange(8.0))
    assert model.status_ == "converged"
    assert model.coef_ == pytest.approx([100.0], rel=1e-9)
    assert model.certificate_.upper == pytest.approx(risk, rel=1e-6, abs=1e-20)


def test_the_best_model_without_a_column_that_moves():
    # Where the ball holds everything that can move, columns that cannot are fitted as usual.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    y = X[:, 0] + 0.1 * rng.normal(size=30)
    data = RidgeData(X, y, loss=get_loss("squared"), inverse_cost=np.array([0.0, 1.0]))
    found = solve_ridge(data, radius=50.0)
    plain = np.linalg.lstsq(np.c_[X[:, :1], np.ones(30)], y, rcond=None)[0]
    assert found.status == "converged"
    np.testing.assert_allclose([*found.coef, found.intercept], [plain[0], 0.0, plain[1]], atol=1e-9)


class LogCosh(Loss):
    """log cosh(f - y), of which only the basics are stated."""

    name = "logcosh"
    task = "regression"
    lipschitz = 1.0
    curvature = 1.0
    convex = True

    def value(self, f, y):
        r = (f - y).abs()
        return r + torch.nn.functional.softplus(-2 * r) - math.log(2.0)

    def gradient(self, f, y):
        return torch.tanh(f - y)

    def second_derivative(self, f, y):
        return 1.0 - torch.tanh(f - y).square()


def test_a_smooth_loss_of_ones_own_is_proven_while_its_worst_case_is_concave():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 2))
    y = X @ [1.0, -1.0] + rng.normal(size=60)
    data = RidgeData(X, y, loss=LogCosh())
    found = solve_ridge(data, radius=0.05)
    assert found.status == "converged"
    assert found.lower > 0.999999 * found.objective

    def objective(v):
        return ridge_robust_risk(data, v[:2], v[2], radius=0.05).value

    rival = minimize(objective, [1.0, -1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9})
    assert found.objective == pytest.approx(rival.fun, rel=1e-6)
    with pytest.raises(UnsupportedError, match="worst_jet"):
        LogCosh().worst_jet(X[:, 0], y, 0.6, 0.0, np.empty((0, 0)))


def test_a_loss_without_a_worst_case_is_refused_by_name():
    class Bare(LogCosh):
        curvature = None

    with pytest.raises(UnsupportedError, match="worst_jet"):
        RidgeData(np.ones((2, 1)), np.ones(2), loss=Bare())
