import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.inner import Coordinates, Objective
from drojko.inner.transport.search.rounds import _KINKS, Ascent, _Rows
from drojko.inner.transport.search.smoothing import bend, rounded
from drojko.inner.transport.search.starts import Anchors
from drojko.losses import get_loss
from drojko.models import MLP


def problem(seed=3, d=20, hidden=(24, 24, 24), activation="relu", n=40, penalty=0.14):
    generator = torch.Generator().manual_seed(seed)
    model = MLP(d, 1, hidden=hidden, activation=activation, generator=generator)
    with torch.no_grad():
        for bias in model.biases:
            bias.copy_(0.3 * torch.randn(bias.shape, generator=generator, dtype=torch.float64))
    model.requires_grad_(False)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(n, generator=generator, dtype=torch.float64)
    coordinates = Coordinates.build(GroundCost(np.ones(d)), x, model.first_layer())
    objective = Objective(model, get_loss("squared", "regression"), coordinates, penalty)
    return objective, objective.batch(x, y)


@pytest.mark.parametrize("width", [1.0, 0.1])
def test_rounded_is_softplus_of_that_width_layer_by_layer(width):
    objective, batch = problem(hidden=(7, 5))
    model, h = objective.model, batch.x
    for weight, bias in list(zip(model.weights, model.biases, strict=True))[:-1]:
        h = width * torch.nn.functional.softplus((h @ weight.T + bias) / width, threshold=500.0)
    expected = (h @ model.weights[-1].T + model.biases[-1]).squeeze(1)
    torch.testing.assert_close(rounded(objective, width).model(batch.x), expected)
    assert model.activation == "relu"  # the model itself stays


def test_rounded_tends_to_relu():
    objective, batch = problem()
    exact = objective.value(batch, batch.q0)
    errors = [float((rounded(objective, w).value(batch, batch.q0) - exact).abs().max())
              for w in (1e-1, 1e-3, 1e-5)]  # fmt: skip
    assert errors[2] < 1e-3 * errors[0] < errors[0]
    assert errors[2] < 1e-3


def test_bend_is_the_median_input_and_none_without_relu():
    objective, batch = problem()
    inputs = batch.x @ objective.model.weights[0].T + objective.model.biases[0]
    assert bend(objective, batch, batch.q0) == pytest.approx(float(inputs.abs().median()))
    assert bend(*problem(activation="tanh"), batch.q0) is None
    assert bend(*problem(hidden=()), batch.q0) is None


@pytest.mark.parametrize("seed", [3, 4])
def test_climbs_with_relu_rounded_off_pass_kinks_that_stop_bundles(seed):
    objective, batch = problem(seed)
    stay = Ascent(batch.q0, *objective.value_and_gradient(batch, batch.q0))
    generator = torch.Generator().manual_seed(seed)
    rows = _Rows(objective, batch, stay, Anchors(batch.x, batch.y, False), generator)
    starts = rows.drawn((6, 8, 10))
    bundles = rows.climbed(starts, _KINKS, True)
    passed = rows.over_kinks(stay, starts)
    assert rows.gain(passed) > 1.005 * rows.gain(bundles)
    torch.testing.assert_close(passed.value, objective.value(batch, passed.q))
