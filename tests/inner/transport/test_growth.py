"""Losses along rays against the squared distance: powers, exponentials, bounds, saturation."""

import math

import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.exceptions import UnboundedRiskError
from drojko.inner.coordinates import Coordinates
from drojko.inner.objective import Objective
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.growth import growth, refuse
from drojko.losses import get_loss
from drojko.models import Linear, ModuleModel

SLOPE = (3.0, -4.0)  # of norm 5


def measured(loss, model=None, cost=None, dtype=torch.float64, spread=1.0) -> float:
    """The growth of a loss of outputs under a model of two columns."""
    if model is None:
        model = Linear(2)
        model.weights[0].data.copy_(torch.tensor([SLOPE]))
    x = spread * torch.tensor([[0.1, 0.2], [1.0, -1.0], [-2.0, 0.5]], dtype=dtype)
    y = torch.tensor([0.0, 1.0, -1.0], dtype=dtype)
    coordinates = Coordinates.build(cost or GroundCost(np.ones(2)), x)
    objective = Objective(model, get_loss(loss, "regression"), coordinates, 1.0)
    return growth(objective, [objective.batch(x, y)])


class Net(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def net(function) -> ModuleModel:
    return ModuleModel(Net(function), 1)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda f, y: (f - y) ** 2, 25.0),
        (lambda f, y: 0.5 * torch.relu(f - y) ** 2, 12.5),
        (lambda f, y: (f - y).abs(), 0.0),
        (lambda f, y: (f - y).abs() ** 1.5, 0.0),
        (lambda f, y: torch.log1p((f - y) ** 2), 0.0),
        (lambda f, y: (f - y).abs() ** 3, math.inf),
        (lambda f, y: (f - y).abs() ** 2.1, math.inf),
        (lambda f, y: (f - y) ** 2 * torch.log1p((f - y) ** 2), math.inf),
        (lambda f, y: torch.exp(f) - y * f, math.inf),
        (lambda f, y: torch.exp(f).clamp(max=1e30), 0.0),
        (lambda f, y: 1e6 + (f - y) ** 2, 25.0),
        (lambda f, y: torch.exp(f) - 1e5, math.inf),
        (lambda f, y: torch.exp(1e-6 * f) + f**2, math.inf),  # late
        (lambda f, y: -((f - y) ** 2), 0.0),
        (lambda f, y: torch.where((f - y).abs() < 1e6, (f - y) ** 2, 1e12), 0.0),  # saturates late
    ],
)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_growth_of_a_linear_model(loss, expected, spread):
    assert measured(loss, spread=spread) == pytest.approx(expected, rel=1e-5)


def test_infinity_minus_itself_is_seen_before_it_is_met():
    assert measured(lambda f, y: torch.exp(f) - torch.exp(0.5 * f)) == math.inf


def test_costs_columns_and_bounds_decide():
    squared = lambda f, y: (f - y) ** 2  # noqa: E731
    weights = np.array([4.0, 1.0])
    assert measured(squared, cost=GroundCost(weights)) == pytest.approx(9 / 4 + 16)
    assert measured(squared, cost=GroundCost(np.array([np.inf, 1.0]))) == pytest.approx(16.0)
    exponential = lambda f, y: torch.exp(f)  # noqa: E731
    free = np.full(2, np.inf)
    for low, high, expected in (
        ([-5.0, -5.0], [5.0, 5.0], 0.0),
        ([-5.0, -5.0], [5.0, np.inf], 0.0),  # the open side lowers the output
        ([-5.0, -np.inf], [5.0, 5.0], math.inf),
        (-free, [5.0, np.inf], math.inf),
    ):
        cost = GroundCost(np.ones(2), np.array(low), np.array(high))
        assert measured(exponential, cost=cost) == expected


@pytest.mark.parametrize(
    ("function", "loss", "expected"),
    [
        (lambda x: x.square().sum(1), lambda f, y: f, 1.0),
        (lambda x: x[:, 0] * x[:, 1], lambda f, y: f, 0.5),  # steepest along a diagonal
        (lambda x: x[:, 0] ** 2 - 9.0 * x[:, 1] ** 2, lambda f, y: f, 1.0),
        (lambda x: x.square().sum(1), lambda f, y: (f - y) ** 2, math.inf),
        (lambda x: 9.0 * torch.tanh(x).sum(1), lambda f, y: torch.exp(f), 0.0),
        (lambda x: torch.relu(x).sum(1), lambda f, y: torch.exp(f), math.inf),
        (lambda x: torch.relu(-1.0 - x[:, 1]), lambda f, y: (f - y) ** 2, 1.0),  # flat at most rows
        (lambda x: torch.where(x.abs().amax(1) > 3.0, torch.nan, x[:, 0]), lambda f, y: f**2, 0.0),
    ],
)
def test_growth_of_networks(function, loss, expected):
    assert measured(loss, net(function)) == pytest.approx(expected, rel=1e-3)


def test_single_precision_overflows_far_away_and_that_is_no_growth():
    model = Linear(2, dtype=torch.float32)
    model.weights[0].data.copy_(torch.tensor([SLOPE]))
    squared = measured(lambda f, y: (f - y) ** 2, model, dtype=torch.float32, spread=1e9)
    assert squared == pytest.approx(25.0, rel=1e-3)
    assert measured(lambda f, y: torch.exp(f), model, dtype=torch.float32) == math.inf


def test_what_is_refused():
    refuse(math.nextafter(math.inf, 0.0), None)
    refuse(2.0, 2.1)
    refuse(0.0, 1e-300)
    with pytest.raises(UnboundedRiskError, match=r"every ball.*bounds=.*reweights"):
        refuse(math.inf, None)
    with pytest.raises(UnboundedRiskError, match="every penalty"):
        refuse(math.inf, 1e9)
    for penalty in (1.0, 2.0):
        with pytest.raises(UnboundedRiskError, match=r"penalty above 2:.*radius"):
            refuse(2.0, penalty)


def test_labels_that_may_flip_count():
    model = Linear(2)
    model.weights[0].data.copy_(torch.tensor([SLOPE]))
    x, y = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    own = get_loss(lambda f, y: torch.where(y == 1, f**4, f.abs()), "classification", 2)
    coordinates = Coordinates.build(GroundCost(np.ones(2)), x)
    objective = Objective(model, own, coordinates, 1.0)
    batch = objective.batch(x, y)
    Adversary(objective).check_finite(batch, ball=True)
    with pytest.raises(UnboundedRiskError):
        Adversary(objective, n_labels=2, label_cost=1.0).check_finite(batch, ball=True)
