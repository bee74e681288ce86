"""Units of training: one scalar for x, one for y, undone exactly."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from drojko.losses import CallableLoss, get_loss
from drojko.minimax.conditioning import Conditioned
from drojko.models import Linear, ModuleModel
from tests.minimax._problems import classification, gen, net, randomised, regression, state


def conditioned(problem, shift=True):
    return Conditioned.of(problem, shift, 500, gen())


def test_draws_have_mean_zero_and_unit_spread():
    run = conditioned(regression(radius=0.1))
    x, y, w = run.problem.draw(500, gen())
    np.testing.assert_allclose(w @ x, 0.0, atol=1e-12)
    assert float((w @ x.square()).mean().sqrt()) == pytest.approx(1.0)
    assert float(w @ y) == pytest.approx(0.0, abs=1e-12)
    assert float((w @ y.square()).sqrt()) == pytest.approx(1.0)


def test_one_scalar_for_all_columns():
    """Distances change by one factor: the shape of the ambiguity set is untouched."""
    problem = classification(radius=0.3)
    run = conditioned(problem)
    x, _, _ = problem.draw(500, gen())
    z, _, _ = run.problem.draw(500, gen())
    ratio = torch.cdist(x, x)[0, 1:] / torch.cdist(z, z)[0, 1:]
    torch.testing.assert_close(ratio, torch.full_like(ratio, run.problem.scale))
    assert run.problem.radius == pytest.approx(0.3 / run.problem.scale)
    np.testing.assert_array_equal(run.problem.cost.weights, problem.cost.weights)


@pytest.mark.parametrize("kind", ["linear", "net"])
@pytest.mark.parametrize("loss", ["squared", "absolute", "huber", "quantile", "logistic"])
def test_the_objective_is_the_same_up_to_its_unit(loss, kind):
    """The L2 term and J at the moved points, in both units, for random parameters."""
    build = classification if loss == "logistic" else regression
    model = Linear(4) if kind == "linear" else net()
    original = build(model, loss, penalty=2.0, alpha=0.7)
    run = conditioned(original)
    randomised(run.problem, size=0.5)

    def parts(problem):
        x, y, w = problem.draw(500, gen())
        objective = problem.objective(x, problem.penalty, reduce=False)
        batch = objective.batch(x, y)
        step = 0.3 * torch.sin(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)
        value = float(objective.value(batch, batch.q0 + step) @ w)
        pairs = zip(problem.decay(), problem.model.parameters(), strict=True)
        decay = sum(alpha * float(p.detach().square().sum()) for alpha, p in pairs)
        return value, decay

    inside = parts(run.problem)
    before = state(model)
    run.undo()
    outside = parts(original)
    for a, b in zip(inside, outside, strict=True):
        assert a * run.loss_unit == pytest.approx(b, rel=1e-9)
    assert not np.allclose(before, state(model))


@pytest.mark.parametrize("build", [classification, regression])
def test_a_warm_model_enters_the_units_and_comes_back(build):
    model = net()
    problem = build(model, radius=0.1)
    randomised(problem)
    before = state(model)
    model.warm = True
    run = conditioned(problem)
    assert not np.allclose(state(model), before)
    x, _, _ = problem.draw(500, gen())
    z, _, _ = run.problem.draw(500, gen())
    inside = model(z).detach() * run.problem.target_scale + run.problem.target_centre
    run.undo()
    np.testing.assert_allclose(state(model), before, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model(x).detach(), inside)


def test_penalties_and_bounds_are_in_the_new_units():
    run = conditioned(classification(penalty=3.0, bounds=(0.0, 9.0), label_cost=2.0))
    p = run.problem
    centre = p.centre.numpy()
    np.testing.assert_allclose(p.cost.lower, (0.0 - centre) / p.scale)
    np.testing.assert_allclose(p.cost.upper, (9.0 - centre) / p.scale)
    assert p.penalty == pytest.approx(3.0 * p.scale**2)
    assert p.label_cost == pytest.approx(2.0 / p.scale**2)
    assert run.penalty_unit == pytest.approx(p.scale**2)


def test_without_intercepts_nothing_is_shifted():
    run = conditioned(regression(Linear(4, bias=False), radius=0.1), shift=False)
    assert float(run.problem.centre.abs().max()) == 0.0
    assert run.problem.target_centre == 0.0


def test_a_loss_of_unknown_scale_keeps_the_units_of_y():
    loss = CallableLoss(lambda f, y: (f - y).abs() ** 1.5, "regression")
    run = conditioned(regression(loss=loss, radius=0.1))
    assert (run.problem.target_scale, run.problem.target_centre, run.loss_unit) == (1.0, 0.0, 1.0)
    assert run.problem.scale != 1.0


def test_huber_bends_where_it_bent():
    run = conditioned(regression(loss=get_loss("huber", delta=50.0), radius=0.1))
    assert run.problem.loss.delta * run.problem.target_scale == pytest.approx(50.0)


def test_a_module_is_left_in_the_units_of_the_data():
    problem = classification(ModuleModel(nn.Linear(4, 1).double(), 1), radius=0.1)
    run = conditioned(problem)
    assert run.problem is problem
    assert run.penalty_unit == 1.0
    assert run.wrap(None) is None


def test_constant_data_have_the_unit_one():
    problem = classification(radius=0.1, bounds=(20.0, 20.0))  # all draws projected to one point
    run = conditioned(problem)
    assert run.problem.scale == 1.0


def test_callbacks_see_the_model_in_the_units_of_the_data():
    model = net()
    problem = regression(model, radius=0.1)
    run = conditioned(problem)
    inside = state(model)
    seen = []
    wrapped = run.wrap(lambda iteration, info: bool(seen.append((state(model), iteration, info))))
    assert wrapped(4, {"a": 1}) is False
    np.testing.assert_array_equal(state(model), inside)
    run.undo()
    np.testing.assert_allclose(seen[0][0], state(model))
    assert seen[0][1:] == (4, {"a": 1})


@pytest.mark.promise(13)
def test_an_interrupt_within_a_callback_leaves_the_units_alone():
    model = net()
    run = conditioned(regression(model, radius=0.1))
    inside = state(model)

    def callback(iteration, info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.wrap(callback)(1, {})
    np.testing.assert_array_equal(state(model), inside)
    assert math.isfinite(run.penalty_unit)
