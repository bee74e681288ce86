"""Linear fits whose categories are swapped: against all swaps, one by one."""

import itertools

import numpy as np
import pytest

from drojko._driver import Limits
from drojko.ambiguity import Wasserstein
from drojko.losses import get_loss
from drojko.minimax.transport.bound import Ground
from drojko.minimax.transport.jumps.groups import Box, Groups
from drojko.minimax.transport.jumps.rows import JumpRows
from drojko.minimax.transport.linear import solve_ridge
from drojko.minimax.transport.risk import RidgeData, ridge_robust_risk
from drojko.rows import Rows

PRICES = {1: 0.2, 4: 0.4}


def instance(rng, loss, n=25, label_cost=np.inf, room=None):
    """A number, with ``room`` beyond its values, three categories, and a code of two values."""
    first, second = rng.integers(0, 3, n), rng.integers(0, 2, n)
    X = np.column_stack([rng.normal(size=n), np.eye(3)[first], second])
    score = X @ [1.0, 1.0, 0.0, -1.0, 0.7] + rng.logistic(size=n)
    y = (score > np.median(score)) * 1.0 if loss in ("logistic", "hinge") else score
    task = "classification" if loss in ("logistic", "hinge") else "regression"
    ball = Wasserstein(1.0, categorical_features=[[1, 2, 3], 4], swap_cost=PRICES)
    cost = ball.resolve(5, None).observed(X)
    return RidgeData(
        X, y, inverse_cost=cost.inverse_weights, loss=get_loss(loss, task),
        swaps=Groups.of(cost, X), label_cost=label_cost, box=None if room is None else box(X, room),
    )  # fmt: skip


def box(X, room):
    """Around the values of each column."""
    return Box(X.min(axis=0) - room, X.max(axis=0) + room)


def dual(data, coef, intercept, lam, radius):
    """The bound at a price, over every combination of categories and labels."""
    import torch

    best = np.full(len(data.y), -np.inf)
    for one, two in itertools.product(range(3), range(2)):
        Z = data.X.copy()
        Z[:, 1:4], Z[:, 4] = np.eye(3)[one], two
        fee = PRICES[1] * (Z[:, 1:4] != data.X[:, 1:4]).any(1)
        fee = fee + PRICES[4] * (Z[:, 4] != data.X[:, 4])
        u = torch.from_numpy(Z @ coef + intercept)
        for y, toll in ((data.y, 0.0), (1 - data.y, data.label_cost))[: 1 + data.flips]:
            kappa = lam / data.squared_norm(coef)
            value = data.loss.robust_value(u, torch.from_numpy(y), kappa).numpy()
            best = np.maximum(best, value - lam * (fee + toll))
    return lam * radius**2 + float(data.weight @ best)


@pytest.mark.parametrize("label_cost", [np.inf, 0.3])
@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared"])
@pytest.mark.promise(1)
def test_fixed_models_by_enumeration(loss, label_cost, seed):
    if loss == "squared" and label_cost < np.inf:
        pytest.skip("targets stay")
    rng = np.random.default_rng(seed)
    data = instance(rng, loss, label_cost=label_cost)
    for radius in (0.05, 0.4):
        coef, intercept = rng.normal(size=5), float(rng.normal())
        found = ridge_robust_risk(data, coef, intercept, radius=radius)
        assert found.attained == pytest.approx(found.value, rel=1e-9)
        assert found.value == pytest.approx(dual(data, coef, intercept, found.penalty, radius))
        for factor in (0.9, 1.1):
            lam = max(found.penalty * factor, 1.01 * data.loss.growth * data.squared_norm(coef))
            assert dual(data, coef, intercept, lam, radius) >= found.value * (1 - 1e-9)


@pytest.mark.parametrize("room", [None, 0.1])
@pytest.mark.parametrize(
    ("loss", "radius", "label_cost"),
    [
        ("logistic", 0.1, np.inf), ("logistic", 3.0, np.inf), ("logistic", 0.3, 0.5),
        ("hinge", 0.1, np.inf), ("hinge", 0.3, 0.5), ("squared", 0.1, np.inf),
        ("huber", 0.2, np.inf), ("absolute", 0.1, np.inf),
    ],
)  # fmt: skip
@pytest.mark.promise(1)
def test_the_bound_is_below_every_model(loss, radius, label_cost, room, seed):
    rng = np.random.default_rng(seed)
    data = instance(rng, loss, label_cost=label_cost, room=room)
    found = solve_ridge(data, radius=radius, limits=Limits(200, 1e-4))
    assert found.status == "converged"
    assert found.lower <= found.objective <= found.lower * (1 + 1e-4)
    for scale in (1e-3, 1e-2, 0.1):
        for _ in range(5):
            coef = found.coef + scale * rng.normal(size=5)
            intercept = found.intercept + scale * float(rng.normal())
            other = ridge_robust_risk(data, coef, intercept, radius=radius).value
            assert other >= found.lower


@pytest.mark.parametrize("room", [None, 0.2])
@pytest.mark.parametrize("loss", ["logistic", "hinge", "huber"])
def test_derivatives(loss, room, seed):
    rng = np.random.default_rng(seed)
    label_cost = np.inf if loss == "huber" else 0.5
    data = instance(rng, loss, n=12, room=room, label_cost=label_cost)
    rows = Rows(data.X, data.y, data.weight)
    ground = Ground.of(rows, data, 0.4, None, 0.0)
    objective = JumpRows(rows, data.loss, ground, data, 0.0)
    z, p = objective.start()
    z, mu = z + 0.3 * rng.normal(size=len(z)), 0.05
    p = objective.tidy(z, rows.predict(z), p, mu)

    def value(point, second=False):
        terms = objective.terms(point[:-1], point[-1:], rows.predict(point[:-1]), mu, {}, second)
        return terms, np.append(rows.sum(terms.gu) + terms.gz, terms.gp)

    point = np.append(z, p)
    terms, gradient = value(point, True)
    assert len(terms.detail[1].extra.options.row) > 17
    step = 1e-6 * np.eye(len(point))
    ends = [(value(point + e), value(point - e)) for e in step]
    slopes = [(a[0].value - b[0].value) / 2e-6 for a, b in ends]
    np.testing.assert_allclose(gradient, slopes, atol=1e-7)
    hessian = np.array([(a[1] - b[1]) / 2e-6 for a, b in ends])
    size = len(z)
    own = np.zeros_like(hessian)
    own[:size, :size] = terms.Hz
    own[:size, size:] = terms.Hzp
    own[size:, :size] = own[:size, size:].T
    own[size:, size:] = terms.Hpp
    np.testing.assert_allclose(own, hessian, atol=1e-5)


def program(X, y, radius, box, label_cost, alpha=0.0):
    """The least worst-case hinge loss within bounds, a cone program of the dual of each move."""
    cp = pytest.importorskip("cvxpy")
    n, d = X.shape
    theta, b, lam = cp.Variable(d), cp.Variable(), cp.Variable(nonneg=True)
    worst, rules = cp.Variable(n, nonneg=True), []
    for i, own in itertools.product(range(n), (True, False)):
        if not own and np.isinf(label_cost):
            continue
        s = (1.0 if own else -1.0) * (2.0 * y[i] - 1.0)
        up, down = cp.Variable(d, nonneg=True), cp.Variable(d, nonneg=True)
        rest = cp.Variable(d, nonneg=True)
        rules += [
            cp.quad_over_lin(-s * theta[j] - up[j] + down[j], 4.0 * lam) <= rest[j]
            for j in range(d)
        ]
        room = up @ (box.upper - X[i]) - down @ (box.lower - X[i])
        fee = 0.0 if own else lam * label_cost
        rules.append(worst[i] >= 1.0 - s * (X[i] @ theta + b) + cp.sum(rest) + room - fee)
    objective = lam * radius**2 + cp.sum(worst) / n + 0.5 * alpha * cp.sum_squares(theta)
    return float(cp.Problem(cp.Minimize(objective), rules).solve(solver=cp.CLARABEL))


@pytest.mark.parametrize("label_cost", [np.inf, 0.4])
@pytest.mark.parametrize(("radius", "alpha"), [(0.1, 0.0), (0.4, 0.05)])
@pytest.mark.promise(1)
def test_bounds_and_labels_by_a_cone_program(radius, alpha, label_cost, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(12, 2))
    y = (X[:, 0] + 0.5 * rng.normal(size=12) > 0) * 1.0
    data = RidgeData(X, y, loss=get_loss("hinge"), label_cost=label_cost, box=box(X, 0.05))
    found = solve_ridge(data, radius=radius, alpha=alpha, limits=Limits(200, 1e-5))
    assert found.status == "converged"
    known = program(X, y, radius, data.box, label_cost, alpha)
    assert found.objective == pytest.approx(known, rel=1e-5)
    assert found.lower <= known * (1 + 1e-6)


@pytest.mark.parametrize("penalty", [0.3, 2.0])
@pytest.mark.parametrize("loss", ["logistic", "hinge", "huber"])
def test_bounds_at_a_penalty(loss, penalty, seed):
    rng = np.random.default_rng(seed)
    data = instance(rng, loss, room=0.1)
    found = solve_ridge(data, penalty=penalty, limits=Limits(200, 1e-5))
    assert found.status == "converged"
    worst = ridge_robust_risk(data, found.coef, found.intercept, penalty=penalty)
    assert found.objective == pytest.approx(worst.value, rel=1e-9)
    for _ in range(10):
        coef = found.coef + 0.01 * rng.normal(size=5)
        other = ridge_robust_risk(data, coef, found.intercept, penalty=penalty).value
        assert other >= found.lower


def test_bounds_that_nothing_reaches_are_none(seed):
    rng = np.random.default_rng(seed)
    data = instance(rng, "logistic")
    far = instance(np.random.default_rng(seed), "logistic", room=1e6)
    found, same = (solve_ridge(d, radius=0.2, limits=Limits(200, 1e-6)) for d in (data, far))
    assert found.objective == pytest.approx(same.objective, rel=2e-6)


def test_a_box_that_is_full_bounds_the_loss(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(30, 2))
    y = X @ [1.0, -1.0] + 0.1 * rng.normal(size=30)
    data = RidgeData(X, y, loss=get_loss("squared", "regression"), box=box(X, 0.0))
    found = ridge_robust_risk(data, np.array([1.0, -1.0]), 0.0, radius=100.0)
    (low, least), (high, most) = data.box.lower, data.box.upper
    worst = np.maximum((high - least - y) ** 2, (low - most - y) ** 2)
    assert found.value == pytest.approx(worst.mean(), rel=1e-9)
    assert found.attained == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared", "absolute"])
def test_bounds_that_leave_no_room_are_the_plain_fit(loss, seed):
    data = instance(np.random.default_rng(seed), loss)
    numbers = np.column_stack([data.X[:, 0], np.full(len(data.y), 2.0)])
    for inverse, room in ((np.zeros(2), 1.0), (np.array([0.0, 1.0]), 0.0)):
        still = RidgeData(
            numbers, data.y, inverse_cost=inverse, loss=data.loss, box=box(numbers, room)
        )
        plain = RidgeData(numbers, data.y, loss=data.loss)
        found = solve_ridge(still, radius=0.3, limits=Limits(200, 1e-6))
        known = solve_ridge(plain, radius=0.0, limits=Limits(200, 1e-6))
        assert found.status == "converged"
        assert found.objective == pytest.approx(known.objective, rel=3e-6)
