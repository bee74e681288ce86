import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drojko.ambiguity import GroundCost
from drojko.exceptions import InvalidDataError

numbers = st.floats(-100, 100, allow_subnormal=False)
points = arrays(np.float64, (4, 3), elements=numbers)
weights = arrays(np.float64, 3, elements=st.floats(0.01, 100))
# Sums of three terms in float64: a few rounding errors, relative to the terms themselves.
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


@given(weights, points, points)
def test_cost_is_the_weighted_square(w, x, z):
    expected = [sum(w[j] * (a[j] - b[j]) ** 2 for j in range(3)) for a, b in zip(x, z, strict=True)]
    np.testing.assert_allclose(GroundCost(w).cost(x, z), expected, **TIGHT)


@given(weights, points, points)
def test_numpy_and_torch_agree(w, x, z):
    w[1] = np.inf
    z[:2, 1] = x[:2, 1]
    cost = GroundCost(w, np.full(3, -1.0), np.array([1.0, np.inf, 2.0]))
    tx, tz = torch.tensor(x), torch.tensor(z)
    np.testing.assert_array_equal(cost.cost(tx, tz).numpy(), cost.cost(x, z))
    np.testing.assert_array_equal(cost.project(tz).numpy(), cost.project(z))
    np.testing.assert_array_equal(cost.dual_norm_squared(tx).numpy(), cost.dual_norm_squared(x))


def test_an_immutable_column_costs_nothing_or_infinity():
    cost = GroundCost(np.array([2.0, np.inf]))
    x = np.array([[0.0, 5.0], [0.0, 5.0]])
    z = np.array([[3.0, 5.0], [3.0, np.nextafter(5.0, 6.0)]])
    np.testing.assert_array_equal(cost.cost(x, z), [18.0, np.inf])
    np.testing.assert_array_equal(cost.cost(x, x), [0.0, 0.0])
    np.testing.assert_array_equal(cost.mutable, [True, False])
    np.testing.assert_array_equal(cost.inverse_weights, [0.5, 0.0])


def test_gradient_passes_through_the_cost():
    cost = GroundCost(np.array([2.0, np.inf, 1.0]))
    x = torch.tensor([[0.0, 5.0, 1.0]], dtype=torch.float64)
    z = torch.tensor([[3.0, 5.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost.cost(x, z).sum(), z)
    np.testing.assert_array_equal(gradient.numpy(), [[12.0, 0.0, -2.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_keep_dtype_and_device(dtype, device):
    cost = GroundCost(np.ones(3), np.zeros(3), np.ones(3))
    x = torch.zeros(2, 3, dtype=dtype, device=device)
    for result in (cost.cost(x, x + 1), cost.project(x - 1), cost.dual_norm_squared(x)):
        assert (result.dtype, result.device) == (x.dtype, x.device)
    single = np.zeros((2, 3), dtype=np.float32)
    assert cost.cost(single, single + 1).dtype == np.float32
    assert cost.dual_norm_squared(np.array([1, 2, 2])) == 9.0  # integers work


def test_broadcasting_over_candidates():
    cost = GroundCost(np.array([1.0, 2.0]))
    x, z = np.zeros((5, 2)), np.ones((7, 5, 2))
    np.testing.assert_array_equal(cost.cost(x, z), np.full((7, 5), 3.0))


@given(weights, arrays(np.float64, 3, elements=numbers), st.floats(0.1, 10), st.data())
def test_dual_norm_bounds_every_move_and_is_attained(w, theta, budget, data):
    """max { theta'v : sum w v^2 <= r } = sqrt(r) |theta|_*, at v ~ theta / w (Cauchy-Schwarz)."""
    cost = GroundCost(w)
    norm = np.sqrt(cost.dual_norm_squared(theta))
    v = data.draw(arrays(np.float64, 3, elements=st.floats(-1, 1)))
    spent = cost.cost(np.zeros(3), v)
    # One part in 1e9 covers the rounding of squares and roots of numbers up to 1e4.
    assert theta @ v <= np.sqrt(spent) * norm * (1 + 1e-9) + 1e-9
    if norm > 1e-6:
        best = np.sqrt(budget) / norm * theta * cost.inverse_weights
        np.testing.assert_allclose(cost.cost(np.zeros(3), best), budget, rtol=1e-9)
        np.testing.assert_allclose(theta @ best, np.sqrt(budget) * norm, rtol=1e-9)


@given(weights, points, points)
def test_projection_never_raises_the_cost_from_inside(w, x, z):
    cost = GroundCost(w, np.array([-np.inf, -1.0, 0.0]), np.array([5.0, 1.0, np.inf]))
    inside = cost.project(x)
    projected = cost.project(z)
    np.testing.assert_array_equal(cost.project(projected), projected)
    cost.check_inside(projected)
    assert (cost.cost(inside, projected) <= cost.cost(inside, z)).all()


def test_without_bounds_nothing_is_projected_or_refused():
    cost = GroundCost(np.ones(2))
    z = np.array([[1e300, -1e300]])
    assert cost.project(z) is z
    cost.check_inside(z)
    assert not cost.bounded


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_data_outside_of_the_bounds_are_named(kind):
    names = ("age", "income")
    cost = GroundCost(np.ones(2), np.zeros(2), np.array([100.0, np.inf]), names)
    cost.check_inside(kind([[0.0, 1.0], [100.0, 1e9]]))
    with pytest.raises(InvalidDataError, match=r"column 'income' .* spans \[-3, 1\]"):
        cost.check_inside(kind([[0.0, 1.0], [100.0, -3.0]]))
    with pytest.raises(InvalidDataError, match="column 0 of X"):
        GroundCost(np.ones(2), np.zeros(2), np.ones(2)).check_inside(kind([[2.0, 0.5]]))


def test_repr_says_what_differs_from_the_plain_cost():
    assert repr(GroundCost(np.ones(3))) == "GroundCost(d=3)"
    many = GroundCost(np.full(9, np.inf), np.zeros(9), np.full(9, np.inf))
    assert "immutable: 0, 1, 2, 3, 4, 5 and 3 more" in repr(many)
    assert "bounded: 0" in repr(many)
