"""Problems with known answers on which a solver once stopped early and called it converged.

Kinks meet steep or few data here: starting points beside a kink, linear parts without curvature,
constant data, optima at a vertex. Each is an instance of a kind; the random problems in
``tests/minimax/test_random_problems.py`` ask for the rest.
"""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_diabetes, make_classification
from sklearn.exceptions import ConvergenceWarning

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, Group, TotalVariation, Wasserstein
from drojko.problems import newsvendor, portfolio
from tests._oracles import Problem, Scalar, optimum

LINE = np.arange(8.0)[:, None]
HALVES = [0] * 4 + [1] * 4


def huber(ambiguity, **settings) -> DRORegressor:
    return DRORegressor(ambiguity, loss="huber", reference="empirical", **settings)


def quantile(ambiguity, level: float, **settings) -> DRORegressor:
    settings = {"loss": "quantile", "quantile": level, "reference": "empirical", **settings}
    return DRORegressor(ambiguity, **settings)


# Steep lines that the Huber loss fits exactly ----------------------------------------------------


@pytest.mark.parametrize(
    ("ambiguity", "slope", "groups"),
    [
        (Group(), 10.0, HALVES),
        (Group(0.3), 10.0, HALVES),
        (Group(), 100.0, [0, 1] * 4),
        (Group(0.3), 100.0, [0, 1] * 4),
        (Wasserstein(0.0), 100.0, None),
    ],
    ids=repr,
)
def test_huber_finds_the_line_that_all_rows_lie_on(ambiguity, slope, groups):
    fit = huber(ambiguity).fit(LINE, slope * LINE[:, 0], groups=groups)
    assert fit.status_ == "converged"
    # Of the flat start's 1.35 * slope * 2, no more than what rounding leaves.
    assert fit.certificate_.upper <= 1e-9 * slope
    assert abs(fit.coef_[0] - slope) <= 1e-6 * slope


def test_huber_near_the_line_in_a_small_transport_ball():
    problem = Problem("w2", Scalar("huber", 1.35), LINE, 100.0 * LINE[:, 0], radius=0.01)
    truth = optimum(problem)
    assert truth.error < 1e-6
    fit = huber(Wasserstein(0.01)).fit(problem.X, problem.y)
    assert fit.status_ == "converged"
    assert fit.n_iter_ < 200  # 500 steps were not enough
    assert problem.worst_case(fit.coef_, fit.intercept_)[0] <= truth.high * (1 + 1e-3)
    assert fit.certificate_.upper <= truth.high * (1 + 2e-3)
    assert fit.certificate_.lower >= truth.low * (1 - 2e-3)


def test_huber_of_groups_with_residuals_of_thousands():
    X, y = load_diabetes(return_X_y=True)
    X, y, groups = X[:100, :3], 1e3 * y[:100], np.arange(100) % 2
    problem = Problem("group", Scalar("huber", 1.35), X, y, radius=0.2, groups=groups)
    truth = optimum(problem)
    fit = huber(Group(0.2)).fit(X, y, groups=groups)
    assert fit.status_ == "converged"
    assert problem.worst_case(fit.coef_, fit.intercept_)[0] <= truth.high * (1 + 1e-3)


# Quantiles of a handful of numbers ---------------------------------------------------------------


def test_priced_quantile_of_four_numbers():
    fit = quantile(KL(penalty=5.0), 0.9).fit(np.ones((4, 1)), [0.22, 0.04, 0.17, -1.29])
    assert fit.status_ == "converged"
    assert fit.certificate_.upper == pytest.approx(0.0439, abs=5e-5)


@pytest.mark.parametrize("level", [0.1, 0.9])
@pytest.mark.parametrize(
    ("kind", "sizes", "ambiguity"),
    [
        ("kl", {"radius": 0.3}, KL(0.3)),
        ("kl", {"penalty": 5.0}, KL(penalty=5.0)),
        ("chi2", {"radius": 0.5}, ChiSquare(0.5)),
        ("cvar", {"radius": 0.5}, CVaR(0.5)),
        ("cr", {"k": 0.5, "radius": 0.2}, CressieRead(0.5, 0.2)),
        ("cr", {"k": 3.0, "radius": 0.2}, CressieRead(3.0, 0.2)),
    ],
    ids=lambda value: repr(value) if not isinstance(value, str | dict) else "",
)
def test_robust_quantiles_of_few_numbers_are_least(kind, sizes, ambiguity, level, seed):
    """A convex function of one number, so that a search on the line is the truth."""
    rng = np.random.default_rng(seed)
    worst = 0.0
    for n in range(2, 11):
        for _ in range(2):
            y = np.round(rng.normal(size=n), 2)
            problem = Problem(kind, Scalar("quantile", level), np.ones((n, 1)), y, **sizes)

            def value(b, problem=problem):
                return problem.worst_case(np.zeros(1), b)[1]

            grid = np.concatenate([y, np.linspace(y.min(), y.max(), 30)])
            start = grid[np.argmin([value(b) for b in grid])]
            near = 1.01 * np.ptp(y) / 29 + 1e-12
            found = minimize_scalar(
                value, bounds=(start - near, start + near), method="bounded",
                options={"xatol": 1e-10},
            )  # fmt: skip
            best = min(float(found.fun), value(start))
            fit = quantile(ambiguity, level, max_iter=1000).fit(problem.X, y)
            got = problem.worst_case(fit.coef_, fit.intercept_)[0]
            assert fit.status_ == "converged"
            worst = max(worst, (got - best) / max(best, 1e-12))
    assert worst <= 1e-3  # the estimators' tol


def test_tail_of_two_equal_rows():
    X, y = [[0.0, -1.0, 0.0]] * 2, [0.913, 2.265]
    fit = quantile(CVaR(0.5), 0.9).fit(X, y)
    # Both losses are equal at best: .9 (2.265 - f) = .1 (f - .913), of value .9 * .1 * 1.352.
    assert fit.status_ == "converged"
    assert fit.certificate_.upper == pytest.approx(0.09 * 1.352, rel=1e-3)


@pytest.mark.parametrize(
    "loss", [Scalar("absolute"), Scalar("quantile", 0.1), Scalar("quantile", 0.9)]
)
def test_worst_groups_of_few_rows_are_least(loss, seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        n = int(rng.integers(4, 16))
        X, y = rng.normal(size=(n, int(rng.integers(1, 3)))), np.round(rng.normal(size=n), 1)
        groups = rng.integers(0, 2, n)
        problem = Problem("group", loss, X, y, groups=groups)
        truth = optimum(problem)
        fit = DRORegressor(
            Group(), loss=loss.name, quantile=loss.size if loss.name == "quantile" else 0.5,
            reference="empirical", max_iter=1000,
        ).fit(X, y, groups=groups)  # fmt: skip
        assert fit.status_ == "converged"
        assert problem.worst_case(fit.coef_, fit.intercept_)[0] <= truth.high * (1 + 1e-3) + 1e-9


# Decisions that start beside a kink --------------------------------------------------------------


@pytest.mark.parametrize("demand", [5.0, 1.0, 0.3, 7.1, 1e-3, 1234.5])
def test_constant_demand_in_a_transport_ball(demand):
    """Shortage 9, holding 1: demand may leave by 1 at a slope of 9 or -1, so q hedges.

    By s^2 / 4 price per slope s: the value is the least of price + max(9 (D - q) + 81 / 4 price,
    (q - D) + 1 / 4 price), that is at q - D = 2 / price, price = 3 / 2: 3, whatever D is.
    """
    solution = newsvendor(
        np.full(50, demand), Wasserstein(radius=1.0), holding=1, shortage=9
    ).solve()
    assert solution.status == "converged"
    assert float(np.ravel(solution.params)[0]) == pytest.approx(demand + 4.0 / 3.0, abs=2e-3)
    assert solution.certificate.upper == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize(
    "ambiguity", [KL(0.1), CVaR(0.5), TotalVariation(0.2), ChiSquare(0.5)], ids=repr
)
def test_constant_demand_is_met_where_only_weights_change(ambiguity):
    solution = newsvendor(np.full(50, 5.0), ambiguity, holding=1, shortage=9).solve()
    assert solution.status == "converged"
    assert float(np.ravel(solution.params)[0]) == pytest.approx(5.0, abs=1e-6)
    assert solution.certificate.upper == pytest.approx(0.0, abs=1e-8)


def test_returns_of_zero_leave_nothing_to_improve():
    solution = portfolio(np.zeros((20, 3)), CVaR(0.5)).solve()
    assert solution.status == "converged"
    assert solution.certificate.upper == pytest.approx(0.0, abs=1e-12)


# A constant model ---------------------------------------------------------------------------------


def test_a_constant_optimum_is_said():
    X, y = make_classification(15_000, 20, n_informative=5, flip_y=0.1, random_state=0)
    with pytest.warns(UserWarning, match="constant"):
        fit = DROClassifier(CVaR(alpha=0.2), reference="empirical").fit(X, y)
    assert fit.status_ == "converged"
    # No slope helps where a fifth is as bad as a coin: the constant's loss is log 2.
    assert fit.certificate_.upper == pytest.approx(np.log(2.0), rel=1e-3)


def test_no_other_optimum_is_called_constant():
    X, y = make_classification(500, 5, flip_y=0.1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        DROClassifier(CVaR(alpha=0.9), reference="empirical").fit(X, y)
