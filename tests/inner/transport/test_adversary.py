import math

import pytest
import torch

from drojko.inner import Pointwise
from drojko.inner.transport.candidates import Stay
from drojko.losses import CallableLoss, get_loss
from drojko.models import MLP, ModuleModel


def logistic_shift(margin, kappa):
    """Global maximiser t of log(1 + e^(t - s)) - kappa t^2 on a grid, and its value."""
    t = torch.linspace(0, 1.0 / kappa, 200_001, dtype=torch.float64)
    value = torch.nn.functional.softplus(t - margin) - kappa * t**2
    return float(value.max())


@pytest.mark.parametrize("label_cost", [1e-3, 0.05, 0.4, 3.0, math.inf])
def test_labels_flip_exactly_when_it_pays(build, linear, label_cost, generator):
    """max over y' of V(x, y') - penalty * label_cost * 1[y' != y], V in one dimension."""
    theta = torch.tensor([2.0, -1.0], dtype=torch.float64)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (60,), generator=generator)
    penalty = 2.0
    adversary, batch = build(
        linear(theta), "logistic", x, y, penalty, n_labels=2, label_cost=label_cost
    )
    moved = adversary.solve(batch)
    kappa = penalty / float(theta.square().sum())
    for i in range(60):
        margin = float((2 * y[i] - 1) * (x[i] @ theta))
        keep = logistic_shift(margin, kappa)
        flip = logistic_shift(-margin, kappa) - penalty * label_cost
        assert float(moved.value[i]) == pytest.approx(max(keep, flip), abs=1e-8)
        if abs(keep - flip) > 1e-6:
            assert bool(moved.labels[i] != y[i]) == (flip > keep)
    flipped = moved.labels != y
    if label_cost in (1e-3, 0.05):
        assert int(flipped.sum()) > 0
    if label_cost == math.inf:
        assert not flipped.any()
    # The parts add up: value = risk - penalty * cost, the fee being part of the cost.
    torch.testing.assert_close(moved.value, moved.risk - penalty * moved.cost)
    transport = adversary.objective.cost(batch, moved.q)
    fee = torch.where(flipped, label_cost, 0.0).to(transport)
    torch.testing.assert_close(moved.cost, transport + fee)
    f = adversary.objective.model.linearise(adversary.objective.decode(batch, moved.q))[0]
    torch.testing.assert_close(moved.risk, get_loss("logistic").value(f, moved.labels))
    bound, proof = adversary.upper(moved)
    assert proof == "ridge-1d"
    torch.testing.assert_close(bound, moved.value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_bound_covers_every_label_of_a_perceptron(build, moons, penalty):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, penalty, n_labels=2, label_cost=0.01)
    moved = adversary.solve(batch)
    bound, _ = adversary.upper(moved)
    flipped = adversary.objective.batch(x, 1 - y)
    other = Pointwise(anchors=0).fit(adversary.objective, flipped, None).solve(flipped)
    assert bool((bound >= other.value - 0.01 * penalty - 1e-9).all())
    assert bool((bound >= moved.value).all())
    alone, _ = build(model, "logistic", x, y, penalty)
    assert bool((moved.value >= alone.solve(batch).value - 1e-12).all())
    assert bool((moved.labels != y).any())


def test_better_keeps_each_sample_consistent(build, moons):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 5.0)
    near = adversary.solve(batch)
    far = adversary.solve(batch, [batch.q0.flip(0)])
    best = near.better(far)
    assert torch.equal(best.value, torch.maximum(near.value, far.value))
    torch.testing.assert_close(best.value, adversary.objective.value(batch, best.q))
    torch.testing.assert_close(best.cost, adversary.objective.cost(batch, best.q))
    torch.testing.assert_close(best.risk, adversary.objective.risk(batch, best.q))


def test_staying_costs_nothing(build, moons):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, math.inf)
    moved = adversary.stay(batch)
    assert torch.equal(moved.q, batch.q0)
    assert not moved.cost.any()
    expected = get_loss("logistic").value(model.linearise(x)[0], y)
    torch.testing.assert_close(moved.risk, expected)
    torch.testing.assert_close(moved.value, expected)


@pytest.mark.parametrize("penalty", [0.5, 5.0])
def test_sharing_basins_never_lowers_a_value(build, moons, penalty):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, penalty, n_labels=2, candidates=(Stay(),))
    alone = adversary.solve(batch)
    shared, moved = adversary.share_basins(batch, 3, 200)
    assert bool((moved.value >= alone.value).all())
    # Screening picks one start for the corrections, so a single sample may lose, the mean not.
    assert float((shared.solve(batch).value - alone.value).mean()) > 1e-3
    assert float(moved.value.mean()) > float(alone.value.mean()) + 1e-3
    assert len(shared.candidates[-1].points) <= 200
    # What is shared serves draws that were not there as well.
    fresh = adversary.objective.batch(x + 0.05, y)
    assert float((shared.solve(fresh).value - adversary.solve(fresh).value).mean()) > 1e-3


def test_exact_problems_need_no_sharing(build, linear, generator):
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    adversary, batch = build(linear([1.0, 2.0]), "hinge", x, torch.tensor([0, 1, 0, 1, 1]))
    assert adversary.exact
    shared, _ = adversary.share_basins(batch, 3, 100)
    assert shared is adversary


def test_smoothness_is_known_from_the_activation(build, linear, generator):
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 0])
    for model, expected in [
        (MLP(2, 1, hidden=(3,), activation="relu"), False),
        (MLP(2, 1, hidden=(), activation="relu"), True),
        (MLP(2, 1, hidden=(3,), activation="silu"), True),
    ]:
        assert build(model, "logistic", x, y)[0].smooth is expected


def test_a_model_without_gradient_stays_put(build, generator):
    """A frozen model: the worst case is the sample, not an error."""

    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.ones(len(x), dtype=x.dtype)

    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1] * 3)
    for loss in ("logistic", CallableLoss(lambda f, y: f)):
        adversary, batch = build(ModuleModel(Constant(), 1), loss, x, y)
        moved = adversary.solve(batch)
        assert not moved.cost.any()
        torch.testing.assert_close(moved.value, adversary.objective.value(batch, batch.q0))
