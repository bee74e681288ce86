import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.inner import Coordinates, Objective
from drojko.losses import get_loss
from drojko.models import MLP


@pytest.fixture(scope="session")
def perceptron():
    """An objective and a batch of a random perceptron: (hidden, loss, activation, number, ...)."""

    def make(hidden, loss, activation, number, *, n=12, d=3, spread=0.8, offset=0.3, penalty=1.0,
             weights=None):  # fmt: skip
        gen = torch.Generator().manual_seed(number)
        several = loss in ("softmax", "crammer-singer")
        name = {"softmax": "logistic", "crammer-singer": "hinge"}.get(loss, loss)
        model = MLP(d, 3 if several else 1, hidden=hidden, activation=activation)
        for p in model.parameters():
            size = spread if p.ndim > 1 else offset
            p.data.copy_(size * torch.randn(p.shape, generator=gen, dtype=torch.float64))
        x = torch.randn(n, d, generator=gen, dtype=torch.float64)
        known = get_loss(name, n_classes=3 if several else 2)
        y = torch.randint(3 if several else 2, (n,), generator=gen)
        if known.task == "regression":
            y = torch.randn(n, generator=gen, dtype=torch.float64)
        cost = GroundCost(np.ones(d) if weights is None else np.asarray(weights, dtype=float))
        coordinates = Coordinates.build(cost, x, model.first_layer())
        objective = Objective(model.requires_grad_(False), known, coordinates, penalty)
        return objective, objective.batch(x, y), gen

    return make


@pytest.fixture(scope="session")
def in_ball():
    """Displacements of at most a radius (n,), some of them on the sphere, shape (count, n, r)."""

    def draw(radius, dim, count, gen):
        d = torch.randn(count, len(radius), dim, generator=gen, dtype=torch.float64)
        share = torch.rand(count, len(radius), 1, generator=gen, dtype=torch.float64)
        share = torch.where(share < 0.5, 2 * share, 1.0) * (1 - 1e-12)
        return d / d.norm(dim=2, keepdim=True) * radius[None, :, None] * share

    return draw
