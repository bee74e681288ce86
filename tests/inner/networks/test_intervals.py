"""Intervals of a second layer by quadratics: against points of balls, and what they are worth."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.inner.networks import bound as bounds
from drojko.inner.networks import intervals, refine
from drojko.inner.networks.bound import Case, network_bound
from drojko.inner.networks.intervals import sharpened
from drojko.inner.networks.linear import Ball, linear_bound
from drojko.inner.networks.network import Network
from drojko.inner.transport.ascent import proximal_ascent
from drojko.models import ACTIVATIONS


def made(perceptron, hidden, activation, number, size, **more):
    objective, batch, gen = perceptron(hidden, "logistic", activation, number, **more)
    network = Network.of(objective, batch)
    assert network is not None
    shape = (len(network),)
    radius = size * (0.5 + torch.rand(shape, generator=gen, dtype=torch.float64))
    return network, radius, linear_bound(network, Ball(radius)).intervals, gen


def climbed(network, radius, unit, sign, d):
    """Along spheres, to where a unit of the second layer is largest or least."""
    row = sign * network.weights[1][unit]
    for _ in range(15):
        a = network.forward(d)[0][0]
        g = (network.acts[0](a)[1] * row) @ network.weights[0]
        length = g.norm(dim=1, keepdim=True)  # of squares, which vanish below 1e-160
        d = torch.where(length > 1e-100, g / length.clamp_min(1e-100) * radius[:, None], d)
    return d * (1 - 1e-12)


@given(
    st.sampled_from([(5, 4), (3, 4, 3)]), st.sampled_from(sorted(ACTIVATIONS)),
    st.integers(0, 10**6), st.sampled_from([(0.8, 0.3), (30.0, 1.0), (1e3, 1e3), (1.0, 1e6)]),
    st.sampled_from([1e-6, 0.1, 1.0, 10.0]),
)  # fmt: skip
def test_no_point_of_a_ball_leaves_them(
    perceptron, in_ball, hidden, activation, number, sizes, size
):
    spread, offset = sizes
    network, radius, spans, gen = made(
        perceptron, hidden, activation, number, size, spread=spread, offset=offset
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(intervals, "_LOOSE", -1.0)  # all units, whatever there is to gain
    try:
        low, high = sharpened(network, radius, *spans[:2])
    finally:
        patch.undo()
    assert bool((low >= spans[1][0]).all())
    assert bool((high <= spans[1][1]).all())
    d = in_ball(radius, network.dim, 40, gen)
    ends = [
        climbed(network, radius, unit, sign, d[unit]) for unit in range(4) for sign in (1.0, -1.0)
    ]
    for at in [*d, *ends]:
        a = network.forward(at)[0][1]
        assert bool(((a >= low - 1e-15 * a.abs()) & (a <= high + 1e-15 * a.abs())).all())


@pytest.mark.parametrize("activation", ["softplus", "silu"])
def test_far_out_they_are_narrower_than_those_of_lines(perceptron, activation, seed):
    network, radius, spans, _ = made(perceptron, (16, 16), activation, seed, 3.0, d=8, n=6)
    low, high = sharpened(network, radius, *spans)
    assert float((high - low).mean()) < 0.85 * float((spans[1][1] - spans[1][0]).mean())


def test_stages_with_them_prove_more(perceptron, monkeypatch, seed):
    """At the same steps, as many as such stages have; both are above what ascents find."""
    objective, batch, gen = perceptron(
        (10, 10), "logistic", "softplus", seed, d=6, n=10, spread=1.0, penalty=1.0
    )
    cases = [Case(batch, None, (proximal_ascent(objective, batch, batch.q0, 60).q,))]
    weights = torch.full((len(batch),), 0.1, dtype=torch.float64)
    values = {}
    for sharp in (False, True):
        stages = tuple(
            refine.Stage(1.0, steps, 1e-3, 0.0, 1e6, sharp=sharp) for steps in (0, 30, 30)
        )
        effort = refine.Effort(stages, 16, 20, 1000, 1, 0.01)
        monkeypatch.setattr(bounds, "SETTINGS", {"fast": effort})
        found = network_bound(objective, cases, weights)
        values[sharp] = found.value
        for _ in range(8):
            start = batch.q0 + 2.0 * torch.randn(batch.q0.shape, generator=gen, dtype=torch.float64)
            best = proximal_ascent(objective, batch, start, 40).value
            at = found.at(objective.penalty)
            assert bool((at >= best - 1e-12 * (1 + best.abs())).all())
    assert values[True] < values[False]
