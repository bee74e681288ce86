"""Lines, secants and curvature of activations enclose them; ``python -m ... 1e6`` for longer."""

import math
import sys

import pytest
import torch

from drojko.inner.networks.activations import activation
from drojko.models import ACTIVATIONS

NAMES = sorted(ACTIVATIONS)


def intervals(count, gen):
    """Of all widths and places: small, large, at the kink, far out."""

    def uniform():
        return torch.rand(count, generator=gen, dtype=torch.float64)

    middle = (2 * uniform() - 1) * 10 ** (5 * uniform() - 3)
    half = 10 ** (8 * uniform() - 6)
    low, high = middle - half, middle + half
    far = uniform() < 0.05
    low, high = torch.where(far, low + 1e6, low), torch.where(far, high + 1e6, high)
    return low, high, low + (high - low) * uniform()


def points(low, high, count, gen):
    share = torch.rand(count, len(low), generator=gen, dtype=torch.float64)
    near = 10 ** (-8 * torch.rand(count, len(low), generator=gen, dtype=torch.float64))
    t = low + (high - low) * torch.where(share < 0.5, share, 1 - near * share)
    return torch.cat([t, low[None], high[None]]).clamp(low, high)


def excess(name, count, gen):
    """Largest violation of any of the bounds, and the rounding that it is to be compared with."""
    act = activation(name)
    low, high, at = intervals(count, gen)
    t = points(low, high, 40, gen)
    value = act(t)[0]
    room = 4e-16 * (value.abs() + t.abs() + 1)
    up, up_level, down, down_level = act.lines(low, high, at)
    found = {
        "above": value - (up * t + up_level),
        "below": down * t + down_level - value,
    }
    around = act.around(low, high, at)
    h, slope = act(at)
    d = t - at
    e = value - h - slope * d
    room = room + 8e-16 * (h.abs() + (slope * d).abs())
    (least, largest), (fall, rise) = around.curved, around.secant
    found["curved"] = e - 0.5 * largest * d * d
    found["uncurved"] = 0.5 * least * d * d - e
    found["secant"] = -(e - fall * d) * (rise * d - e) / d.abs().clamp_min(1e-3)
    found["line"] = e - around.above[0] - around.above[1] * d
    found["under"] = around.below[0] + around.below[1] * d - e
    found["floor"] = around.floor[0] + around.floor[1] * d - e
    return {key: float((bad - room * (1 + d.abs() * (key == "secant"))).max())
            for key, bad in found.items()}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_nothing_leaves_its_bounds(name, generator):
    for key, bad in excess(name, 4000, generator).items():
        assert bad <= 0.0, key


@pytest.mark.parametrize("name", NAMES)
def test_bounds_are_tight_on_small_intervals(name, generator):
    act = activation(name)
    at = 3 * torch.randn(200, generator=generator, dtype=torch.float64)
    if name == "relu":
        at = at + at.sign() * 0.1
    low, high = at - 0.02, at + 0.02
    up, up_level, down, down_level = act.lines(low, high, at)
    bend = 1.0 if math.isinf(act.bends[1]) else max(act.bends[1], -act.bends[0])
    width = (up - down) * at + up_level - down_level
    assert float(width.max()) <= bend * 0.02**2 + 1e-12
    least, largest = act.around(low, high, at).curved
    assert float((largest - least).max()) <= (0.0 if name == "relu" else act.third) * 0.05 + 1e-9


@pytest.mark.parametrize("name", [n for n in NAMES if n != "relu"])
def test_stated_constants_are_bounds_that_are_nearly_attained(name):
    act = activation(name)
    a = torch.linspace(-12, 12, 20001, dtype=torch.float64, requires_grad=True)
    value = ACTIVATIONS[name][0](a)[0]
    derivatives = []
    for _ in range(4):
        (value,) = torch.autograd.grad(value.sum(), a, create_graph=True)
        derivatives.append(value.detach())
    pairs = [
        (derivatives[0].max(), act.slopes[1]), (-derivatives[0].min(), -act.slopes[0]),
        (derivatives[1].max(), act.bends[1]), (-derivatives[1].min(), -act.bends[0]),
        (derivatives[2].abs().max(), act.third), (derivatives[3].abs().max(), act.fourth),
    ]  # fmt: skip
    for found, stated in pairs:
        assert float(found) <= stated + 1e-12
        assert float(found) >= 0.99 * stated - 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_smooth_convex_activations_bend_evenly_and_less_away_from_zero(name):
    act = activation(name)
    if not act.convex or math.isinf(act.third):
        pytest.skip("not read off the ends of an interval")
    a = torch.linspace(0, 60, 6001, dtype=torch.float64)
    assert torch.equal(act.bend(a), act.bend(-a))
    assert bool((act.bend(a).diff() <= 0).all())


@pytest.mark.parametrize("at", [-6.0, -0.7, -1e-4, 0.0, 2e-3, 3.0])
def test_curvature_of_softplus_is_the_largest_on_the_interval(at, generator):
    act = activation("softplus")
    at = torch.tensor([at], dtype=torch.float64)
    half = 10 ** (2 * torch.rand(2, generator=generator, dtype=torch.float64) - 1)
    low, high = at - half[0], at + 3 * abs(at) + half[1]
    t = torch.linspace(float(low), float(high), 20001, dtype=torch.float64)
    t = t[(t - at).abs() > 0.02]
    h, slope = act(at)
    found = 2 * (act(t)[0] - h - slope * (t - at)) / (t - at) ** 2
    least, largest = act.around(low, high, at).curved
    assert float(found.max()) <= float(largest) <= float(found.max()) + 1e-4
    assert float(found.min()) >= float(least) >= float(found.min()) - 1e-4


if __name__ == "__main__":
    rounds = int(float(sys.argv[1])) // 160_000 + 1
    for activated in NAMES:
        found = [excess(activated, 4000, torch.Generator().manual_seed(s)) for s in range(rounds)]
        print(activated, {key: max(f[key] for f in found) for key in found[0]})
