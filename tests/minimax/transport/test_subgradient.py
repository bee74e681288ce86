"""Stochastic subgradients: near the exact optimum, valid values, and how runs end."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from drojko._driver import Limits
from drojko.exceptions import NonFiniteError
from drojko.inner import ICNNJKO
from drojko.losses import CallableLoss, get_loss
from drojko.measures import ClassConditional, Gaussian
from drojko.minimax.conditioning import Conditioned
from drojko.minimax.transport.linear import RidgeData, ridge_robust_risk
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import Linear
from tests.minimax._problems import classification, exact, gen, iris, net, regression, state


def solve(
    problem, settings=None, *, max_iter=150, tol=1e-3, max_time=None, callback=None, **options
):
    settings = settings or Subgradient(learning_rate=0.02)
    return settings.solve(problem, gen(), Limits(max_iter, tol, max_time, callback), **options)


def trained(settings=None, loss="logistic", max_iter=300, **form):
    """A linear model in conditioned units, and its exact robust risk."""
    problem = classification(Linear(4), loss, **form)
    run = Conditioned.of(problem, True, 500, gen())
    result = solve(run.problem, settings, max_iter=max_iter)
    run.undo()
    X, y = iris()
    coef, intercept = problem.model.weights[0].detach().numpy()[0], problem.model.biases[0].item()
    data = RidgeData(X, y, loss=get_loss(loss))
    return result, run, ridge_robust_risk(data, coef, intercept, **form).value


@pytest.mark.promise(1)
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("form", [{"radius": 0.3}, {"penalty": 1.5}], ids=["radius", "penalty"])
def test_close_to_the_exact_linear_solver(loss, form):
    _, _, value = trained(loss=loss, **form)
    best = exact(loss, **form).objective
    assert best <= value * (1 + 1e-9)  # the exact one is exact
    assert value == pytest.approx(best, rel=2e-2)


@pytest.mark.parametrize(
    "settings",
    [
        Subgradient(learning_rate=0.3, step="constant"),
        Subgradient(learning_rate=1.0, step="diminishing"),
        Subgradient(learning_rate=0.02, averaging=False),
        Subgradient(learning_rate=0.02, batch_size=100),
        Subgradient(learning_rate=0.02, batch_size=7),
    ],
    ids=["constant", "diminishing", "no averaging", "full batch", "small batches"],
)
def test_every_step_rule_gets_there(settings):
    _, _, value = trained(settings, radius=0.3)
    assert value == pytest.approx(exact(radius=0.3).objective, rel=5e-2)


def test_the_multiplier_finds_the_budget():
    result, run, _ = trained(radius=0.3, max_iter=400)
    spent = result.history["transport_cost"][-20:] * run.problem.scale**2
    assert np.median(spent) == pytest.approx(0.09, rel=0.15)
    assert result.penalty / run.penalty_unit == pytest.approx(exact(radius=0.3).multiplier, rel=0.2)


@pytest.mark.promise(1)
@pytest.mark.parametrize("radius", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_reported_values_are_those_of_attacks_that_exist(loss, radius):
    """However far the multiplier is off, no reported risk is below zero, the least loss."""
    run = Conditioned.of(regression(net(), loss, radius=radius), True, 500, gen())
    result = solve(run.problem, max_iter=30)
    assert (result.history["robust_risk"] > 0).all()
    assert (result.history["penalty"] > 0).all()


@pytest.mark.promise(2)
def test_radius_zero_moves_nothing():
    result = solve(classification(net(), radius=0.0), max_iter=20)
    assert result.penalty == math.inf
    assert (result.history["transport_cost"] == 0).all()
    risks = result.history["robust_risk"]
    assert risks[-1] < risks[0]


@pytest.mark.promise(2)
def test_a_flat_start_does_not_stay_flat():
    """At theta = 0 no penalty can be read off the slope; one near zero would keep theta there."""
    problem = classification(Linear(4), radius=0.1)
    result = solve(problem, max_iter=100)
    assert float(problem.model.weights[0].detach().norm()) > 0.5
    assert result.history["robust_risk"][-1] < 0.6  # ln 2 at the start


def test_the_best_of_last_best_and_average_is_kept():
    """Steps too large to settle: what is returned is no worse than the last pass."""
    problem = classification(net(), radius=0.2)
    result = solve(problem, Subgradient(learning_rate=0.3, step="constant"), max_iter=60)
    x, y, w = problem.draw(100, gen())
    objective = problem.objective(x, result.penalty)
    batch = objective.batch(x, y)
    moved = problem.move(problem.adversary(objective, 50), batch, batch.q0, 50)
    value = float(moved.value @ w) + result.penalty * 0.2**2
    assert value <= np.median(result.history["robust_risk"][-10:]) * 1.05


@pytest.mark.promise(10)
def test_one_generator_gives_one_run():
    runs = []
    for _ in range(2):
        problem = classification(net(), radius=0.2)
        result = solve(problem, max_iter=10)
        runs.append((state(problem.model), result.history["robust_risk"]))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("inner", [ICNNJKO(hidden=(8,)), None], ids=["map", "none"])
def test_fresh_draws_of_a_density_hand_a_map_from_pass_to_pass(inner):
    X, y = iris()
    problem = classification(net(), radius=0.3)
    problem = replace(problem, reference=ClassConditional(Gaussian()).fit(X, y))
    problem = problem if inner is None else replace(problem, inner=inner)
    result = solve(problem, max_iter=40, n_draws=200)
    risks = result.history["robust_risk"]
    assert np.median(risks[-5:]) < risks[0]
    assert np.isfinite(state(problem.model)).all()


def test_an_l2_term_shrinks():
    sizes = []
    for alpha in (0.0, 1.0):
        problem = classification(net(), radius=0.1, alpha=alpha)
        solve(problem, max_iter=60)
        sizes.append(sum(float(w.detach().square().sum()) for w in problem.model.weights))
    assert sizes[1] < 0.5 * sizes[0]


def test_frozen_parameters_do_not_move():
    model = net(bias=False)
    model.weights[0].requires_grad_(False)
    before = model.weights[0].detach().clone()
    solve(classification(model, radius=0.1, alpha=0.1), max_iter=5)
    assert torch.equal(model.weights[0].detach(), before)
    assert all(float(b.abs().max()) == 0.0 for b in model.biases)
    assert not torch.equal(model.weights[1].detach(), net(bias=False).weights[1].detach())


# -- how runs end ----------------------------------------------------------------------------------


@pytest.mark.promise(13)
@pytest.mark.parametrize("how", ["callback", "interrupted"])
def test_a_run_cut_short(how):
    problem, seen = classification(net(), radius=0.2), []

    def callback(iteration, info):
        seen.append(info)
        if iteration == 4:
            if how == "interrupted":
                raise KeyboardInterrupt
            return True
        return False

    result = solve(problem, callback=callback)
    assert (result.status, result.n_iter) == (how, 4)
    assert set(seen[0]) == {"robust_risk", "penalty", "transport_cost", "stationarity"}
    assert np.isfinite(state(problem.model)).all()
    assert not np.array_equal(state(problem.model), state(net()))


@pytest.mark.promise(13)
def test_limits():
    assert solve(classification(net(), radius=0.2), max_time=1e-9).status == "max_time"
    result = solve(classification(net(), radius=0.2), max_iter=2)
    assert (result.status, result.n_iter) == ("max_iter", 2)
    assert len(result.history["robust_risk"]) == 2


def test_no_progress_ends_a_run_early():
    """A model without freedom: after enough passes without gain there is nothing to wait for."""
    model = net()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    result = solve(classification(model, radius=0.0), max_iter=200)
    assert result.status == "converged"
    assert result.n_iter < 200


@pytest.mark.promise(7)
def test_a_loss_that_is_nan_is_an_error_with_the_last_state():
    problem = classification(net(), CallableLoss(lambda f, y: f * math.nan), radius=0.2)
    with pytest.raises(NonFiniteError, match="not finite") as caught:
        solve(problem, max_iter=5)
    assert np.isfinite(caught.value.last_state.flat.numpy()).all()
