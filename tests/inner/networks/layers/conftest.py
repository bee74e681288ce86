"""Networks that are no perceptrons, of few numbers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drojko.ambiguity import GroundCost
from drojko.inner import Coordinates, Objective
from drojko.losses import get_loss
from drojko.models import ModuleModel


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)
        self.norm.running_mean.copy_(torch.tensor([-1.0, 0.2, 0.5]))
        self.norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
        self.norm.weight.data.copy_(torch.tensor([1.0, -2.0, 0.5]))

    def forward(self, x):
        x = x.view(-1, 1, 4, 4)
        x = F.relu(self.norm(self.first(x)), inplace=True)
        x = F.dropout(x + F.leaky_relu(self.second(x), 0.2), 0.5, self.training)
        return self.last(F.max_pool2d(x, 2).mean((2, 3)))


class Odd(nn.Module):
    """Strides, dilation, groups, uneven padding, maxima, and what Python adds up."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 2, 3, stride=2, dilation=2)
        self.second = nn.Conv1d(2, 4, 3, groups=2, padding="same")
        self.third, self.last = nn.Linear(28, 5), nn.Linear(5, 3)

    def forward(self, x):
        z = F.elu(self.first(x[:, None]), alpha=0.7)
        z = F.max_pool1d(F.pad(self.second(z), (1, 0)), 3, stride=1, padding=1)
        h = self.third(z.flatten(1))
        h = torch.maximum(h, 1 - 0.5 * h).abs()
        h = F.hardtanh(h) + F.celu(h, 0.5) - torch.clamp(h, max=0.3) / 2
        joined = torch.cat([h[:, :2], h[:, 2:]], 1)
        return self.last(torch.minimum(h, h.flip(1) / 2 + joined))


class Lone(nn.Module):
    """A unit of one number for each row, without an axis of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 2), nn.Linear(16, 3)

    def forward(self, x):
        h = F.leaky_relu(self.first(x)[:, 1], 0.3)[:, None]
        return self.second(x) + torch.cat([h, -2.0 * h, 0.5 * h], 1)


def image(*parts):
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), *parts)


NETWORKS = {
    "convolutions": lambda: image(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(4, 3),
    ),
    "smooth": lambda: image(
        nn.Conv2d(1, 3, 2, stride=2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 4),
        nn.Sigmoid(), nn.Linear(4, 3),
    ),
    "overlap": lambda: image(
        nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(1, 2, 3), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
    ),
    "transposed": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 2, 3, stride=2), nn.SiLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 3),
    ),
    "scaled": lambda: nn.Sequential(
        nn.Linear(16, 6), nn.ELU(), nn.Linear(6, 5), nn.Softplus(beta=2), nn.Linear(5, 5),
        nn.SELU(), nn.Linear(5, 3),
    ),
    "plain": lambda: image(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 5, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3),
    ),
    "residual": Residual,
    "odd": Odd,
    "lone": Lone,
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def module(request, seed):
    """A module of 16 inputs and 3 outputs, in float64, at random weights."""
    return made(request.param, seed)


def made(name, seed, spread=1.0):
    gen = torch.Generator().manual_seed(seed)
    net = NETWORKS[name]().double().eval().requires_grad_(False)
    for key, p in net.named_parameters():
        draw = torch.randn(p.shape, generator=gen, dtype=torch.float64)
        if p.ndim > 1:
            p.copy_(spread * 1.5 * draw / p[0].numel() ** 0.5)
        elif key.endswith("bias"):  # torch draws them from its global generator
            p.copy_(0.2 * draw)
    return net


@pytest.fixture(scope="session")
def layered():
    """An objective and a batch of a module: (module, number, ...)."""

    def make(module, number, *, n=6, d=16, loss="logistic", weights=None, penalty=1.0):
        gen = torch.Generator().manual_seed(number)
        x = torch.randn(n, d, generator=gen, dtype=torch.float64)
        y = torch.randint(3, (n,), generator=gen)
        known = get_loss(loss, n_classes=3)
        cost = GroundCost(np.ones(d) if weights is None else np.asarray(weights, dtype=float))
        coordinates = Coordinates.build(cost, x)
        objective = Objective(ModuleModel(module, 3), known, coordinates, penalty)
        return objective, objective.batch(x, y), gen

    return make
