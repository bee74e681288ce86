import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from drojko.ambiguity import GroundCost
from drojko.exceptions import InvalidDataError
from drojko.inner import ICNNJKO, proximal_ascent
from drojko.inner.transport.search.rounds import Restarts, Search
from drojko.inner.transport.search.starts import Anchors
from drojko.losses import CallableLoss
from drojko.models import MLP, ModuleModel


def gains(objective, batch, found):
    return found.value - objective.value(batch, batch.q0)


def of(adversary, batch, effort="fast", seed=0, classes=True):
    anchors = Anchors(batch.x, batch.y, classes)
    return Search(anchors, seed, effort).run(adversary.objective, batch)


def on_grid(objective, batch, low=-4.0, high=4.0, n=401, penalty=None):
    """Largest J of each row of two columns over a grid, at the row's label."""
    axis = torch.linspace(low, high, n, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    f = objective.model.linearise(grid)[0]
    best = []
    for x, y in zip(batch.x, batch.y, strict=True):
        loss = objective.loss.value(f, y.expand(len(grid)))
        best.append((loss - objective.penalty * (grid - x).square().sum(1)).max())
    return torch.stack(best)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("penalty", [1.0, 0.1])
@pytest.mark.parametrize("effort", ["fast", "thorough"])
def test_no_point_of_a_grid_is_worse(build, moons, activation, penalty, effort):
    model, x, y = moons
    if activation == "relu":
        model = MLP(2, 1, hidden=(12, 12), activation="relu", generator=torch.Generator())
        with torch.no_grad():
            for weight in model.weights:
                weight.mul_(2.0)
        model.requires_grad_(False)
    adversary, batch = build(model, "logistic", x[:40], y[:40], penalty)
    found = of(adversary, batch, effort)
    truth = on_grid(adversary.objective, batch)
    gain = gains(adversary.objective, batch, found)
    short = (truth - found.value).clamp_min(0.0).sum() / gain.sum()
    assert float(short) < (5e-3 if effort == "fast" else 5e-4)


@pytest.mark.parametrize("loss", ["squared", "huber", "absolute"])
def test_regressions_have_no_label_to_go_to(build, loss, generator):
    """A saturating network of two columns against a grid."""
    model = MLP(2, 1, hidden=(10,), activation="tanh", generator=generator)
    with torch.no_grad():
        model.weights[0].mul_(3.0)
    model.requires_grad_(False)
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    adversary, batch = build(model, loss, x, model(x) + 0.1, 0.02)
    found = of(adversary, batch, classes=False)
    truth = on_grid(adversary.objective, batch, -9.0, 9.0)
    gain = gains(adversary.objective, batch, found)
    assert float((truth - found.value).clamp_min(0.0).sum() / gain.sum()) < 5e-3
    ascent = proximal_ascent(adversary.objective, batch, batch.q0, 200)
    assert float(gain.sum()) > float(gains(adversary.objective, batch, ascent).sum())


def kinked(build, generator, n, loss):
    """A ReLU network of two columns that grows to all sides, in regression."""
    model = MLP(2, 1, hidden=(16, 16), activation="relu", generator=generator)
    with torch.no_grad():
        for weight in model.weights:
            weight.mul_(1.5)
    model.requires_grad_(False)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return build(model, loss, x, model(x) + 0.1, 0.3)


@pytest.mark.parametrize("loss", ["huber", "absolute"])
def test_regressions_with_kinks(build, loss, generator, seed):
    adversary, batch = kinked(build, generator, 40, loss)
    truth = on_grid(adversary.objective, batch, -12.0, 12.0, 481)
    for effort, most in (("fast", 5e-3), ("thorough", 5e-4)):
        found = of(adversary, batch, effort, seed, classes=False)
        gain = gains(adversary.objective, batch, found)
        assert float((truth - found.value).clamp_min(0.0).sum() / gain.sum()) < most
        assert found.q.shape == batch.q0.shape
        torch.testing.assert_close(found.value, adversary.objective.value(batch, found.q))


def two_basins(generator, n, width=5):
    """Rows near 0: of target 0 they gain where x_1 is low, one of target 3 in a corner alone."""
    model = MLP(width, 1, hidden=(width + 1, 2), activation="tanh", generator=generator)
    with torch.no_grad():
        for part in (*model.weights, *model.biases):
            part.zero_()
        model.weights[0][:width] = 2.0 * torch.eye(width)
        model.weights[0][width, 0] = -2.0
        model.biases[0][:] = -2.0  # on where x_j > 1, and where x_1 < -1
        model.weights[1][0, :width] = 1.5
        model.weights[1][1, width] = 1.5
        model.biases[1][0] = -1.5 * (width - 1.0)  # on where all are
        model.weights[2][0] = torch.tensor([-2.0, 3.0])
        model.biases[2] += 1.0
    x = 0.05 * torch.randn(n, width, generator=generator, dtype=torch.float64)
    y = torch.zeros(n, dtype=torch.float64)
    y[0] = 3.0
    return model.requires_grad_(False), x, y


@pytest.mark.parametrize("seed", range(3))
def test_a_row_that_gains_little_is_searched_more(build, generator, seed):
    """No other row has been where it must go, and one start in a hundred gets there."""
    model, x, y = two_basins(generator, 40)
    adversary, batch = build(model, "huber", x, y, 0.1)
    found = of(adversary, batch, "thorough", seed, classes=False)
    corner = batch.take(torch.tensor([0]))
    start = adversary.objective.coordinates.encode(torch.full_like(corner.x, 1.4))
    there = proximal_ascent(adversary.objective, corner, start, 100)
    gain = gains(adversary.objective, batch, found)
    assert float(gains(adversary.objective, corner, there)) > 2.0
    assert float(found.value[0]) >= float(there.value[0]) - 1e-6
    assert float(gain[1:].min()) > 6.0  # the others' basin is easy to find


def test_one_row_where_the_loss_is_flat_looks_farther(build):
    """The basin is twice as far as the slope at the row says."""
    adversary, batch = kinked(build, torch.Generator().manual_seed(0), 1, "huber")
    truth = on_grid(adversary.objective, batch, -12.0, 12.0, 481)
    for seed in range(3):
        found = of(adversary, batch, "fast", seed, classes=False)
        assert float(found.value) >= float(truth) - 1e-9


def test_a_basin_among_the_other_labels_is_found(build, generator):
    """Flat but for a bump at the rows of label 1: no ascent from a row of label 0 moves at all."""

    class Bump(torch.nn.Module):
        def forward(self, z):
            centre = z.new_tensor([4.0, 0.0])
            return 10.0 * torch.exp(-(z - centre).square().sum(1) / (2 * 0.3**2))

    x = 0.1 * torch.randn(60, 2, generator=generator, dtype=torch.float64)
    y = torch.arange(60) % 2
    x[y == 1] += torch.tensor([4.0, 0.0], dtype=torch.float64)
    loss = CallableLoss(lambda f, y: f * (y == 0))
    adversary, batch = build(ModuleModel(Bump(), 1), loss, x, y, 0.3)
    zero = y == 0
    still = proximal_ascent(adversary.objective, batch, batch.q0, 200)
    assert float(still.value[zero].max()) < 1e-6
    found = of(adversary, batch)
    distance = (x[zero] - torch.tensor([4.0, 0.0], dtype=torch.float64)).square().sum(1)
    assert bool((found.value[zero] >= 10.0 - 0.3 * distance).all())


@pytest.mark.parametrize("effort", ["warm", "fast", "thorough"])
@pytest.mark.parametrize("penalty", [30.0, 0.5, 1e-3])
def test_no_row_is_worse_than_staying_or_than_a_given_start(build, moons, effort, penalty):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x[:50], y[:50], penalty)
    objective = adversary.objective
    start = batch.q0.flip(0)
    found = Search(Anchors(batch.x, batch.y, True), 3, effort).run(objective, batch, [start])
    assert bool((found.value >= objective.value(batch, batch.q0)).all())
    torch.testing.assert_close(found.value, objective.value(batch, found.q))
    if effort == "warm":
        assert bool((found.value >= objective.value(batch, start) - 1e-12).all())


def test_a_search_is_decided_by_its_seed(build, moons, seed):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x[:60], y[:60], 0.05)
    before = torch.get_rng_state()
    first, again, other = (
        of(adversary, batch, "thorough", number) for number in (seed, seed, seed + 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.q, again.q)
    assert torch.equal(first.evidence.missing, again.evidence.missing)
    assert not torch.equal(first.q, other.q)
    # A radius search asks at many penalties, for one function.
    search = Search(Anchors(batch.x, batch.y, True), seed)
    values = [
        float(search.run(adversary.objective.with_penalty(p), batch).value.mean())
        for p in torch.linspace(0.05, 0.051, 6).tolist()
    ]
    assert values == sorted(values, reverse=True)


def test_single_rows_ties_and_rows_without_coordinates(build, moons):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 0.2)
    for effort in ("fast", "thorough"):
        one = of(adversary, batch.take(torch.tensor([5])), effort)
        assert one.q.shape == (1, 2)
        same = batch.take(torch.full((20,), 7))
        tied = of(adversary, same, effort)
        assert float(tied.value.max() - tied.value.min()) < 1e-8
    frozen = GroundCost(np.array([math.inf, math.inf]))
    adversary, batch = build(model, "logistic", x[:5], y[:5], 1.0, cost=frozen)
    assert torch.equal(of(adversary, batch).q, batch.q0)


def test_one_class_only(build, moons):
    model, x, y = moons
    ones = x[y == 1][:40]
    adversary, batch = build(model, "logistic", ones, torch.ones(40, dtype=torch.long), 0.3)
    truth = on_grid(adversary.objective, batch)
    found = of(adversary, batch, "thorough")
    gain = gains(adversary.objective, batch, found)
    assert float((truth - found.value).clamp_min(0.0).sum() / gain.sum()) < 5e-3


@pytest.mark.parametrize("effort", ["fast", "thorough"])
def test_bounds_hold(build, moons, effort):
    model, x, y = moons
    low, high = np.array([-1.2, -0.8]), np.array([1.5, 0.9])
    inside = x[:40].clamp(torch.tensor(low), torch.tensor(high))
    cost = GroundCost(np.ones(2), low, high)
    adversary, batch = build(model, "logistic", inside, y[:40], 0.2, cost=cost)
    found = of(adversary, batch, effort)
    z = adversary.objective.decode(batch, found.q).numpy()
    assert ((z >= low - 1e-9) & (z <= high + 1e-9)).all()
    axes = (torch.linspace(-1.2, 1.5, 301).double(), torch.linspace(-0.8, 0.9, 301).double())
    grid = torch.cartesian_prod(*axes)
    f = model.linearise(grid)[0]
    best = torch.stack([
        (adversary.objective.loss.value(f, label.expand(len(grid)))
         - 0.2 * (grid - row).square().sum(1)).max()
        for row, label in zip(batch.x, batch.y, strict=True)
    ])  # fmt: skip
    gain = gains(adversary.objective, batch, found)
    assert float((best - found.value).clamp_min(0.0).sum() / gain.sum()) < 5e-3


def test_immutable_columns_stay(build, generator):
    model = MLP(3, 1, hidden=(10,), activation="tanh", generator=generator).requires_grad_(False)
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    cost = GroundCost(np.array([1.0, math.inf, 2.0]))
    adversary, batch = build(model, "logistic", x, torch.arange(50) % 2, 0.02, cost=cost)
    found = of(adversary, batch)
    z = adversary.objective.decode(batch, found.q)
    assert torch.equal(z[:, 1], x[:, 1])
    assert float((z - x).abs().max()) > 0.1


def test_labels_flip_when_it_pays(build, moons):
    """Against grids at both labels, for a label cost that some rows pay."""
    model, x, y = moons
    adversary, batch = build(model, "logistic", x[:30], y[:30], 2.0, n_labels=2, label_cost=0.3)
    search = Search(Anchors(batch.x, batch.y, True), 1)
    moved = replace(adversary, search=search).solve(batch)
    truth = torch.maximum(
        on_grid(adversary.objective, batch),
        on_grid(adversary.objective, replace(batch, y=1 - batch.y)) - 0.6,
    )
    assert 0 < int((moved.labels != batch.y).sum()) < 30
    assert float((truth - moved.value).clamp_min(0.0).max()) < 1e-3


def test_missing_share_falls_with_rounds(build, moons, monkeypatch):
    """The jackknife over more rounds, of a network with many basins."""
    import drojko.inner.transport.search.rounds as rounds

    model, x, y = moons
    adversary, batch = build(model, "logistic", x[:80], y[:80], 0.02)
    monkeypatch.setattr(rounds, "_ENOUGH", 0.0)
    monkeypatch.setattr(rounds, "_LEAST", 2)
    monkeypatch.setattr(rounds, "_ROUND", (2, 0, 0))
    monkeypatch.setattr(rounds, "_MIXED", (1, 1, 1))
    shares, values = [], []
    for count in (3, 6, 12):
        monkeypatch.setattr(rounds, "_ROUNDS", count)
        found = of(adversary, batch, "thorough")
        assert int(found.evidence.rounds[0]) == count
        assert bool((found.evidence.missing >= 0).all())
        gain = gains(adversary.objective, batch, found)
        shares.append(float(found.evidence.missing.sum() / gain.sum()))
        values.append(float(found.value.mean()))
    assert shares[0] > shares[1] >= shares[2]
    assert values == sorted(values)


def test_restarts_say_an_estimate_and_weigh_rows():
    evidence_of = lambda m: type("E", (), {"missing": m, "rounds": torch.full_like(m, 4.0)})()  # noqa: E731
    missing, gain = torch.tensor([0.2, 0.0]).double(), torch.tensor([1.0, 3.0]).double()
    found = Restarts.of(evidence_of(missing), gain, torch.tensor([0.25, 0.75]).double())
    assert found.rounds == 4
    assert found.missing == pytest.approx(0.05 / 2.5)
    assert "estimated missing" in str(found)
    assert "still found more" in str(found)
    assert "found no more" in str(Restarts(3, 0.0))
    assert Restarts.of(None, gain, gain) is None


def test_effort_is_checked(build, moons, generator):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 1.0)
    with pytest.raises(InvalidDataError, match="effort='slow'"):
        ICNNJKO().fit(adversary.objective, batch, generator, n_labels=2, effort="slow")


def test_a_linear_model_in_disguise_is_solved_exactly(build, linear, generator):
    """max over t of log(1 + e^(t - s)) - kappa t^2, below its threshold."""
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.arange(40) % 2
    theta = torch.tensor([2.0, -1.0, 1.0], dtype=torch.float64)
    layer = torch.nn.Linear(3, 1, dtype=torch.float64)
    layer.weight.data.copy_(theta[None])
    layer.bias.data.zero_()
    model = ModuleModel(layer.requires_grad_(False), 1)
    adversary, batch = build(model, "logistic", x, y, 0.3)
    found = of(adversary, batch)
    kappa = 0.3 / float(theta.square().sum())
    t = torch.linspace(0, 0.5 / kappa, 100_001, dtype=torch.float64)
    margin = (2 * y - 1) * (x @ theta)
    exact = torch.stack([(softplus(t - s) - kappa * t**2).max() for s in margin])
    torch.testing.assert_close(found.value, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [1, 2])
def test_among_kinks_of_three_layers_seeds_agree(build, kind):
    """Each row has maxima of its own, which starts at the penalty itself hardly find."""
    gen = torch.Generator().manual_seed(kind)
    model = MLP(8, 1, hidden=(24, 24, 24), activation="relu", generator=gen)
    with torch.no_grad():
        for weight in model.weights:
            weight.mul_(1.6)
    model.requires_grad_(False)
    x = torch.randn(40, 8, generator=gen, dtype=torch.float64)
    adversary, batch = build(model, "huber", x, model(x) + 0.1, 0.7)
    found = [of(adversary, batch, "fast", seed, classes=False) for seed in range(2)]
    gain = torch.stack([gains(adversary.objective, batch, one) for one in found])
    assert float(gain.mean(1).min() / gain.amax(0).mean()) >= 0.995
