"""Linear models under reweightings: derivatives, levels, and bounds that never exceed the truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drojko._driver import Limits
from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, Group, TotalVariation
from drojko.ambiguity.divergence import Part
from drojko.losses import Absolute, Hinge, Huber, Logistic, Loss, Quantile, Squared
from drojko.minimax.newton import Newton, fit
from drojko.minimax.reweighting.objective import Reweighted, _of_mass
from drojko.rows import Rows

SETS = [
    KL(0.2),
    KL(penalty=1.5),
    ChiSquare(0.6),
    ChiSquare(penalty=0.8),
    CressieRead(3.0, 0.1),
    CressieRead(0.5, 0.2),
    CressieRead(1.5, penalty=1.0),
    CVaR(0.3),
    TotalVariation(0.2),
    TotalVariation(penalty=0.9),
    KL(30.0),
    Group(),
    Group(0.3),
    Group(penalty=0.5),
]
LOSSES = [Logistic(), Hinge(), Squared(), Absolute(), Quantile(0.2), Huber(1.35)]


def objective(seed, ambiguity, loss, alpha=0.0, scale=1.0, weighted=False, goal=1e-6):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(4, 40)), int(rng.choice([1, 4]))
    X = rng.normal(size=(n, d)) * scale
    y = X @ rng.normal(size=d) / scale + rng.choice([0.0, 1.0]) * rng.normal(size=n)
    if seed % 3 == 0:  # ties and copies
        X[: n // 2], y[: n // 2] = X[0], np.round(y[: n // 2], 1)
    y = (y + rng.normal(size=n) > 0).astype(int) if loss.task == "classification" else y / scale
    w = rng.uniform(0.1, 1.0, n) if weighted else np.ones(n)
    rows = Rows(X, y, w)
    bound = ambiguity.on(None, rows.w, np.arange(n) % 3)
    return Reweighted(rows, loss, bound, alpha, goal)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_derivatives(ambiguity, loss):
    o = objective(1, ambiguity, loss, alpha=0.1)
    z, p = o.start()
    mu, rng = 0.1 * o.unit, np.random.default_rng(0)
    z = z + 0.1 * rng.normal(size=z.shape)
    p = o.restart(z, o.rows.predict(z), p, mu)
    size, step = len(z), 1e-6

    def value(x):
        return o.terms(x[:size], x[size:], o.rows.predict(x[:size]), mu, {})

    x = np.append(z, p)
    terms = value(x)
    gradient, hessian = Newton(o, 1e-6)._system(terms, len(p))
    for direction in rng.normal(size=(4, len(x))):
        direction *= 0.1 * o.unit
        ahead, behind = value(x + step * direction), value(x - step * direction)
        assert (ahead.value - behind.value) / (2 * step) == pytest.approx(
            gradient @ direction, rel=1e-5, abs=1e-8
        )
        turned = Newton(o, 1e-6)._system(ahead, len(p))[0]
        turned = turned - Newton(o, 1e-6)._system(behind, len(p))[0]
        assert turned / (2 * step) == pytest.approx(hessian @ direction, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_levels_give_the_dual(ambiguity):
    """Little smoothing and the best levels: the exact worst case, from densities of the set."""
    o = objective(4, ambiguity, Squared())
    o.start()
    losses = np.random.default_rng(0).gamma(1.0, size=o.rows.n)
    cells = losses if o.cells is None else losses @ o.cells
    levels = o.bound.levels(float(losses.mean()))
    mu = 1e-9
    p = levels.best(cells, levels.start(cells, mu), mu)
    rise = levels.rise(cells, p, mu, {})
    exact = o.bound.dual(losses).value
    assert rise.value == pytest.approx(exact, rel=1e-6)
    q, price = levels.inside(sum(part.density for part in rise.parts))
    assert levels.weights @ q == pytest.approx(1.0, abs=1e-12)
    assert q.min() >= 0
    assert exact - 1e-5 * abs(exact) <= (levels.weights * q) @ cells - price <= exact * (1 + 1e-12)


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from(SETS),
    st.sampled_from(LOSSES),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.booleans(),
)
def test_no_bound_exceeds_the_minimum(seed, ambiguity, loss, alpha, scale, weighted):
    """The bounds of all iterates, of far ones too, lie below the best model that is known."""
    o = objective(seed, ambiguity, loss, alpha, scale, weighted, goal=1e-8)
    solver = Newton(o, 1e-8)
    state, lower, upper = solver.init(None), [], math.inf
    for _ in range(60):
        state = solver.step(state)
        upper = min(upper, state.upper)
        if o.unit > 1e-280 and state.terms.detail is not None:
            lower.append(o.lower(state, math.inf))
        if state.ended is not None:
            break
    assert max(lower, default=-math.inf) <= upper + 1e-13 * o.unit
    if state.unbounded is None and state.ended == "converged":
        assert (
            upper - state.lower <= 1e-8 * max(abs(upper), 1e-10 * o.unit) or upper < 1e-9 * o.unit
        )


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_exact_fits_end_at_zero(ambiguity):
    x = np.arange(8.0)
    for loss in (Squared(), Absolute(), Huber(), Quantile(0.9)):
        rows = Rows(x[:, None], 100.0 * x)
        bound = ambiguity.on(None, rows.w, [0, 1] * 4)
        found = fit(Reweighted(rows, loss, bound), Limits(tol=1e-6))
        assert found.status == "converged"
        assert found.objective <= 1e-9 * found.unit
        assert found.coef[0] == pytest.approx(100.0, rel=1e-4)


class LogCosh(Loss):
    """A smooth convex loss that says nothing but its derivatives."""

    name, task, convex = "log-cosh", "regression", True

    def value(self, f, y):
        return torch.logaddexp(f - y, y - f)

    def gradient(self, f, y):
        return torch.tanh(f - y)

    def second_derivative(self, f, y):
        return 1.0 - torch.tanh(f - y) ** 2


@pytest.mark.parametrize("ambiguity", SETS[:10], ids=repr)
def test_losses_of_ones_own_are_proven(ambiguity):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(40, 2))
    y = X @ [1.0, -2.0] + rng.normal(size=40)
    rows = Rows(X, y)
    found = fit(Reweighted(rows, LogCosh(), ambiguity.on(None, rows.w)), Limits(tol=1e-6))
    assert found.status == "converged"
    assert 0.0 <= found.relative_gap <= 1e-6


def test_a_loss_that_is_not_convex_proves_nothing():
    class Bent(LogCosh):
        convex = False

    rng = np.random.default_rng(3)
    X = rng.normal(size=(20, 2))
    rows = Rows(X, X @ [1.0, -2.0] + rng.normal(size=20))
    found = fit(Reweighted(rows, Bent(), KL(0.1).on(None, rows.w)), Limits(max_iter=60, tol=1e-4))
    assert found.status != "converged"
    assert math.isnan(found.relative_gap)


def test_a_constant_optimum_is_told():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 2)), rng.integers(0, 2, 200)
    rows = Rows(X, y)
    flat = fit(Reweighted(rows, Logistic(), CVaR(0.05).on(None, rows.w)), Limits(tol=1e-4))
    assert flat.status == "converged"
    assert "constant" in flat.advice
    y = (X[:, 0] + 0.5 * rng.normal(size=200) > 0).astype(int)
    rows = Rows(X, y)
    some = fit(Reweighted(rows, Logistic(), CVaR(0.5).on(None, rows.w)), Limits(tol=1e-4))
    assert some.status == "converged"
    assert some.advice is None


@pytest.mark.parametrize("level", [0.3, 0.6])
def test_a_density_gets_its_mass_where_few_rows_are_on_the_kink(level):
    # Equal masses: the density of least cost has the highest losses at the cap, one row between.
    rng = np.random.default_rng(0)
    losses, w = rng.permutation(np.linspace(0.0, 1.0, 50)), np.full(50, 0.02)
    density = (losses > level).astype(float)
    near = np.where(np.abs(losses - level) < 0.03, 0.1, 0.0)  # how it answers
    part = Part(density, near, np.zeros((1, 50)), 1.0, 0, 0.803)
    full = _of_mass(part, w, losses).density
    assert w @ full == pytest.approx(0.803, abs=1e-14)
    assert full.min() >= 0.0
    assert full.max() <= 1.0
    best = np.clip(0.803 / 0.02 - np.arange(50), 0.0, 1.0)
    assert np.allclose(full[np.argsort(-losses)], best, atol=1e-12)
    least = _of_mass(part._replace(mass=0.0), w, losses).density
    assert w @ least == pytest.approx(0.0, abs=1e-14)


def test_many_small_densities_beside_a_few_high_ones_keep_the_balance():
    # A density of 1000 on two rows must not make 1e-9 on a thousand, whose sum counts, nothing.
    n, many = 3000, 1000
    X, y, q, s = np.ones((n, 1)), np.zeros(n, int), np.zeros(n), np.full(n, 0.5)
    y[[0, 2]] = 1  # pairs (0, 1) at x = 1 and (2, 3) at x = 2, whose slopes are opposite
    X[2 : 4 + many] = 2.0
    q[:4], q[4 : 4 + many] = [1000.0, 1000.0, 1.0, 1.0], 1e-9
    s[0], s[2] = -0.5, -0.5 - many * 0.5e-9
    rows = Rows(X, y, None, intercept=True)
    problem = Reweighted(rows, Logistic(), TotalVariation(0.9).on(None, rows.w))
    problem.start()
    state = Newton(problem, 1e-6).init(None)
    assert abs(rows.sum(rows.w * q * s)).max() < 1e-15
    assert problem._bound(state, q, s) > -math.inf
    s[2] = -0.5  # and without them it is none
    assert problem._bound(state, q, s) == -math.inf
