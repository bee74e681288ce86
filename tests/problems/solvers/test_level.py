"""The bundle method: bounds that hold wherever it starts, gaps that close, regions of all kinds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drojko.ambiguity import KL, CVaR
from drojko.problems import Ball, MinimaxProblem


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
    solution = MinimaxProblem(bowl, np.zeros(3), z, KL(radius=0.1), convex=True).solve(tol=1e-14)
    assert solution.status == "converged"
    assert solution.optimality_gap <= 1.1e-6 * solution.objective
