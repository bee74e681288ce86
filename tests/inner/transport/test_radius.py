import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from drojko.ambiguity import GroundCost
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.inner import Pointwise, solve_ball
from drojko.inner.transport.radius import _onwards, _Trial
from drojko.inner.transport.search.rounds import Search
from drojko.inner.transport.search.starts import Anchors
from drojko.losses import CallableLoss, get_loss
from drojko.models import MLP


def regression(gen, n=80, d=4, noise=0.5):
    x = torch.randn(n, d, generator=gen, dtype=torch.float64)
    theta = torch.randn(d, generator=gen, dtype=torch.float64)
    return x, x @ theta + noise * torch.randn(n, generator=gen, dtype=torch.float64), 0.8 * theta


def masses(n, gen):
    w = torch.rand(n, generator=gen, dtype=torch.float64)
    return w / w.sum()


@pytest.mark.promise(1)
@pytest.mark.parametrize("radius", [1e-8, 1e-3, 0.1, 1.0, 10.0, 1e4])
def test_squared_error_is_square_root_regularisation(build, linear, generator, radius):
    """(sqrt(R) + delta |theta|)^2, METHOD section 4, case 2."""
    x, y, theta = regression(generator)
    adversary, batch = build(linear(theta), "squared", x, y)
    weights = masses(len(x), generator)
    ball = solve_ball(adversary, batch, weights, radius)
    mse = float((y - x @ theta).square() @ weights)
    expected = (math.sqrt(mse) + radius * float(theta.norm())) ** 2
    # Attained by the two penalties that bracket the multiplier: second order in their distance.
    assert float(ball.risk @ weights) == pytest.approx(expected, rel=1e-9)
    assert float(ball.cost @ weights) == pytest.approx(radius**2, rel=1e-12)
    multiplier = float(theta.square().sum()) * (1 + math.sqrt(mse) / (radius * float(theta.norm())))
    assert ball.low_penalty <= multiplier * (1 + 1e-12)
    assert multiplier <= ball.high_penalty * (1 + 1e-12)
    assert ball.high_penalty == pytest.approx(multiplier, rel=1e-5)


def test_weighted_cost_and_immutable_columns(build, linear, generator):
    """The dual norm of the ground cost takes the place of the Euclidean one."""
    x, y, theta = regression(generator)
    cost = GroundCost(np.array([0.5, 4.0, np.inf, 1.0]))
    adversary, batch = build(linear(theta), "squared", x, y, cost=cost)
    weights = masses(len(x), generator)
    ball = solve_ball(adversary, batch, weights, 0.3)
    norm = math.sqrt(float(cost.dual_norm_squared(theta)))
    expected = (math.sqrt(float((y - x @ theta).square() @ weights)) + 0.3 * norm) ** 2
    assert float(ball.risk @ weights) == pytest.approx(expected, rel=1e-9)
    z = adversary.objective.decode(batch, ball.high.q)
    assert float(cost.cost(x, z) @ weights) == pytest.approx(0.09, rel=1e-4)


@pytest.mark.parametrize("radius", [1e-6, 0.5, 1e6])
def test_linear_loss(build, linear, uniform, generator, radius):
    """theta'm + delta |theta|, METHOD section 4, case 3; by ascent, not by the ridge formula."""
    theta = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    loss = CallableLoss(lambda f, y: f, task="regression")
    adversary, batch = build(linear(theta), loss, x, x[:, 0])
    ball = solve_ball(adversary, batch, uniform(batch), radius)
    expected = float((x @ theta).mean()) + 3.0 * radius
    assert float(ball.risk.mean()) == pytest.approx(expected, rel=1e-9)
    assert float(ball.cost.mean()) == pytest.approx(radius**2, rel=1e-9)


def logistic_dual(margins, norm, radius):
    """min over penalties of penalty radius^2 + E max_t log(1 + e^(t norm - s)) - penalty t^2."""
    t = np.linspace(-1, 400, 400_001)[:, None] * max(radius, 0.05) / 20
    best = math.inf
    values = np.logaddexp(0.0, t * norm - margins)

    def dual(log_penalty):
        penalty = math.exp(log_penalty)
        return penalty * radius**2 + (values - penalty * t**2).max(0).mean()

    grid = np.linspace(math.log(norm / radius) - 4, math.log(norm / radius) + 1, 12)
    start = min(grid, key=dual)
    found = minimize_scalar(dual, bounds=(start - 0.5, start + 0.5), method="bounded")
    best = min(best, found.fun)
    return best


@pytest.mark.promise(1)
@pytest.mark.parametrize("radius", [0.05, 0.3, 1.0, 3.0])
def test_logistic_against_a_grid_in_one_dimension(build, linear, uniform, radius, generator):
    """METHOD section 4, case 4, also far below the threshold penalty |theta|^2 / 8."""
    theta = torch.tensor([2.0, -1.0], dtype=torch.float64)
    x = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (10,), generator=generator)
    adversary, batch = build(linear(theta), "logistic", x, y)
    ball = solve_ball(adversary, batch, uniform(batch), radius)
    margins = ((2 * y - 1) * (x @ theta)).numpy()
    expected = logistic_dual(margins, float(theta.norm()), radius)
    # The grid over t has steps of radius / 20000.
    assert float(ball.risk.mean()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.promise(1)
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("radius", [0.3, 2.0, 10.0])
def test_mixture_leaves_no_gap_below_the_threshold(build, linear, uniform, loss, radius):
    """Two samples far on the right side: the worst case moves a share of their mass."""
    theta = torch.tensor([4.0, 0.0], dtype=torch.float64)
    x = torch.tensor([[3.0, 0.0], [3.0, 1.0], [-3.0, 0.0]], dtype=torch.float64)
    adversary, batch = build(linear(theta), loss, x, torch.tensor([1, 1, 0]))
    ball = solve_ball(adversary, batch, uniform(batch), radius)
    uppers = []
    for penalty, moved in ((ball.low_penalty, ball.low), (ball.high_penalty, ball.high)):
        bound, proof = adversary.with_penalty(penalty).upper(moved)
        uppers.append(penalty * radius**2 + float(bound.mean()))
        assert proof == "ridge-1d"
    # Second order in the distance of the better of the two penalties from the multiplier.
    assert float(ball.risk.mean()) == pytest.approx(min(uppers), rel=1e-9)
    assert float(ball.risk.mean()) <= min(uppers) * (1 + 1e-12)
    assert float(ball.cost.mean()) == pytest.approx(radius**2, rel=1e-9)
    if radius == 0.3:  # the jump: no single penalty spends this budget
        assert 0.0 < ball.share < 1.0
        assert float(ball.low.cost.mean()) > 2 * radius**2
        assert float(ball.high.cost.mean()) < 0.5 * radius**2


@pytest.mark.promise(2)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["logistic", "hinge", "squared", "absolute", "huber"]),
    st.floats(-3, 2),
    st.floats(-3, 2),
)
def test_risk_is_monotone_and_concave_in_the_budget(build, linear, number, loss, a, b):
    gen = torch.Generator().manual_seed(number)
    x, y, theta = regression(gen, n=15, d=3)
    if get_loss(loss).task == "classification":
        y = (y > 0).long()
    adversary, batch = build(linear(theta), loss, x, y)
    weights = masses(15, gen)

    def value(budget):
        return float(solve_ball(adversary, batch, weights, math.sqrt(budget)).risk @ weights)

    low, high = sorted([10**a, 10**b])
    middle = 0.5 * (low + high)
    v_low, v_middle, v_high = value(low), value(middle), value(high)
    slack = 1e-7 * (1 + v_high)  # the relative distance of the bracketing penalties
    assert v_low <= v_middle + slack
    assert v_middle <= v_high + slack
    assert v_middle >= 0.5 * (v_low + v_high) - slack


@pytest.mark.promise(2)
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_radius_zero_is_the_nominal_risk(build, linear, uniform, loss, generator):
    x, y, theta = regression(generator)
    y = y if loss == "squared" else (y > 0).long()
    adversary, batch = build(linear(theta), loss, x, y, math.inf)
    ball = solve_ball(adversary, batch, uniform(batch), 0.0)
    expected = get_loss(loss).value(x @ theta, y)
    torch.testing.assert_close(ball.risk, expected)
    torch.testing.assert_close(ball.high.value, expected)
    assert not ball.cost.any()
    assert ball.penalty == math.inf


@pytest.mark.promise(2)
@pytest.mark.parametrize("loss", ["logistic", "hinge", "absolute", "huber"])
@pytest.mark.parametrize("radius", [1e-12, 1e12])
def test_extreme_radii_have_their_asymptotics(build, linear, uniform, loss, radius, generator):
    """Risk ~ nominal + radius * |slope|_2 |theta| near 0, and ~ radius * Lip * |theta| far away."""
    x, y, theta = regression(generator)
    y = y if loss in ("absolute", "huber") else (y > 0).long()
    adversary, batch = build(linear(theta), loss, x, y)
    ball = solve_ball(adversary, batch, uniform(batch), radius)
    risk, norm = float(ball.risk.mean()), float(theta.norm())
    known = get_loss(loss)
    f = x @ theta
    if radius < 1:
        assert risk == pytest.approx(float(known.value(f, y).mean()), rel=1e-10)
        assert float(ball.cost.mean()) == pytest.approx(radius**2, rel=1e-6)
    else:
        assert risk == pytest.approx(radius * norm * known.lipschitz, rel=1e-6)


@pytest.mark.parametrize("radius", [0.1, 3.0, 100.0])
def test_perceptron_spends_its_budget(build, uniform, moons, radius):
    model, x, y = moons
    adversary, batch = build(model, "hinge", x, y, n_labels=2)
    ball = solve_ball(adversary, batch, uniform(batch), radius)
    spent = float(ball.cost.mean())
    # A tanh network is bounded: beyond some distance nothing more can be gained.
    assert spent <= radius**2 * (1 + 1e-9)
    if radius < 1:
        assert spent == pytest.approx(radius**2, rel=1e-9)
    assert float(ball.risk.mean()) > float(adversary.objective.risk(batch, batch.q0).mean())


def test_a_budget_that_cannot_be_spent_is_left(build, linear, uniform, generator):
    """On a box the worst corner is the end: the supremum is attained at a smaller cost."""
    x = torch.rand(30, 2, generator=generator, dtype=torch.float64)
    cost = GroundCost(np.ones(2), np.zeros(2), np.ones(2))
    loss = CallableLoss(lambda f, y: f, task="regression")
    adversary, batch = build(linear([1.0, 2.0]), loss, x, x[:, 0], cost=cost)
    ball = solve_ball(adversary, batch, uniform(batch), 50.0)
    torch.testing.assert_close(ball.risk, torch.full_like(ball.risk, 3.0), rtol=1e-9, atol=1e-9)
    expected = (1 - x).square().sum(1)
    torch.testing.assert_close(ball.cost, expected, rtol=1e-6, atol=1e-9)
    assert ball.share == 0.0


@pytest.mark.parametrize("start", [None, 1e-12, 1.0, 1e12])
def test_any_first_guess_leads_to_the_same_answer(build, linear, generator, start):
    """Also a guess below the growth of the squared loss, where the worst case is infinite."""
    x, y, theta = regression(generator)
    adversary, batch = build(linear(theta), "squared", x, y)
    weights = masses(len(x), generator)
    ball = solve_ball(adversary, batch, weights, 2.0, start=start)
    mse = float((y - x @ theta).square() @ weights)
    expected = (math.sqrt(mse) + 2.0 * float(theta.norm())) ** 2
    assert float(ball.risk @ weights) == pytest.approx(expected, rel=1e-8)


def test_first_guess_does_not_matter_for_a_perceptron(build, uniform, moons):
    """At a radius whose multiplier is above the threshold: below it, basins may differ."""
    model, x, y = moons
    risks = []
    for start in (None, 50.0, 1e4):
        adversary, batch = build(model, "logistic", x, y, n_labels=2)
        adversary = Pointwise(anchors=0).fit(adversary.objective, batch, None, n_labels=2)
        ball = solve_ball(adversary, batch, uniform(batch), 1e-3, start=start)
        risks.append(float(ball.risk.mean()))
    assert risks == pytest.approx([risks[0]] * 3, rel=2e-6)  # the tolerance of the gap


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hidden", [(), (4,)])
def test_a_flat_model_has_nothing_to_spend_on(build, uniform, hidden, dtype):
    model = MLP(2, 1, hidden=hidden, dtype=dtype)
    for p in model.parameters():
        p.data.zero_()
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    for loss in ("logistic", "hinge"):
        adversary, batch = build(model, loss, x, torch.tensor([0, 1] * 4))
        ball = solve_ball(adversary, batch, uniform(batch), 0.5)
        expected = math.log(2) if loss == "logistic" else 1.0
        assert float(ball.risk.mean()) == pytest.approx(expected, rel=1e-6)
        assert not ball.cost.any()


def test_the_multiplier_of_a_jump_is_found_past_a_flat_stretch(build, linear, uniform):
    """Hinge with every margin above 1: no slope at the samples, and yet a worst case."""
    x = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    adversary, batch = build(linear([2.0]), "hinge", x, torch.tensor([1, 1]))
    ball = solve_ball(adversary, batch, uniform(batch), 0.1)
    # Moving (1 - s f + 1/(4 kappa))_+ pays where the margin excess is below 1/(4 kappa): kappa
    # = 1/12, penalty 1/3, for the nearer sample; its cost is (2 * 3 / 2)^2, its gain 3.
    assert ball.penalty == pytest.approx(1 / 3, rel=1e-6)
    assert float(ball.risk.mean()) == pytest.approx(0.01 / 3, rel=1e-6)
    assert float(ball.cost.mean()) == pytest.approx(0.01, rel=1e-9)


def test_a_reference_outside_of_the_bounds_is_refused(build, linear, uniform):
    x = torch.tensor([[5.0], [0.5]], dtype=torch.float64)
    cost = GroundCost(np.ones(1), np.zeros(1), np.ones(1))
    adversary, batch = build(linear([1.0]), "logistic", x, torch.tensor([0, 1]), cost=cost)
    with pytest.raises(InvalidDataError, match="inside the bounds costs 8"):
        solve_ball(adversary, batch, uniform(batch), 0.1)


@pytest.mark.promise(2)
@pytest.mark.parametrize("share", [0.5, 0.999, 1.0])
def test_penalty_below_growth_is_unbounded_and_the_message_names_a_finite_one(
    build, linear, generator, share
):
    x, y, theta = regression(generator)
    growth = float(theta.square().sum())
    adversary, batch = build(linear(theta), "squared", x, y, share * growth * (1 - 1e-12))
    with pytest.raises(UnboundedRiskError, match="penalty above") as caught:
        adversary.solve(batch)
    named = float(str(caught.value).split("penalty above ")[1].split(";")[0])
    assert named == pytest.approx(growth, rel=1e-4)
    finite = adversary.with_penalty(named * 1.001).solve(batch)
    penalty = named * 1.001
    expected = penalty * (y - x @ theta).square() / (penalty - growth)  # METHOD 4, case 2
    torch.testing.assert_close(finite.value, expected, rtol=1e-6, atol=0)


def test_a_perceptron_below_growth_is_unbounded_too(build, generator):
    """softplus networks grow linearly, their squared loss quadratically."""
    model = MLP(2, 1, hidden=(4,), generator=generator)
    for w in model.weights:
        w.data.abs_()
    x = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    adversary, batch = build(model, "squared", x, x[:, 0], 1e-3)
    with pytest.raises(UnboundedRiskError, match="penalty above") as caught:
        Pointwise().fit(adversary.objective, batch, generator).solve(batch)
    named = float(str(caught.value).split("penalty above ")[1].split(";")[0])
    moved = Pointwise().fit(adversary.objective, batch, generator).with_penalty(named).solve(batch)
    assert bool(torch.isfinite(moved.value).all())


def test_the_plan_shares_what_was_found_with_any_draw(build, uniform, moons):
    """An ascent from the sample alone is weak here; its radius plan carries the basins found."""
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 20.0, n_labels=2)
    adversary = Pointwise(anchors=0).fit(adversary.objective, batch, None, n_labels=2)
    ball = solve_ball(adversary, batch, uniform(batch), 0.3)
    assert len(ball.adversary.candidates) == 2
    fresh = adversary.objective.batch(x + 0.02, y)
    alone = adversary.with_penalty(ball.high_penalty).solve(fresh)
    shared = ball.adversary.with_penalty(ball.high_penalty).solve(fresh)
    assert float(shared.value.mean()) > 1.1 * float(alone.value.mean())


def test_a_full_search_that_finds_an_infinite_risk_moves_the_penalty_up(
    build, generator, monkeypatch
):
    """Where searches on the way have not found it: the ball's worst case is finite all the same."""
    x, y, _ = regression(generator, n=12)
    model = MLP(4, 1, hidden=(6,), generator=torch.Generator().manual_seed(1))
    adversary, batch = build(model, "squared", x, y, 1.0, search=Search(Anchors(x, y, False), 0))
    weights = torch.full((len(x),), 1.0 / len(x), dtype=torch.float64)
    usual = solve_ball(adversary, batch, weights, 0.3, atoms=True)
    limit, solve = 2.0 * usual.penalty, type(adversary).solve

    def stops(self, *args):
        if self.search.effort == "fast" and self.objective.penalty < limit:
            raise UnboundedRiskError("infinite")
        return solve(self, *args)

    monkeypatch.setattr(type(adversary), "solve", stops)
    found = solve_ball(adversary, batch, weights, 0.3, atoms=True)
    assert float(found.cost @ weights) <= 0.3**2 * (1.0 + 1e-9)
    nominal = float(adversary.objective.risk(batch, batch.q0) @ weights)
    assert float(found.risk @ weights) > nominal


@pytest.mark.parametrize("costs", [(2.0, math.inf), (math.inf, 2.0), (2.0, 0.0), (2.0, 1.5)])
def test_penalties_on_the_way_to_a_budget_are_finite(costs):
    trials = [_Trial(p, None, c, 1.0) for p, c in zip((1.0, 2.0), costs, strict=True)]
    assert 1.0 < _onwards(*trials, 1.0, 1.3) <= 2.0
