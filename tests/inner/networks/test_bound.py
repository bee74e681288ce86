"""The dual value of a network: against grids, ascents, closed forms, and in extreme cases."""

import math
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.inner import Pointwise
from drojko.inner.networks import bound as bounds
from drojko.inner.networks import refine
from drojko.inner.networks.bound import Case, network_bound
from drojko.inner.networks.refine import Refine
from drojko.inner.transport.ascent import proximal_ascent
from drojko.models import ACTIVATIONS


def masses(batch):
    return torch.full((len(batch),), 1 / len(batch), dtype=torch.float64)


def best_known(objective, batch, gen, starts=16):
    best = objective.value(batch, batch.q0)
    for k in range(starts):
        step = torch.randn(batch.q0.shape, generator=gen, dtype=torch.float64)
        q = batch.q0 + 10.0 ** (k % 4 - 2) * step
        best = torch.maximum(best, proximal_ascent(objective, batch, q, 25).value)
    return best


CASES = st.tuples(
    st.sampled_from([(4,), (4, 3), (3, 4, 3)]),
    st.sampled_from(["logistic", "softmax", "squared", "huber", "hinge", "crammer-singer"]),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.integers(0, 10**6),
)


@pytest.mark.promise(1)
@given(CASES, st.floats(-2, 2.5), st.sampled_from([2, 3, 6]), st.booleans())
def test_no_point_beats_the_bound_at_any_penalty(perceptron, drawn, log_penalty, d, searched):
    """Whatever was found before, in few dimensions and in more."""
    objective, batch, gen = perceptron(*drawn, d=d, penalty=10**log_penalty, n=8)
    found = (proximal_ascent(objective, batch, batch.q0, 30).q,) if searched else ()
    bound = network_bound(objective, [Case(batch, None, found)], masses(batch))
    for factor in (1.0, 0.5, 4.0):
        at = objective.with_penalty(objective.penalty * factor)
        best = best_known(at, batch, gen)
        values = bound.at(at.penalty)
        assert bool((values >= best - 1e-12 * (1 + best.abs())).all())
    assert bound.proof in ("linear-bounds", "branch-and-bound", "lipschitz")


def grid_dual(objective, batch, radius, reach=6.0, points=241):
    """min over penalties of penalty r² + mean max over a grid of the plane, from below."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    scale = objective.coordinates.scale
    loss = torch.stack([
        objective.risk(objective.batch(grid, y.expand(len(grid))), grid / scale)
        for y in batch.y
    ])  # fmt: skip
    cost = torch.cdist(batch.x, grid).square()
    own = objective.risk(batch, batch.q0)
    penalties = np.geomspace(1e-3, 30, 120)
    duals = [
        p * radius**2 + float(torch.maximum((loss - p * cost).amax(1), own).mean())
        for p in penalties
    ]
    return min(duals), penalties[int(np.argmin(duals))]


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    ("loss", "activation", "effort"),
    [
        ("logistic", "softplus", "fast"),
        ("softmax", "relu", "fast"),
        ("huber", "tanh", "fast"),
        ("logistic", "silu", "thorough"),
        ("hinge", "sigmoid", "thorough"),
    ],
)
def test_in_the_plane_it_is_the_dual_of_a_grid(perceptron, loss, activation, effort, seed):
    objective, batch, _ = perceptron((8, 6), loss, activation, seed, d=2, n=15)
    radius = 0.4
    dual, penalty = grid_dual(objective, batch, radius)
    at = objective.with_penalty(float(penalty))
    adversary = Pointwise(anchors=0).fit(at, batch, None)
    found = (adversary.solve(batch).q,)
    bound = network_bound(
        at, [Case(batch, None, found)], masses(batch), radius=radius, effort=effort
    )
    assert bound.value >= dual * (1 - 1e-9)
    # The grid misses maximisers by at most its step; three tenths of a per cent here.
    assert bound.value <= dual * (1.03 if effort == "fast" else 1.012)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_bounded_units_bound_any_loss_at_any_penalty(perceptron, activation, seed):
    """At a penalty next to nothing the worst case is the largest output: every unit at an end."""
    objective, batch, gen = perceptron((5,), "squared", activation, seed, d=5, n=8, penalty=1e-9)
    weight, bias = (p.detach() for p in (objective.model.weights[1], objective.model.biases[1]))
    low = -1.0 if activation == "tanh" else 0.0
    most, least = (
        float(torch.maximum(s * weight, s * low * weight).sum() + s * bias) for s in (1.0, -1.0)
    )
    exact = torch.maximum((most - batch.y).square(), (least + batch.y).square())
    bound = network_bound(objective, [Case(batch)], masses(batch))
    values = bound.at(objective.penalty)
    assert bool((values >= best_known(objective, batch, gen)).all())
    # Five units in five columns take any sign: the largest output is reached far out.
    assert bool((values >= exact * (1 - 1e-6)).all())
    assert bool((values <= exact * (1 + 1e-6)).all())


@pytest.mark.parametrize(
    ("hidden", "activation"), [((8,), "relu"), ((6, 6), "softplus"), ((5, 5, 5), "tanh")]
)
def test_more_effort_is_no_looser(perceptron, hidden, activation, seed):
    objective, batch, _ = perceptron(hidden, "logistic", activation, seed, d=6, spread=0.6)
    adversary = Pointwise(anchors=0).fit(objective, batch, None)
    cases = [Case(batch, None, (adversary.solve(batch).q,))]
    fast, thorough = (
        network_bound(objective, cases, masses(batch), radius=0.3, effort=effort).value
        for effort in ("fast", "thorough")
    )
    attained = float(adversary.solve(batch).value.mean()) + objective.penalty * 0.09
    assert thorough <= fast
    assert thorough >= min(attained, float(objective.risk(batch, batch.q0).mean()))


@pytest.mark.parametrize(
    ("spread", "offset"), [(0.0, 0.0), (0.0, 1.0), (1e-6, 1.0), (1e3, 1.0), (1.0, 1e6), (30.0, 1e3)]
)
def test_extreme_weights(perceptron, spread, offset, seed):
    """No weights, constant outputs, large ones: a bound, never below what ascents find."""
    for d, activation in zip((2, 5, 5, 2, 5), sorted(ACTIVATIONS), strict=True):
        objective, batch, gen = perceptron(
            (4, 3), "logistic", activation, seed, d=d, spread=spread, offset=offset, n=5
        )
        bound = network_bound(objective, [Case(batch)], masses(batch), radius=0.3)
        assert bound.value >= float(objective.risk(batch, batch.q0).mean()) * (1 - 1e-12)
        best = best_known(objective, batch, gen)
        assert bool((bound.at(objective.penalty) >= best - 1e-12 * (1 + best.abs())).all())
        if spread == 0.0:
            assert bound.value == pytest.approx(float(objective.risk(batch, batch.q0).mean()))


def test_one_row_one_unit_one_column(perceptron, seed):
    objective, batch, _ = perceptron((1,), "logistic", "tanh", seed, d=1, n=1)
    bound = network_bound(objective, [Case(batch)], masses(batch), effort="thorough")
    grid = torch.linspace(-8, 8, 20001, dtype=torch.float64)[:, None]
    every = objective.batch(grid, batch.y.expand(len(grid)))
    values = objective.risk(every, every.q0) - objective.penalty * (grid - batch.x).square()[:, 0]
    best = float(values.max())
    assert best <= bound.value <= best + 2e-3 * abs(best)


def test_dead_units_and_rows_of_weight_zero_change_nothing(perceptron, seed):
    objective, batch, _ = perceptron((6, 4), "logistic", "relu", seed, d=5)
    objective.model.biases[0].data[:3] = -1e4
    whole = network_bound(objective, [Case(batch)], masses(batch), radius=0.2)
    assert math.isfinite(whole.value)
    weights = masses(batch).clone()
    weights[::2] = 0.0
    weights = weights / weights.sum()
    kept = torch.arange(1, len(batch), 2)
    half = network_bound(objective, [Case(batch)], weights, radius=0.2)
    alone = network_bound(objective, [Case(batch.take(kept))], weights[kept], radius=0.2)
    assert half.value == pytest.approx(alone.value, rel=0.02)


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_no_finite_bound_at_a_penalty_names_one_that_has(perceptron, activation, monkeypatch):
    """Without work on shells, which could not change it."""
    objective, batch, _ = perceptron((5, 4), "squared", activation, 3, d=6, penalty=1e-3)
    weights = masses(batch)
    with monkeypatch.context() as patch:
        patch.setattr(bounds, "Refine", None)
        found = network_bound(objective, [Case(batch)], weights)
    assert found.value == math.inf
    least = float(re.search(r"up to a penalty of (\S+),", found.unproven).group(1))
    below = network_bound(objective.with_penalty(0.99 * least), [Case(batch)], weights)
    above = network_bound(objective.with_penalty(1.01 * least), [Case(batch)], weights)
    assert below.value == math.inf
    assert above.value < math.inf
    assert not above.unproven
    adversary = Pointwise().fit(objective, batch, torch.Generator())
    assert adversary.with_penalty(1.01 * least).check_finite(batch, False) is None


def test_at_a_huge_radius_only_the_constants_speak(perceptron, seed):
    objective, batch, _ = perceptron((6, 4), "logistic", "tanh", seed, d=5, penalty=1e-9)
    bound = network_bound(objective, [Case(batch)], masses(batch), radius=1e6)
    rates = bound.shells.rates.amax()
    assert bound.value <= float(objective.risk(batch, batch.q0).mean()) + 1.001e6 * float(rates)
    assert math.isfinite(bound.value)


#: Single margins as far as they go, twice, so that the second stage is stuck, and then pairs.
STUCK = tuple(
    refine.Stage(1.1, steps, 0.02, 0.0, 1e6, pairs)
    for steps, pairs in [(0, False), (11, False), (11, False), (4, True)]
)


#: Those of the effort, begun at any gap.
OPEN = tuple(replace(stage, gap=0.0) for stage in refine.SETTINGS["fast"].stages)


@pytest.mark.parametrize("stages", [OPEN, STUCK], ids=["fast", "stuck"])
def test_pairs_of_margins_lower_the_bound_of_several_classes(perceptron, seed, monkeypatch, stages):
    """Margins of three classes are largest at different points: together they are never so."""
    single = tuple(stage for stage in stages if not stage.pairs)
    alone = {"fast": replace(refine.SETTINGS["fast"], stages=single)}
    monkeypatch.setattr(
        bounds, "SETTINGS", {"fast": replace(refine.SETTINGS["fast"], stages=stages)}
    )
    whole, apart = [], []
    for number in (2 * seed, 2 * seed + 1):
        objective, batch, gen = perceptron(
            (6,), "softmax", "softplus", number, d=5, n=8, spread=0.5, penalty=0.3
        )
        cases = [Case(batch, None, (proximal_ascent(objective, batch, batch.q0, 60).q,))]
        bound = network_bound(objective, cases, masses(batch))
        with monkeypatch.context() as patch:
            patch.setattr(bounds, "SETTINGS", alone)
            apart.append(network_bound(objective, cases, masses(batch)).value)
        whole.append(bound.value)
        best = best_known(objective, batch, gen, 3)
        assert bool((bound.at(objective.penalty) >= best - 1e-12 * (1 + best.abs())).all())
    assert all(w <= a * (1 + 1e-12) for w, a in zip(whole, apart, strict=True))
    assert sum(whole) < 0.998 * sum(apart)


def test_labels_that_change_are_bounded_at_all_labels(perceptron, seed):
    objective, batch, gen = perceptron((6,), "logistic", "tanh", seed, d=5, penalty=2.0)
    other = type(batch)(batch.x, 1 - batch.y, batch.q0)
    fee = torch.full((len(batch),), 0.05, dtype=torch.float64)
    cases = [Case(batch), Case(other, fee)]
    bound = network_bound(objective, cases, masses(batch)).at(2.0)
    flipped = best_known(objective, other, gen) - 2.0 * 0.05
    best = torch.maximum(best_known(objective, batch, gen), flipped)
    assert bool((bound >= best - 1e-12).all())
    alone = [network_bound(objective, [Case(b)], masses(batch)).at(2.0) for b in (batch, other)]
    joined = torch.maximum(alone[0], alone[1] - 0.1)
    torch.testing.assert_close(bound, joined, rtol=0.05, atol=0.01)


def test_it_repeats_itself(perceptron, seed):
    objective, batch, _ = perceptron((8, 8), "softmax", "softplus", seed, d=6)
    found = [network_bound(objective, [Case(batch)], masses(batch), radius=0.3) for _ in range(2)]
    assert found[0].value == found[1].value


def test_time_ends_it_with_a_proof(perceptron, seed):
    objective, batch, _ = perceptron((16, 16), "softmax", "softplus", seed, d=8, n=30)
    values = {}
    for limit in (0.0, 0.3, 1e9):
        began = time.perf_counter()
        case = [Case(batch)]
        values[limit] = network_bound(
            objective, case, masses(batch), radius=0.3, effort="thorough", max_time=limit
        ).value
        assert time.perf_counter() - began < limit + 3.0  # one block more, a busy machine
    assert values[1e9] <= values[0.3] * (1 + 1e-9)
    assert values[0.3] <= values[0.0] * (1 + 1e-9)


def test_blocks_change_nothing(perceptron, seed, monkeypatch):
    objective, batch, _ = perceptron((8, 6), "softmax", "softplus", seed, d=6)
    whole = network_bound(objective, [Case(batch)], masses(batch), radius=0.3).value
    monkeypatch.setattr(Refine, "_block_size", lambda self, stage: 3)
    parts = network_bound(objective, [Case(batch)], masses(batch), radius=0.3).value
    assert parts == pytest.approx(whole, rel=1e-9)
