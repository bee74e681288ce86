import math

import numpy as np
import pytest
import torch

from drojko._adam import Adam


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
