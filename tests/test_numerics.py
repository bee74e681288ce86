import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from drojko._numerics import Adam, batches, cosine, root, standard_error


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_follow_the_published_rule(dtype, rng):
    theta = torch.tensor(rng.normal(size=6), dtype=dtype)
    expected = theta.double().numpy().copy()
    adam = Adam.like(theta)
    m, v = np.zeros(6), np.zeros(6)
    for t in range(1, 30):
        g = rng.normal(size=6) * 10.0 ** rng.integers(-2, 3)
        adam.gradient.copy_(torch.tensor(g))
        rate = 0.1 / t
        adam.step(theta, rate)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        corrected = math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        expected = expected - rate * corrected * m / (np.sqrt(v) + 1e-8)
    # Thirty updates in the precision of the vector.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(theta.numpy(), expected, rtol=tolerance, atol=tolerance)
    assert adam.count == 29


def test_zero_gradient_does_not_move():
    theta = torch.ones(3)
    adam = Adam.like(theta)
    adam.step(theta, 1.0)
    assert theta.tolist() == [1.0] * 3


def test_a_quadratic_is_minimised():
    goal = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    theta = torch.zeros(3, dtype=torch.float64)
    adam = Adam.like(theta)
    for k in range(1500):
        adam.gradient.copy_(theta - goal)
        adam.step(theta, 0.05 * (1 - k / 1500))
    # The rate falls to zero, and the last steps are of its order.
    torch.testing.assert_close(theta, goal, rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("start", [-30.0, 0.0, 5.0])
def test_a_root_is_found_with_and_without_a_slope_and_a_bracket(scale, start):
    function = lambda t: scale * (math.tanh(t - 1.5) + 0.1 * (t - 2.0))  # noqa: E731
    slope = lambda t: scale * (1.0 / math.cosh(t - 1.5) ** 2 + 0.1)  # noqa: E731
    exact = brentq(function, -50.0, 50.0, xtol=1e-15)
    found = [root(lambda t: (function(t), slope(t)), start, low=-50.0, high=50.0, tol=0.0)]
    if scale == 1.0:  # secants expect slopes of order 1
        found += [root(function, start), root(function, start, low=-50.0, high=50.0, tol=0.0)]
    assert found == pytest.approx([exact] * len(found), abs=1e-12)


def test_a_root_at_a_jump_is_closed_in_on():
    found = root(lambda t: -1.0 if t < 0.3 else 2.0, 0.9, low=0.0, high=1.0)
    assert found == pytest.approx(0.3, abs=1e-14)


def test_the_standard_error_is_that_of_independent_terms(rng):
    values, weights = rng.normal(size=200), rng.random(200)
    weights /= weights.sum()
    mean = weights @ values
    expected = np.sqrt(sum(w**2 * (v - mean) ** 2 for v, w in zip(values, weights)))
    assert standard_error(values, weights) == pytest.approx(expected, rel=1e-12)
    single = torch.from_numpy(values).float()
    assert standard_error(single, torch.from_numpy(weights)) == pytest.approx(expected, rel=1e-5)


def test_batches_go_through_all_rows_before_any_comes_again():
    found = batches(10, 3, torch.Generator().manual_seed(0))
    first = torch.cat([next(found) for _ in range(3)])
    assert len(first.unique()) == 9
    second = torch.cat([next(found) for _ in range(3)])
    assert len(second.unique()) == 9
    assert second.tolist() != first.tolist()


def test_rates_fall_to_a_share_along_a_cosine():
    assert [cosine(p, 0.1) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.55, 0.1])
