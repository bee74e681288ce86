"""Portfolios against conic programs and the closed form of the Gaussian case."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from drojko.ambiguity import KL, ChiSquare, CVaR, TotalVariation, Wasserstein
from drojko.exceptions import InvalidDataError
from drojko.measures import Gaussian
from drojko.problems import portfolio
from tests.problems._oracles import minimum, portfolio_optimum

SETS = [
    Wasserstein(radius=0.003), Wasserstein(penalty=30.0), KL(radius=0.05), ChiSquare(radius=0.1),
    CVaR(alpha=0.5), TotalVariation(radius=0.02),
]  # fmt: skip


@pytest.fixture
def returns(rng):
    factors = rng.normal(size=(150, 2)) @ rng.normal(size=(2, 6)) * 0.008
    return factors + 0.01 * rng.standard_t(4, size=(150, 6)) + 0.001 * rng.normal(size=6)


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_optimum_is_that_of_a_conic_program(returns, ambiguity):
    solution = portfolio(returns, ambiguity, tail=0.1).solve()
    optimum = portfolio_optimum(returns, ambiguity, 0.1)
    assert solution.objective == pytest.approx(optimum, rel=5e-5)  # tol 1e-5 and Clarabel's own
    assert solution.optimality_gap <= 1.1e-5 * solution.objective
    assert solution.certificate.proof == "dual"
    weights = solution.params["weights"]
    assert weights.sum() == pytest.approx(1.0)
    assert weights.min() >= 0


def test_short_positions_and_the_mean(returns):
    ambiguity = ChiSquare(radius=0.1)
    found = portfolio(returns, ambiguity, tail=0.1, long_only=False, mean_weight=0.5).solve()
    optimum = portfolio_optimum(returns, ambiguity, 0.1, 0.5, long_only=False)
    assert found.objective == pytest.approx(optimum, rel=5e-5)
    assert found.params["weights"].sum() == pytest.approx(1.0)
    long = portfolio(returns, ambiguity, tail=0.1, mean_weight=0.5).solve()
    assert found.objective <= long.objective * (1 + 2e-5)


def test_gaussian_reference_against_its_closed_form(rng):
    # CVaR of -theta'z is -theta'm + |S^(1/2) theta| phi(quantile)/beta, the ball adds
    # radius |theta| / sqrt(beta): a conic program without any draws.
    import cvxpy as cp

    d, tail, radius = 4, 0.1, 0.01
    root = 0.02 * rng.normal(size=(d, d)) + 0.02 * np.eye(d)
    m, S = 0.002 * rng.normal(size=d), root @ root.T
    factor = norm.pdf(norm.ppf(1 - tail)) / tail

    def value(theta, norm2):
        return -m @ theta + factor * norm2(root.T @ theta) + radius * tail**-0.5 * norm2(theta)

    theta = cp.Variable(d)
    optimum = minimum(value(theta, cp.norm), [cp.sum(theta) == 1, theta >= 0])
    problem = portfolio(Gaussian(m, S), Wasserstein(radius=radius), tail=tail)
    solution = problem.solve(random_state=0)
    assert value(solution.params["weights"], np.linalg.norm) <= optimum * (1 + 1e-3)
    error = solution.certificate.standard_error
    assert abs(solution.objective - optimum) < 5 * error + 1e-3 * optimum


def test_worst_case_of_a_fixed_portfolio_is_the_formula(returns):
    tail, radius = 0.1, 0.004
    weights = np.full(6, 1 / 6)
    loss = np.sort(-returns @ weights)[::-1]
    threshold = loss[int(tail * len(loss)) - 1]  # 15 of 150 samples: an atom's end
    cvar = loss[: int(tail * len(loss))].mean()
    problem = portfolio(returns, Wasserstein(radius=radius), tail=tail)
    best = min(
        problem.evaluate({"weights": weights, "threshold": t})[0].upper
        for t in np.linspace(threshold, threshold + 0.02, 201)
    )
    expected = cvar + radius * tail**-0.5 * np.linalg.norm(weights)
    assert best == pytest.approx(expected, rel=1e-4)  # a grid of thresholds
    assert best >= expected * (1 - 1e-9)


def test_immutable_assets_do_not_move(returns):
    frame = pd.DataFrame(returns, columns=list("abcdef"))
    found = portfolio(frame, Wasserstein(radius=0.02, immutable=["a"]), tail=0.1).solve()
    table = found.worst_case.displacement().set_index("feature")
    assert table.loc["a", "rms"] == 0
    free = portfolio(frame, Wasserstein(radius=0.02), tail=0.1).solve()
    assert found.params["weights"][0] > free.params["weights"][0]  # what is certain is preferred
    assert found.objective <= free.objective


def test_scaling_returns_and_radius_together(returns):
    one = portfolio(returns, Wasserstein(radius=0.003), tail=0.1).solve()
    hundred = portfolio(100 * returns, Wasserstein(radius=0.3), tail=0.1).solve()
    assert hundred.objective == pytest.approx(100 * one.objective, rel=3e-5)


def test_largest_weight(returns):
    capped = portfolio(returns, KL(radius=0.05), tail=0.1, max_weight=0.2).solve()
    assert capped.params["weights"].max() <= 0.2 + 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tail": 0.0}, "tail"), ({"mean_weight": -1.0}, "mean_weight"), ({"max_weight": 0.1}, "sum")],
)
def test_mistakes_name_the_setting(returns, arguments, message):
    with pytest.raises(InvalidDataError, match=message):
        portfolio(returns, KL(radius=0.1), **arguments)


def test_returns_are_a_table():
    with pytest.raises(InvalidDataError, match="periods, assets"):
        portfolio(np.zeros(5), KL(radius=0.1))


@pytest.mark.parametrize("ambiguity", [CVaR(alpha=0.5), KL(radius=0.1), Wasserstein(radius=0.1)],
                         ids=repr)  # fmt: skip
def test_returns_of_nothing(ambiguity):
    # All losses are zero: so is the optimum, and nothing is lost by proving it.
    solution = portfolio(np.zeros((20, 3)), ambiguity).solve()
    spread = 0.1 * 0.05**-0.5 / np.sqrt(3) if isinstance(ambiguity, Wasserstein) else 0.0
    assert solution.status == "converged"
    assert solution.objective == pytest.approx(spread, rel=1e-5, abs=1e-12)
    assert solution.relative_gap <= 1e-5
