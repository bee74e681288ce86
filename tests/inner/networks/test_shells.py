"""Bounds that are taken to other shells hold there, and come from the least ball around them."""

from dataclasses import replace

import pytest
import torch

from drojko.inner.networks.network import Network
from drojko.inner.networks.pairs import Pairs
from drojko.inner.networks.shells import Shells, edges


def marked(network, radii):
    """Shells whose levels, and pairs whose constants, are the radii of their balls."""
    empty = Shells.empty(network, radii, torch.ones_like(network.margins.levels))
    count = len(radii) - 1
    index = torch.arange(count)
    flat = torch.zeros(count, dtype=torch.float64)
    pairs = Pairs(0 * index, index, 0 * index, 0 * index + 1, radii[1:], flat)
    level = radii[1:][:, None].expand_as(empty.level)
    return replace(empty, level=level, pairs=pairs)


@pytest.mark.parametrize(("before", "after"), [(16, 24), (16, 31), (24, 16), (4, 4)])
def test_shells_take_the_bounds_of_the_least_ball_around_them(perceptron, before, after):
    objective, batch, _ = perceptron((4,), "softmax", "softplus", 0)
    old, new = edges(before, 0.05, 7.0), edges(after, 0.05, 7.0)
    found = marked(Network.of(objective, batch), old).onto(new)
    least = torch.stack([old[1:][old[1:] >= radius].min() for radius in new[1:]])
    assert torch.equal(found.edges, new)
    assert torch.equal(found.level, least[:, None].expand_as(found.level))
    order = found.pairs.shell.argsort()
    assert found.pairs.shell[order].tolist() == list(range(after))
    assert torch.equal(found.pairs.constant[order], least)


def test_shells_of_any_count_end_at_one_radius():
    for outer in (6.0, 7.3, 1e3 / 3):
        assert {float(edges(count, 0.1, outer)[-1]) for count in range(2, 40)} == {outer}
