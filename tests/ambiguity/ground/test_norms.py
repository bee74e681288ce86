"""Dual norms of the order-1 cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drojko.ambiguity.ground.norms import dual_norm, primal_norm, steepest_direction

NORMS = (1, 2, np.inf)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), norm=st.sampled_from(NORMS))
def test_the_steepest_direction_has_unit_cost_and_attains_the_dual_norm(seed, norm):
    rng = np.random.default_rng(seed)
    theta, weights = rng.normal(size=5), rng.uniform(0.1, 4.0, size=5)
    weights[rng.integers(5)] = np.inf
    v = steepest_direction(theta, 1.0 / weights, norm)
    assert primal_norm(v, weights, norm) == pytest.approx(1.0, abs=1e-12)
    assert theta @ v == pytest.approx(dual_norm(theta, 1.0 / weights, norm), rel=1e-12)
    others = rng.normal(size=(200, 5)) * np.isfinite(weights)
    others /= primal_norm(others, weights, norm)[:, None]
    assert (others @ theta <= theta @ v + 1e-12).all()


def test_immutable_columns_cost_infinity_and_add_no_slope():
    weights = np.array([1.0, np.inf])
    assert primal_norm(np.array([0.0, 1e-9]), weights, 1) == np.inf
    assert dual_norm(np.array([3.0, 100.0]), 1.0 / weights, np.inf) == 3.0
    assert not steepest_direction(np.array([0.0, 5.0]), 1.0 / weights, 2).any()


def test_order_two_geometry():
    # W1 with norm 2 has the ground cost whose square is that of order 2.
    weights = np.array([4.0, 1.0])
    assert primal_norm(np.array([1.0, 2.0]), weights, 2) ** 2 == pytest.approx(8.0)
