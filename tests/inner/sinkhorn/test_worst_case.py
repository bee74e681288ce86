"""The worst case of a Sinkhorn set as a measure: draws, density, means; particles against tilts."""

import math

import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Objective
from drojko.inner.sinkhorn.particles import draw_particles
from drojko.inner.sinkhorn.worst_case import GibbsWorstCase
from drojko.losses import CallableLoss, get_loss
from drojko.measures import ClassConditional, Empirical, Joint
from drojko.models import Linear

EPSILON, PENALTY = 0.5, 0.8
THETA, B = np.array([1.0, -0.5]), 0.2


def linear(weights=None):
    model = Linear(2)
    model.weights[0].data.copy_(torch.tensor(THETA if weights is None else weights)[None])
    model.biases[0].data.fill_(B)
    return model


def worst(loss, task, cost_weights=(1.0, 2.0), penalty=PENALTY, n=12, **settings):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 2))
    y = np.arange(n) % 2 if task == "classification" else rng.normal(size=n)
    labelled = ClassConditional if task == "classification" else Joint
    reference = labelled(Empirical()).fit(X, y)
    x = torch.from_numpy(X)
    model, cost_weights = linear(), np.array(cost_weights)
    coordinates = Coordinates.build(GroundCost(cost_weights), x, model.first_layer())
    objective = Objective(model, loss, coordinates, penalty)
    classes = np.array([0, 1]) if task == "classification" else None
    found = GibbsWorstCase(
        objective, reference, EPSILON, 1.0, classes, None, cost_weights, **settings
    )
    return found, X, y


def exact(loss, X, y, cost_weights=(1.0, 2.0), penalty=PENALTY):
    s = math.sqrt(0.5 * EPSILON * np.sum(THETA**2 / np.array(cost_weights)))
    return loss.tilt(X @ THETA + B, y.astype(float), s, 1.0 / (penalty * EPSILON))


@pytest.mark.parametrize("name", ["logistic", "hinge", "absolute", "huber"])
def test_samples_have_the_risk_and_the_means_of_the_tilts(name):
    loss = get_loss(name)
    measure, X, y = worst(loss, loss.task)
    Z, labels = measure.sample(30_000, random_state=1)
    f, target = torch.from_numpy(Z @ THETA + B), torch.from_numpy(np.asarray(labels))
    losses = loss.value(f, target).numpy()
    found = exact(loss, X, y)
    error = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - found.mean[2].mean()) < 5 * error
    moved = measure.transport(X, y)
    assert np.abs(Z.mean(0) - moved.mean(0)).max() < 5 * Z.std() / math.sqrt(len(Z))
    # Across the tilted direction (in the metric of the cost) nothing moves.
    across = np.array([THETA[1] * 1.0, -THETA[0] * 2.0]) @ np.diag([1.0, 1.0])
    assert np.abs((moved - X) @ across).max() < 1e-12


@pytest.mark.parametrize("name", ["logistic", "hinge"])
def test_density_integrates_to_one_and_gives_the_mean(name):
    measure, X, y = worst(get_loss(name), "classification", n=4)
    side = np.linspace(-7.0, 7.0, 281)
    Z = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    for label in (0, 1):
        p = np.exp(measure.log_prob(Z, np.full(len(Z), label))) * (side[1] - side[0]) ** 2
        # The hinge's kink limits the rule to order h^2, h = 0.05.
        assert p.sum() == pytest.approx(1.0, abs=1e-3)
        mean = measure.transport(X[y == label], y[y == label]).mean(0)
        np.testing.assert_allclose(p @ Z, mean, atol=3e-3)


def test_marginal_density_of_a_regression():
    measure, X, y = worst(get_loss("absolute"), "regression", n=3)
    side = np.linspace(-7.0, 7.0, 141)
    Z = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    p = np.exp(measure.log_marginal(Z)) * (side[1] - side[0]) ** 2
    assert p.sum() == pytest.approx(1.0, abs=5e-3)
    np.testing.assert_allclose(p @ Z, measure.transport(X, y).mean(0), atol=1e-2)
    with pytest.raises(UnsupportedError, match="log_marginal"):
        measure.log_prob(X, y)


def test_immutable_columns_stay():
    measure, X, y = worst(get_loss("logistic"), "classification", (1.0, np.inf))
    Z, _ = measure.sample(500, random_state=0)
    assert set(Z[:, 1]) <= set(X[:, 1])
    assert np.array_equal(measure.transport(X, y)[:, 1], X[:, 1])
    with pytest.raises(UnsupportedError, match="immutable"):
        measure.log_prob(X, y)


def test_without_a_tilt_it_is_the_smoothed_reference():
    measure, X, y = worst(get_loss("logistic"), "classification", penalty=math.inf)
    assert np.array_equal(measure.transport(X, y), X)
    Z, labels = measure.sample(40_000, random_state=0)
    inside = Z[labels == 1] - X[y == 1].mean(0)
    expected = np.cov(X[y == 1].T, bias=True) + 0.5 * EPSILON * np.diag([1.0, 0.5])
    np.testing.assert_allclose(np.cov(inside.T), expected, atol=0.06)


def test_particles_agree_with_the_exact_tilt():
    loss = get_loss("logistic")
    unknown = CallableLoss(loss.value)
    measure, X, y = worst(loss, "classification")
    sampled, _, _ = worst(unknown, "classification", m=1024)
    found = exact(loss, X, y)
    np.testing.assert_allclose(sampled.transport(X, y), measure.transport(X, y), atol=0.06)
    objective = sampled.objective
    batch = objective.batch(torch.from_numpy(X), torch.from_numpy(y))
    modes = batch.q0 + 0.3  # any proposals will do
    gen = torch.Generator().manual_seed(0)
    particles = draw_particles(objective, batch, modes, EPSILON, 8192, gen)
    value = particles.value(PENALTY).numpy()
    error = particles.variance(PENALTY).sqrt().numpy()
    assert (np.abs(value - found.value) < 5 * error).all()
    np.testing.assert_allclose(
        particles.divergence(PENALTY).numpy(), EPSILON * found.divergence, atol=0.02
    )
    Z, labels = sampled.sample(3000, random_state=0)
    losses = loss.value(torch.from_numpy(Z @ THETA + B), torch.from_numpy(labels)).numpy()
    assert abs(losses.mean() - found.mean[2].mean()) < 5 * losses.std() / math.sqrt(len(Z)) + 0.01


def test_few_particles_are_low_and_the_jackknife_takes_it_off():
    loss = get_loss("logistic")
    sampled, X, y = worst(CallableLoss(loss.value), "classification")
    found = np.tile(exact(loss, X, y).value, 2000)
    objective, gen = sampled.objective, torch.Generator().manual_seed(0)
    batch = objective.batch(torch.from_numpy(X), torch.from_numpy(y)).repeat(2000)
    particles = draw_particles(objective, batch, batch.q0, EPSILON, 8, gen)
    low = particles.value(PENALTY).numpy() - found
    corrected = particles.debiased(PENALTY).numpy() - found
    assert low.mean() < -5 * low.std() / math.sqrt(len(low))
    assert abs(corrected.mean()) < 0.6 * abs(low.mean())


def test_queries_are_checked():
    measure, X, y = worst(get_loss("logistic"), "classification")
    with pytest.raises(InvalidDataError, match="shape"):
        measure.transport(X[:, :1], y)
    with pytest.raises(InvalidDataError, match="rows"):
        measure.transport(X, y[:-1])
    with pytest.raises(InvalidDataError, match="labels"):
        measure.transport(X, y + 5)
