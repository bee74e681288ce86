import numpy as np
import pytest
import torch
from torch import nn

from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.models import (
    ACTIVATIONS,
    MLP,
    Linear,
    ModuleModel,
    TabularModel,
    flatten_parameters,
    views_like,
)

SHAPES = [((), 1), ((), 3), ((5,), 1), ((5,), 3), ((6, 4, 3), 1), ((6, 4, 3), 2)]


def network(hidden, n_outputs, activation, seed):
    gen = torch.Generator().manual_seed(seed)
    model = MLP(4, n_outputs, hidden=hidden, activation=activation, generator=gen)
    for b in model.biases:
        b.data.copy_(torch.randn(b.shape, generator=gen, dtype=torch.float64))
    return model, 3 * torch.randn(9, 4, generator=gen, dtype=torch.float64), gen


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize(("hidden", "n_outputs"), SHAPES)
def test_explicit_derivatives_agree_with_autograd(hidden, n_outputs, activation, seed):
    model, x, gen = network(hidden, n_outputs, activation, seed)
    leaf = x.clone().requires_grad_(True)
    expected = model(leaf)
    f, backward = model.linearise(x)
    assert f.shape == ((9,) if n_outputs == 1 else (9, n_outputs))
    assert not f.requires_grad
    torch.testing.assert_close(f, expected.detach(), rtol=1e-14, atol=1e-14)
    g = torch.randn(f.shape, generator=gen, dtype=torch.float64)
    inputs = [leaf, *model.parameters()]
    by_autograd = torch.autograd.grad((g * expected).sum(), inputs)
    # A handful of float64 products along either route.
    torch.testing.assert_close(backward(g), by_autograd[0], rtol=1e-11, atol=1e-11)
    found = backward(g, parameters=True)
    for a, b in zip(found, by_autograd[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activation_bounds_hold_and_are_attained(activation):
    function, slope, (low, high) = ACTIVATIONS[activation]
    a = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    value, derivative = function(a)
    assert float(derivative.abs().max()) <= slope
    assert float(derivative.abs().max()) > 0.999 * slope
    # Central differences of the derivative on a grid of 1.2e-4.
    second = (derivative[2:] - derivative[:-2]) / (a[2:] - a[:-2])
    assert float(second.max()) <= high + 1e-9
    assert float(second.min()) >= low - 1e-9
    slopes = (value[2:] - value[:-2]) / (a[2:] - a[:-2])
    smooth = torch.ones_like(slopes) if high < np.inf else (a[1:-1].abs() > 1e-3).double()
    # (b - a)^2 / 6 times the third derivative, below 2 for all of them.
    assert float(((slopes - derivative[1:-1]) * smooth).abs().max()) < 1e-8


def test_softplus_is_continuous_where_torch_switches_to_the_identity():
    function = ACTIVATIONS["softplus"][0]
    a = torch.tensor([19.99, 20.01, 39.9, 40.1], dtype=torch.float64)
    expected = a + torch.log1p(torch.exp(-a))
    torch.testing.assert_close(function(a)[0], expected, rtol=1e-15, atol=0)


def test_model_settings(seed):
    model, x, _ = network((5, 3), 2, "tanh", seed)
    assert torch.equal(model.first_layer(), model.weights[0])
    assert model.penalised() == [True] * 3 + [False] * 3
    with pytest.raises(InvalidDataError, match=r"choose one of .*softplus"):
        MLP(2, activation="cube")
    bare = MLP(4, 1, hidden=(5,), bias=False)
    assert not any(b.requires_grad for b in bare.biases)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    offset = bare.weights[1].detach().sum() * np.log(2.0)  # softplus(0) = log 2
    torch.testing.assert_close(bare(zero).detach()[0], offset)
    single = MLP(4, 2, dtype=torch.float32)
    assert single.linearise(x.float())[0].dtype == torch.float32
    assert TabularModel().first_layer() is None


def test_initial_weights_come_from_a_private_generator(seed):
    before = torch.get_rng_state()
    a, b = (MLP(3, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(a.weights[0], b.weights[0])
    assert not torch.equal(MLP(3).weights[0], MLP(3).weights[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_linear_starts_at_zero_and_is_linear():
    model = Linear(3, 2)
    assert not model(torch.ones(5, 3, dtype=torch.float64)).any()
    model.weights[0].data.copy_(torch.arange(6.0).view(2, 3))
    model.biases[0].data.copy_(torch.tensor([1.0, -1.0]))
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    assert model(x).tolist() == [[9.0, 25.0]]


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_module_model_agrees_with_the_perceptron(n_outputs, seed):
    model, x, gen = network((5,), n_outputs, "tanh", seed)
    first, last = nn.Linear(4, 5).double(), nn.Linear(5, n_outputs).double()
    for layer, w, b in zip((first, last), model.weights, model.biases, strict=True):
        layer.weight.data.copy_(w)
        layer.bias.data.copy_(b)
    wrapped = ModuleModel(nn.Sequential(first, nn.Tanh(), last), n_outputs)
    f, backward = wrapped.linearise(x)
    g = torch.randn(f.shape, generator=gen, dtype=torch.float64)
    expected, explicit = model.linearise(x)
    torch.testing.assert_close(f, expected)
    torch.testing.assert_close(wrapped(x).detach(), expected)
    with torch.no_grad():  # as the inner solvers call it
        torch.testing.assert_close(backward(g), explicit(g))
        w1, w2, b1, b2 = explicit(g, parameters=True)
        for a, b in zip(backward(g, parameters=True), (w1, b1, w2, b2), strict=True):
            torch.testing.assert_close(a, b)


def test_module_model_without_dependence_has_zero_gradients():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.tensor(2.0))
            self.frozen = nn.Parameter(torch.tensor(1.0), requires_grad=False)

        def forward(self, x):
            return (self.level + self.frozen).expand(len(x))

    f, backward = ModuleModel(Constant(), 1).linearise(torch.zeros(4, 2))
    assert f.tolist() == [3.0] * 4
    assert not backward(torch.ones(4)).any()
    level, frozen = backward(torch.ones(4), parameters=True)
    assert (level.item(), frozen.item()) == (4.0, 0.0)

    class Detached(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x))

    f, backward = ModuleModel(Detached(), 1).linearise(torch.ones(4, 2))
    assert backward(torch.ones(4)).tolist() == [[0.0, 0.0]] * 4
    assert backward(torch.ones(4), parameters=True) == []


@pytest.mark.parametrize(("width", "n_outputs"), [(2, 1), (2, 3)])
def test_module_model_refuses_another_shape(width, n_outputs):
    wrapped = ModuleModel(nn.Linear(4, width), n_outputs)
    for call in (wrapped.linearise, wrapped):
        with pytest.raises(UnsupportedError, match=r"shape \(6, 2\) for 6 rows"):
            call(torch.zeros(6, 4))


def test_a_model_without_parameters_has_nothing_to_fit():
    with pytest.raises(InvalidDataError, match="no parameters"):
        flatten_parameters(nn.Identity())


def test_flat_parameters_are_the_parameters(seed):
    model, x, _ = network((5,), 1, "softplus", seed)
    before = model(x).detach()
    flat = flatten_parameters(model)
    assert torch.equal(model(x).detach(), before)
    views = views_like(flat, list(model.parameters()))
    for view, p in zip(views, model.parameters(), strict=True):
        assert torch.equal(view, p)
        assert view.data_ptr() == p.data_ptr()
    flat.zero_()
    assert not model(x).any()
