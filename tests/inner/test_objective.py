import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.losses import get_loss
from drojko.models import MLP, ModuleModel


@pytest.fixture
def case(seed):
    gen = torch.Generator().manual_seed(seed)
    model = MLP(3, 4, hidden=(5,), activation="silu", generator=gen)
    x = torch.randn(6, 3, generator=gen, dtype=torch.float64)
    y = torch.randint(4, (6,), generator=gen)
    return model, x, y


def test_value_is_loss_minus_penalty_times_cost(build, case):
    model, x, y = case
    cost = GroundCost(np.array([1.0, 2.0, np.inf]))
    adversary, batch = build(model, "logistic", x, y, 0.7, cost=cost)
    objective = adversary.objective
    q = batch.q0 + 0.3
    z = objective.decode(batch, q)
    loss = get_loss("logistic", n_classes=4).value(model(z), y).detach()
    expected = loss - 0.7 * cost.cost(x, z)
    torch.testing.assert_close(objective.value(batch, q), expected)
    torch.testing.assert_close(objective.value_and_gradient(batch, q)[0], expected)
    torch.testing.assert_close(objective.risk(batch, q), loss)
    torch.testing.assert_close(objective.cost(batch, q), cost.cost(x, z))


def test_gradient_and_hessian_agree_with_autograd(build, case):
    model, x, y = case
    adversary, batch = build(model, "logistic", x, y, 0.7)
    objective = adversary.objective
    leaf = (batch.q0 + 0.3).requires_grad_(True)
    loss = get_loss("logistic", n_classes=4).value(model(objective.decode(batch, leaf)), y)
    move = (leaf - batch.q0).square().sum(1)
    value = loss - objective.strength * move
    (expected,) = torch.autograd.grad(value.sum(), leaf)
    _, gradient = objective.value_and_gradient(batch, leaf.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)
    hessian = objective.loss_hessian(batch, leaf.detach())
    step = 1e-5 * torch.eye(3, dtype=torch.float64)
    for j in range(3):
        up = objective.value_and_gradient(batch, leaf.detach() + step[j])[1]
        down = objective.value_and_gradient(batch, leaf.detach() - step[j])[1]
        column = (up - down) / 2e-5
        column[:, j] += 2 * objective.strength  # the objective's Hessian has the cost's as well
        # Central differences of the gradient: step^2 and rounding / step.
        torch.testing.assert_close(hessian[:, :, j], column, rtol=1e-5, atol=1e-7)


def test_hessian_of_a_piecewise_linear_loss_is_zero(build, linear):
    x = torch.ones(2, 3, dtype=torch.float64)
    adversary, batch = build(linear([1.0, 2.0, 3.0]), "hinge", x, torch.tensor([0, 1]))
    assert not adversary.objective.loss_hessian(batch, batch.q0).any()


def test_device_and_dtype_are_the_models(build, case):
    model, x, y = case
    adversary, _ = build(model.float(), "logistic", x.float(), y)
    assert adversary.objective.model_like()["dtype"] == torch.float32
    bare = ModuleModel(torch.nn.Flatten(), 3)  # a model without parameters
    adversary, _ = build(bare, "logistic", x, y)
    assert adversary.objective.model_like()["dtype"] == torch.float64


def test_single_precision_is_the_same_to_six_digits(build, case):
    model, x, y = case
    cost = GroundCost(np.array([1.0, 2.0, np.inf]), np.full(3, -2.0), np.full(3, 3.0))
    adversary, batch = build(model, "logistic", x.clamp(-2.0, 3.0), y, 0.7, cost=cost)
    objective = adversary.objective
    light, rows = objective.single(batch)
    q = batch.q0 + 0.3
    value, gradient = light.value_and_gradient(rows, q.float())
    assert value.dtype == gradient.dtype == light.coordinates.project(q.float()).dtype
    assert value.dtype == torch.float32
    expected = objective.value_and_gradient(batch, q)
    torch.testing.assert_close(value.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-5)
    assert objective.model.weights[0].dtype == torch.float64  # a copy


class Counted(torch.nn.Sequential):
    """What a user may derive, and count in."""


@pytest.mark.parametrize("bias", [0.5, 1e9])
def test_single_precision_of_a_module_is_compared_with_double(build, case, bias):
    _, x, y = case
    layer = torch.nn.Linear(3, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.7, 0.6, 12).view(4, 3))
        layer.bias.fill_(bias)
    module = torch.nn.Sequential(layer, torch.nn.Tanhshrink())

    def single():
        adversary, batch = build(ModuleModel(module, 4), "logistic", x, y, 0.7)
        return adversary.objective, batch, adversary.objective.single(batch)

    objective, batch, found = single()
    if bias > 1e6:  # its digits are lost
        assert found is None
        return
    light, rows = found
    value, gradient = light.value_and_gradient(rows, rows.q0 + 0.3)
    expected = objective.value_and_gradient(batch, batch.q0 + 0.3)
    torch.testing.assert_close(value.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-5)
    assert value.dtype == gradient.dtype == torch.float32
    assert layer.weight.dtype == torch.float64  # a copy
    layer.register_forward_hook(lambda *_: None)
    assert single()[2] is None


def test_single_precision_is_left_where_the_code_is_the_users(build, case):
    _, x, y = case
    module = Counted(torch.nn.Linear(3, 4)).double()
    adversary, batch = build(ModuleModel(module, 4), "logistic", x, y, 0.7)
    assert adversary.objective.single(batch) is None


def test_single_precision_is_left_where_digits_would_be_lost(build, case):
    model, x, y = case

    def single(x, penalty=0.7, model=model):
        adversary, batch = build(model, "logistic", x, y, penalty)
        return adversary.objective.single(batch)

    assert single(x) is not None
    assert single(x + 1e6) is None
    assert single(x, 1e-200) is None
    assert single(x, 1e200) is None
    large = MLP(3, 4, hidden=(5,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        large.weights[0].mul_(1e30)
    assert single(x, model=large.requires_grad_(False)) is None
