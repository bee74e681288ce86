import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.ambiguity import GroundCost
from drojko.inner import Coordinates, solve_ball
from drojko.losses import get_loss
from drojko.models import MLP


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_cost(d, seed, immutable=()):
    weights = np.random.default_rng(seed).uniform(0.1, 10.0, d)
    weights[list(immutable)] = np.inf
    return GroundCost(weights)


@given(st.integers(0, 10**6), st.sampled_from([(), (1,), (0, 3)]), st.sampled_from([None, 1, 2]))
def test_a_displacement_costs_its_squared_length(number, immutable, rows):
    cost = random_cost(4, number, immutable)
    x = randn(6, 4, seed=number)
    first = None if rows is None else randn(rows, 4, seed=number + 1)
    coordinates = Coordinates.build(cost, x, first)
    assert coordinates.dim == min(rows or 4, 4 - len(immutable))
    q0 = coordinates.encode(x)
    q = q0 + randn(*q0.shape, seed=number + 2)
    z = coordinates.decode(x, q0, q)
    assert torch.equal(z[:, list(immutable)], x[:, list(immutable)])
    expected = cost.cost(x, z)
    # The exact cost of x and z would be infinite had an immutable column moved.
    torch.testing.assert_close(
        coordinates.scale**2 * (q - q0).square().sum(1), expected, rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(coordinates.encode(z), q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [None, 2])
def test_pull_is_the_chain_rule(rows, seed):
    x = randn(5, 4, seed=seed)
    first = None if rows is None else randn(rows, 4, seed=seed + 1)
    coordinates = Coordinates.build(random_cost(4, seed, (2,)), x, first)
    q0 = coordinates.encode(x)
    leaf = q0.clone().requires_grad_(True)
    z = coordinates.decode(x, q0, leaf)
    (expected,) = torch.autograd.grad((z**3).sum(), leaf)
    torch.testing.assert_close(coordinates.pull(3 * z.detach() ** 2), expected)


def test_plain_costs_need_no_matrices(seed):
    x = randn(8, 3, seed=seed)
    coordinates = Coordinates.build(GroundCost(np.ones(3)), x)
    assert coordinates.encoder is None
    assert coordinates.lift is None
    assert coordinates.dim == 3
    torch.testing.assert_close(coordinates.encode(x) * coordinates.scale, x)


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_row_space_loses_nothing(build, activation, weighted, seed):
    """Moves outside the row space of the first layer cannot change the loss, only cost."""
    gen = torch.Generator().manual_seed(seed)
    model = MLP(6, 3, hidden=(2,), activation=activation, generator=gen)
    x, y = randn(40, 6, seed=seed), torch.randint(3, (40,), generator=gen)
    cost = random_cost(6, seed, (4,)) if weighted else None
    # Strongly concave at this penalty, so both solutions are the global ones.
    values = []
    for reduce in (True, False):
        adversary, batch = build(
            model, "logistic", x, y, 20.0, cost=cost, reduce=reduce, corrections=400, tol=0.0
        )
        values.append(adversary.solve(batch).value)
        assert adversary.objective.coordinates.dim == (2 if reduce else 6 - weighted)
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-11)


def test_bounds_are_those_of_the_ground_cost(seed):
    x = randn(30, 4, seed=seed)
    weights = np.array([1.0, 4.0, np.inf, 0.5])
    lower = np.array([-1.0, -np.inf, 0.0, -0.5])
    cost = GroundCost(weights, lower, np.array([1.0, 0.3, 0.0, np.inf]))
    coordinates = Coordinates.build(cost, x, randn(1, 4, seed=seed + 1))
    assert coordinates.dim == 3  # no row space where there are bounds
    q0 = coordinates.encode(x)
    z = coordinates.decode(x, q0, coordinates.project(q0))
    expected = cost.project(x)
    expected[:, 2] = x[:, 2]  # an immutable column stays where it is
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.promise(4)
@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e3, 1e30])
def test_data_and_radius_scale_together(build, uniform, moons, factor):
    model, x, y = moons
    risks = []
    for scale in (1.0, factor):
        scaled = MLP(2, 1, hidden=(16, 16), activation="tanh")
        scaled.load_state_dict(model.state_dict())
        scaled.weights[0].data /= scale
        adversary, batch = build(scaled, "logistic", x[:50] * scale, y[:50], n_labels=2)
        risks.append(float(solve_ball(adversary, batch, uniform(batch), 0.1 * scale).risk.mean()))
    # The same numbers up to the rounding of the scale, amplified by a few dozen steps.
    assert risks[1] == pytest.approx(risks[0], rel=1e-6)


def test_degenerate_data(build, linear):
    cost = GroundCost(np.ones(2))
    for x in (torch.zeros(1, 2), torch.ones(5, 2)):
        assert Coordinates.build(cost, x.double()).scale == 1.0
    model = linear([1.0, -1.0])
    x, y = randn(4, 2, seed=0), torch.tensor([0, 1, 0, 1])
    frozen = GroundCost(np.full(2, np.inf))
    for network in (model, MLP(2, 1, hidden=(3,)), MLP(2, 3, hidden=())):
        adversary, batch = build(network, "logistic", x, y, cost=frozen)
        moved = adversary.solve(batch)
        loss = get_loss("logistic", n_classes=max(2, network.n_outputs))
        torch.testing.assert_close(moved.value, loss.value(network.linearise(x)[0], y))
        assert not moved.cost.any()
        bound, _ = adversary.upper(moved)
        torch.testing.assert_close(bound, moved.value)


def test_a_model_of_zeros_keeps_one_direction(build, linear):
    x, y = randn(6, 3, seed=0), torch.tensor([0, 1, 0, 1, 0, 1])
    adversary, batch = build(linear([0.0, 0.0, 0.0]), "logistic", x, y)
    moved = adversary.solve(batch)
    assert adversary.objective.coordinates.dim == 1
    torch.testing.assert_close(moved.risk, torch.full((6,), np.log(2.0), dtype=torch.float64))
    assert not moved.cost.any()


def test_moves_to_a_bound_end_on_it(seed):
    # In coordinates that are scaled a bound is not the number that was given, by rounding.
    rng = np.random.default_rng(seed)
    lower, upper = -rng.uniform(0.1, 2.0, 3), rng.uniform(0.1, 2.0, 3)
    cost = GroundCost(np.array([3.0, 0.7, np.inf]), lower, upper)
    x = torch.from_numpy(rng.uniform(lower, upper, (200, 3)))
    coordinates = Coordinates.build(cost, x)
    q0 = coordinates.encode(x)
    for end, bound in ((coordinates.lower, lower), (coordinates.upper, upper)):
        z = coordinates.decode(x, q0, end.expand_as(q0)).numpy()
        np.testing.assert_allclose(z[:, :2], np.broadcast_to(bound[:2], (200, 2)), rtol=1e-12)
        assert (z >= lower).all()
        assert (z <= upper).all()
        np.testing.assert_array_equal(z[:, 2], x[:, 2])
