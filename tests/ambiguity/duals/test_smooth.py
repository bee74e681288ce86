"""Bounds by smoothness in columns of many values: laws of known slope, programs, fits, audits."""

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drojko import DRORegressor, audit
from drojko.ambiguity import Conditional, CVaR, Marginal
from drojko.exceptions import InvalidDataError


def law(seed, many=1):
    """Cells with their masses, rows in them, and the largest slope between their mean losses."""
    rng = np.random.default_rng(seed)
    count, columns = rng.integers(2, 9), rng.integers(1, 3)
    places = rng.normal(size=(count, columns)) * 10.0 ** rng.integers(-6, 7)
    cell = np.repeat(np.arange(count), many)
    losses = rng.normal(size=len(cell)) * 10.0 ** rng.integers(-6, 7)
    weights = rng.uniform(0.01, 1.0, len(cell)) ** 3
    shares = np.bincount(cell, weights)
    means = np.bincount(cell, weights * losses) / shares
    one, two = np.triu_indices(count, 1)
    apart = np.linalg.norm(places[one] - places[two], axis=1)
    slope = float((np.abs(means[one] - means[two]) / apart).max())
    return places[cell], weights, losses, cell, (shares, means, slope)


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0.05, 0.99), many=st.integers(1, 3))
def test_bounds_hold_for_laws_that_are_as_smooth_as_said(seed, alpha, many):
    x, w, losses, cell, (shares, means, slope) = law(seed, many)
    columns, unit = list(range(x.shape[1])), np.ptp(losses) or 1.0
    dual = Marginal(alpha, columns, smoothness=slope * (1 + 1e-9)).on(x, w).dual(losses)
    exact = CVaR(alpha).dual(means, shares).value
    assert dual.value >= exact - 1e-9 * unit
    assert dual.attained <= dual.value + 1e-12 * unit
    assert np.average(dual.ratio, weights=w) == pytest.approx(1.0)
    assert dual.ratio.max() <= 1 / alpha + 1e-9
    given_cells = Conditional(alpha, columns, smoothness=0.3 * slope).on(x, w).dual(losses)
    tails = [CVaR(alpha).dual(losses[cell == k], w[cell == k]).value for k in range(len(shares))]
    assert given_cells.value >= np.average(tails, weights=shares) - 1e-8 * unit
    assert given_cells.value <= CVaR(alpha).dual(losses, w).value + 1e-8 * unit
    assert given_cells.attained == pytest.approx(given_cells.value, abs=1e-6 * unit)


def noisy(seed, n=24):
    rng = np.random.default_rng(seed)
    x = np.round(rng.uniform(-1, 1, size=(n, 1)), 1)
    return x, rng.uniform(0.2, 2.0, n), (1 + x[:, 0]) * rng.exponential(size=n)


@pytest.mark.parametrize("alpha", [0.3, 0.6])
def test_values_are_those_of_the_programs(alpha):
    x, w, losses = noisy(1)
    p, apart = w / w.sum(), np.abs(x - x.T)
    q, slope, cap = cp.Variable(len(p), nonneg=True), 0.7, 1 / alpha
    width, best = cp.Parameter(nonneg=True), CVaR(alpha).dual(losses, w).value
    gain = p @ cp.multiply(losses, q) + 0.5 * width * (cap - cp.sum(cp.multiply(p, cp.square(q))))
    near = width * cp.abs(q[:, None] - q[None, :]) <= slope * apart
    program = cp.Problem(cp.Maximize(gain), [q <= cap, p @ q == 1, near])
    for size in np.geomspace(0.02, 1.0, 9):
        width.value = size
        best = min(best, program.solve(solver=cp.CLARABEL))
    value = Marginal(alpha, [0], smoothness=slope).on(x, w).dual(losses).value
    assert best * (1 - 2e-2) <= value <= best * (1 + 1e-4)  # the best of nine widths, and of all
    flow = cp.Variable(apart.shape, nonneg=True)
    moved = cp.multiply(p, q - 1) == cp.sum(flow, axis=0) - cp.sum(flow, axis=1)
    gain = p @ cp.multiply(losses, q) - slope * cp.sum(cp.multiply(apart, flow))
    exact = cp.Problem(cp.Maximize(gain), [q <= cap, moved]).solve(solver=cp.CLARABEL)
    value = Conditional(alpha, [0], smoothness=slope).on(x, w).dual(losses).value
    assert value == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("kind", [Marginal, Conditional])
def test_smoothing_takes_off_no_more_than_it_says_and_ratios_are_slopes(kind):
    x, w, losses = noisy(5)
    bound = kind(0.4, [0], smoothness=0.5).on(x, w)
    exact = bound.dual(losses).value
    for smoothing in (1e-3, 0.1, 2.0):
        assert exact - smoothing <= bound.dual(losses, smoothing).value <= exact + 1e-3 * smoothing
    ways = np.random.default_rng(0).normal(size=len(losses))
    slope = np.average(bound.dual(losses, 0.1).ratio * ways, weights=w)
    rises = [bound.dual(losses + step * ways, 0.1).value for step in (-1e-3, 1e-3)]
    assert (rises[1] - rises[0]) / 2e-3 == pytest.approx(slope, abs=2e-2)


def test_the_ends_are_the_mean_and_the_tail():
    x, w, losses = noisy(6)
    x = x + 1e-3 * np.arange(len(x))[:, None]
    mean, tail = np.average(losses, weights=w), CVaR(0.3).dual(losses, w).value
    values = [
        kind(0.3, [0], smoothness=size).on(x, w).dual(losses).value
        for kind in (Marginal, Conditional) for size in (0.0, 1e9)
    ]  # fmt: skip
    assert values == pytest.approx([mean, tail, tail, mean], rel=1e-6)
    some = w.copy()
    some[:3] = 0.0
    dual = Marginal(0.3, [0], smoothness=1.0).on(x, some).dual(losses)
    less = Marginal(0.3, [0], smoothness=1.0).on(x[3:], w[3:]).dual(losses[3:])
    assert dual.value == pytest.approx(less.value)
    assert (dual.ratio[:3] == 0).all()


def test_fits_certificates_and_audits_take_them():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    y = X[:, 0] + 0.5 * X[:, 1] ** 2 + 0.3 * rng.normal(size=30)
    ambiguity = Conditional(0.5, [1], smoothness=1.0)
    fit = DRORegressor(ambiguity, reference="empirical").fit(X, y)
    plain = DRORegressor(CVaR(alpha=1.0), reference="empirical").fit(X, y)
    assert fit.certificate_.upper < plain.robust_certificate(X, y, ambiguity).upper
    report = audit(plain, X, y, Marginal(0.5, [1], smoothness=1.0), radii=[0.5])
    assert (report.table["worst_case_risk"] <= report.table["upper_bound"]).all()
    assert not (report.table["finding"] == "failed").any()


@pytest.mark.parametrize(
    ("smoothness", "column", "words"),
    [(-1.0, 0, "smoothness"), ("much", 0, "smoothness"), (1.0, 1, "constant")],
)
def test_what_says_nothing_is_refused(smoothness, column, words):
    X = np.column_stack([np.arange(9.0), np.ones(9)])
    with pytest.raises(InvalidDataError, match=words):
        Marginal(0.5, [column], smoothness=smoothness).on(X).dual(np.arange(9.0))


def test_missing_values_have_no_distance():
    X = np.column_stack([np.arange(9.0), np.ones(9)])
    X[3, 0] = np.nan
    with pytest.raises(InvalidDataError, match="missing"):
        Conditional(0.5, [0], smoothness=1.0).on(X)
