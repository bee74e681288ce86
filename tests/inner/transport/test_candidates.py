import math

import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.exceptions import UnsupportedError
from drojko.inner import proximal_ascent
from drojko.inner.transport.candidates import (
    BoxPath,
    Condition,
    LearnedMap,
    PairMoves,
    Stay,
    Support,
    best_of,
    first_candidates,
)
from drojko.losses import get_loss
from drojko.models import MLP
from drojko.transport import ICNN, BrenierMap


@pytest.fixture
def problem(build, moons):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 5.0, n_labels=2)
    return adversary.objective, batch


def random_map(generator):
    psi = ICNN(2, hidden=(8,), context=2, generator=generator)
    for p in psi.parameters():
        p.data += torch.randn(p.shape, generator=generator, dtype=torch.float64)
    condition = Condition(2, torch.zeros(2).double(), torch.ones(2).double())
    return LearnedMap(BrenierMap(psi, torch.ones(2, dtype=torch.float64), 2.0), condition)


def all_candidates(objective, batch, generator):
    far = batch.q0[torch.randperm(len(batch), generator=generator)]
    return [
        Stay(),
        random_map(generator),
        Support.build(objective, batch, far, True, 50),
    ]


SETTINGS = {"screening": 3, "corrections": 5, "tol": 0.0}


def test_no_candidate_is_worth_less_than_staying_once_staying_is_one(problem, generator):
    objective, batch = problem
    stay = objective.value(batch, batch.q0)
    for candidate in all_candidates(objective, batch, generator):
        found = best_of(objective, batch, (Stay(), candidate), **SETTINGS)
        assert bool((found.value >= stay).all())
        torch.testing.assert_close(found.value, objective.value(batch, found.q), rtol=1e-9, atol=0)


def test_the_best_is_at_least_each(problem, generator):
    objective, batch = problem
    candidates = all_candidates(objective, batch, generator)
    screened = [
        proximal_ascent(objective, batch, start, 3).value
        for candidate in candidates
        for start in candidate.starts(objective, batch)
    ]
    together = best_of(objective, batch, candidates, **SETTINGS)
    for value in screened:
        assert bool((together.value >= value).all())
    # Another start never hurts.
    extra = [batch.q0 + 0.5]
    more = best_of(objective, batch, candidates, extra=extra, **SETTINGS)
    best_start = proximal_ascent(objective, batch, extra[0], 3).value
    assert bool((more.value >= torch.maximum(best_start, torch.stack(screened).amax(0))).all())


def test_without_candidates_the_sample_is_the_start(problem):
    objective, batch = problem
    a = best_of(objective, batch, (), **SETTINGS)
    b = best_of(objective, batch, (Stay(),), **SETTINGS)
    assert torch.equal(a.q, b.q)


def test_the_better_ascent_takes_value_point_and_gradient_together(problem):
    objective, batch = problem
    first = proximal_ascent(objective, batch, batch.q0, 1)
    second = proximal_ascent(objective, batch, batch.q0 + 1.0, 9)
    best = first.better(second)
    assert torch.equal(best.value, torch.maximum(first.value, second.value))
    value, gradient = objective.value_and_gradient(batch, best.q)
    torch.testing.assert_close(best.value, value)
    torch.testing.assert_close(best.gradient, gradient)


def test_learned_map_is_conditioned_on_the_label(problem, generator):
    objective, batch = problem
    candidate = random_map(generator)
    (start,) = candidate.starts(objective, batch)
    for label in (0, 1):
        rows = (batch.y == label).nonzero().squeeze(1)
        context = torch.eye(2, dtype=torch.float64)[label].expand(len(rows), 2)
        expected = candidate.brenier.map(batch.q0[rows], context)
        torch.testing.assert_close(start[rows], expected, rtol=1e-12, atol=1e-12)


def test_condition_holds_label_and_immutable_columns(build, linear, generator):
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64) * 7 + 2
    cost = GroundCost(np.array([1.0, np.inf, 1.0]))
    y = torch.arange(50) % 3
    adversary, batch = build(linear(torch.ones(3, 3)), "logistic", x, y, cost=cost)
    columns = adversary.objective.coordinates.immutable
    assert columns.tolist() == [1]
    condition = Condition.of(batch, 3, columns)
    context = condition.context(batch)
    assert condition.dim == 4
    assert torch.equal(context[:, :3], torch.eye(3, dtype=torch.float64)[y])
    standard = (x[:, 1] - x[:, 1].mean()) / x[:, 1].std(unbiased=False)
    torch.testing.assert_close(context[:, 3], standard)
    # A batch of its own is measured by the same moments.
    part = batch.take(torch.arange(7))
    torch.testing.assert_close(condition.context(part), context[:7])


def test_condition_of_a_regression_is_the_standardised_target(build, linear, generator):
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    _, batch = build(linear([1.0, 2.0]), "huber", x, 100 * x[:, 0] + 3)
    condition = Condition.of(batch, 0, None)
    assert condition.dim == 1
    context = condition.context(batch)
    assert float(context.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(context.std(unbiased=False)) == pytest.approx(1.0)
    constant = batch.__class__(batch.x, torch.ones_like(batch.y), batch.q0)
    assert not Condition.of(constant, 0, None).context(constant).any()


def test_support_is_the_best_of_its_points(problem, generator):
    """By brute force over pairs: argmax_j loss(z_j, y) - penalty c(x, z_j) of the same label."""
    objective, batch = problem
    points = 2 * torch.randn(70, 2, generator=generator, dtype=torch.float64)
    few = batch.take(torch.arange(70))
    support = Support.build(objective, few, points, True, 70)
    index, value = support.assign(objective, batch)
    risk = objective.loss.value(objective.model.linearise(objective.decode(few, points))[0], few.y)
    score = risk - objective.strength * torch.cdist(batch.q0, points).square()
    score[batch.y[:, None] != few.y[None, :]] = -torch.inf
    torch.testing.assert_close(value, score.amax(1), rtol=1e-9, atol=1e-9)
    (start,) = support.starts(objective, batch)
    assert torch.equal(start, points[index])
    # Two dimensions are all there are: the formula is the value of the start.
    torch.testing.assert_close(objective.value(batch, start), value, rtol=1e-9, atol=1e-9)


def test_support_maps_are_monotone_within_a_label(problem):
    """A subgradient of a convex function is monotone: an optimal pairing."""
    objective, batch = problem
    moved = proximal_ascent(objective, batch, batch.q0, 20)
    (start,) = Support.build(objective, batch, moved.q, True, 300).starts(objective, batch)
    for label in (0, 1):
        rows = batch.y == label
        gram = start[rows] @ batch.q0[rows].T
        swap = gram + gram.T - gram.diagonal()[:, None] - gram.diagonal()[None, :]
        assert float(swap.max()) <= 1e-9


def test_a_smaller_support_keeps_the_points_most_used(problem):
    objective, batch = problem
    moved = proximal_ascent(objective, batch, batch.q0, 20)
    whole = Support.build(objective, batch, moved.q, True, len(batch))
    index, _ = whole.assign(objective, batch)
    counts = torch.bincount(index, minlength=len(batch))
    small = Support.build(objective, batch, moved.q, True, 10)
    assert len(small.points) == len(small.risks) == len(small.labels) == 10
    kept = (small.points[:, None] == moved.q[None]).all(2).any(0)
    assert int(counts[kept].min()) >= int(counts[~kept].max())


def test_a_support_of_another_label_leaves_the_sample(problem):
    objective, batch = problem
    zeros = batch.take((batch.y == 0).nonzero().squeeze(1))
    ones = batch.take((batch.y == 1).nonzero().squeeze(1))
    support = Support.build(objective, zeros, zeros.q0, True, 1000)
    assert torch.equal(support.starts(objective, ones)[0], ones.q0)


def test_a_regression_support_ignores_labels(build, generator):
    model = MLP(2, 1, hidden=(4,), generator=generator)
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    adversary, batch = build(model, "huber", x, x[:, 0])
    support = Support.build(adversary.objective, batch, batch.q0, False, 30)
    assert support.labels is None
    index, _ = support.assign(adversary.objective, batch)
    score = support.risks - adversary.objective.strength * torch.cdist(batch.q0, batch.q0).square()
    assert torch.equal(index, score.argmax(1))


@pytest.mark.parametrize("loss", ["logistic", "hinge", "absolute"])
def test_box_path_holds_the_worst_case(build, linear, loss, generator):
    x = torch.rand(30, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (30,), generator=generator)
    y = y if loss != "absolute" else x[:, 0]
    cost = GroundCost(np.array([1.0, 3.0, 0.5]), np.zeros(3), np.ones(3))
    adversary, batch = build(linear([6.0, -4.0, 1.0]), loss, x, y, 3.0, cost=cost)
    objective = adversary.objective
    candidates = first_candidates(objective)
    assert [type(c) for c in candidates] == [Stay, BoxPath]
    found = best_of(objective, batch, candidates, screening=12, corrections=50, tol=0.0)
    axis = torch.linspace(0, 1, 17, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, axis)
    f = objective.model.linearise(grid)[0]
    for i in range(30):
        values = get_loss(loss).value(f, y[i].expand(len(f)))
        values = values - 3.0 * cost.cost(grid, x[i])
        assert float(found.value[i]) >= float(values.max()) - 1e-9


def test_box_path_needs_bounds(problem):
    objective, _ = problem
    with pytest.raises(UnsupportedError, match="linear models with bounds"):
        BoxPath.of(objective)


def test_pair_moves_solve_the_multiclass_hinge(build, generator):
    """A maximum of affine functions: the worst case moves along one difference of rows."""
    model = MLP(4, 3, hidden=(), generator=generator)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (40,), generator=generator)
    cost = GroundCost(np.array([1.0, 2.0, 0.5, 3.0]))
    for penalty in (0.05, 1.0, 20.0):
        adversary, batch = build(model, "hinge", x, y, penalty, cost=cost)
        (start,) = PairMoves().starts(adversary.objective, batch)
        rows = model.weights[0].detach()
        pairs = cost.dual_norm_squared(rows[:, None, :] - rows[None, :, :])
        expected = get_loss("hinge", n_classes=3).pairwise_upper_bound(
            model.linearise(x)[0], y, pairs, penalty
        )
        value = adversary.objective.value(batch, start)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_first_candidates_by_model(build, linear, moons):
    x, y = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0, 1])
    kinds = []
    for model in (linear([1.0, 2.0]), linear(torch.ones(3, 2)), moons[0]):
        adversary, _ = build(model, "logistic", x, y, math.pi)
        kinds.append([type(c) for c in first_candidates(adversary.objective)])
    assert kinds == [[Stay], [Stay, PairMoves], [Stay]]
