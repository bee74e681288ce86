"""Fits of many rows from samples: against exact Newton steps on all rows, and what they prove."""

import math

import numpy as np
import pytest

from drojko._driver import Limits
from drojko.ambiguity import KL, ChiSquare, CressieRead
from drojko.losses import get_loss
from drojko.minimax import newton, samples
from drojko.minimax.many_rows import ManyRows
from drojko.minimax.reweighting.many_rows import Divergent
from drojko.minimax.reweighting.objective import Reweighted
from drojko.minimax.samples import fit_many
from drojko.minimax.transport.bound import Ground
from drojko.minimax.transport.linear import solve_ridge
from drojko.minimax.transport.many_rows import Transported
from drojko.minimax.transport.risk import RidgeData
from drojko.rows import Rows
from drojko.rows.strata import stratified

N, D = 31_000, 4
TOL = 1e-6
KINDS = ["plain", "float32", "weights", "rare class", "sorted", "heavy tails", "ill", "rare column"]


def data(kind, loss="logistic"):
    random = np.random.default_rng(KINDS.index(kind))
    X, w = random.standard_normal((N, D)), np.ones(N)
    if kind == "heavy tails":
        X = random.standard_t(2.5, size=(N, D))
    if kind == "ill":
        X = X @ (np.diag(np.logspace(0, -3, D)) @ random.standard_normal((D, D))) + 1.0
    if kind == "rare column":
        X[:, 0] = random.random(N) < 1e-3
    coef = random.standard_normal(D) * (1.0 if kind == "rare class" else 3.0)
    if kind == "rare column":
        coef[0] = 0.0  # or else it would separate some rows
    noisy = (X - X.mean(0)) / X.std(0) @ coef + random.logistic(size=N)
    y = (noisy > np.quantile(noisy, 0.999 if kind == "rare class" else 0.5)).astype(float)
    if kind == "weights":
        w = np.exp(random.standard_normal(N))
        w[::3] = 0.0
    if kind == "sorted":
        order = np.argsort(y, kind="stable")
        X, y, noisy = X[order], y[order], noisy[order]
    if kind == "float32":
        X = X.astype(np.float32)
    return X, y if loss == "logistic" else noisy, w


def transported(kind, loss="logistic", **form):
    X, y, w = data(kind, loss)
    given = RidgeData(X, y, weight=w, inverse_cost=X.var(0).astype(float), loss=get_loss(loss))
    rows = Rows(X, given.y, given.weight)
    return given, Transported(rows, given.loss, Ground.of(rows, given, **form))


def fitted(objective, loss="logistic", **limits):
    return fit_many(objective, Limits(**{"tol": TOL, **limits}), classes=loss == "logistic")


def check(found, objective, lower):
    """Two intervals for the same optimum, each no wider than the tolerance."""
    assert found.status == "converged"
    assert 0.0 <= found.relative_gap <= TOL
    assert found.lower <= objective * (1 + 1e-12)
    assert lower <= found.objective * (1 + 1e-12)
    assert found.objective == pytest.approx(objective, rel=2 * TOL)


FORMS = [{"radius": 0.05}, {"penalty": 4.0}, {"radius": 0.05, "alpha": 0.01}]


@pytest.mark.promise(17)
@pytest.mark.parametrize(
    ("kind", "form"), [("plain", form) for form in FORMS] + [(kind, FORMS[0]) for kind in KINDS[1:]]
)
def test_transport_equals_newton_on_all_rows(kind, form, monkeypatch):
    given, objective = transported(kind, **form)
    found = fitted(objective)
    monkeypatch.setattr("drojko.rows.rows._LARGE", math.inf)
    exact = solve_ridge(given, **form, aim=0.1 * TOL)
    check(found, exact.objective, exact.lower)


@pytest.mark.promise(17)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_transport_of_a_huber_loss(form, monkeypatch):
    given, objective = transported("plain", "huber", **form)
    found = fitted(objective, "huber")
    monkeypatch.setattr("drojko.rows.rows._LARGE", math.inf)
    exact = solve_ridge(given, **form, aim=0.1 * TOL)
    check(found, exact.objective, exact.lower)


SETS = [KL(0.1), KL(penalty=1.0), ChiSquare(0.2), ChiSquare(penalty=1.0), CressieRead(3, 0.05)]


def both(kind, ambiguity, loss="logistic", alpha=0.0):
    X, y, w = data(kind, loss)
    kept = w > 0
    rows = Rows(X[kept], y[kept], w[kept])
    found = fitted(Divergent(rows, get_loss(loss), ambiguity, alpha), loss)
    problem = Reweighted(rows, get_loss(loss), ambiguity.on(None, rows.w), alpha)
    return found, newton.fit(problem, Limits(tol=TOL))


@pytest.mark.promise(17)
@pytest.mark.parametrize("kind", KINDS)
def test_divergences_equal_newton_on_all_rows(kind):
    found, exact = both(kind, KL(0.1))
    check(found, exact.objective, exact.lower)


@pytest.mark.promise(17)
@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_every_divergence_and_ridge(ambiguity, alpha):
    found, exact = both("plain", ambiguity, alpha=alpha)
    check(found, exact.objective, exact.lower)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_divergences_of_regression_losses(loss):
    found, exact = both("plain", ChiSquare(0.1), loss)
    check(found, exact.objective, exact.lower)


@pytest.mark.promise(17)
@pytest.mark.parametrize("kind", ["plain", "rare class", "heavy tails"])
@pytest.mark.parametrize("objective", ["W2", "W2 penalty", "KL", "chi-square penalty"])
def test_bounds_hold_wherever_they_are_taken(kind, objective):
    """Far from the optimum, too: from the sample's answer on, step by step."""
    X, y, w = data(kind)
    rows = Rows(X, y, w)
    if objective.startswith("W2"):
        form = {"radius": 0.05} if objective == "W2" else {"penalty": 4.0}
        problem = transported(kind, **form)[1]
    else:
        problem = Divergent(
            rows, get_loss("logistic"), KL(0.1) if objective == "KL" else ChiSquare(penalty=1.0)
        )
    best = fitted(problem).objective
    index, weights = stratified(y, rows.w, 1000, True)
    sample = problem.sample(rows.take(index, weights))
    some = samples._solved(ManyRows(sample, 1e-3), sample.start())
    solver = ManyRows(problem, TOL, np.unique(index))
    state = solver.begin(some.z, some.p, some.metric)
    bounds = []
    for _ in range(8):
        bounds.append(solver._lower(state))
        state = solver.step(state)
    assert max(bounds) <= best * (1 + 1e-12)
    assert bounds[-1] > 0.9 * best


def test_what_has_no_smooth_optimum_is_left_to_others():
    X, y, w = data("plain")
    _, vertex = transported("plain", radius=5.0)  # the best model is constant
    assert fitted(vertex) is None
    separable = Rows(X, (X[:, 0] > 0).astype(float), w)
    assert fitted(Divergent(separable, get_loss("logistic"), KL(0.1))) is None
    few = Rows(X[:5000], y[:5000])
    assert fitted(Divergent(few, get_loss("logistic"), KL(0.1))) is None


def test_limits_and_callbacks_end_it_with_a_valid_model():
    X, y, w = data("plain")
    objective = Divergent(Rows(X, y, w), get_loss("logistic"), KL(0.1))
    best = fitted(objective).objective
    seen = []

    def stop(iteration, record):
        seen.append(record)
        return iteration == 2

    limits = Limits(tol=1e-12, callback=stop)
    found = fit_many(objective, limits, classes=True)
    assert found.status == "callback"
    assert len(seen) == found.n_iter == 2
    assert {"robust_risk", "penalty", "transport_cost", "stationarity"} <= set(seen[0])
    assert found.objective >= best * (1 - 1e-12)
    np.testing.assert_array_equal(found.coef, seen[-1]["coef"])
    assert fitted(objective, max_iter=1, tol=1e-12).status == "max_iter"


@pytest.mark.parametrize("order", ["sorted", "mixed"])
def test_a_sample_has_both_classes_and_the_weights_of_all(order):
    random = np.random.default_rng(0)
    y = (random.random(100_000) < 1e-3).astype(float)
    w = random.random(100_000) * (random.random(100_000) < 0.5)
    w /= w.sum()
    if order == "sorted":
        y = np.sort(y)
    index, weights = stratified(y, w, 1000, True)
    rare = np.flatnonzero((y == 1) & (w > 0))
    np.testing.assert_array_equal(index[y[index] == 1], rare)  # fewer than half: all of them
    assert (y[index] == 0).sum() == 500
    assert (w[index] > 0).all()
    for k in (0, 1):
        assert weights[y[index] == k].sum() == pytest.approx(w[y == k].sum())
    drawn = np.bincount(index * 10 // 100_000, weights, 10)
    assert drawn == pytest.approx(np.bincount(np.arange(100_000) * 10 // 100_000, w, 10), abs=0.02)
