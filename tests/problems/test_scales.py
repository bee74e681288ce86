"""Units of losses and of decisions do not matter: the same optimum in any of them."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from drojko.ambiguity import KL, CVaR, Wasserstein
from drojko.exceptions import InvalidDataError
from drojko.problems import MinimaxProblem, least_squares, newsvendor, portfolio
from tests.problems._oracles import minimum, newsvendor_optimum, portfolio_optimum, reweighted

UNITS = [1e-7, 1e-3, 1.0, 1e2, 1e5, 1e8]


def honest(solution, optimum, rel=2e-5):
    """Near the optimum, and the bound below it."""
    assert solution.status == "converged"
    assert solution.objective == pytest.approx(optimum, rel=rel)
    assert solution.lower_bound <= optimum * (1 + 1e-7)
    assert solution.optimality_gap <= rel * abs(optimum)
    assert solution.relative_gap <= rel


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4])
def test_least_squares(rng, unit, offset):
    A = rng.normal(size=(30, 3))
    x = offset + np.array([1.0, 2.0, 3.0])
    b = A @ x + 0.3 * rng.normal(size=30)
    free = cp.Variable(3)
    # Moved by the offset, the least squares are the same: the program is solved near the origin.
    losses, s = cp.square(A @ free - (b - A @ np.full(3, offset))), 50.0
    log = s * cp.log_sum_exp(losses / s - np.log(30))
    solution = least_squares(A, unit * b, KL(penalty=s * unit**2)).solve()
    honest(solution, unit**2 * minimum(log, []))
    np.testing.assert_allclose(solution.params / unit - offset, free.value, atol=0.01)


@pytest.mark.parametrize("unit", [1.0, 1e2, 1e4])
def test_least_squares_whose_coefficients_move(unit):
    # Penalty l: l / (l - |u|^2) MSE with u = (x, -1), where only the entry -1 has no unit.
    rng = np.random.default_rng(0)
    A = rng.normal(size=(30, 3))
    b = A @ [1.0, 2.0, 3.0] + 0.3 * rng.normal(size=30)
    penalty = 50.0 * unit**2
    solution = least_squares(A, unit * b, Wasserstein(penalty=penalty)).solve()

    def value(x):
        room = penalty - unit**2 * x @ x - 1.0
        return penalty / room * np.mean((A @ x - b) ** 2) if room > 0 else np.inf

    x = np.linalg.lstsq(A, b, rcond=None)[0]
    step = 0.1  # a pattern search
    while step > 1e-9:
        trials = [x + step * e for e in np.vstack([np.eye(3), -np.eye(3)])]
        best = min(trials, key=value)
        x, step = (best, step) if value(best) < value(x) else (x, 0.5 * step)
    honest(solution, unit**2 * value(x))


@pytest.mark.parametrize("unit", [1e-12, *UNITS])
@pytest.mark.parametrize("kind", ["transport", "kl"])
@pytest.mark.parametrize("long_only", [True, False])
def test_portfolio(unit, kind, long_only):
    rng = np.random.default_rng(0)
    R = 0.01 * rng.normal(size=(80, 3)) @ np.diag([1, 2, 3]) + 0.001
    ambiguity = {"transport": Wasserstein(0.01), "kl": KL(radius=0.01)}[kind]
    scaled = {"transport": Wasserstein(0.01 * unit), "kl": ambiguity}[kind]
    optimum = unit * portfolio_optimum(R, ambiguity, 0.05, long_only=long_only)
    honest(portfolio(unit * R, scaled, long_only=long_only).solve(), optimum)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("offset", [0.0, 500.0, 1e5])
def test_newsvendor(rng, unit, offset):
    z = rng.gamma(4.0, 25.0, size=60) + offset
    for ambiguity, scaled in ((Wasserstein(10.0), Wasserstein(10.0 * unit)), (KL(0.05), KL(0.05))):
        centred = newsvendor_optimum(z - offset, ambiguity, 1.0, 3.0)
        solution = newsvendor(unit * z, scaled, shortage=3.0).solve()
        honest(solution, unit * centred)


@pytest.mark.parametrize("loss_unit", [1e-7, 1.0, 1e8])
@pytest.mark.parametrize("unit", [1e-5, 1.0, 1e5])
@pytest.mark.parametrize("convex", [True, None])
def test_absolute_differences(rng, loss_unit, unit, convex):
    z = rng.gamma(4.0, 25.0, size=50) + 300.0
    q = cp.Variable()
    optimum = loss_unit * unit * minimum(*reweighted(cp.abs(z - q), KL(radius=0.01)))
    problem = MinimaxProblem(
        lambda q, Z: loss_unit * (Z[:, 0] - q).abs(), 0.0, unit * z[:, None], KL(radius=0.01),
        convex=convex,
    )  # fmt: skip
    if convex:
        honest(problem.solve(), optimum)
    else:  # a kink, for a method of smooth losses: it may say that it is not done, not be wrong
        found = _quietly(problem)
        assert found.objective == pytest.approx(optimum, rel=1e-4)
        assert found.optimality_gap == np.inf


def _quietly(problem, **settings):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return problem.solve(**settings)


@pytest.mark.parametrize("loss_unit", [1e-7, 1.0, 1e8])
@pytest.mark.parametrize("unit", [1e-5, 1.0, 1e5])
@pytest.mark.parametrize("convex", [True, None])
def test_smooth_losses_far_from_the_start(rng, loss_unit, unit, convex):
    # In one dimension and without units a search over intervals finds the optimum.
    z = rng.normal(size=40) * np.linspace(0.2, 2.0, 40) + 300.0

    def loss(t, z):
        return loss_unit * (1.0 + ((t - z[:, 0]) / unit) ** 2).sqrt()

    def value(t):
        losses = np.sqrt(1.0 + (t - z) ** 2)
        return 0.5 * np.log(np.mean(np.exp((losses - losses.max()) / 0.5))) + losses.max()

    best = minimize_scalar(value, bounds=(290.0, 310.0), method="bounded", options={"xatol": 1e-9})
    problem = MinimaxProblem(
        loss, 0.0, unit * z[:, None], KL(penalty=0.5 * loss_unit), convex=convex
    )
    solution = problem.solve()
    assert solution.status == "converged"
    assert solution.objective == pytest.approx(loss_unit * best.fun, rel=1.2e-5)
    assert solution.params / unit == pytest.approx(best.x, abs=0.02 if convex else 1e-3)


@pytest.mark.parametrize("convex", [True, None])
def test_variables_in_different_units(rng, convex):
    z = rng.normal(size=(60, 3)) + np.array([5.0, -3.0, 300.0])
    units = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)
    problems = [
        MinimaxProblem(
            lambda t, z, units=s: ((t / units - z) ** 2).sum(1), np.zeros(3), z, KL(radius=0.1),
            convex=convex,
        )
        for s in (torch.ones(3).double(), units)
    ]  # fmt: skip
    plain, scaled = (problem.solve(tol=1e-7) for problem in problems)
    assert plain.status == scaled.status == "converged"
    assert scaled.objective == pytest.approx(plain.objective, rel=1e-6)
    np.testing.assert_allclose(scaled.params / units.numpy(), plain.params, atol=2e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tol", [1e-3, 1e-5])
def test_an_optimum_as_start_is_surrounded(seed, tol):
    # Nearly collinear columns, and no slope at the start: only other points tell of scales.
    rng = np.random.default_rng(seed)
    A = np.vander(rng.uniform(-1, 1, size=14), 6, increasing=True)
    b = A @ [0.5, -1.0, 0.0, 1.5, 0.0, -0.5] + 0.05 * rng.normal(size=14)
    optimum = np.mean((A @ np.linalg.lstsq(A, b, rcond=None)[0] - b) ** 2)
    honest(least_squares(A, b, Wasserstein(radius=0.0)).solve(tol=tol), optimum, rel=2 * tol)


def test_no_bound_without_an_optimum(rng):
    # The infimum is approached far away and never attained: nothing is proven, and it says so.
    z = rng.uniform(1.0, 2.0, size=(20, 1))
    problem = MinimaxProblem(
        lambda t, z: 1.0 / (1.0 + torch.nn.functional.softplus(t) * z[:, 0]),
        0.0,
        z,
        CVaR(alpha=1.0),
    )
    assert _quietly(problem).optimality_gap == np.inf
    convex = MinimaxProblem(lambda t, z: -t * z[:, 0], 0.0, z, CVaR(alpha=1.0), convex=True)
    found = _quietly(convex, max_iter=40)
    assert found.status == "unbounded"
    assert found.direction == 1.0
    assert found.optimality_gap == np.inf
    assert np.isnan(found.relative_gap)


def test_numpy_integers_and_words(rng):
    z = rng.normal(size=(20, 2))
    problem = MinimaxProblem(lambda t, z: ((t - z) ** 2).sum(1), np.zeros(2), z, KL(radius=0.1))
    assert problem.solve(max_iter=np.int64(200)).status == "converged"
    for wrong in (True, 3.0):
        with pytest.raises(InvalidDataError, match="max_iter"):
            problem.solve(max_iter=wrong)
    for setting in ({"tail": "a"}, {"mean_weight": "a"}, {"max_weight": "a"}):
        with pytest.raises(InvalidDataError, match="portfolio"):
            portfolio(z, KL(radius=0.1), **setting)
