"""Which models are recognised as perceptrons, and that they are the same functions."""

import pytest
import torch
from torch import nn

from drojko.inner.networks.network import Network, layers_of
from drojko.losses import CallableLoss
from drojko.models import MLP, LogitDifference, ModuleModel


def normalised(width):
    norm = nn.BatchNorm1d(width)
    norm.running_mean.copy_(torch.linspace(-1, 1, width))
    norm.running_var.copy_(torch.linspace(0.5, 2, width))
    norm.weight.data.copy_(torch.linspace(-1, 2, width))
    return norm.double().eval()


def stack(*parts):
    return nn.Sequential(*parts).double().eval()


KNOWN = {
    "plain": lambda: stack(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
    "nested": lambda: stack(
        nn.Flatten(), nn.Sequential(nn.Linear(3, 4, bias=False), nn.SiLU()), nn.Identity(),
        nn.Dropout(0.5), nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 1),
    ),
    "mixed": lambda: stack(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)),
    "normalised": lambda: stack(
        normalised(3), nn.Linear(3, 4), normalised(4), nn.Softplus(), normalised(4), nn.Linear(4, 1)
    ),
    "two in a row": lambda: stack(nn.Linear(3, 2), nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)),
}  # fmt: skip


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    module = KNOWN["plain"]()
    module[0].register_forward_hook(lambda module, args, out: 2 * out)
    return module


UNKNOWN = {
    "linear": lambda: stack(nn.Linear(3, 1)),
    "no last layer": lambda: stack(nn.Linear(3, 1), nn.Tanh()),
    "other activation": lambda: stack(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)),
    "other beta": lambda: stack(nn.Linear(3, 4), nn.Softplus(beta=2), nn.Linear(4, 1)),
    "dropout at work": lambda: stack(
        nn.Linear(3, 4), nn.Dropout(), nn.Tanh(), nn.Linear(4, 1)
    ).train(),
    "subclass": lambda: stack(Doubled(3, 4), nn.Tanh(), nn.Linear(4, 1)),
    "hook": hooked,
    "softmax": lambda: stack(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Softmax(1)),
}  # fmt: skip


def outputs(model, x):
    linear, acts, error = layers_of(model)
    for (w, b), act in zip(linear[:-1], acts, strict=True):
        x = act(x @ w.T + b)[0]
    return x @ linear[-1][0].T + linear[-1][1], error


@pytest.mark.parametrize("name", KNOWN)
def test_modules_that_are_perceptrons_are_recognised(name, generator):
    model = ModuleModel(KNOWN[name]().requires_grad_(False), 1)
    x = 3 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    found, error = outputs(model, x)
    assert float((found[:, 0] - model(x)).abs().max()) <= 1e-12 + 100 * error
    assert (error > 0) == (name == "normalised")  # torch's softplus is a line from 20 on


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_is_not_recognised(name):
    assert layers_of(ModuleModel(UNKNOWN[name](), 1)) is None


def test_two_logits_are_one(generator):
    module = stack(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    model = ModuleModel(LogitDifference(module), 1)
    torch.testing.assert_close(outputs(model, x)[0][:, 0], model(x))


def test_a_float32_module_is_bounded_in_float64(generator):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    found, _ = outputs(ModuleModel(module, 1), torch.randn(5, 3, generator=generator).double())
    assert found.dtype == torch.float64


@pytest.mark.parametrize("hidden", [(4,), (5, 3)])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 4.0], [1.0, float("inf"), 2.0]])
@pytest.mark.parametrize("loss", ["logistic", "softmax", "crammer-singer", "hinge", "squared"])
def test_margins_give_the_loss_at_displacements(perceptron, hidden, weights, loss, seed):
    """In rotated coordinates of the cost, with immutable columns, as the objective has it."""
    objective, batch, gen = perceptron(hidden, loss, "tanh", seed, weights=weights)
    network = Network.of(objective, batch)
    q = batch.q0 + torch.randn(batch.q0.shape, generator=gen, dtype=torch.float64)
    d = network.turned(q - batch.q0)
    torch.testing.assert_close(network.margins(network.at(d)), objective.risk(batch, q))
    assert network.margins.kind == {"squared": "both"}.get(
        loss, "falls" if objective.model.n_outputs == 1 else "pairs"
    )


def test_directions_that_the_first_layer_does_not_see_are_left_out(perceptron, seed):
    objective, batch, gen = perceptron((2,), "logistic", "tanh", seed, d=6)
    plain = type(objective.coordinates)(objective.coordinates.scale, n_features=6)
    whole = type(objective)(objective.model, objective.loss, plain, 1.0)
    points = whole.batch(batch.x, batch.y)
    network = Network.of(whole, points)
    q = points.q0 + torch.randn(points.q0.shape, generator=gen, dtype=torch.float64)
    d = network.turned(q - points.q0)
    assert d.shape[1] == 2
    assert bool((d.norm(dim=1) <= (q - points.q0).norm(dim=1)).all())
    torch.testing.assert_close(network.margins(network.at(d)), whole.risk(points, q))


def test_nothing_is_known_of_callables_and_linear_models(perceptron):
    objective, batch, _ = perceptron((4,), "logistic", "tanh", 0)
    loss = CallableLoss(lambda f, y: f)
    assert (
        Network.of(type(objective)(objective.model, loss, objective.coordinates, 1.0), batch)
        is None
    )
    linear = MLP(3, 1, hidden=())
    known = type(objective)(linear, objective.loss, objective.coordinates, 1.0)
    assert Network.of(known, batch) is None
