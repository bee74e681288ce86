"""Exact minimax of linear models: oracles, closed forms, invariances, limits, stopping."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.linear_model import LogisticRegression, Ridge

from drojko._driver import Limits
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.losses import get_loss
from drojko.minimax.transport.linear import RidgeData, ridge_robust_risk, solve_ridge

NAMES = ["logistic", "hinge", "squared", "absolute", "huber", "quantile"]
LOSSES = {name: get_loss(name, **({"q": 0.8} if name == "quantile" else {})) for name in NAMES}
SMOOTH = ["logistic", "huber", "squared"]


def arrays(name, seed=0, n=80, d=4):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.resize([1.0, 2.0, 0.5, 3.0], d)
    X[:, 0] += 2.0
    u = (X - [2.0, *([0.0] * (d - 1))]) @ np.resize([1.0, -0.5, 1.0, 0.2], d)
    noise = rng.logistic(size=n)
    y = u + noise
    return X, (y > 0).astype(float) if LOSSES[name].task == "classification" else y


def problem(name, seed=0, n=80, d=4, **options):
    X, y = arrays(name, seed, n, d)
    return RidgeData(X, y, loss=LOSSES[name], **options)


def breast_cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y.astype(float)


# -- oracles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.01, 0.2, 1.0, 8.0])
@pytest.mark.parametrize("name", ["squared", "hinge", "absolute", "quantile"])
def test_against_conic_programming(name, radius):
    import cvxpy as cp

    data = problem(name, n=50)
    X, y, n = data.X, data.y, 50
    theta, b, sigma = cp.Variable(4), cp.Variable(), cp.Variable(nonneg=True)
    f = X @ theta + b
    ball = cp.Variable()  # an epigraph, as theta²/sigma has no value at theta = sigma = 0
    constraints = [cp.SOC(ball + sigma, cp.hstack([radius * theta, ball - sigma]))]
    if name == "squared":
        objective = cp.norm(f - y) / math.sqrt(n) + radius * cp.norm(theta)
    elif name == "hinge":
        objective = ball + cp.sum(cp.pos(1 - cp.multiply(2 * y - 1, f) + sigma)) / n
    else:
        low, high = data.loss.slopes
        r = f - y
        lines = cp.maximum(low * r + low**2 * sigma, high * r + high**2 * sigma)
        objective = ball + cp.sum(lines) / n
    best = cp.Problem(cp.Minimize(objective), constraints).solve(solver=cp.CLARABEL)
    best = best**2 if name == "squared" else best
    ours = solve_ridge(data, radius=radius)
    assert ours.status == "converged"
    # The conic solver stops at about 1e-8.
    assert ours.objective == pytest.approx(best, rel=2e-7)


@pytest.mark.parametrize(
    ("radius", "units", "kinked"), [(0.01, 1, False), (0.2, 1, False), (0.2, 50, True)]
)
def test_huber_against_conic_programming(radius, units, kinked):
    # With s = sigma held fixed the inner maximum is a rescaled Huber loss (s < 1/2) or delta |r|
    # plus a constant (beyond): the value at our s must be ours, and no other s may be better.
    import cvxpy as cp

    X, y = arrays("huber", n=50)
    data = RidgeData(X, units * y, loss=LOSSES["huber"])
    delta = data.loss.delta
    ours = solve_ridge(data, radius=radius)
    sigma = 0.25 * (ours.coef @ ours.coef) / ours.multiplier
    assert (sigma > 0.5) == kinked

    def value(s):
        theta, b = cp.Variable(4), cp.Variable()
        r = data.X @ theta + b - data.y
        room = 1 - 2 * s
        if room > 0:
            loss = cp.sum(cp.huber(r, delta * room)) / (2 * room)
        else:
            loss = cp.sum(delta * cp.abs(r) - delta**2 * room / 2)
        ball = radius**2 / (4 * s) * cp.sum_squares(theta)
        return cp.Problem(cp.Minimize(loss / 50 + ball)).solve(solver=cp.CLARABEL)

    assert ours.objective == pytest.approx(value(sigma), rel=2e-7)
    for factor in (0.8, 1.25):
        assert value(factor * sigma) > ours.objective


@pytest.mark.parametrize("radius", [0.03, 0.1, 0.5])
def test_logistic_against_brute_force_on_real_data(radius):
    X, y = load_wine(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    data = RidgeData(X[:, :5], (y == 1).astype(float), loss=LOSSES["logistic"])
    solution = solve_ridge(data, radius=radius)
    assert solution.gap <= 1e-6 * solution.objective

    def objective(v):
        return ridge_robust_risk(data, v[:5], v[5], radius=radius).value

    rng = np.random.default_rng(0)
    rivals = [
        minimize(objective, start, method=method, options={"maxiter": 400}).fun
        for start in (0.3 * rng.normal(size=6), np.r_[solution.coef, solution.intercept])
        for method in ("BFGS", "Nelder-Mead")
    ]
    assert solution.objective <= min(rivals) * (1 + 1e-9)
    assert min(rivals) <= solution.objective * (1 + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_radius_zero_is_empirical_risk(name):
    data = problem(name)
    solution = solve_ridge(data, radius=0.0)
    assert solution.risk.value == solution.risk.nominal
    assert solution.gap <= 1e-6 * solution.objective
    assert math.isinf(solution.multiplier)
    if name == "logistic":
        plain = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(data.X, data.y)
        np.testing.assert_allclose(solution.coef, plain.coef_[0], atol=1e-6)
        np.testing.assert_allclose(solution.intercept, plain.intercept_[0], atol=1e-6)
    elif name == "squared":
        design = np.c_[data.X, np.ones(80)]
        plain = np.linalg.lstsq(design, data.y, rcond=None)[0]
        np.testing.assert_allclose([*solution.coef, solution.intercept], plain, atol=1e-9)


def test_alpha_is_the_usual_ridge():
    data = problem("squared")
    ours = solve_ridge(data, radius=0.0, alpha=0.4)
    plain = Ridge(alpha=0.2 * 80).fit(data.X, data.y)  # scikit-learn: sum of squares, no half
    np.testing.assert_allclose(ours.coef, plain.coef_, rtol=1e-10)
    data = problem("logistic")
    ours = solve_ridge(data, radius=0.0, alpha=0.4)
    plain = LogisticRegression(C=1 / (0.4 * 80), tol=1e-12, max_iter=1000).fit(data.X, data.y)
    np.testing.assert_allclose(ours.coef, plain.coef_[0], rtol=1e-6)


# -- certificates --------------------------------------------------------------------------------

FORMS = {
    "ball": {"radius": 0.3},
    "ball+alpha": {"radius": 0.3, "alpha": 0.1},
    "penalty": {"penalty": 4.0},
    "penalty+alpha": {"penalty": 4.0, "alpha": 0.1},
    "no intercept": {"radius": 0.3, "fit_intercept": False},
}
COSTS = {
    "plain": {},
    "weights": {"inverse_cost": np.array([1.0, 0.2, 3.0, 0.5])},
    "immutable": {"inverse_cost": np.array([1.0, 0.0, 3.0, 0.5])},
    "labels": {"label_cost": 0.8},
}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_gap_is_proven_small(name, form, cost):
    solution = solve_ridge(problem(name, **COSTS[cost]), **FORMS[form])
    assert solution.status == "converged"
    assert -1e-12 <= solution.gap / solution.objective <= 1e-6
    assert solution.risk.value >= solution.risk.nominal - 1e-12
    assert solution.objective == pytest.approx(
        solution.risk.value + 0.5 * FORMS[form].get("alpha", 0.0) * solution.coef @ solution.coef
    )
    assert solution.risk.attained == pytest.approx(solution.risk.value, rel=1e-10)


@settings(max_examples=30)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 10),
    radius=st.floats(1e-3, 3.0),
    bump=st.integers(0, 3),
)
def test_lower_bound_holds_for_other_models(name, seed, radius, bump):
    data = problem(name, seed=seed, n=40)
    solution = solve_ridge(data, radius=radius)
    rng = np.random.default_rng(seed)
    for size in (1e-4, 0.1, 1.0):
        coef = solution.coef + size * rng.normal(size=4)
        coef[bump] += size
        rival = ridge_robust_risk(
            data, coef, solution.intercept + size * rng.normal(), radius=radius
        )
        assert rival.value >= solution.lower
        assert rival.value >= solution.objective * (1 - 1e-6)


@pytest.mark.parametrize("name", ["logistic", "hinge"])
@pytest.mark.parametrize("radius", [1e-3, 0.03, 0.3, 2.0])
def test_real_data_gap(name, radius):
    X, y = breast_cancer()
    solution = solve_ridge(RidgeData(X, y, loss=LOSSES[name]), radius=radius)
    assert solution.status == "converged"
    assert solution.gap <= 1e-6 * solution.objective


@pytest.mark.parametrize("name", ["absolute", "quantile", "huber", "squared"])
@pytest.mark.parametrize("radius", [1e-4, 3e-3, 0.05])
def test_real_regression_gap(name, radius):
    X, y = load_diabetes(return_X_y=True)
    solution = solve_ridge(RidgeData(X, y, loss=LOSSES[name]), radius=radius)
    assert solution.status == "converged"
    assert solution.gap <= 1e-6 * solution.objective


# -- invariances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scaling_data_and_radius_together(name):
    X, y = arrays(name)
    base = solve_ridge(RidgeData(X, y, loss=LOSSES[name]), radius=0.2)
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        other = solve_ridge(RidgeData(X * scale, y, loss=LOSSES[name]), radius=0.2 * scale)
        assert other.objective == pytest.approx(base.objective, rel=1e-12)
        np.testing.assert_allclose(other.coef * scale, base.coef, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_duplication_is_weight_two_and_zero_weight_is_absence(name):
    X, y = arrays(name)
    twice = np.r_[np.arange(80), np.arange(30)]
    weight = np.r_[np.full(30, 2.0), np.ones(50)]
    a = solve_ridge(RidgeData(X[twice], y[twice], loss=LOSSES[name]), radius=0.2)
    b = solve_ridge(RidgeData(X, y, weight=weight, loss=LOSSES[name]), radius=0.2)
    assert a.objective == pytest.approx(b.objective, rel=1e-7)
    junk = np.r_[X, 1e6 * np.ones((5, 4))], np.r_[y, np.zeros(5)], np.r_[weight, np.zeros(5)]
    c = solve_ridge(RidgeData(junk[0], junk[1], weight=junk[2], loss=LOSSES[name]), radius=0.2)
    assert c.objective == pytest.approx(b.objective, rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_rotation_and_translation(name):
    X, y = arrays(name)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    a = solve_ridge(RidgeData(X, y, loss=LOSSES[name]), radius=0.2)
    b = solve_ridge(RidgeData(X @ rotation + 50.0, y, loss=LOSSES[name]), radius=0.2)
    assert a.objective == pytest.approx(b.objective, rel=1e-7)
    if name in SMOOTH:
        np.testing.assert_allclose(rotation @ b.coef, a.coef, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_column_weights_are_a_change_of_units(name):
    X, y = arrays(name)
    units = np.array([2.0, 0.5, 1.0, 3.0])
    a = solve_ridge(RidgeData(X * units, y, loss=LOSSES[name]), radius=0.2)
    b = solve_ridge(RidgeData(X, y, inverse_cost=units**-2, loss=LOSSES[name]), radius=0.2)
    assert a.objective == pytest.approx(b.objective, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_float32_and_constant_columns(name):
    X, y = arrays(name)
    base = solve_ridge(RidgeData(X, y, loss=LOSSES[name]), radius=0.2)
    low = solve_ridge(RidgeData(X.astype(np.float32), y, loss=LOSSES[name]), radius=0.2)
    assert low.objective == pytest.approx(base.objective, rel=1e-6)  # X itself is rounded
    wide = np.c_[X, np.full(80, 7.3), np.zeros(80)]
    constant = solve_ridge(RidgeData(wide, y, loss=LOSSES[name]), radius=0.2)
    assert constant.objective == pytest.approx(base.objective, rel=1e-7)
    assert not constant.coef[4:].any()


@pytest.mark.parametrize("name", NAMES)
def test_objective_grows_and_is_concave_in_squared_radius(name):
    data = problem(name)
    r = np.array([0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    v = np.array([solve_ridge(data, radius=x).objective for x in r])
    assert (np.diff(v) >= -1e-7 * v[1:]).all()
    slopes = np.diff(v) / np.diff(r**2)
    # Values are good to a relative 1e-7, which the smallest step in radius² magnifies.
    assert (np.diff(slopes) <= 2e-7 * v[1:-1] / np.diff(r**2)[:-1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_radius_and_penalty_forms_agree(name):
    data = problem(name)
    ball = solve_ridge(data, radius=0.3)
    soft = solve_ridge(data, penalty=ball.multiplier)
    assert soft.objective + ball.multiplier * 0.09 == pytest.approx(ball.objective, rel=1e-6)


# -- limits and degenerate data ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_huge_radius_gives_exactly_zero(name):
    data = problem(name)
    solution = solve_ridge(data, radius=1e6)
    assert not solution.coef.any()
    assert solution.risk.transport_cost == 0.0
    assert solution.risk.value == solution.risk.nominal


def test_immutable_columns_stay_free_at_a_huge_radius():
    data = problem("logistic", inverse_cost=np.array([1.0, 0.0, 3.0, 0.5]))
    solution = solve_ridge(data, radius=1e6)
    alone = solve_ridge(RidgeData(data.X[:, 1:2], data.y, loss=data.loss), radius=0.0)
    np.testing.assert_allclose(solution.coef, [0.0, alone.coef[0], 0.0, 0.0], atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("radius", [0.3, 3.0])
def test_more_columns_than_rows(name, radius):
    data = problem(name, n=15, d=40)
    solution = solve_ridge(data, radius=radius)
    assert solution.status == "converged"
    assert np.isfinite(solution.coef).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = 0.01 * rng.normal(size=41)
        rival = ridge_robust_risk(
            data, solution.coef + step[:40], solution.intercept + step[40], radius=radius
        )
        assert rival.value >= solution.objective * (1 - 1e-6)


def test_squared_interpolates_with_the_smallest_norm():
    data = problem("squared", n=15, d=40)
    solution = solve_ridge(data, radius=1e-3)
    shift = data.X.mean(axis=0)
    shortest = np.linalg.lstsq(data.X - shift, data.y - data.y.mean(), rcond=None)[0]
    np.testing.assert_allclose(solution.coef, shortest, atol=1e-8)
    assert solution.objective == pytest.approx(1e-6 * shortest @ shortest, rel=1e-9)
    assert solution.gap <= 1e-6 * solution.objective


def test_separable_classes():
    X, _ = arrays("logistic")
    data = RidgeData(X, (X[:, 1] > 0).astype(float), loss=LOSSES["logistic"])
    free = solve_ridge(data, radius=0.0)
    assert free.status == "unbounded"
    assert "add alpha" in free.message
    for settings_ in ({"radius": 0.01}, {"radius": 0.0, "alpha": 1e-3}):
        assert solve_ridge(data, **settings_).status == "converged"
    fixed = RidgeData(X, data.y, loss=data.loss, inverse_cost=np.array([1.0, 0.0, 1.0, 1.0]))
    assert solve_ridge(fixed, radius=0.1).status == "unbounded"


def test_constant_target():
    X, _ = arrays("absolute")
    for name in ("absolute", "huber", "quantile", "squared"):
        solution = solve_ridge(RidgeData(X, np.full(80, 3.0), loss=LOSSES[name]), radius=0.2)
        assert solution.objective == pytest.approx(0.0, abs=1e-20)
        assert solution.intercept == pytest.approx(3.0)


def test_unbounded_penalties():
    with pytest.raises(UnboundedRiskError, match="penalty > 0"):
        solve_ridge(problem("logistic"), penalty=0.0)
    data = problem("squared", label_cost=0.5)
    with pytest.raises(UnboundedRiskError, match="penalty > 2"):
        solve_ridge(data, penalty=1.9)
    tight = solve_ridge(problem("squared"), penalty=1e-3)  # θ stays inside |θ|² < penalty
    assert tight.coef @ tight.coef < 1e-3
    assert tight.gap <= 1e-6 * tight.objective
    for bad in (
        {},
        {"radius": 1.0, "penalty": 1.0},
        {"radius": -1.0},
        {"radius": 1.0, "limits": Limits(tol=0.0)},
    ):
        with pytest.raises(InvalidDataError):
            solve_ridge(problem("logistic"), **bad)


@pytest.mark.parametrize("penalty", [3.0, 0.9])
def test_many_rows_whose_targets_alone_reach_the_kinks(penalty):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 2))
    y = X.sum(axis=1) + rng.normal(size=20_000)
    data = RidgeData(X, y, loss=LOSSES["huber"], label_cost=1.0)
    assert solve_ridge(data, penalty=penalty).relative_gap <= 1e-6


# -- stopping ------------------------------------------------------------------------------------


def test_history_callback_and_limits():
    data = problem("hinge")
    seen = []
    full = solve_ridge(
        data, radius=0.2, limits=Limits(500, 1e-6, callback=lambda i, info: seen.append((i, info)))
    )
    assert [i for i, _ in seen] == list(range(1, full.n_iter + 1))
    keys = {"iteration", "seconds", "robust_risk", "penalty", "transport_cost", "stationarity"}
    assert set(full.history) == {*keys, "gap"}
    assert full.history["transport_cost"][-1] == pytest.approx(0.04, rel=1e-2)
    stopped = solve_ridge(
        data, radius=0.2, limits=Limits(500, 1e-6, callback=lambda i, info: i == 3)
    )
    assert (stopped.status, stopped.n_iter) == ("callback", 3)
    assert solve_ridge(data, radius=0.2, limits=Limits(max_iter=2, tol=1e-6)).status == "max_iter"
    assert solve_ridge(data, radius=0.2, limits=Limits(tol=1e-6, max_time=0.0)).status == "max_time"
    assert stopped.objective >= full.objective
    again = solve_ridge(data, radius=0.21, warm_start=(full.coef, full.intercept, full.multiplier))
    cold = solve_ridge(data, radius=0.21)
    assert again.objective == pytest.approx(cold.objective, rel=1e-6)
    with pytest.raises(InvalidDataError, match="warm_start"):
        solve_ridge(data, radius=0.2, warm_start=(np.ones(3), 0.0))


def test_interrupt_keeps_the_best():
    data = problem("logistic")

    def stop(iteration, info):
        if iteration == 4:
            raise KeyboardInterrupt

    solution = solve_ridge(data, radius=0.2, limits=Limits(500, 1e-6, callback=stop))
    assert solution.status == "interrupted"
    nominal = ridge_robust_risk(data, np.zeros(4), 0.0, radius=0.2).value
    assert solution.objective < nominal


def test_data_are_not_touched():
    X, y = arrays("hinge")
    kept = X.copy(), y.copy()
    X.setflags(write=False)
    y.setflags(write=False)
    a = solve_ridge(RidgeData(X, y, loss=LOSSES["hinge"]), radius=0.2)
    b = solve_ridge(
        RidgeData(np.asfortranarray(X)[::-1], y[::-1], loss=LOSSES["hinge"]), radius=0.2
    )
    np.testing.assert_array_equal(X, kept[0])
    np.testing.assert_array_equal(y, kept[1])
    assert a.objective == pytest.approx(b.objective, rel=1e-7)
