"""CVaR of many rows: derivatives, both sides, and the optimum of Newton's method on all rows."""

import numpy as np
import pytest

from drojko import DROClassifier, DRORegressor
from drojko._driver import Limits
from drojko.ambiguity import CVaR
from drojko.losses import get_loss
from drojko.minimax.newton import fit
from drojko.minimax.reweighting.objective import Reweighted
from drojko.minimax.reweighting.tails import Tailed
from drojko.minimax.samples import fit_many
from drojko.rows import Rows


def rows_of(loss, n=30_000, d=5, seed=0):
    random = np.random.default_rng(seed)
    X = random.standard_normal((n, d)) * [1.0, 2.0, 0.3, 1.0, 1.0] + [0.0, 1.0, 0.0, 5.0, 0.0]
    f = 2.0 * (X @ [0.5, -0.8, 3.0, 0.2, 0.0] + 0.8 - 1.0)
    noisy = f + random.logistic(size=n)
    return Rows(X, noisy if loss.task == "regression" else (noisy > 0.0).astype(float))


def objective_of(loss, alpha=0.4, ridge=0.0, **options):
    rows = rows_of(loss, **options)
    return Tailed(rows, loss, CVaR(alpha), 1.0 / alpha, ridge, 1e-6)


def test_derivatives_are_those_of_differences():
    o = objective_of(get_loss("logistic"), n=500)
    o.mu = 0.3
    random = np.random.default_rng(1)
    z, p = 0.3 * random.standard_normal(o.rows.size), np.array([0.6])
    y, w = o.rows.y, o.rows.w

    def value(z, p, second=False):
        sums = o.at(y, w, o.rows.predict(z), p, None, second)
        rest = o.rest(z, p, sums)
        gradient = np.append(o.rows.sum(sums.gu), sums.gp + rest.gp)
        return sums.value + rest.value, gradient, sums

    gradient, sums = value(z, p, True)[1:]
    hessian = o.rows.gram(sums.huu)
    step = 1e-6
    for j in range(z.size + 1):
        move = np.zeros(z.size + 1)
        move[j] = step
        up, down = (value(z + s * move[:-1], p + s * move[-1:]) for s in (1.0, -1.0))
        # Central differences: the third derivative times 1e-12, and rounding over 1e-6.
        assert (up[0] - down[0]) / (2 * step) == pytest.approx(gradient[j], abs=1e-8)
        change = (up[1] - down[1]) / (2 * step)
        column = np.append(hessian[:, j], o.rows.sum(sums.hup)[j]) if j < z.size else None
        if column is not None:
            # Rows that enter or leave the bend between both points: 1 of 500, over mu.
            np.testing.assert_allclose(change, column, atol=0.02)


@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_its_value_is_above_the_worst_case_and_close_to_it(alpha):
    o = objective_of(get_loss("logistic"), alpha, n=2000)
    o.mu = 0.01
    z = 0.1 * np.ones(o.rows.size)
    u = o.rows.predict(z)
    losses = o.loss.line(u, o.rows.y)[0]
    exact = CVaR(alpha).dual(losses, o.rows.w)
    p = o.settled(u, np.array([exact.shift]))
    sums = o.at(o.rows.y, o.rows.w, u, p, None, False)
    assert sums.mass == pytest.approx(1.0, abs=1e-12)
    value = sums.value + p[0]
    # Above the kink by at most mu / 4 where x = 0, over alpha.
    assert exact.value <= value <= exact.value + 0.25 * o.mu / alpha


@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("name", ["logistic", "squared"])
@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_both_sides_enclose_the_optimum(name, alpha, ridge):
    loss = get_loss(name, "classification" if name == "logistic" else "regression")
    o = objective_of(loss, alpha, ridge)
    found = fit_many(o, Limits(200, 1e-4), classes=loss.task == "classification", goal=1e-6)
    assert found is not None
    assert found is not None
    assert found.status == "converged"
    bound = CVaR(alpha).on(None, o.rows.w)
    best = fit(Reweighted(o.rows, loss, bound, ridge, 1e-7), Limits(200, 1e-7), goal=1e-7)
    u = o.rows.predict(o.rows.inward(found.coef, found.intercept))
    ridge_term = 0.5 * ridge * float(found.coef @ found.coef)
    exact = bound.dual(loss.line(u, o.rows.y)[0]).value + ridge_term
    assert found.lower <= best.objective * (1 + 1e-12)
    assert best.lower <= exact * (1 + 1e-12)
    assert exact <= found.objective * (1 + 1e-12)
    assert found.relative_gap <= 1e-6


def test_estimators_prove_the_same_optimum_on_either_side_of_the_number_of_rows():
    rows = rows_of(get_loss("logistic"), n=21_000)
    common = {"reference": "empirical", "tol": 1e-5}
    many = DROClassifier(CVaR(0.5), **common).fit(rows.X, rows.y)
    # Twice the rows are the same problem; a bend elsewhere.
    twice = DROClassifier(CVaR(0.5), **common).fit(np.tile(rows.X, (2, 1)), np.tile(rows.y, 2))
    assert many.status_ == twice.status_ == "converged"
    close = 2.0 * max(many.optimality_gap_, twice.optimality_gap_) + 1e-12
    assert twice.certificate_.upper == pytest.approx(many.certificate_.upper, rel=close)
    assert "passes" in many.history_


def test_losses_that_are_nearly_equal_are_left_to_others():
    loss = get_loss("logistic")
    random = np.random.default_rng(0)
    rows = Rows(random.standard_normal((30_000, 3)), (random.random(30_000) < 0.5).astype(float))
    o = Tailed(rows, loss, CVaR(0.2), 5.0, 0.0, 1e-6)
    assert fit_many(o, Limits(200, 1e-4), classes=True, goal=1e-6) is None
    assert rows.reads == 1


def test_a_tail_that_is_fitted_exactly_is_left_to_others():
    X = np.linspace(0.0, 1.0, 25_000)[:, None]
    model = DRORegressor(CVaR(0.5), reference="empirical").fit(X, 2.0 * X[:, 0] + 1.0)
    assert model.status_ == "converged"
    assert model.certificate_.upper == pytest.approx(0.0, abs=1e-9)
