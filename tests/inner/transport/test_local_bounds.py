import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.ambiguity import GroundCost
from drojko.inner import proximal_ascent
from drojko.inner.transport import local_bounds
from drojko.inner.transport.ascent import Ascent
from drojko.inner.transport.bounds import lipschitz_bound, structure
from drojko.inner.transport.local_bounds import _Network, _Scores, local_upper_bound, slope_range
from drojko.losses import CallableLoss
from drojko.models import ACTIVATIONS, MLP

ACTIVATED = sorted(ACTIVATIONS)


@given(st.sampled_from(ACTIVATED), st.floats(-8, 8), st.floats(-3, 1.2))
def test_ranges_enclose_slopes_and_bends(activation, centre, log_width):
    width = 10**log_width
    a = torch.linspace(centre - width, centre + width, 2001, dtype=torch.float64)
    low, high, bend = slope_range(activation, a[:1], a[-1:])
    slope = ACTIVATIONS[activation][0](a)[1]
    assert float(low) <= float(slope.min()) + 1e-12
    assert float(high) >= float(slope.max()) - 1e-12
    if activation != "relu":
        leaf = a.clone().requires_grad_(True)
        value = ACTIVATIONS[activation][0](leaf)[0]
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
        assert float(bend) >= float(second.abs().max()) - 1e-9


@pytest.mark.parametrize("activation", ACTIVATED)
def test_ranges_over_the_whole_line_are_the_global_bounds(activation):
    far = torch.tensor([math.inf], dtype=torch.float64)
    low, high, _ = slope_range(activation, -far, far)
    _, slope, _ = ACTIVATIONS[activation]
    assert float(torch.maximum(low.abs(), high.abs())) == pytest.approx(slope, abs=1e-6)


CASES = st.tuples(
    st.sampled_from([(4,), (4, 3), (3, 4, 3)]),
    st.sampled_from(["logistic", "softmax", "squared", "huber"]),
    st.sampled_from(ACTIVATED),
    st.floats(-2, 2.5),
    st.integers(0, 10**6),
)


def problem(build, hidden, loss, activation, log_penalty, number, spread=0.8):
    gen = torch.Generator().manual_seed(number)
    model = MLP(3, 3 if loss == "softmax" else 1, hidden=hidden, activation=activation)
    for p in model.parameters():
        p.data.copy_(spread * torch.randn(p.shape, generator=gen, dtype=torch.float64))
    x = torch.randn(12, 3, generator=gen, dtype=torch.float64)
    y = torch.randint(3 if loss == "softmax" else 2, (12,), generator=gen)
    if loss in ("squared", "huber"):
        y = torch.randn(12, generator=gen, dtype=torch.float64)
    name = "logistic" if loss == "softmax" else loss
    cost = GroundCost(np.array([0.5, 2.0, 1.0]))
    adversary, batch = build(model, name, x, y, 10**log_penalty, cost=cost)
    return adversary.objective, batch, gen


def best_known(objective, batch, gen):
    best = objective.value(batch, batch.q0)
    for k in range(16):
        q = batch.q0 + 10.0 ** (k % 4 - 2) * torch.randn(
            batch.q0.shape, generator=gen, dtype=torch.float64
        )
        best = torch.maximum(best, proximal_ascent(objective, batch, q, 25).value)
    return best


def test_rows_are_bounded_alike_one_by_one(build, monkeypatch):
    """Bounds take a Jacobian a row, so that rows go in blocks; what is in one hardly matters."""
    objective, batch, _ = problem(build, (4, 3), "softmax", "tanh", 1.0, 0)
    found = proximal_ascent(objective, batch, batch.q0, 10)
    whole = local_upper_bound(objective, batch, found)
    monkeypatch.setattr(local_bounds, "_NUMBERS", 1)
    assert _Network.of(objective).block == 1
    single = local_upper_bound(objective, batch, found)
    assert whole is not None
    assert single is not None
    # Rounds end where no row of a block gains 2 % in radius.
    torch.testing.assert_close(single.value, whole.value, rtol=0.03, atol=0)


@pytest.mark.promise(1)
@given(CASES, st.sampled_from(["ascent", "sample", "anywhere"]))
def test_no_point_beats_the_bound_whatever_was_found(build, drawn, kind):
    """Also where what was found is poor: a bound must not trust the quality of the ascent."""
    objective, batch, gen = problem(build, *drawn)
    q = batch.q0
    if kind == "ascent":
        q = proximal_ascent(objective, batch, q, 40).q
    elif kind == "anywhere":
        q = q + 3 * torch.randn(q.shape, generator=gen, dtype=torch.float64)
    found = Ascent(q, *objective.value_and_gradient(batch, q))
    local = local_upper_bound(objective, batch, found)
    assert local is not None
    best = best_known(objective, batch, gen)
    known = torch.isfinite(local.value)
    slack = 1e-9 * (1 + best.abs())
    assert bool((local.value >= best - slack)[known].all())
    assert bool((local.value >= found.value)[known].all())


@pytest.mark.parametrize("loss", ["logistic", "softmax", "squared", "huber"])
def test_it_improves_on_the_global_bounds_and_closes_the_gap(build, loss, seed):
    """Where the global curvature proves nothing, the local one proves the ascent optimal."""
    objective, batch, _ = problem(build, (4, 4), loss, "tanh", 1.0, seed)
    known = structure(objective)
    objective = objective.with_penalty(objective.penalty * 60.0)
    found = proximal_ascent(objective, batch, batch.q0, 200)
    local = local_upper_bound(objective, batch, found)
    assert bool(local.concave.all())
    # Strong concavity leaves the square of the last gradient: rounding.
    torch.testing.assert_close(local.value, found.value, rtol=1e-8, atol=1e-8)
    glob = lipschitz_bound(objective, batch, known.norms)
    assert float((glob - found.value).mean()) > 1e-4
    assert bool((local.value <= glob + 1e-9).all())


def test_what_it_does_not_know_it_leaves(build, linear, generator):
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1])
    cases = [
        (linear([1.0, 2.0, 3.0]), "logistic"),
        (MLP(3, 1, hidden=(2,)), "hinge"),
        (MLP(3, 1, hidden=(2,)), CallableLoss(lambda f, y: f)),
    ]
    for model, loss in cases:
        adversary, batch = build(model, loss, x, y)
        found = proximal_ascent(adversary.objective, batch, batch.q0, 5)
        assert local_upper_bound(adversary.objective, batch, found) is None


def curvature_on_ball(objective, batch, radius):
    network = _Network.of(objective)
    scores = _Scores.of(objective, batch)
    radius = torch.full((len(batch),), radius, dtype=torch.float64)
    ball = network.ball(network.forward(batch.x), radius)
    norms = network.lipschitz(ball, scores.rows)
    return norms, network.curvature(ball, *scores.slopes(norms, radius))


def measured(objective, batch, q):
    """Slope of f and curvature of the loss at q, sample by sample."""
    values = torch.linalg.eigvalsh(objective.loss_hessian(batch, q))[:, -1]
    f, backward = objective.model.linearise(objective.decode(batch, q))
    if f.ndim > 1:
        g = torch.nn.functional.one_hot(batch.y * 0, f.shape[1]).to(f.dtype)
        g = g - torch.nn.functional.one_hot(batch.y, f.shape[1]).to(f.dtype)
        return objective.coordinates.pull(backward(g)).norm(dim=1), values
    return objective.coordinates.pull(backward(torch.ones_like(f))).norm(dim=1), values


@given(CASES, st.sampled_from([1e-6, 0.1, 1.0, 10.0]))
def test_curvature_and_slope_on_a_ball_dominate_measured_ones(build, drawn, radius):
    objective, batch, gen = problem(build, *drawn)
    norms, curvature = curvature_on_ball(objective, batch, radius)
    for _ in range(10):
        step = torch.randn(batch.q0.shape, generator=gen, dtype=torch.float64)
        length = radius * torch.rand(len(batch), 1, generator=gen, dtype=torch.float64)
        q = batch.q0 + length * step / step.norm(dim=1, keepdim=True)
        slope, bend = measured(objective, batch, q)
        assert bool((slope <= norms[:, 0] * (1 + 1e-9) + 1e-12).all())
        known = torch.isfinite(curvature)
        assert bool((bend <= curvature * (1 + 1e-9) + 1e-9)[known].all())


@pytest.mark.parametrize("activation", ["softplus", "tanh", "silu"])
@pytest.mark.parametrize("loss", ["logistic", "squared", "huber"])
@pytest.mark.parametrize("hidden", [(1,), (1, 1), (1, 1, 1)])
def test_curvature_at_a_point_is_exact_for_a_chain_of_units(build, hidden, loss, activation):
    """One unit a layer, every term of the second derivative positive: nothing is lost."""
    model = MLP(1, 1, hidden=hidden, activation=activation)
    for k, w in enumerate(model.weights):
        w.data.fill_(0.7 + 0.1 * k)
    # Before the bends of tanh turn negative: pre-activations just below zero.
    level = -0.3 if activation == "tanh" else 0.1
    for b in model.biases[:-1]:
        b.data.fill_(level)
    x = torch.tensor([[-0.2], [0.0]], dtype=torch.float64)
    y = torch.tensor([0, 0]) if loss == "logistic" else model(x).detach() - 0.5
    adversary, batch = build(model, loss, x, y)
    norms, curvature = curvature_on_ball(adversary.objective, batch, 0.0)
    slope, bend = measured(adversary.objective, batch, batch.q0)
    torch.testing.assert_close(norms[:, 0], slope, rtol=1e-8, atol=0)
    # Rounded outwards by parts in 1e9.
    torch.testing.assert_close(curvature, bend, rtol=1e-7, atol=0)
