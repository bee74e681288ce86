"""Several classes under order 2: proven gaps against other models, solvers and forms."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize

from drojko import DROClassifier
from drojko._driver import Limits
from drojko.ambiguity import Wasserstein
from drojko.losses import get_loss
from drojko.minimax.transport.class_risk import class_robust_risk
from drojko.minimax.transport.classes import solve_classes
from drojko.minimax.transport.linear import solve_ridge
from drojko.minimax.transport.risk import RidgeData


def data(seed=0, n=80, d=3, k=3, loss="logistic"):
    random = np.random.default_rng(seed)
    X, W = random.standard_normal((n, d)), random.standard_normal((k, d))
    y = (X @ W.T + random.gumbel(size=(n, k))).argmax(axis=1)
    y[:k] = np.arange(k)
    return RidgeData(X, y, loss=get_loss(loss, "classification", k)), k


def check(found, problem, rng, **form):
    """No model near or far has a smaller attained risk than the lower bound."""
    alpha = form.pop("alpha", 0.0)
    for size in (0.0, 1e-3, 0.1, 1.0):
        coef = found.coef + size * rng.standard_normal(found.coef.shape)
        intercept = found.intercept + size * rng.standard_normal(found.intercept.shape)
        risk = class_robust_risk(problem, coef, intercept, **form, nodes=200)
        assert risk.attained <= risk.value * (1 + 1e-12)
        value = risk.value + 0.5 * alpha * (coef**2).sum()
        assert value >= found.lower * (1 - 1e-9)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("form", [{"radius": 0.1}, {"radius": 1.0}, {"penalty": 2.0}])
@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_lower_bounds_hold_and_close(loss, form, alpha):
    problem, k = data(seed=1, loss=loss)
    found = solve_classes(problem, k, **form, alpha=alpha, limits=Limits(300, 1e-3))
    check(found, problem, np.random.default_rng(0), alpha=alpha, **form)
    if loss == "logistic":
        assert found.status == "converged"
        assert found.relative_gap <= 1e-3


def test_two_classes_are_the_binary_model():
    # With w_1 = -w_0 half the margin's slope: |w_1 - w_0| is the slope of the binary model.
    random = np.random.default_rng(2)
    X = random.standard_normal((60, 2))
    y = (X[:, 0] + random.logistic(size=60) > 0).astype(int)
    several = RidgeData(X, y, loss=get_loss("logistic", "classification", 3))
    found = solve_classes(several, 2, radius=0.3, limits=Limits(300, 1e-6))
    binary = solve_ridge(RidgeData(X, y, loss=get_loss("logistic")), radius=0.3)
    assert found.objective == pytest.approx(binary.objective, rel=1e-5)
    np.testing.assert_allclose(found.coef[1] - found.coef[0], binary.coef, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_more_columns_than_rows(loss):
    random = np.random.default_rng(3)
    X, y = random.standard_normal((24, 300)), np.arange(24) % 3
    problem = RidgeData(X, y, loss=get_loss(loss, "classification", 3))
    found = solve_classes(problem, 3, radius=0.2, limits=Limits(200, 1e-3))
    assert found.status == "converged"
    assert found.risk.attained - found.lower <= 1e-3 * found.risk.attained
    check(found, problem, random, radius=0.2)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("form", [{"radius": 0.1}, {"radius": 0.0}, {"penalty": 1.0}])
def test_classes_far_apart(loss, form):
    random = np.random.default_rng(0)
    y = np.arange(30) % 3
    X = 0.1 * random.standard_normal((30, 2)) + np.array([[0, 10], [10, 0], [-10, -10]])[y]
    problem = RidgeData(X, y, loss=get_loss(loss, "classification", 3))
    found = solve_classes(problem, 3, **form, limits=Limits(200, 1e-3))
    endless = loss == "logistic" and form == {"radius": 0.0}  # falls to zero, and reaches it never
    assert found.status == ("unbounded" if endless else "converged")
    assert 0.0 <= found.lower <= found.objective <= 1e-3
    check(found, problem, random, **form)


@pytest.mark.parametrize("radius", [1e3, 1e12, 1e30])
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_radii_beyond_the_data_leave_a_constant(loss, radius):
    problem, k = data(seed=1, loss=loss)
    found = solve_classes(problem, k, radius=radius, limits=Limits(200, 1e-3))
    assert found.status == "converged"
    assert not found.coef.any()
    share = np.bincount(problem.y) / len(problem.y)
    best = -(share * np.log(share)).sum() if loss == "logistic" else 1.0  # no class has half
    assert found.objective == pytest.approx(best, rel=1e-9)


def test_weights_are_copies():
    problem, k = data(seed=6, n=40)
    times = np.random.default_rng(0).integers(0, 4, 40)
    X, y = np.repeat(problem.X, times, axis=0), np.repeat(problem.y, times)
    copies = RidgeData(X, y, loss=problem.loss)
    weighted = RidgeData(problem.X, problem.y, weight=times, loss=problem.loss)
    found = [solve_classes(one, k, radius=1.0) for one in (weighted, copies)]
    np.testing.assert_allclose(found[0].coef, found[1].coef, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found[0].intercept, found[1].intercept, rtol=1e-8)


def test_nothing_moves_is_plain_softmax():
    problem, k = data(seed=3)
    found = solve_classes(problem, k, radius=0.0, alpha=0.1, limits=Limits(500, 1e-8))
    X, y = problem.X, problem.y

    def plain(v):
        W, b = v[:9].reshape(3, 3), v[9:]
        f = X @ W.T + b
        losses = np.log(np.exp(f).sum(axis=1)) - f[np.arange(len(f)), y]
        return losses.mean() + 0.05 * (W**2).sum()

    other = minimize(plain, np.zeros(12), tol=1e-12)
    assert found.objective == pytest.approx(other.fun, rel=1e-7)
    assert found.relative_gap <= 1e-6


def test_sparse_and_batches_are_the_same_fit():
    problem, _ = data(seed=4, n=150)
    X, y = problem.X * (np.random.default_rng(0).random(problem.X.shape) < 0.5), problem.y

    def new():
        return DROClassifier(Wasserstein(0.1), reference="empirical", tol=1e-6)

    dense = new().fit(X, y)
    thin = new().fit(sparse.csr_array(X), y)
    batches = new().fit_batches([(X[:70], y[:70]), (X[70:], y[70:])])
    for other in (thin, batches):
        assert other.certificate_.upper == pytest.approx(dense.certificate_.upper, rel=1e-7)
        np.testing.assert_allclose(other.coef_, dense.coef_, rtol=1e-4, atol=1e-5)
    assert dense.optimality_gap_ <= 1e-6
    assert dense.certificate_.proof == "strong-concavity"


def test_the_stored_worst_case_attains_the_certificate():
    from sklearn.datasets import load_iris

    X, y = load_iris(return_X_y=True)
    model = DROClassifier(Wasserstein(0.1), reference="empirical").fit(X, y)
    certificate = model.certificate_
    assert model.status_ == "converged"
    assert certificate.relative_gap <= 1e-3
    assert certificate.upper <= 0.18557  # an earlier solver ended here
    moved = model.worst_case_.transport(X, y, random_state=0)
    assert ((moved - X) ** 2).sum(axis=1).mean() <= 0.01 * (1 + 1e-2)
    assert model.worst_case_.risk() == pytest.approx(certificate.worst_case_risk, rel=1e-9)


def test_columns_that_cannot_move():
    problem, _ = data(seed=5)
    model = DROClassifier(Wasserstein(0.3, immutable=[0]), reference="empirical")
    model.fit(problem.X, problem.y)
    certificate = model.certificate_
    assert model.status_ == "converged"
    assert certificate.relative_gap <= 1e-3
    moved = model.worst_case_.transport(problem.X, problem.y, random_state=0)
    np.testing.assert_array_equal(moved[:, 0], problem.X[:, 0])


def test_steps_do_not_run_away_along_directions_without_curvature(seed):
    # Rows that are all sure leave the intercepts of classes nobody goes to without any.
    random = np.random.default_rng(seed)
    y = np.arange(54) % 4
    X = 2.5 * random.standard_normal((4, 6))[y] + random.standard_normal((54, 6))
    problem = RidgeData(X, y, loss=get_loss("hinge", "classification", 4))
    found = solve_classes(problem, 4, radius=0.11, alpha=1e-3, limits=Limits(200, 1e-2))
    assert found.status == "converged"
    check(found, problem, random, radius=0.11, alpha=1e-3)
