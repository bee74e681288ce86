"""Sinkhorn minimax of linear models: closed forms, limits, duality, a discretised program."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

from drojko._driver import Limits
from drojko.exceptions import UnboundedRiskError
from drojko.losses import get_loss
from drojko.minimax.sinkhorn.linear import sinkhorn_risk, solve_sinkhorn
from drojko.minimax.transport.linear import ridge_robust_risk, solve_ridge
from drojko.minimax.transport.risk import RidgeData

CLASSIFICATION = ("logistic", "hinge")
NAMES = (*CLASSIFICATION, "absolute", "quantile", "huber", "squared")


def data_of(name, n=60, d=3, seed=0, **extra):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    f = X @ rng.normal(size=d) + 0.5 * rng.normal(size=n)
    y = (f > 0).astype(float) if name in CLASSIFICATION else f
    return RidgeData(X, y, loss=get_loss(name), **extra)


def closed_optimum(X, y, epsilon, radius=None, penalty=None):
    """Squared loss: min over the ridge path of the closed form; tau = R/(lam - a) + eps/2."""
    X, y = X - X.mean(0), y - y.mean()
    e, U = np.linalg.eigh(X.T @ X / len(X))
    c, v = U.T @ (X.T @ y) / len(X), y @ y / len(X)

    def at(tau):
        t = c / (e + tau)
        return t @ t, v - 2 * t @ c + t @ (e * t)

    def value(a, R):
        if penalty is not None:
            if a >= penalty:
                return math.inf, penalty
            risk = penalty / (penalty - a) * R
            return risk - 0.5 * penalty * epsilon * math.log(1 - a / penalty), penalty

        def dual(t):
            lam = a + math.exp(t)
            return lam * radius + lam / (lam - a) * R - 0.5 * lam * epsilon * math.log1p(-a / lam)

        found = minimize_scalar(
            dual, bounds=(-30, 30), method="bounded", options={"xatol": 1e-12}
        )  # fmt: skip
        return found.fun, a + math.exp(found.x)

    def slope(log_tau):
        a, R = at(math.exp(log_tau))
        found, lam = value(a, R)
        return 1.0 if math.isinf(found) else R / (lam - a) + 0.5 * epsilon - math.exp(log_tau)

    return value(*at(math.exp(brentq(slope, -15, 15, xtol=1e-13))))[0]


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("form", [{"radius": 0.05}, {"radius": 0.3}, {"penalty": 30.0}])
def test_squared_loss_reaches_the_closed_optimum(epsilon, form):
    data = data_of("squared", n=200, d=20)
    found = solve_sinkhorn(data, epsilon=epsilon, **form)
    expected = closed_optimum(data.X, data.y, epsilon, **form)
    assert found.objective == pytest.approx(expected, rel=1e-10)  # both minimised to rounding


def test_squared_risk_of_a_fixed_model_is_case_11():
    data, theta, lam, epsilon = data_of("squared"), np.array([0.5, -1.0, 0.2]), 4.0, 0.7
    a, mse = theta @ theta, np.mean((data.X @ theta + 0.1 - data.y) ** 2)
    expected = lam / (lam - a) * mse - 0.5 * lam * epsilon * math.log(1 - a / lam)
    found = sinkhorn_risk(data, theta, 0.1, epsilon=epsilon, penalty=lam)
    assert found.value == pytest.approx(expected, rel=1e-13)
    with pytest.raises(UnboundedRiskError, match=rf"penalty > {a:.6g}"):
        sinkhorn_risk(data, theta, 0.1, epsilon=epsilon, penalty=a)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 10.0])
def test_linear_losses_are_case_10_whatever_epsilon(epsilon):
    """Far from its kink the absolute loss is a line: mean + a / (4 lambda)."""
    X = np.random.default_rng(1).normal(size=(40, 2))
    data = RidgeData(X, np.full(40, -200.0), loss=get_loss("absolute"))
    theta = np.array([1.0, 2.0])
    found = sinkhorn_risk(data, theta, 0.0, epsilon=epsilon, penalty=3.0)
    assert found.value == pytest.approx(np.mean(X @ theta) + 200 + 5.0 / 12.0, rel=1e-12)
    ball = sinkhorn_risk(data, theta, 0.0, epsilon=epsilon, radius=0.25)
    assert ball.value == pytest.approx(np.mean(X @ theta) + 200 + 0.5 * math.sqrt(5), rel=1e-12)
    assert ball.attained == pytest.approx(ball.value, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_small_epsilon_is_the_wasserstein_ball(name):
    data = data_of(name)
    exact = solve_ridge(data, radius=0.3, limits=Limits(500, 1e-9))
    gaps = []
    for epsilon in (1e-3, 1e-5):
        found = solve_sinkhorn(data, epsilon=epsilon, radius=0.09)
        gaps.append(found.objective - exact.objective)
    # Smoothing costs O(epsilon log(1/epsilon)) at most.
    assert abs(gaps[1]) < 2e-3 * exact.objective
    assert abs(gaps[1]) < 0.2 * abs(gaps[0])
    theta = np.array([0.5, -1.0, 0.2])
    risk = ridge_robust_risk(data, theta, 0.1, radius=0.3)
    near = sinkhorn_risk(data, theta, 0.1, epsilon=1e-8, radius=0.09)
    assert near.value == pytest.approx(risk.value, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_radius_and_a_huge_penalty_leave_the_smoothed_mean(name):
    data, theta, epsilon = data_of(name), np.array([0.5, -1.0, 0.2]), 0.4
    s = math.sqrt(0.5 * epsilon * theta @ theta)
    noise = np.random.default_rng(0).normal(size=(20_001,)) * s
    draws = [
        data.loss.tilt(data.X @ theta + u, data.y, 0.0, 0.0).value.mean()
        for u in np.concatenate([noise[:1000], -noise[:1000]])
    ]
    still = sinkhorn_risk(data, theta, 0.0, epsilon=epsilon, radius=0.0)
    error = np.std(draws) / math.sqrt(len(draws))
    assert still.value == pytest.approx(np.mean(draws), abs=5 * error)
    large = sinkhorn_risk(data, theta, 0.0, epsilon=epsilon, penalty=1e9)
    assert large.value == pytest.approx(still.value, rel=1e-7)
    tiny = sinkhorn_risk(data, theta, 0.0, epsilon=epsilon, radius=1e-12)
    assert tiny.value == pytest.approx(still.value, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(NAMES), st.floats(0.02, 2.0), st.floats(0.01, 1.0), st.integers(0, 1000)
)  # fmt: skip
def test_feasible_laws_stay_below_the_dual_value(name, epsilon, radius, seed):
    """Any Gaussians N(x + m, V) within the budget attain no more; the tilted laws attain it."""
    rng = np.random.default_rng(seed)
    data, theta = data_of(name, n=20), rng.normal(size=3)
    ball = sinkhorn_risk(data, theta, 0.0, epsilon=epsilon, radius=radius)
    assert ball.transport_cost == pytest.approx(radius, rel=1e-9)
    assert ball.attained == pytest.approx(ball.value, rel=1e-9)
    # KL of N(m, k s^2) from N(0, s^2) along theta, scaled to spend the whole budget.
    s = math.sqrt(0.5 * epsilon * theta @ theta)
    stretch = math.exp(rng.uniform(-1, 0.5) * min(1.0, math.sqrt(radius / epsilon)))
    spread = 0.5 * (stretch**2 - 1 - 2 * math.log(stretch))
    left = radius / epsilon - spread
    if left > 0:
        shift = rng.normal(size=20)
        shift *= s * math.sqrt(2 * left / np.mean(shift**2))
        f = data.X @ theta + shift
        risk = data.loss.tilt(f, data.y, stretch * s, 0.0).value.mean()
        assert risk <= ball.value * (1 + 1e-9)


@pytest.mark.parametrize("name", ["hinge", "absolute"])
def test_agrees_with_a_conic_program_on_a_grid(name):
    """max E_gamma loss, epsilon KL(gamma || Q) <= radius, on a fine grid of one column."""
    import cvxpy as cp

    X = np.array([[-1.0], [0.3], [1.2]])
    y = np.array([0.0, 1.0, 1.0]) if name == "hinge" else np.array([-0.5, 1.0, 0.4])
    data = RidgeData(X, y, loss=get_loss(name))
    epsilon, radius, theta = 0.5, 0.2, 1.5
    exact = sinkhorn_risk(data, np.array([theta]), 0.2, epsilon=epsilon, radius=radius).value
    grid = np.linspace(-3, 3, 121)
    s = math.sqrt(0.5 * epsilon)
    base = np.exp(-0.5 * (grid / s) ** 2)
    base /= base.sum()
    losses = np.stack([
        data.loss.tilt(theta * (x + grid) + 0.2, np.full(len(grid), t), 0.0, 0.0).value
        for x, t in zip(X[:, 0], y)
    ])  # fmt: skip
    keep = base > 1e-9
    gamma = cp.Variable((3, int(keep.sum())), nonneg=True)
    entropy = cp.sum(cp.kl_div(gamma, np.tile(base[keep], (3, 1)))) / 3
    problem = cp.Problem(
        cp.Maximize(cp.sum(cp.multiply(gamma, losses[:, keep])) / 3),
        [cp.sum(gamma, axis=1) == 1, epsilon * entropy <= radius],
    )
    problem.solve(solver=cp.CLARABEL)
    # The grid's rule has an error of order h^2 at the kink, h = 0.05.
    assert exact == pytest.approx(problem.value, abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_optimum_is_below_its_neighbours(name):
    data, rng = data_of(name), np.random.default_rng(5)
    size = {"epsilon": 0.2, "radius": 0.1}
    found = solve_sinkhorn(data, alpha=0.05, **size)
    assert found.status == "converged"
    assert found.gap < 1e-9 * found.objective
    for _ in range(10):
        theta = found.coef + 1e-3 * rng.normal(size=3)
        b = found.intercept + 1e-3 * rng.normal()
        other = sinkhorn_risk(data, theta, b, **size).value + 0.025 * theta @ theta
        assert other >= found.objective


def test_large_radii_leave_the_best_model_that_nobody_touches():
    data = data_of("hinge", inverse_cost=np.array([1.0, 0.0, 1.0]))
    found = solve_sinkhorn(data, epsilon=0.1, radius=50.0)
    assert found.coef[0] == found.coef[2] == 0.0
    still = RidgeData(np.ascontiguousarray(data.X[:, [1]]), data.y, loss=data.loss)
    assert found.objective == pytest.approx(solve_ridge(still, radius=0.0).objective, rel=1e-6)


def test_weights_are_copies():
    data = data_of("logistic", n=30)
    copies = np.repeat(np.arange(30), 1 + np.arange(30) % 3)
    twice = RidgeData(data.X[copies], data.y[copies], loss=data.loss)
    weighted = RidgeData(data.X, data.y, weight=1.0 + np.arange(30) % 3, loss=data.loss)
    size = {"epsilon": 0.2, "radius": 0.1}
    assert solve_sinkhorn(twice, **size).objective == pytest.approx(
        solve_sinkhorn(weighted, **size).objective, rel=1e-12
    )
