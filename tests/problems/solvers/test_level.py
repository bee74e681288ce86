"""The bundle method: bounds that hold wherever it starts, gaps that close, regions of all kinds."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drojko._driver import Status
from drojko.ambiguity import KL, CVaR, Wasserstein
from drojko.exceptions import ConvergenceWarning
from drojko.problems import Ball, MinimaxProblem, portfolio
from drojko.problems.families.adversary import decision_model
from drojko.problems.solvers.level import LevelBundle
from drojko.problems.solvers.spectral import SpectralGradient
from tests.problems._oracles import minimum, reweighted


def bowl(t, z):
    """|t - z|^2 with very different steepness of its columns."""
    weights = torch.tensor([100.0, 1.0, 0.01], dtype=torch.float64)
    return ((t - z) ** 2 * weights).sum(1)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    distance=st.sampled_from([0.0, 1e-9, 1e-4, 1.0, 1e3]),
    unit=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_bounds_hold_wherever_it_starts(seed, distance, unit):
    # CVaR of everything is the mean, whose minimiser is known: at it, near it, far from it.
    rng = np.random.default_rng(seed)
    z = unit * rng.normal(size=(30, 3))
    best = z.mean(0)
    optimum = float(bowl(torch.tensor(best), torch.tensor(z)).mean())
    start = best + distance * unit * rng.normal(size=3)
    solution = MinimaxProblem(bowl, start, z, CVaR(alpha=1.0), convex=True).solve(tol=1e-4)
    assert solution.status == "converged"
    assert solution.lower_bound <= optimum * (1 + 1e-9)
    assert optimum * (1 - 1e-9) <= solution.objective <= optimum * (1 + 2e-4)
    # Not only at the end: no bound on the way exceeds the optimum.
    assert np.all(solution.history["lower_bound"] <= optimum * (1 + 1e-7))


@given(st.integers(0, 10_000))
def test_bounds_hold_on_a_ball(seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(20, 2)) + 1.0
    problem = MinimaxProblem(
        lambda t, z: -z @ t, np.zeros(2), z, CVaR(alpha=1.0), constraint=Ball(2.0), convex=True
    )
    solution = problem.solve()
    optimum = -2.0 * np.linalg.norm(z.mean(0))
    assert solution.lower_bound <= optimum * (1 - 1e-7)
    assert solution.objective == pytest.approx(optimum, rel=1e-4)
    assert np.linalg.norm(solution.params) <= 2.0 + 1e-9


def test_kinks_in_many_variables(rng):
    # The geometric median in eight dimensions: nonsmooth at the samples, optimum by Weiszfeld.
    z = rng.normal(size=(9, 8))
    solution = MinimaxProblem(
        lambda t, z: (t - z).norm(dim=1), z[0], z, CVaR(alpha=1.0), convex=True
    ).solve(tol=1e-6)
    t = z.mean(0)
    for _ in range(2000):
        w = 1 / np.linalg.norm(z - t, axis=1)
        t = w @ z / w.sum()
    optimum = np.linalg.norm(z - t, axis=1).mean()
    assert solution.objective == pytest.approx(optimum, rel=2e-6)
    assert solution.lower_bound <= optimum * (1 + 1e-9)


def test_it_ends_where_rounding_does(rng):
    z = rng.normal(size=(30, 3))
    problem = MinimaxProblem(bowl, np.zeros(3), z, KL(radius=0.1), convex=True)
    solution = problem.solve(tol=1e-14)
    assert solution.status == "converged"
    assert solution.relative_gap <= 1e-14
    assert solution.optimality_gap <= 1.1e-6 * solution.objective


def test_a_stall_is_called_one(rng):
    # Whatever the reason that no step closes the gap: five times is enough, and no convergence.
    problem = MinimaxProblem(bowl, np.ones(3), rng.normal(size=(30, 3)), KL(radius=0.1))
    model = decision_model(problem.loss, problem.layout, problem.first)
    oracle = problem.family.oracle(
        model, problem.family.inside(*problem.reference.points(30), False)
    )
    for kind in (LevelBundle, SpectralGradient):
        solver = kind(oracle, problem.region, 1e-6)
        state = solver.init()
        assert solver.terminate(state) is None
        assert solver.terminate(replace(state, stalled=5)) is Status.STALLED


@pytest.mark.parametrize(
    "ambiguity",
    [KL(radius=0.1), CVaR(alpha=0.5), Wasserstein(radius=0.001)],
    ids=repr,
)
def test_a_direction_of_endless_descent(rng, ambiguity):
    # More assets than periods, short positions: some portfolio gains in every period.
    z = rng.normal(0.001, 0.02, size=(8, 20))
    problem = portfolio(z, ambiguity, tail=0.2, long_only=False)
    with pytest.warns(ConvergenceWarning, match="max_weight.*larger radius"):
        solution = problem.solve()
    assert solution.status == "unbounded"
    assert np.isnan(solution.relative_gap)
    weights = solution.direction["weights"]
    assert abs(weights.sum()) <= 1e-9
    # The direction alone: the loss has degree one, its worst case there is the rate of descent.
    rate = portfolio_value(z, ambiguity, weights, tail=0.2)
    assert rate < 0
    # With a limit the same problem has an optimum.
    limited = portfolio(z, ambiguity, tail=0.2, long_only=False, max_weight=1.0).solve()
    assert limited.status == "converged"


def portfolio_value(z, ambiguity, weights, tail):
    """Worst case of CVaR(-weights'z), by its dual."""
    t = cp.Variable()
    losses = t + cp.pos(-z @ weights - t) / tail
    if isinstance(ambiguity, Wasserstein):
        return minimum(cp.sum(losses) / len(z), []) + ambiguity.radius * tail**-0.5 * (
            np.linalg.norm(weights)
        )
    return minimum(*reweighted(losses, ambiguity))


@pytest.mark.parametrize("seed", range(3))
def test_far_away_is_not_endless(seed):
    # The optimum lies ten thousand natural lengths from the start, in the direction of descent.
    far = 10.0 ** (3 + seed)
    problem = MinimaxProblem(
        lambda t, z: torch.maximum(1.0 - t + z[:, 0], 1.0 + t - 2 * far + z[:, 0]), 0.0,
        np.zeros((3, 1)), CVaR(alpha=1.0), convex=True,
    )  # fmt: skip
    solution = problem.solve()
    assert solution.status == "converged"
    assert solution.params == pytest.approx(far, rel=1e-4)


def test_ctrl_c_hands_over_what_there_is(rng):
    z = rng.normal(size=(30, 3))
    for convex in (True, None):
        problem = MinimaxProblem(bowl, np.full(3, 5.0), z, KL(radius=0.1), convex=convex)

        def stop(iteration, record):
            if iteration == 12:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match="result") as caught:
            problem.solve(callback=stop)
        solution = caught.value.result
        assert solution.status == "interrupted"
        assert solution.objective < problem.evaluate()[0].upper
        assert solution.objective == pytest.approx(problem.evaluate(solution.params)[0].upper)
