import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

from drojko._numerics import Adam
from drojko.ambiguity import GroundCost
from drojko.inner import Adversary, Coordinates, Objective
from drojko.losses import get_loss
from drojko.models import MLP, Linear, flatten_parameters, views_like


@pytest.fixture(scope="session")
def build():
    """Adversary and batch of a model, a loss and data; the adversary starts from x alone."""

    def make(model, loss, x, y, penalty=1.0, *, cost=None, reduce=True, **settings):
        if isinstance(loss, str):
            loss = get_loss(loss, n_classes=max(2, model.n_outputs))
        cost = GroundCost(np.ones(x.shape[1])) if cost is None else cost
        coordinates = Coordinates.build(cost, x, model.first_layer(), reduce)
        objective = Objective(model, loss, coordinates, penalty)
        return Adversary(objective, **settings), objective.batch(x, y)

    return make


@pytest.fixture(scope="session")
def uniform():
    """Equal masses for the rows of a batch."""
    return lambda batch: torch.full((len(batch),), 1 / len(batch), dtype=torch.float64)


@pytest.fixture(scope="session")
def linear():
    """A linear model with given coefficients (d,) or (K, d) and intercept."""

    def make(theta, intercept=0.0):
        theta = torch.as_tensor(theta, dtype=torch.float64)
        theta = theta.reshape(-1, theta.shape[-1])
        model = Linear(theta.shape[1], len(theta))
        model.weights[0].data.copy_(theta)
        model.biases[0].data.fill_(intercept)
        return model

    return make


@pytest.fixture(scope="session")
def moons():
    """A perceptron trained on two moons, with the moons: (model, x, y).

    The data are the same whatever the seed of the suite: how much an ICNN finds beyond an
    ascent from each sample depends on them.
    """
    X, labels = make_moons(300, noise=0.2, random_state=0)
    x, y = torch.tensor(X), torch.tensor(labels)
    gen = torch.Generator().manual_seed(0)
    model = MLP(2, 1, hidden=(16, 16), activation="tanh", generator=gen)
    loss = get_loss("logistic")
    flat = flatten_parameters(model)
    adam = Adam.like(flat)
    views = views_like(adam.gradient, list(model.parameters()))
    for _ in range(150):
        f, backward = model.linearise(x)
        for view, g in zip(views, backward(loss.gradient(f, y) / len(x), True), strict=True):
            view.copy_(g)
        adam.step(flat, 2e-2)
    assert float(loss.value(model.linearise(x)[0], y).mean()) < 0.3
    return model.requires_grad_(False), x, y
