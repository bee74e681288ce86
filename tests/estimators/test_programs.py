"""Trained models against the same problems written down as programs, by another hand."""

import warnings

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize
from scipy.spatial.distance import cdist, pdist

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import (
    KL,
    MMD,
    ChiSquare,
    CressieRead,
    CVaR,
    Group,
    Sinkhorn,
    TotalVariation,
    Wasserstein,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ALPHA = 0.05


def problem(seed, regression=False, n=24):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2)) * [1.0, 0.6] + 0.4
    f = X @ rng.normal(size=2) + rng.logistic(size=n)
    y = f if regression else (f > np.median(f)).astype(int)
    weight = rng.uniform(0.5, 2.0, size=n)
    return X, y, weight / weight.sum(), (X[:, 0] > np.median(X[:, 0])).astype(int)


def minimum(build, X, y, w, regression):
    """Least value of a robust risk, given as an expression in convex losses and w, plus ridge."""
    theta, b = cp.Variable(X.shape[1]), cp.Variable()
    f = X @ theta + b
    loss = cp.square(y - f) if regression else cp.logistic(cp.multiply(1.0 - 2.0 * y, f))
    losses = cp.Variable(len(X))  # losses that may be larger: the worst case does not decrease
    value, constraints = build(losses, w)
    ridge = 0.5 * ALPHA * cp.sum_squares(theta)
    program = cp.Problem(cp.Minimize(value + ridge), [loss <= losses, *constraints])
    program.solve(solver=cp.CLARABEL)
    return program.value


def kl(radius):
    def build(losses, w):
        price, level, u = cp.Variable(nonneg=True), cp.Variable(), cp.Variable(w.size)
        cone = cp.ExpCone(losses - level, price * np.ones(w.size), u)
        return level + price * radius, [cone, w @ u <= price]

    return build


def entropic(penalty):
    def build(losses, w):
        return penalty * cp.log_sum_exp(losses / penalty + np.log(w)), []

    return build


def chi_square(radius):
    def build(losses, w):
        eta = cp.Variable()
        over = cp.multiply(np.sqrt(w), cp.pos(losses - eta))
        return eta + np.sqrt(1.0 + radius) * cp.norm(over), []

    return build


def cressie_read(k, radius):
    def build(losses, w):
        eta, conjugate = cp.Variable(), k / (k - 1.0)
        over = cp.multiply(w ** (1.0 / conjugate), cp.pos(losses - eta))
        return eta + (1.0 + k * (k - 1.0) * radius) ** (1.0 / k) * cp.pnorm(over, conjugate), []

    return build


def variation(radius):
    def build(losses, w):
        eta = cp.Variable()
        return radius * cp.max(losses) + (1 - radius) * eta + w @ cp.pos(losses - eta), []

    return build


def variation_priced(penalty):
    def build(losses, w):
        top = cp.Variable()
        return w @ cp.maximum(losses, top - penalty), [losses <= top]

    return build


def tail(alpha):
    def build(losses, w):
        eta = cp.Variable()
        return eta + w @ cp.pos(losses - eta) / alpha, []

    return build


def discrepancy(radius, X, y):
    def build(losses, w):
        h = np.median(pdist(X))
        kernel = np.exp(-(cdist(X, X) ** 2) / (2 * h**2)) * (y[:, None] == y)
        root = np.linalg.cholesky(kernel + 1e-12 * np.eye(len(X)))
        a, base = cp.Variable(len(X)), cp.Variable()
        f = root @ a
        return base + w @ f + radius * cp.norm(a), [losses <= base + f]

    return build


def two_groups(radius, groups):
    def build(losses, w):
        masses = np.array([w[groups == g].sum() for g in (0, 1)])
        risks = [cp.sum(cp.multiply(w, losses)[groups == g]) / masses[g] for g in (0, 1)]
        ends = [np.clip(masses[0] + s * radius, 0, 1) for s in (-1, 1)]
        return cp.maximum(*(q * risks[0] + (1 - q) * risks[1] for q in ends)), []

    return build


REWEIGHTINGS = {
    "kl": (KL(0.15), kl(0.15)),
    "kl-penalty": (KL(penalty=2.0), entropic(2.0)),
    "chi-square": (ChiSquare(0.6), chi_square(0.6)),
    "cressie-read": (CressieRead(3.0, 0.2), cressie_read(3.0, 0.2)),
    "tv": (TotalVariation(0.2), variation(0.2)),
    "tv-penalty": (TotalVariation(penalty=0.7), variation_priced(0.7)),
    "cvar": (CVaR(0.35), tail(0.35)),
}


def fit(ambiguity, X, y, w, regression=False, groups=None, tol=1e-8):
    kind = DRORegressor if regression else DROClassifier
    model = kind(ambiguity, reference="empirical", alpha=ALPHA, tol=tol, max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y, sample_weight=w, groups=groups)
    return model, model.certificate_.upper + 0.5 * ALPHA * float((model.coef_**2).sum())


@pytest.mark.promise(16)
@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("name", REWEIGHTINGS)
@pytest.mark.parametrize("instance", range(2))
def test_reweightings(name, regression, instance, seed):
    X, y, w, _ = problem(seed + instance, regression)
    ambiguity, build = REWEIGHTINGS[name]
    expected = minimum(build, X, y, w, regression)
    assert fit(ambiguity, X, y, w, regression)[1] == pytest.approx(expected, rel=2e-5)


@pytest.mark.promise(16)
@pytest.mark.parametrize("instance", range(2))
def test_kernels_and_groups(instance, seed):
    X, y, w, groups = problem(seed + instance)
    expected = minimum(discrepancy(0.05, X, y), X, y, w, False)
    assert fit(MMD(radius=0.05), X, y, w)[1] == pytest.approx(expected, rel=2e-5)
    for radius in (0.2, 1.0):
        expected = minimum(two_groups(radius, groups), X, y, w, False)
        found = fit(Group(radius), X, y, w, groups=groups)[1]
        assert found == pytest.approx(expected, rel=2e-5)


@pytest.mark.promise(16)
@pytest.mark.parametrize("label_cost", [0.4, np.inf])
@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_order_one_with_labels(norm, label_cost, seed):
    """Logistic regression with a label cost (Shafieezadeh-Abadeh et al., 1710.10016)."""
    X, y, w, _ = problem(seed)
    theta, b, price = cp.Variable(2), cp.Variable(), cp.Variable()
    margin = cp.multiply(2.0 * y - 1.0, X @ theta + b)
    s = cp.Variable(len(X))
    constraints = [
        cp.logistic(-margin) <= s,
        cp.norm(theta, {1: "inf", 2: 2}.get(norm, 1)) <= price,
    ]
    if np.isfinite(label_cost):
        constraints.append(cp.logistic(margin) - label_cost * price <= s)
    objective = 0.15 * price + w @ s + 0.5 * ALPHA * cp.sum_squares(theta)
    program = cp.Problem(cp.Minimize(objective), constraints)
    program.solve(solver=cp.CLARABEL)
    ball = Wasserstein(0.15, order=1, norm=norm, label_cost=label_cost)
    assert fit(ball, X, y, w)[1] == pytest.approx(program.value, rel=2e-5)


@pytest.mark.promise(16)
@pytest.mark.parametrize("regression", [False, True])
def test_sinkhorn_on_a_grid(regression, seed):
    """The dual with the noise on a grid of two columns, minimised by another method."""
    X, y, w, _ = problem(seed, regression, n=16)
    y = y + X @ [2.0, -2.0] if regression else y  # far from constant
    epsilon, radius = 0.1, 0.02
    nodes, mass = np.polynomial.hermite_e.hermegauss(48)
    mass = mass / mass.sum()
    noise = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2) * np.sqrt(epsilon / 2)
    mass = np.outer(mass, mass).ravel()

    def value(point):
        theta, b, price = point[:2], point[2], np.exp(point[3])
        f = (X @ theta + b)[:, None] + noise @ theta
        loss = (y[:, None] - f) ** 2 if regression else np.logaddexp(0, (1 - 2 * y[:, None]) * f)
        t = loss / (price * epsilon)
        top = t.max(1, keepdims=True)
        inner = top[:, 0] + np.log(np.exp(t - top) @ mass)
        ridge = 0.5 * ALPHA * theta @ theta
        return price * radius + price * epsilon * (w @ inner) + ridge

    model, found = fit(Sinkhorn(epsilon, radius=radius), X, y, w, regression)
    parameters = np.append(np.ravel(model.coef_), model.intercept_)
    here = np.append(parameters, np.log(model.certificate_.penalty))
    assert value(here) == pytest.approx(found, rel=1e-6)
    for start in (here + 0.05, np.array([0.5, -0.5, 0.0, 0.0])):
        best = minimize(value, start, method="BFGS", options={"gtol": 1e-7})
        assert found <= best.fun * (1 + 1e-6)


@pytest.mark.promise(16)
@pytest.mark.parametrize("instance", range(3))
def test_swaps_by_linear_programming(instance, seed):
    """Nothing but categories moves: a transport program over all rows and categories."""
    rng = np.random.default_rng(seed + instance)
    n, cost, radius = 20, 0.5, 0.4
    level = rng.integers(0, 3, size=n)
    X = np.column_stack([rng.normal(size=n), np.eye(3)[level]])
    y = (X[:, 0] + X[:, 2] - X[:, 3] + rng.logistic(size=n) > 0).astype(int)
    w = np.full(n, 1 / n)
    ball = Wasserstein(radius, immutable=[0], categorical_features=[[1, 2, 3]], swap_cost=cost)
    model, _ = fit(ball, X, y, w, tol=1e-2)
    options = np.stack([np.column_stack([X[:, 0], np.tile(row, (n, 1))]) for row in np.eye(3)], 1)
    f = options @ model.coef_[0] + model.intercept_[0]
    loss = np.logaddexp(0, (1 - 2 * y[:, None]) * f)
    spent = cost * (np.arange(3) != level[:, None])
    program = linprog(
        -loss.ravel(),
        A_ub=[spent.ravel()],
        b_ub=[radius**2],
        A_eq=np.kron(np.eye(n), np.ones(3)),
        b_eq=w,
    )
    assert model.certificate_.upper == pytest.approx(-program.fun, rel=1e-6)
    assert model.certificate_.lower == pytest.approx(-program.fun, rel=1e-6)
