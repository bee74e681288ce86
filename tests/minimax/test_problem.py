"""The problem as a value: draws, penalties, moves, Danskin's gradient."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from drojko.exceptions import InvalidDataError
from drojko.losses import CallableLoss, get_loss
from drojko.minimax.transport.linear import RidgeData, ridge_robust_risk
from tests.minimax._problems import classification, diabetes, gen, iris, net, randomised, regression


def setting(problem, penalty):
    x, y, w = problem.draw(200, gen())
    objective = problem.objective(x, penalty)
    return objective, objective.batch(x, y), w


def test_draws_are_the_atoms_with_masses_that_sum_to_one():
    x, y, w = classification(radius=0.1).draw(7, gen())
    X, labels = iris()
    assert x.shape == (100, 4)
    assert float(w.sum()) == pytest.approx(1.0)
    order = np.lexsort(X.T)
    np.testing.assert_array_equal(x.numpy()[np.lexsort(x.numpy().T)], X[order])
    assert int(y.sum()) == labels.sum()


def test_draws_in_other_units():
    problem = regression(radius=0.1)
    x, y, _ = problem.draw(5, gen())
    centre = x.mean(0)
    other = replace(problem, centre=centre, scale=2.0, target_centre=50.0, target_scale=10.0)
    x2, y2, _ = other.draw(5, gen())
    torch.testing.assert_close(x2, (x - centre) / 2.0)
    torch.testing.assert_close(y2, (y - 50.0) / 10.0)


def test_draws_lie_within_the_bounds():
    problem = classification(radius=0.1, bounds=(0.0, 5.0))
    x, _, _ = problem.draw(5, gen())
    assert float(x.max()) == 5.0  # columns reach 7.9


def test_single_precision_draws():
    x, y, w = regression(radius=0.1, dtype=torch.float32).draw(5, gen())
    assert (x.dtype, y.dtype, w.dtype) == (torch.float32, torch.float32, torch.float64)


def test_the_first_penalty_of_a_linear_loss_spends_the_radius():
    """For loss a'x the displacement is a / 2 penalty, of length radius at |a| / 2 radius."""
    problem = randomised(regression(loss=CallableLoss(lambda f, y: f, "regression"), radius=0.3))
    objective, batch, w = setting(problem, 1.0)
    length = problem.model.weights[0].norm().item()
    assert problem.first_penalty(objective, batch, w) == pytest.approx(length / 0.6)


def test_the_first_penalty_of_a_squared_loss_is_above_its_growth():
    """sup (f + a't - y)^2 - penalty |t|^2 is finite for penalty > |a|^2 only."""
    for radius in (1e-3, 1.0, 1e6):
        problem = randomised(regression(radius=radius))
        objective, batch, w = setting(problem, 1.0)
        square = problem.model.weights[0].square().sum().item()
        assert problem.first_penalty(objective, batch, w) > square


def test_the_first_penalty_is_the_one_that_is_given():
    assert (
        classification(penalty=3.0).first_penalty(*setting(classification(penalty=3.0), 1.0)) == 3
    )
    problem = classification(radius=0.0)
    assert problem.first_penalty(*setting(problem, 1.0)) == math.inf


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_moves_of_linear_models_are_exact(loss):
    problem = randomised(classification(loss=loss, penalty=2.0), size=0.3)
    objective, batch, w = setting(problem, 2.0)
    moved = problem.move(problem.adversary(objective, 3), batch, batch.q0, 3)
    X, y = batch.x.numpy(), batch.y.numpy()
    data = RidgeData(X, y, weight=w.numpy(), loss=get_loss(loss))
    coef = problem.model.weights[0].detach().numpy()[0]
    risk = ridge_robust_risk(data, coef, problem.model.biases[0].item(), penalty=2.0)
    assert float(moved.value.double() @ w) == pytest.approx(risk.value, rel=1e-9)
    assert float(moved.cost.double() @ w) == pytest.approx(risk.transport_cost, rel=1e-9)


def test_nothing_moves_at_an_infinite_penalty():
    problem = classification(net(), radius=0.0)
    objective, batch, _ = setting(problem, math.inf)
    moved = problem.move(problem.adversary(objective, 3), batch, batch.q0, 3)
    assert float(moved.cost.abs().max()) == 0.0
    torch.testing.assert_close(moved.q, batch.q0)
    torch.testing.assert_close(moved.risk, objective.risk(batch, batch.q0))


@pytest.mark.parametrize("corrections", [2, 30])
def test_more_corrections_from_a_warm_start_raise_the_value(corrections):
    problem = classification(net(seed=1), penalty=1.0)
    objective, batch, _ = setting(problem, 1.0)
    adversary = problem.adversary(objective, corrections)
    first = problem.move(adversary, batch, batch.q0, corrections)
    again = problem.move(adversary, batch, first.q, corrections)
    assert (first.value >= objective.value(batch, batch.q0) - 1e-12).all()
    assert (again.value >= first.value - 1e-9).all()


@pytest.mark.parametrize("model", ["linear", "perceptron", "classes"])
def test_danskin_gradient_is_that_of_the_robust_risk(model):
    """d/dtheta of E max_z J is the model's gradient at the maximisers: finite differences."""
    if model == "linear":
        problem = randomised(classification(penalty=2.0), size=0.3)
    elif model == "perceptron":
        problem = classification(net(activation="tanh"), penalty=8.0)
    else:
        problem = classification(net(n_outputs=2), get_loss("logistic", n_classes=3), penalty=8.0)

    def value():
        objective, batch, w = setting(problem, problem.penalty)
        moved = problem.move(problem.adversary(objective, 300), batch, batch.q0, 300)
        return float(moved.value.double() @ w), (objective, moved, w)

    _, found = value()
    gradients = problem.parameter_gradient(*found)
    step = 1e-5
    for parameter, gradient in zip(problem.model.parameters(), gradients, strict=True):
        entry = int(gradient.abs().argmax())
        flat = parameter.data.view(-1)
        before = float(flat[entry])
        ends = []
        for sign in (1, -1):
            flat[entry] = before + sign * step
            ends.append(value()[0])
        flat[entry] = before
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(gradient.view(-1)[entry]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_decay_is_on_weights_alone_unless_units_say_otherwise():
    problem = classification(net(), radius=0.1, alpha=0.5)
    assert problem.decay() == [0.5, 0.5, 0.0, 0.0]
    assert replace(problem, alphas=(1.0, 2.0, 0.0, 0.0)).decay() == [1.0, 2.0, 0.0, 0.0]


def test_regression_draws_keep_pairs_together():
    X, y = diabetes()
    x, target, _ = regression(radius=0.1).draw(5, gen())
    pairs = {(*row, value) for row, value in zip(X.tolist(), y.tolist(), strict=True)}
    assert {(*r, v) for r, v in zip(x.tolist(), target.tolist(), strict=True)} == pairs


def test_a_loss_of_the_wrong_shape_is_named():
    problem = classification(loss=CallableLoss(lambda f, y: f.sum()), penalty=1.0)
    objective, batch, _ = setting(problem, 1.0)
    with pytest.raises(InvalidDataError, match="one value per row"):
        objective.value_and_gradient(batch, batch.q0)
