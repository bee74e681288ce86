"""Order-1 balls: mean plus radius times slope, by conic programs; what attains it."""

import cvxpy as cp
import numpy as np
import pytest

from drojko.ambiguity import Wasserstein
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from drojko.measures import Gaussian
from drojko.problems import least_squares, newsvendor, portfolio
from tests.problems._oracles import minimum


@pytest.fixture
def returns(rng):
    return 0.01 * rng.normal(size=(100, 2)) @ rng.normal(size=(2, 5)) + 0.01 * rng.normal(
        size=(100, 5)
    )


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_portfolio_is_cvar_plus_a_dual_norm(returns, norm):
    # METHOD 4.7 with p = 1.
    ambiguity = Wasserstein(radius=0.001, order=1, norm=norm)
    solution = portfolio(returns, ambiguity, tail=0.1).solve()
    theta, t = cp.Variable(5), cp.Variable()
    dual = {1: np.inf, 2: 2, np.inf: 1}[norm]
    cvar = t + cp.sum(cp.pos(-returns @ theta - t)) / 10
    value = cvar + 0.001 / 0.1 * cp.norm(theta, dual)
    optimum = minimum(value, [theta >= 0, cp.sum(theta) == 1])
    assert solution.objective == pytest.approx(optimum, rel=5e-5)
    certificate = solution.certificate
    # The supremum is approached: the attained side misses a thousandth of the gain.
    gain = certificate.upper - certificate.nominal_risk
    assert certificate.upper - 1.001e-3 * gain <= certificate.lower <= certificate.upper


def test_newsvendor_orders_the_quantile_whatever_the_radius(rng):
    z = rng.gamma(4.0, 10.0, size=101)
    plain, robust = (
        newsvendor(z, Wasserstein(radius=r, order=1), shortage=3.0).solve(tol=1e-8)
        for r in (0.0, 5.0)
    )
    assert robust.objective == pytest.approx(plain.objective + 3.0 * 5.0, rel=1e-7)
    assert robust.params == pytest.approx(plain.params, rel=1e-4)


def test_a_penalty_limits_the_slope(returns):
    solution = portfolio(returns, Wasserstein(penalty=5.0, order=1), tail=0.1).solve()
    theta, t = cp.Variable(5), cp.Variable()
    cvar = t + cp.sum(cp.pos(-returns @ theta - t)) / 10
    allowed = [theta >= 0, cp.sum(theta) == 1, cp.norm(theta) / 0.1 <= 5.0]
    assert solution.objective == pytest.approx(minimum(cvar, allowed), rel=5e-5)
    with pytest.raises(UnboundedRiskError, match="slope 3"):
        newsvendor([1.0, 2.0], Wasserstein(penalty=2.0, order=1), shortage=3.0).evaluate()


def test_several_products_and_columns_that_stay(rng):
    z = rng.gamma(4.0, 5.0, size=(50, 3))
    cost = np.array([1.0, 2.0, 4.0])
    free = newsvendor(z, Wasserstein(radius=1.0, order=1), shortage=cost)
    fixed = newsvendor(z, Wasserstein(radius=1.0, order=1, immutable=[2]), shortage=cost)
    nominal = free.evaluate()[0].nominal_risk
    assert free.evaluate()[0].upper == pytest.approx(nominal + np.linalg.norm(cost))
    certificate, worst = fixed.evaluate()
    assert certificate.upper == pytest.approx(nominal + np.linalg.norm(cost[:2]))
    assert worst.displacement()["rms"].iloc[2] == 0


def test_the_attained_measure(rng):
    z = rng.gamma(4.0, 10.0, size=60)
    problem = newsvendor(z, Wasserstein(radius=2.0, order=1), shortage=3.0)
    certificate, worst = problem.evaluate(50.0)
    x, image, _, mass = worst.labelled.pairs()
    assert mass @ np.abs(image - x)[:, 0] == pytest.approx(2.0)
    loss = np.maximum(50.0 - image, 3 * (image - 50.0))[:, 0]
    assert mass @ loss == pytest.approx(certificate.lower)
    assert worst.risk() == certificate.lower
    assert "order=2" in repr(worst)


def test_density_and_draws_agree():
    problem = newsvendor(Gaussian([5.0], [[1.0]]), Wasserstein(radius=1.0, order=1))
    _, worst = problem.evaluate(5.0, random_state=0)
    line = np.linspace(-5, 15, 401)[:, None]
    near = np.exp(worst.log_prob(line)).sum() * 0.05
    assert near == pytest.approx(1 - worst.labelled.moved_mass, abs=1e-6)
    assert worst.sample(10, random_state=0).shape == (10, 1)


def test_what_has_no_slope_is_refused():
    with pytest.raises(UnsupportedError, match="slope"):
        least_squares(np.eye(2), np.ones(2), Wasserstein(radius=1.0, order=1))
    with pytest.raises(UnsupportedError, match="bounds"):
        newsvendor([1.0, 2.0], Wasserstein(radius=1.0, order=1, bounds=(0, 9)))
