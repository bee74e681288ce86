"""Linear and quadratic bounds of margins, and Lipschitz constants, against points and ascents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.inner.networks.linear import Ball, Box, linear_bound
from drojko.inner.networks.lipschitz import lipschitz, margin_constants, product_of_norms
from drojko.inner.networks.network import Network
from drojko.inner.networks.quadratic import quadratic_bound
from drojko.models import ACTIVATIONS

CASES = st.tuples(
    st.sampled_from([(4,), (5, 4), (3, 4, 3)]),
    st.sampled_from(["logistic", "softmax", "squared"]),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.integers(0, 10**6),
)
SIZES = st.sampled_from([(0.8, 0.3), (30.0, 1.0), (1e3, 1e3), (1e-6, 1.0), (1.0, 1e6)])


def climbed(network, radius, rows, start, steps=15):
    """Ascent of ``rows @ h`` along spheres."""
    d = start
    for _ in range(steps):
        g = network.gradient(d, rows)
        length = g.norm(dim=1, keepdim=True)
        d = torch.where(length > 0, g / length.clamp_min(1e-300) * radius[:, None], d)
    return d


@given(CASES, SIZES, st.sampled_from([1e-6, 0.1, 1.0, 10.0]))
def test_no_point_of_a_ball_beats_its_bounds(perceptron, in_ball, drawn, sizes, size):
    spread, offset = sizes
    objective, batch, gen = perceptron(*drawn, spread=spread, offset=offset)
    network = Network.of(objective, batch)
    n, m = network.margins.levels.shape
    radius = size * (0.5 + torch.rand(n, generator=gen, dtype=torch.float64))
    bound = linear_bound(network, Ball(radius))
    d = in_ball(radius, network.dim, 60, gen)
    rounding = 1e-16 * (1 + bound.level.abs())
    for j in range(m):
        rows, levels = network.margins.rows[:, j], network.margins.levels[:, j]
        start = climbed(network, 0.7 * radius, rows, d[0])
        known, goal = None, None
        for steps in (0, 6, 9):
            quadratic = quadratic_bound(
                network, rows, levels, start, bound.intervals, 0.7 * radius, steps, known, goal
            )
            # Next from multipliers of other regions, to a goal that some of them reach early.
            known = quadratic.multipliers
            known = known.take(torch.randperm(len(known.place), generator=gen))
            goal = quadratic.constant + 0.245 * quadratic.curvature * radius.square()
            tried = [*d, start, climbed(network, radius, rows, d[1]) * (1 - 1e-12)]
            for at in tried:
                value = network.at(at)[:, j]
                line = bound.level[:, j] + (bound.rows[:, j] * at).sum(1)
                assert bool((value <= line + rounding[:, j]).all())
                half = 0.5 * quadratic.curvature * at.square().sum(1)
                assert bool((value <= quadratic.constant + half + rounding[:, j]).all())
    for at in d[:20]:
        for (low, high), a in zip(bound.intervals, network.forward(at)[0], strict=True):
            assert bool(((a >= low - 1e-15 * a.abs()) & (a <= high + 1e-15 * a.abs())).all())


@given(CASES, st.sampled_from([0.01, 1.0, 10.0]))
def test_no_point_of_a_box_beats_its_bound(perceptron, drawn, size):
    objective, batch, gen = perceptron(*drawn)
    network = Network.of(objective, batch)
    shape = (len(network), network.dim)
    middle = torch.randn(shape, generator=gen, dtype=torch.float64)
    half = size * torch.rand(shape, generator=gen, dtype=torch.float64)
    bound = linear_bound(network, Box(middle, half))
    for k in range(60):
        share = 2 * torch.rand(shape, generator=gen, dtype=torch.float64) - 1
        move = (share.sign() if k % 2 else share) * half
        line = bound.level + (bound.rows * move[:, None]).sum(2)
        assert bool((network.at(middle + move) <= line + 1e-12 * (1 + line.abs())).all())


@given(CASES, st.sampled_from([0, 1, 25]))
def test_no_pair_of_points_is_steeper_than_the_constant(perceptron, drawn, steps):
    objective, batch, gen = perceptron(*drawn)
    network = Network.of(objective, batch)
    rates = margin_constants(network, steps)
    assert bool(torch.isfinite(rates).all())
    for scale in (0.01, 0.1, 1.0, 10.0):
        a, b = scale * torch.randn(2, len(network), network.dim, generator=gen).double()
        rise = (network.at(a) - network.at(b)).abs()
        assert bool((rise <= rates * (a - b).norm(dim=1, keepdim=True) + 1e-12).all())
        for j in range(rates.shape[1]):
            slope = network.gradient(a, network.margins.rows[:, j]).norm(dim=1)
            assert bool((slope <= rates[:, j] * (1 + 1e-9) + 1e-12).all())


@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_the_constant_of_a_chain_of_units_is_exact(perceptron, activation):
    """One unit a layer: the product of the weights, which the slope attains far out."""
    objective, batch, _ = perceptron((1, 1, 1), "logistic", activation, 1, d=1)
    for w in objective.model.weights:
        w.data.fill_(1.5)
    network = Network.of(objective, batch)
    scale = objective.coordinates.scale
    found = lipschitz(network, torch.full((1, 1), 1.5).double(), 150)
    assert float(found) == pytest.approx(1.5**4 * scale, rel=1e-6)


def test_semidefinite_constants_are_below_products_of_norms(perceptron, seed):
    objective, batch, _ = perceptron((16, 16), "logistic", "tanh", seed, d=8)
    network = Network.of(objective, batch)
    rows = network.margins.rows[:1, 0]
    assert float(lipschitz(network, rows, 80)) < 0.9 * float(product_of_norms(network, rows))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_a_quadratic_is_second_order_around_its_anchor(perceptron, activation, seed):
    """Small balls: the bound is off by no more than the cube of the radius."""
    objective, batch, _ = perceptron((6, 5), "logistic", activation, seed, d=4)
    network = Network.of(objective, batch)
    rows, levels = network.margins.rows[:, 0], network.margins.levels[:, 0]
    gaps = []
    for size in (0.04, 0.01):
        radius = torch.full((len(network),), size).double()
        d = climbed(network, radius, rows, torch.ones(len(network), network.dim).double())
        intervals = linear_bound(network, Ball(radius)).intervals
        found = quadratic_bound(network, rows, levels, d, intervals, radius, 40)
        bound = found.constant + 0.5 * found.curvature * size**2
        gaps.append(float((bound - network.at(d)[:, 0]).clamp_min(0).median()))
    if activation == "relu":  # no kink near: linear, exact
        assert gaps[1] < 1e-7
    else:
        assert gaps[1] < 0.2 * gaps[0] + 1e-9
