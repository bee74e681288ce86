"""Worst-case risk of a fixed linear model: closed forms, duality, behaviour in the radius."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.losses import get_loss
from drojko.minimax.transport.risk import RidgeData, ridge_robust_risk

NAMES = ["logistic", "hinge", "squared", "absolute", "huber", "quantile"]
LOSSES = {name: get_loss(name, **({"q": 0.8} if name == "quantile" else {})) for name in NAMES}


def problem(name, seed=0, n=60, **options):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)) * [1.0, 2.0, 0.5]
    u = X @ [1.0, -0.7, 0.4]
    y = u + rng.standard_t(4, size=n)
    if LOSSES[name].task == "classification":
        y = (y > 0).astype(float)
    return RidgeData(X, y, loss=LOSSES[name], **options)


COEF = np.array([1.2, -0.5, 0.9])


def test_squared_closed_forms():
    data = problem("squared")
    mse = float(np.mean((data.X @ COEF + 0.1 - data.y) ** 2))
    norm = math.sqrt(COEF @ COEF)
    ball = ridge_robust_risk(data, COEF, 0.1, radius=0.3)
    assert ball.value == pytest.approx((math.sqrt(mse) + 0.3 * norm) ** 2, rel=1e-13)
    lam = 5.0
    soft = ridge_robust_risk(data, COEF, 0.1, penalty=lam)
    assert soft.value == pytest.approx(lam * mse / (lam - norm**2), rel=1e-13)
    with pytest.raises(UnboundedRiskError, match="penalty > "):
        ridge_robust_risk(data, COEF, 0.1, penalty=0.99 * norm**2)


def test_piecewise_linear_closed_forms():
    # Every slope has size 1, so the absolute loss gains exactly radius * norm, as in W1.
    data = problem("absolute")
    risk = ridge_robust_risk(data, COEF, 0.1, radius=0.3)
    nominal = float(np.mean(np.abs(data.X @ COEF + 0.1 - data.y)))
    assert risk.value == pytest.approx(nominal + 0.3 * math.sqrt(COEF @ COEF), rel=1e-13)
    data = problem("hinge")
    lam = 2.0
    margin = (2 * data.y - 1) * (data.X @ COEF + 0.1)
    expected = np.mean(np.maximum(1 - margin + COEF @ COEF / (4 * lam), 0))
    assert ridge_robust_risk(data, COEF, 0.1, penalty=lam).value == pytest.approx(expected)


@pytest.mark.parametrize("label_cost", [math.inf, 0.7])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("radius", [1e-4, 0.1, 1.0, 50.0])
def test_attained_equals_dual_at_the_exact_budget(name, label_cost, radius):
    data = problem(name, label_cost=label_cost)
    risk = ridge_robust_risk(data, 3.0 * COEF, 0.1, radius=radius)
    # Both sides are sums of n terms of the size of the value: rounding only.
    assert risk.attained == pytest.approx(risk.value, rel=1e-11)
    assert risk.transport_cost == pytest.approx(radius**2, rel=1e-9)
    assert risk.penalty_low <= risk.penalty <= risk.penalty_high
    # The plan, moved point by point in the space of x, is feasible and has the stated risk.
    n2 = data.squared_norm(3.0 * COEF)
    total_cost, total_risk = 0.0, 0.0
    parts = (
        (risk.mixture, risk.shift_low, risk.flip_low),
        (1 - risk.mixture, risk.shift_high, risk.flip_high),
    )
    for share, shift, flip in parts:
        step = np.outer(shift / n2, 3.0 * COEF)
        cost = (step**2).sum(axis=1)
        y = data.y
        if data.flips:
            cost, y = cost + label_cost * flip, np.where(flip, 1 - y, y)
        elif data.label_norm:
            dy = -shift / (label_cost * n2)
            cost, y = cost + label_cost * dy**2, y + dy
        moved = RidgeData(data.X + step, y, loss=data.loss)
        total_cost += share * cost.mean()
        total_risk += share * ridge_robust_risk(moved, 3.0 * COEF, 0.1, radius=0.0).value
    assert total_cost == pytest.approx(radius**2, rel=1e-9)
    assert total_risk == pytest.approx(risk.value, rel=1e-9)


@given(
    name=st.sampled_from(NAMES),
    radii=st.lists(st.floats(1e-3, 20.0), min_size=2, max_size=2, unique=True),
    seed=st.integers(0, 5),
)
def test_monotone_in_radius_and_concave_in_its_square(name, radii, seed):
    data = problem(name, seed=seed)
    low, high = sorted(radii)
    middle = math.sqrt((low**2 + high**2) / 2)
    a, b, c = (
        ridge_robust_risk(data, 2.0 * COEF, -0.2, radius=r).value for r in (low, middle, high)
    )
    assert a <= b * (1 + 1e-12)
    assert b <= c * (1 + 1e-12)
    assert b >= (a + c) / 2 * (1 - 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_penalty_and_radius_are_dual(name):
    data = problem(name)
    ball = ridge_robust_risk(data, COEF, 0.1, radius=0.5)
    soft = ridge_robust_risk(data, COEF, 0.1, penalty=ball.penalty)
    assert soft.value + ball.penalty * 0.25 == pytest.approx(ball.value, rel=1e-10)
    for factor in (0.9, 1.1):  # the optimal penalty minimises the dual
        lam = factor * ball.penalty
        if name == "squared" and lam <= COEF @ COEF:
            continue
        other = ridge_robust_risk(data, COEF, 0.1, penalty=lam)
        assert other.value + lam * 0.25 >= ball.value * (1 - 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_limits_and_guess(name):
    data = problem(name)
    none = ridge_robust_risk(data, COEF, 0.1, radius=0.0)
    assert none.value == none.nominal
    assert not none.shift.any()
    still = ridge_robust_risk(data, 0.0 * COEF, 0.1, radius=3.0)
    assert still.value == still.nominal
    exact = ridge_robust_risk(data, COEF, 0.1, radius=0.5)
    for guess in (exact.penalty, 0.5 * exact.penalty, 1e9, 1e-9):
        again = ridge_robust_risk(data, COEF, 0.1, radius=0.5, guess=guess)
        assert again.value == pytest.approx(exact.value, rel=1e-12)


def test_label_flips_alone():
    # θ = 0: only labels can move, at a price, up to the budget; then the risk stops growing.
    data = problem("logistic", label_cost=0.5)
    b = 1.0
    gain = math.log1p(math.exp(b)) - math.log1p(math.exp(-b))  # flipping a 1 gains b
    ones = data.y.mean()
    nominal = ridge_robust_risk(data, 0 * COEF, b, radius=0.0).value
    small = ridge_robust_risk(data, 0 * COEF, b, radius=0.1)
    assert small.value == pytest.approx(nominal + gain * 0.01 / 0.5, rel=1e-12)
    large = ridge_robust_risk(data, 0 * COEF, b, radius=10.0)
    assert large.value == pytest.approx(nominal + gain * ones, rel=1e-12)
    assert large.transport_cost == pytest.approx(0.5 * ones)


def test_bad_input():
    data = problem("logistic")
    for bad in ({}, {"radius": 1.0, "penalty": 1.0}, {"radius": -1.0}, {"radius": math.nan}):
        with pytest.raises(InvalidDataError):
            ridge_robust_risk(data, COEF, 0.0, **bad)
    for penalty in (0.0, -1.0, math.nan):
        with pytest.raises(UnboundedRiskError):
            ridge_robust_risk(data, COEF, 0.0, penalty=penalty)
    X, y = data.X, data.y
    for bad in (
        {"X": X.astype(int), "y": y},
        {"X": X, "y": y + 1},
        {"X": X, "y": y[:-1]},
        {"X": X, "y": y, "weight": -np.ones(y.size)},
        {"X": X, "y": y, "inverse_cost": np.array([1.0, -1.0, 1.0])},
        {"X": X, "y": y, "label_cost": 0.0},
    ):
        with pytest.raises(InvalidDataError):
            RidgeData(**bad, loss=data.loss)
