"""Worst cases that swap categories: brute force over all swaps and labels, bounds, limits."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drojko.ambiguity import GroundCost, Wasserstein
from drojko.certificates import certify
from drojko.inner import Pointwise, solve_ball
from drojko.inner.transport.bounds import structure
from drojko.inner.transport.storage import pack, unpack
from drojko.losses import get_loss
from drojko.models import MLP

FEATURES = [2, 3, [4, 5, 6]]


def table(n, seed):
    rng = np.random.default_rng(seed)
    codes = np.column_stack([rng.integers(0, 2, n), rng.integers(0, 3, n)])
    codes[:2], codes[2] = [[0, 0], [1, 1]], [1, 2]
    return np.column_stack([rng.normal(size=(n, 2)), codes, np.eye(3)[rng.integers(0, 3, n)]])


def cost_of(X, swap_cost, features=FEATURES, **settings):
    ball = Wasserstein(1.0, categorical_features=features, swap_cost=swap_cost, **settings)
    return ball.validate(X.shape[1]).observed(X)


def combinations(X, cost):
    """Every image of the rows under swaps, with what it costs: (n, d) and (n,)."""
    categories = cost.categories
    for choice in itertools.product(*categories.values):
        Z, paid = X.copy(), np.zeros(len(X))
        for columns, row, price in zip(categories.columns, choice, categories.costs, strict=True):
            Z[:, columns] = row
            changed = (X[:, columns] != Z[:, columns]).any(1)
            paid = paid + np.where(changed, price, 0.0)
        yield Z, paid


def brute_force(X, y, cost, objective, labels=(), label_cost=math.inf):
    """Largest V(x', y') - penalty * fees over all swaps and labels, V in one dimension."""
    loss, theta = objective.loss, objective.model.first_layer()[0]
    square = float(cost.dual_norm_squared(theta.numpy()))
    kappa = objective.penalty / square if square else math.inf
    best = torch.full((len(X),), -torch.inf, dtype=torch.float64)
    for Z, paid in combinations(X, cost):
        paid = torch.tensor(paid)
        f = objective.model.linearise(torch.tensor(Z))[0]
        for label in [None, *labels]:
            target = y if label is None else torch.full_like(y, label)
            fee = paid if label is None else paid + label_cost * (target != y).double()
            value = loss.robust_value(f, target, kappa) - objective.penalty * fee
            best = torch.maximum(best, value)
    return best


@given(
    seed=st.integers(0, 10_000),
    loss=st.sampled_from(["logistic", "hinge", "squared", "huber", "quantile"]),
    prices=st.tuples(*[st.floats(1e-3, 3.0)] * 3),
    equal=st.booleans(),
    moves=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_linear_models_find_the_best_of_all_swaps(build, linear, seed, loss, prices, equal, moves):
    """2 G + 1 prefixes hold the maximum over all subsets of swaps, also at unequal costs."""
    X = table(12, seed)
    rng = np.random.default_rng(seed)
    swap_cost = prices[0] if equal else dict(zip([2, 3, 4], prices, strict=True))
    cost = cost_of(X, swap_cost, immutable=None if moves else [0, 1])
    classes = loss in ("logistic", "hinge")
    y = torch.tensor(rng.integers(0, 2, 12) if classes else rng.normal(size=12))
    model = linear(rng.normal(size=7) * 2)
    penalty = float(rng.uniform(0.2, 3.0))
    if loss == "squared":
        penalty += float(model.first_layer()[:, :2].square().sum())
    extra = {"n_labels": 2, "label_cost": 0.3} if classes else {}
    adversary, batch = build(model, get_loss(loss), torch.tensor(X), y, penalty, cost=cost, **extra)
    moved = adversary.solve(batch)
    labels = (0, 1) if classes else ()
    expected = brute_force(X, y, cost, adversary.objective, labels, 0.3)
    torch.testing.assert_close(moved.value, expected, rtol=1e-9, atol=1e-9)
    bound, proof = adversary.upper(moved)
    assert proof == "ridge-1d"
    torch.testing.assert_close(bound, expected, rtol=1e-9, atol=1e-9)
    # The parts are what the moved rows say: one-hot groups, cost, risk.
    Z = adversary.objective.decode(moved.at, moved.q)
    cost.observed(X).check_inside(Z)
    paid = torch.as_tensor(cost.cost(X, Z.numpy()))
    fee = 0.3 * (moved.labels != y).double() if classes else 0.0
    torch.testing.assert_close(moved.cost, paid + fee, rtol=1e-9, atol=1e-9)
    risk = adversary.objective.loss.value(model.linearise(Z)[0], moved.labels)
    torch.testing.assert_close(moved.risk, risk, rtol=1e-9, atol=1e-9)


def test_the_order_of_columns_does_not_matter(build, linear):
    X, order = table(30, 0), [4, 2, 0, 6, 3, 1, 5]
    place = {old: new for new, old in enumerate(order)}
    theta = np.random.default_rng(1).normal(size=7)
    y = torch.tensor([0, 1] * 15)
    features = [place[2], place[3], [place[6], place[4], place[5]]]
    values = []
    for Z, t, chosen in [(X, theta, FEATURES), (X[:, order], theta[order], features)]:
        cost = cost_of(Z, 0.3, chosen)
        adversary, batch = build(linear(t), "logistic", torch.tensor(Z), y, 0.7, cost=cost)
        values.append(adversary.solve(batch).value)
    torch.testing.assert_close(*values)


def test_infinite_costs_are_immutable_columns(build, linear, moons):
    X, y = table(20, 3), torch.tensor([0, 1] * 10)
    theta = np.random.default_rng(0).normal(size=7)
    never = cost_of(X, math.inf)
    fixed = GroundCost(np.array([1.0, 1.0, *[math.inf] * 5]))
    cheap = cost_of(X, 1e12)
    results = []
    for cost in (never, fixed, cheap):
        adversary, batch = build(linear(theta), "logistic", torch.tensor(X), y, 0.5, cost=cost)
        results.append(adversary.solve(batch))
    for other in results[1:]:
        assert torch.equal(results[0].value, other.value)
        assert torch.equal(results[0].at.x, other.at.x)


def test_free_swaps_take_the_worst_category(build, linear):
    """As the cost goes to zero: every group is at its worst category, for each label."""
    X, y = table(20, 4), torch.tensor([0, 1] * 10)
    theta = np.random.default_rng(2).normal(size=7)
    cost = cost_of(X, 1e-12, immutable=[0, 1])
    adversary, batch = build(linear(theta), "logistic", torch.tensor(X), y, 1.0, cost=cost)
    f = X[:, :2] @ theta[:2]
    sign = np.where(y.numpy() == 1, -1.0, 1.0)
    for columns, values in zip(cost.categories.columns, cost.categories.values, strict=True):
        scores = values @ theta[columns]
        f = f + np.where(sign > 0, scores.max(), scores.min())
    expected = get_loss("logistic").value(torch.tensor(f), y)
    torch.testing.assert_close(adversary.solve(batch).value, expected, atol=1e-10, rtol=1e-10)


def test_a_planted_swap_is_found(build, linear):
    """One binary column decides the prediction: flipping it is the worst case, exactly."""
    X = np.array([[0.1, 1.0], [-0.2, 0.0], [0.0, 1.0]])
    y = torch.tensor([1, 0, 1])
    cost = cost_of(X, 0.25, [1])
    adversary, batch = build(linear([0.1, 6.0], -3.0), "hinge", torch.tensor(X), y, 1.0, cost=cost)
    moved = adversary.solve(batch)
    assert moved.at.x[:, 1].tolist() == [0.0, 1.0, 0.0]
    gain = 0.1**2 / 4  # continuous moves: |theta|^2 / (4 penalty)
    margin = 1 + 3 + torch.tensor([-0.01, -0.02, 0.0], dtype=torch.float64) + gain
    torch.testing.assert_close(moved.value, margin - 0.25)


def network(seed, width=6, inputs=7, outputs=1):
    generator = torch.Generator().manual_seed(seed)
    return MLP(inputs, outputs, hidden=(width,), generator=generator).requires_grad_(False)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("screening", [0, 12])
def test_networks_try_every_combination(build, outputs, screening):
    """Strongly concave regime: an ascent at each combination is exact, so is the best of them."""
    X = table(15, 5)
    model = network(0, outputs=outputs)
    loss = get_loss("logistic", n_classes=max(2, outputs))
    y = torch.tensor(np.random.default_rng(0).integers(0, max(2, outputs), 15))
    unit = 0.05 if outputs == 1 else 0.01
    cost = cost_of(X, {2: unit, 3: 0.4 * unit, 4: 2 * unit})
    adversary, batch = build(
        model, loss, torch.tensor(X), y, 6.0, cost=cost, corrections=100, screening=screening,
        n_labels=max(2, outputs), label_cost=0.2,
    )  # fmt: skip
    assert structure(adversary.objective).curvature < 2 * adversary.objective.strength
    moved = adversary.solve(batch)
    alone = replace(
        adversary,
        objective=replace(
            adversary.objective, coordinates=replace(adversary.objective.coordinates, swaps=None)
        ),
    )
    best = torch.full((15,), -torch.inf, dtype=torch.float64)
    for Z, paid in combinations(X, cost):
        at = alone.solve(adversary.objective.batch(torch.tensor(Z), y))
        best = torch.maximum(best, at.value - 6.0 * torch.tensor(paid))
    torch.testing.assert_close(moved.value, best, rtol=1e-7, atol=1e-7)
    assert bool((moved.at.x != batch.x).any())
    bound, proof = adversary.upper(moved)
    assert proof == "strong-concavity"
    assert bool((bound >= best - 1e-9).all())
    assert float((bound - best).max()) < 1e-4


def many(n, seed):
    """Nine binary columns: 512 combinations."""
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.normal(size=n), rng.integers(0, 2, (n, 9))]).astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_a_greedy_search_lies_below_brute_force_and_its_bound_above(build, seed):
    X = many(10, seed)
    X[:2, 1:] = [[0] * 9, [1] * 9]
    y = torch.tensor([0, 1] * 5)
    cost = cost_of(X, 0.05, list(range(1, 10)))
    model = network(seed, inputs=10)
    adversary, batch = build(
        model, "logistic", torch.tensor(X), y, 4.0, cost=cost, corrections=60, screening=5
    )
    moved = adversary.solve(batch)
    fixed = replace(adversary.objective.coordinates, swaps=None)
    alone = replace(adversary, objective=replace(adversary.objective, coordinates=fixed))
    best = torch.full((10,), -torch.inf, dtype=torch.float64)
    for Z, paid in combinations(X, cost):
        at = alone.solve(adversary.objective.batch(torch.tensor(Z), y))
        best = torch.maximum(best, at.value - 4.0 * torch.tensor(paid))
    still = adversary.stay(batch)
    assert bool((moved.value <= best + 1e-7).all())
    # Swaps of a network need not add up, but most of what there is to gain is found.
    assert float((moved.value - still.value).sum()) >= 0.9 * float((best - still.value).sum()) > 0
    bound, proof = adversary.upper(moved)
    assert proof == "lipschitz"
    assert bool((bound >= best - 1e-9).all())


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("radius", [0.1, 0.5, 2.0])
def test_the_ball_spends_its_budget_on_moves_and_swaps(build, linear, uniform, loss, radius):
    X, y = table(40, 6), torch.tensor([0, 1] * 20)
    cost = cost_of(X, {2: 0.5, 3: 0.2, 4: 1.0})
    theta = np.random.default_rng(3).normal(size=7)
    adversary, batch = build(linear(theta), loss, torch.tensor(X), y, 1.0, cost=cost)
    weights = uniform(batch)
    ball = solve_ball(adversary, batch, weights, radius)
    assert float(ball.cost @ weights) == pytest.approx(radius**2, rel=1e-8)
    certificate = certify(adversary, batch, weights, radius=radius, sampled=False).certificate
    assert certificate.proof == "ridge-1d"
    assert certificate.upper == pytest.approx(certificate.lower, rel=1e-9)
    # Weak duality at any other penalty, from brute force.
    for penalty in (0.1, 1.0, 10.0):
        at = adversary.objective.with_penalty(penalty)
        dual = float(brute_force(X, y, cost, at).mean()) + penalty * radius**2
        assert dual >= certificate.lower - 1e-9


def test_tables_without_a_continuous_column(build, linear, uniform):
    """Only swaps: the worst case of a budget is a mixture of who swaps."""
    X = np.array([[0.0], [1.0], [1.0], [0.0]])
    y = torch.tensor([0, 1, 0, 1])
    adversary, batch = build(
        linear([2.0]), "hinge", torch.tensor(X), y, 1.0, cost=cost_of(X, 1.0, [0])
    )
    # losses: 1, 0, 3, 1; after a swap: 3, 1, 1, 0. The best gain is 2 for sample 0, then 1.
    weights = uniform(batch)
    for radius, gain in [(math.sqrt(1 / 8), 0.25), (0.5, 0.5), (math.sqrt(1 / 2), 0.75)]:
        found = certify(adversary, batch, weights, radius=radius, sampled=False).certificate
        assert found.lower == pytest.approx(1.25 + gain, rel=1e-9)
        assert found.upper == pytest.approx(1.25 + gain, rel=1e-9)


def test_bounds_and_swaps_together(build, linear):
    X, y = table(12, 7), torch.tensor([0, 1] * 6)
    cost = cost_of(X, 0.2, bounds={0: (-3, 3), 1: (-3, 3)})
    theta = np.random.default_rng(5).normal(size=7)
    adversary, batch = build(
        linear(theta), "logistic", torch.tensor(X), y, 0.5, cost=cost, corrections=200
    )
    wide, same = build(linear(theta), "logistic", torch.tensor(X), y, 0.5, cost=cost_of(X, 0.2))
    moved, free = adversary.solve(batch), wide.solve(same)
    assert bool((moved.value <= free.value + 1e-9).all())
    bound, _ = adversary.upper(moved)
    assert bool((bound >= moved.value - 1e-12).all())
    inside = adversary.objective.decode(moved.at, moved.q)
    assert float(inside[:, :2].abs().max()) <= 3.0


def test_swaps_survive_packing(build, linear):
    X, y = table(10, 8), torch.tensor([0, 1] * 5)
    cost = cost_of(X, 0.1)
    adversary, batch = build(
        linear(np.arange(7.0) / 3), "logistic", torch.tensor(X), y, 1.0, cost=cost
    )
    again = unpack(pack(adversary), adversary.objective.model, adversary.objective.loss)
    assert torch.equal(again.solve(batch).value, adversary.solve(batch).value)
    assert again.swaps is not None
    assert bool((again.solve(batch).at.x != batch.x).any())


def test_inner_solvers_keep_the_swaps(build):
    X, y = table(10, 9), torch.tensor([0, 1] * 5)
    adversary, batch = build(network(1), "logistic", torch.tensor(X), y, 1.0, cost=cost_of(X, 0.01))
    learned = Pointwise(anchors=0).fit(adversary.objective, batch, None)
    assert bool((learned.solve(batch).at.x != batch.x).any())


@pytest.mark.parametrize("many", [False, True])
def test_a_search_from_many_starts_covers_the_swaps(build, monkeypatch, many):
    """Against ascents from 20 starts at every combination; with too many of them as well."""
    import drojko.inner.transport.adversary as home
    from drojko.inner import ICNNJKO, proximal_ascent

    if many:  # as if the 18 combinations were more than can be listed
        monkeypatch.setattr(home, "MOST_COMBINATIONS", 4)
    X, y = table(24, 5), torch.tensor([0, 1] * 12)
    cost = cost_of(X, 0.3)
    adversary, batch = build(network(2), "logistic", torch.tensor(X), y, 0.5, cost=cost)
    gen = torch.Generator().manual_seed(0)
    solver = ICNNJKO(maps=0)
    moved = solver.fit(adversary.objective, batch, gen, n_labels=2, atoms=True).solve(batch)
    best = adversary.objective.value(batch, batch.q0)
    starts = 3.0 * torch.randn(20 * len(batch), 2, generator=gen, dtype=torch.float64)
    for Z, paid in combinations(X, cost):
        at = replace(batch, x=torch.tensor(Z)).repeat(20)
        found = proximal_ascent(adversary.objective, at, at.q0 + starts, 40, tol=1e-6)
        top = found.value.reshape(20, -1).amax(0)
        best = torch.maximum(best, top - 0.5 * torch.tensor(paid))
    nominal = adversary.objective.value(batch, batch.q0)
    assert bool((moved.at.x != batch.x).any())
    short = float((best - moved.value).clamp_min(0.0).sum() / (best - nominal).sum())
    assert short < (0.02 if many else 1e-3)
