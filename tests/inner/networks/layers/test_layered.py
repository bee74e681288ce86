"""Bounds of any layers: never below the truth, near it where it is known, and those of a
perceptron where it is one.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from drojko import DROClassifier
from drojko.ambiguity import Wasserstein
from drojko.exceptions import UnsupportedError
from drojko.inner import Pointwise
from drojko.inner.networks.activations import activation
from drojko.inner.networks.bound import Case, network_bound
from drojko.inner.networks.layers import entry, run
from drojko.inner.networks.layers.chain import perceptron
from drojko.inner.networks.layers.layered import Layered
from drojko.inner.networks.layers.rates import common_rates
from drojko.inner.networks.layers.two import two_layers
from drojko.inner.networks.linear import Ball, Box, headed, linear_bound
from drojko.inner.networks.lipschitz import lipschitz, margin_constants, product_of_norms
from drojko.inner.networks.network import Network
from drojko.inner.networks.quadratic import quadratic_bound
from drojko.inner.networks.refine import _anchor, _means
from drojko.losses import CallableLoss
from drojko.models import MLP, ModuleModel
from tests.inner.networks.layers.conftest import NETWORKS, made

WEIGHTS = [None, [4.0] * 5 + [math.inf] + [1.0] * 10]


def masses(batch):
    return torch.full((len(batch),), 1 / len(batch), dtype=torch.float64)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_margins_stay_below_lines_and_units_in_intervals(module, layered, in_ball, weights, seed):
    objective, batch, gen = layered(module, seed, weights=weights)
    network = Layered.read(objective, batch)
    for radius in (0.0, 0.1, 3.0):
        ball = torch.full((len(batch),), radius, dtype=torch.float64)
        anchors = network.forward(torch.zeros(len(batch), network.dim).double())[0]
        for given in (None, anchors):
            bound = linear_bound(network, Ball(ball), given)
            for d in in_ball(ball, network.dim, 25, gen):
                f = objective.model(objective.decode(batch, batch.q0 + d))
                margins = f - f.gather(1, batch.y[:, None])
                lines = bound.level + (bound.rows * d[:, None]).sum(-1)
                assert bool((margins <= lines + 1e-11 * (1 + margins.abs())).all())
                pre, _ = network.forward(d)
                for at, (low, high) in zip(pre, bound.intervals, strict=True):
                    assert bool(((low <= at) & (at <= high)).all())
        if radius == 0.0:
            at = network.at(torch.zeros(len(batch), network.dim).double())
            torch.testing.assert_close(bound.level, at, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("radius", [0.05, 0.7, 3.0])
def test_margins_stay_below_quadratics(module, layered, in_ball, weights, radius, seed):
    """Of single margins and of means of two, improved or not, at random and where they climb."""
    objective, batch, gen = layered(module, seed, weights=weights)
    network = Layered.read(objective, batch)
    place = torch.arange(len(batch)).repeat(2)
    ball, k = Ball(torch.full((len(batch),), radius).double()), torch.tensor([[0, 1], [1, 2]])
    one, two = k.repeat_interleave(len(batch), 1)
    taken = network.take(place)
    rows, levels = _means(taken, one, two)
    radii = ball.radius[place]
    d = _anchor(taken, rows, levels, 0.9 * radii, torch.randn(len(place), network.dim).double())
    points = [d, *in_ball(radii, network.dim, 40, gen)]
    points += [_anchor(taken, rows, levels, s * radii, p) for s in (0.3, 1.0) for p in points[:6]]
    for layers, steps in itertools.product(range(1, network.curved + 1), (0, 4)):
        head = headed(network, ball, place, rows, levels, d, layers)
        if layers == 1:
            found = quadratic_bound(
                head.network, head.rows, head.levels, d, head.intervals, 0.8 * radii, steps,
                along=head.along,
            )  # fmt: skip
        else:
            found = two_layers(head, d, 0.8 * radii, steps)
        assert bool(torch.isfinite(found.constant).all())
        for p in points:
            margin = (taken.forward(p)[1] * rows).sum(1) + levels
            bound = found.constant + 0.5 * found.curvature * p.square().sum(1)
            assert bool((margin <= bound + 1e-11 * (1 + margin.abs())).all())


def test_slopes_are_those_of_the_module(module, layered, in_ball, seed):
    objective, batch, gen = layered(module, seed)
    network = Layered.read(objective, batch)
    rows = torch.randn(len(batch), 3, generator=gen, dtype=torch.float64)
    d = next(iter(in_ball(torch.ones(len(batch)).double(), network.dim, 1, gen)))
    with torch.enable_grad():
        leaf = d.clone().requires_grad_(True)
        f = objective.model(objective.decode(batch, batch.q0 + leaf))
        (slopes,) = torch.autograd.grad(f, leaf, rows)
    torch.testing.assert_close(network.gradient(d, rows), slopes)


def test_forms_are_nearly_as_sharp_as_substitution(layered, seed, monkeypatch):
    """Of the second layer's units, at a fraction of the work."""
    objective, batch, _ = layered(made("plain", seed), seed)
    ball = Ball(torch.full((len(batch),), 0.3, dtype=torch.float64))

    def width():
        spans = linear_bound(Layered.read(objective, batch), ball).intervals[1]
        return float((spans[1] - spans[0]).mean())

    forms = width()
    monkeypatch.setattr(run, "_FORM", 0)
    substituted = width()
    monkeypatch.setattr(run, "_WORK", 0)
    assert forms <= 1.1 * substituted
    assert forms <= 0.9 * width()


def test_which_networks_are_cut_where(layered, seed):
    layers = {name: Layered.read(*layered(made(name, seed), seed)[:2]).curved for name in NETWORKS}
    assert layers == {
        "convolutions": 1, "smooth": 2, "overlap": 1, "transposed": 1, "scaled": 0, "residual": 1,
        "odd": 0, "plain": 2, "lone": 1,
    }  # fmt: skip


def test_layers_that_compose_are_the_program(layered, in_ball, seed):
    objective, batch, gen = layered(made("smooth", seed), seed)
    network = Layered.read(objective, batch)
    dense = perceptron(network.entry, network.margins)
    d = next(iter(in_ball(torch.ones(len(batch)).double(), network.dim, 1, gen)))
    (still, *_), _ = network.forward(torch.zeros_like(d))
    pre, outputs = network.forward(d)
    first, second = (p.flatten(1) for p in pre)
    torch.testing.assert_close(first - still.flatten(1), d @ dense.weights[0].T)
    h, last = dense.acts[0](first)[0], dense.acts[1](second)[0]
    torch.testing.assert_close(second.diff(dim=0), (h @ dense.weights[1].T).diff(dim=0))
    torch.testing.assert_close(outputs.diff(dim=0), (last @ dense.margins.weight.T).diff(dim=0))
    rough, tight = margin_constants(network, 0), margin_constants(network, 20)
    assert bool((tight <= rough).all())
    assert float(tight.mean()) < 0.95 * float(rough.mean())


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "silu"])
def test_common_constants_are_no_less_than_slopes(name, seed):
    """And no further above them than those of single rows, but for slopes below zero."""
    gen = torch.Generator().manual_seed(seed)
    weights = torch.randn(9, 16, generator=gen), torch.randn(7, 9, generator=gen)
    act = activation(name)
    nothing = torch.zeros(0, 9).double()
    network = Network(
        tuple(w.double() for w in weights),
        (),
        (act, act),
        nothing,
        nothing,
        None,  # type: ignore
    )
    rows = torch.randn(5, 7, generator=gen).double()
    found = common_rates(network, rows, 60)
    if name == "silu":
        assert found is None
        return
    known = lipschitz(network, rows, 100)
    assert bool((found <= 1.5 * known).all())
    w1, w2 = network.weights
    for size in (0.1, 1.0, 5.0):
        at = size * torch.randn(300, 9, generator=gen).double()
        first = act(at)[1]
        second = act(size * torch.randn(300, 7, generator=gen).double())[1]
        for k, row in enumerate(rows):
            slopes = (((second * row) @ w2) * first) @ w1
            assert float(slopes.norm(dim=1).max()) <= float(found[k]) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["residual", "odd"])
def test_what_is_no_perceptron_is_not_taken_for_one(name, layered, seed):
    network = Layered.read(*layered(made(name, seed), seed)[:2])
    assert perceptron(network.entry, network.margins) is None


def test_balls_that_were_looked_at_are_not_looked_at_again(layered, seed, monkeypatch):
    objective, batch, _ = layered(made("convolutions", seed), seed)
    network, other = (Layered.read(objective, batch) for _ in range(2))
    ball = Ball(torch.full((len(batch),), 0.4, dtype=torch.float64))
    known = linear_bound(network, ball)
    calls = []
    sharpen = run.Run.sharpen
    monkeypatch.setattr(
        run.Run, "sharpen", lambda *given: (calls.append(given[1]), sharpen(*given))[1]
    )
    again = linear_bound(network.take(torch.tensor([3, 1])), Ball(ball.radius[:2]))
    assert all(network.program.straight[k] for k in calls)
    torch.testing.assert_close(again.level, known.level[[3, 1]], rtol=0, atol=1e-12)
    calls.clear()
    linear_bound(other, ball)
    assert not all(network.program.straight[k] for k in calls)


def test_on_boxes_too(module, layered, seed):
    objective, batch, gen = layered(module, seed)
    network = Layered.read(objective, batch)
    middle, half = torch.randn(2, len(batch), 16, generator=gen, dtype=torch.float64)
    bound = linear_bound(network, Box(middle, half.abs()))
    for _ in range(30):
        share = 2 * torch.rand(half.shape, generator=gen, dtype=torch.float64) - 1
        lines = bound.level + (bound.rows * (share * half.abs())[:, None]).sum(-1)
        assert bool((network.at(middle + share * half.abs()) <= lines + 1e-9).all())


def test_quick_intervals_and_blocks_are_bounds_as_well(module, layered, in_ball, seed, monkeypatch):
    """Where rows are too many to substitute, or come in parts."""
    objective, batch, gen = layered(module, seed)
    ball = torch.full((len(batch),), 0.7, dtype=torch.float64)
    sharp = linear_bound(Layered.read(objective, batch), Ball(ball))
    monkeypatch.setattr(run, "_MEMORY", 2**16)
    parts = linear_bound(Layered.read(objective, batch), Ball(ball))
    torch.testing.assert_close(parts.level, sharp.level)
    monkeypatch.setattr(run, "_WORK", 0)
    monkeypatch.setattr(entry, "_KEPT", 0)
    monkeypatch.setattr(entry, "_USED", 0)
    for passed in (10**9, 0):
        monkeypatch.setattr(entry, "_PASSED", passed)
        network = Layered.read(objective, batch)
        quick = linear_bound(network, Ball(ball))
        for d in in_ball(ball, network.dim, 50, gen):
            lines = quick.level + (quick.rows * d[:, None]).sum(-1)
            assert bool((network.at(d) <= lines + 1e-11 * (1 + lines.abs())).all())
            pre, _ = network.forward(d)
            for at, (low, high) in zip(pre, quick.intervals, strict=True):
                assert bool(((low <= at) & (at <= high)).all())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_constants_are_no_less_than_slopes(module, layered, weights, seed):
    objective, batch, gen = layered(module, seed, weights=weights)
    network = Layered.read(objective, batch)
    rates = margin_constants(network, 20)
    for size in (0.1, 3.0, 100.0):
        a, b = size * torch.randn(2, 50, len(batch), network.dim, generator=gen).double()
        for one, other in zip(a, a + b * torch.rand(1, generator=gen), strict=True):
            rise = (network.at(other) - network.at(one)).abs()
            far = (other - one).norm(dim=1, keepdim=True)
            assert bool((rise <= rates * far * (1 + 1e-9)).all())


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_of_a_perceptron_they_are_those_of_its_matrices(perceptron, activation, seed):
    objective, batch, _ = perceptron((6,), "softmax", activation, seed, d=8)
    parts = []
    for w, b in zip(objective.model.weights, objective.model.biases, strict=True):
        layer = nn.Linear(*reversed(w.shape)).double()
        layer.weight.data, layer.bias.data = w.detach(), b.detach()
        act = {"tanh": nn.Tanh(), "silu": nn.SiLU(), "softplus": nn.Softplus(threshold=40)}
        parts += [layer, act[activation]]
    model = ModuleModel(nn.Sequential(*parts[:-1]).requires_grad_(False), 3)
    same = type(objective)(model, objective.loss, objective.coordinates, 1.0)
    dense, other = Network.of(objective, batch), Layered.read(same, batch)
    ball = Ball(torch.full((len(batch),), 0.5, dtype=torch.float64))
    known, found = linear_bound(dense, ball), linear_bound(other, ball)
    torch.testing.assert_close(found.level, known.level)
    torch.testing.assert_close(found.rows.norm(dim=2), known.rows.norm(dim=2))
    rates = margin_constants(other, 0)
    assert bool((rates <= product_of_norms(dense, dense.margins.rows[0])[None] * (1 + 1e-6))[
        batch.y == batch.y[0]].all())  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("effort", ["fast", "thorough"])
def test_bounds_are_above_what_ascents_find(name, effort, layered, seed):
    objective, batch, gen = layered(made(name, seed, 0.7), seed, n=4, penalty=3.0)
    adversary = Pointwise().fit(objective, batch, gen, n_labels=3)
    found = adversary.solve(batch)
    radius = float((found.cost.mean()).sqrt()) or 0.1
    cases = [Case(batch, None, (found.q,))]
    bound = network_bound(objective, cases, masses(batch), radius=radius, effort=effort)
    attained = float(found.value.mean()) + 3.0 * radius**2
    assert attained * (1 - 1e-9) <= bound.value < math.inf
    assert bound.proof == "linear-bounds" or bound.value == pytest.approx(attained, rel=1e-2)
    values = bound.at(3.0)
    assert bool((values >= found.value - 1e-9).all())


@pytest.mark.parametrize("name", ["convolutions", "plain"])
def test_quadratics_and_a_thorough_effort_are_worth_it(name, layered, seed, monkeypatch):
    objective, batch, gen = layered(made(name, seed, 0.7), seed, n=6, penalty=1.5)
    found = Pointwise().fit(objective, batch, gen, n_labels=3).solve(batch)

    def gap(effort):
        cases = [Case(batch, None, (found.q,))]
        bound = network_bound(objective, cases, masses(batch), effort=effort)
        return bound.value / float(found.value.mean()) - 1.0

    fast, thorough = gap("fast"), gap("thorough")
    monkeypatch.setattr(Layered, "curved", 0)
    lines = gap("fast")
    assert -1e-9 <= thorough <= fast <= 0.85 * lines


@pytest.mark.parametrize("other", [0, 1, 4])
def test_thorough_bounds_are_no_looser_than_lines_on_fine_shells(other, layered, monkeypatch):
    """Of two layers fast ones may be: they look at fewer shells."""
    objective, batch, gen = layered(made("plain", other, 0.7), other, n=6, penalty=1.5)
    found = Pointwise().fit(objective, batch, gen, n_labels=3).solve(batch)
    cases = [Case(batch, None, (found.q,))]
    thorough = network_bound(objective, cases, masses(batch), effort="thorough").value
    assert Layered.read(objective, batch).curved == 2
    monkeypatch.setattr(Layered, "curved", 0)
    lines = network_bound(objective, cases, masses(batch)).value
    assert thorough <= lines * (1 + 1e-12)


def test_overflowing_weights_prove_nothing_wrong(layered, seed):
    objective, batch, _ = layered(made("convolutions", seed, 1e40), seed)
    bound = network_bound(objective, [Case(batch)], masses(batch), radius=0.1)
    assert not bound.value < float(objective.risk(batch, batch.q0).mean())
    objective, batch, _ = layered(made("convolutions", seed, 1e120), seed)
    with pytest.raises(UnsupportedError, match="NaN"):
        network_bound(objective, [Case(batch)], masses(batch), radius=0.1)


@pytest.mark.parametrize("scales", [(1e21, 1.0), (1e30, 1e19), (1e40, 1.0)])
def test_two_layers_beyond_what_single_precision_holds(scales, layered, seed):
    module = made("smooth", seed)
    module[1].weight.mul_(scales[0])
    module[5].weight.mul_(scales[1])
    objective, batch, gen = layered(module, seed)
    network = Layered.read(objective, batch)
    rows, levels = network.margins.rows[:, 1], network.margins.levels[:, 1]
    radius = torch.full((len(batch),), 0.3, dtype=torch.float64)
    found = torch.randn(len(batch), network.dim, generator=gen, dtype=torch.float64)
    d = _anchor(network, rows, levels, 0.8 * radius, found)
    head = headed(network, Ball(radius), torch.arange(len(batch)), rows, levels, d, 2)
    bound = two_layers(head, d, 0.8 * radius, 8)
    top = bound.constant + 0.5 * bound.curvature * d.square().sum(1)
    margin = (network.forward(d)[1] * rows).sum(1) + levels
    assert bool((top >= margin - 1e-9 * margin.abs()).all())


def test_common_rates_that_overflow_are_none(layered, seed):
    objective, batch, _ = layered(made("smooth", seed), seed)
    network = Layered.read(objective, batch)
    dense = perceptron(network.entry, network.margins)
    for size in (1e40, 1e80, 1e120):
        steep = replace(dense, weights=tuple(size * w for w in dense.weights))
        rates = common_rates(steep, dense.margins.weight, 12)
        assert rates is None or bool((rates >= 0).all())  # False for NaN


def test_units_that_end_bound_margins_everywhere(layered, seed):
    objective, batch, _ = layered(made("smooth", seed, 30.0), seed)
    network = Layered.read(objective, batch)
    far = network.at(1e6 * torch.randn(len(batch), 16, dtype=torch.float64, generator=(
        torch.Generator().manual_seed(seed))))  # fmt: skip
    cap = network.largest()
    assert bool((far <= cap + 1e-9).all())
    assert bool(torch.isfinite(cap).all())
    assert bool(torch.isinf(Layered.read(*layered(made("residual", seed), seed)[:2]).largest()[
        :, 0]).any())  # fmt: skip


def test_what_nothing_is_known_of_is_named(perceptron, layered):
    objective, batch, _ = perceptron((4,), "logistic", "tanh", 0)
    loss = CallableLoss(lambda f, y: f)
    with pytest.raises(UnsupportedError, match="loss"):
        Layered.read(type(objective)(objective.model, loss, objective.coordinates, 1.0), batch)
    linear = type(objective)(MLP(3, 1, hidden=()), objective.loss, objective.coordinates, 1.0)
    with pytest.raises(UnsupportedError, match="MLP"):
        Layered.read(linear, batch)


def small(*layers):
    return lambda: nn.Sequential(nn.Unflatten(1, (1, 4, 4)), *layers)


def images(seed):
    """Bright left or right halves."""
    rng = np.random.default_rng(seed)
    y = np.arange(40) % 2
    X = rng.normal(size=(40, 4, 4))
    X[:, :, :2] += 1.5 * (y == 0)[:, None, None]
    X[:, :, 2:] += 1.5 * (y == 1)[:, None, None]
    return X.reshape(40, 16), y


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_fit_of_a_convolution_is_certified(dtype, seed):
    X, y = images(seed)
    layers = (nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    fitted = DROClassifier(
        Wasserstein(0.3), model=small(*layers), reference="empirical", max_iter=40,
        random_state=seed, dtype=dtype,
    ).fit(X, y)  # fmt: skip
    found = fitted.certificate_
    assert found.proof == "linear-bounds"
    assert found.unproven == ""
    assert found.lower <= found.upper <= 1.6 * found.lower


def test_a_fit_of_something_else_says_what_is_not_known(seed):
    X, y = images(seed)
    layers = (nn.Conv2d(1, 2, 3), nn.Softsign(), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 2))
    fitted = DROClassifier(
        Wasserstein(0.3), model=small(*layers), reference="empirical", max_iter=5,
        random_state=seed,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="max_iter"):
        fitted.fit(X, y)
    found = fitted.certificate_
    assert found.proof == "local-estimate"
    assert "no bounds are known of" in found.unproven
    assert "may exceed" in str(found)
