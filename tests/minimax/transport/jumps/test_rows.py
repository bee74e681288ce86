"""Linear fits whose categories are swapped: against all swaps, one by one."""

import itertools

import numpy as np
import pytest

from drojko._driver import Limits
from drojko.ambiguity import Wasserstein
from drojko.losses import get_loss
from drojko.minimax.transport.bound import Ground
from drojko.minimax.transport.linear import solve_ridge
from drojko.minimax.transport.risk import RidgeData, ridge_robust_risk
from drojko.minimax.transport.jumps.groups import Groups
from drojko.minimax.transport.jumps.rows import JumpRows
from drojko.rows import Rows

PRICES = {1: 0.2, 4: 0.4}


def instance(rng, loss, n=25, label_cost=np.inf):
    """A number, three categories, and a code of two values."""
    first, second = rng.integers(0, 3, n), rng.integers(0, 2, n)
    X = np.column_stack([rng.normal(size=n), np.eye(3)[first], second])
    score = X @ [1.0, 1.0, 0.0, -1.0, 0.7] + rng.logistic(size=n)
    y = (score > np.median(score)) * 1.0 if loss in ("logistic", "hinge") else score
    task = "classification" if loss in ("logistic", "hinge") else "regression"
    ball = Wasserstein(1.0, categorical_features=[[1, 2, 3], 4], swap_cost=PRICES)
    cost = ball.resolve(5, None).observed(X)
    return RidgeData(
        X, y, inverse_cost=cost.inverse_weights, loss=get_loss(loss, task),
        swaps=Groups.of(cost, X), label_cost=label_cost,
    )  # fmt: skip


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


@pytest.mark.parametrize(
    ("loss", "radius"), [("logistic", 0.1), ("logistic", 3.0), ("hinge", 0.1), ("squared", 0.1)]
)
@pytest.mark.promise(1)
def test_the_bound_is_below_every_model(loss, radius, seed):
    rng = np.random.default_rng(seed)
    data = instance(rng, loss)
    found = solve_ridge(data, radius=radius, limits=Limits(200, 1e-4))
    assert found.status == "converged"
    assert found.lower <= found.objective <= found.lower * (1 + 1e-4)
    for scale in (1e-3, 1e-2, 0.1):
        for _ in range(5):
            coef = found.coef + scale * rng.normal(size=5)
            intercept = found.intercept + scale * float(rng.normal())
            other = ridge_robust_risk(data, coef, intercept, radius=radius).value
            assert other >= found.lower


def test_derivatives(seed):
    rng = np.random.default_rng(seed)
    data = instance(rng, "logistic", n=12)
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
    own[:size, :size] = rows.gram(terms.huu) + terms.Hz
    own[:size, size:] = rows.sum(terms.hup) + terms.Hzp
    own[size:, :size] = own[:size, size:].T
    own[size:, size:] = terms.Hpp
    np.testing.assert_allclose(own, hessian, atol=1e-5)
