"""Inputs moved to where the loss is worst: closed forms, budgets, and modules left alone."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from drojko import audit
from drojko.ambiguity import KL, Sinkhorn, Wasserstein
from drojko.exceptions import InvalidDataError, NonFiniteError, UnsupportedError
from drojko.losses import get_loss
from drojko.models import MLP
from drojko.nn import worst_inputs


def squared(f, y):
    return (f.squeeze(1) - y) ** 2


def logistic(f, y):
    return nn.functional.softplus(-(2.0 * y - 1.0) * f.flatten())


@pytest.fixture
def linear(generator):
    """A linear model with its data: theta, x (n, d), y (n,)."""
    model = nn.Linear(4, 1).double()
    theta = torch.randn(4, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(theta[None])
        model.bias.zero_()
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(40, generator=generator, dtype=torch.float64)
    return model, theta, x, y


@pytest.fixture
def network(generator):
    """A small net with data of two classes, steep enough to have several maxima."""
    model = MLP(3, 1, hidden=(16,), activation="softplus", generator=generator).double()
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    return model, x, (x[:, 0] > 0).to(torch.int64)


def images(kind=torch.float32):
    g = torch.Generator().manual_seed(3)
    x = torch.rand(6, 2, 5, 5, generator=g).to(kind)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(36, 3),
    )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return model.to(kind), x, torch.tensor([0, 1, 2, 0, 1, 2])


CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")


def spent(x, z, weights=1.0):
    return ((z.double() - x.double()) ** 2 * weights).flatten(1).sum(1).mean().item()


# Closed forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("steps", [1, 15])
def test_linear_least_squares_in_a_ball(linear, radius, steps):
    model, theta, x, y = linear
    z = worst_inputs(model, squared, x, y, Wasserstein(radius=radius), steps=steps)
    root = squared(model(x), y).mean().sqrt() + radius * theta.norm()
    assert squared(model(z), y).mean().item() == pytest.approx(root.item() ** 2, rel=1e-12)
    assert radius**2 * (1.0 - 1e-9) <= spent(x, z) <= radius**2


def test_linear_least_squares_at_a_penalty(linear):
    model, theta, x, y = linear
    price = 2.0 * float(theta @ theta)
    z = worst_inputs(model, squared, x, y, Wasserstein(penalty=price))
    value = squared(model(z), y) - price * ((z - x) ** 2).sum(1)
    exact = squared(model(x), y) / (1.0 - float(theta @ theta) / price)
    torch.testing.assert_close(value, exact, rtol=1e-10, atol=0.0)


def test_weights_and_immutable_columns_of_a_linear_loss(linear):
    model, theta, x, y = linear
    ball = Wasserstein(radius=0.3, weights=[1.0, 4.0, 9.0, 1.0], immutable=[0])
    z = worst_inputs(model, lambda f, y: f.squeeze(1), x, y, ball)
    inverse = torch.tensor([0.0, 1 / 4, 1 / 9, 1.0], dtype=torch.float64)
    gain = 0.3 * (theta**2 @ inverse).sqrt()
    assert (model(z) - model(x)).mean().item() == pytest.approx(gain.item(), rel=1e-10)
    assert torch.equal(z[:, 0], x[:, 0])
    weights = torch.tensor([0.0, 4.0, 9.0, 1.0], dtype=torch.float64)
    assert 0.09 * (1.0 - 1e-9) <= spent(x, z, weights) <= 0.09


def test_bounds_of_a_linear_loss(linear):
    model, theta, x, y = linear
    x = x.clamp(-1.0, 1.0)
    ball = Wasserstein(radius=0.8, bounds=(-1.0, 1.0))
    z = worst_inputs(model, lambda f, y: f.squeeze(1), x, y, ball)
    assert z.abs().max() <= 1.0
    assert spent(x, z) == pytest.approx(0.64, rel=1e-9)
    # Optimal for some multiplier: each coordinate at theta / (2 lambda), or at its bound.
    free = (z.abs() < 1.0) & (theta.abs() > 1e-3)
    price = (theta / (2.0 * (z - x)))[free]
    torch.testing.assert_close(price, price[0].expand_as(price), rtol=1e-6, atol=0.0)
    corner = worst_inputs(model, lambda f, y: f.squeeze(1), x, y, ball.resized(100.0))
    torch.testing.assert_close(corner, theta.sign().expand_as(x))


def test_some_inputs_move_far_and_others_stay():
    """The budget goes to where it is worth most, not to each input in equal parts."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    slopes = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    x = torch.zeros(3, 1, dtype=torch.float64)
    z = worst_inputs(model, lambda f, y: y * f.squeeze(1), x, slopes, Wasserstein(radius=1.0))
    torch.testing.assert_close(z.squeeze(1), slopes * math.sqrt(3.0 / 10.0))


# Networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.2, 1.0])
def test_networks_in_a_ball_are_as_bad_as_an_audit_finds(network, radius):
    model, x, y = network
    ball = Wasserstein(radius=radius)
    z = worst_inputs(model, logistic, x, y, ball)
    report = audit(
        model, x.numpy(), y.numpy(), ball, loss="logistic", reference="empirical",
        inner="pointwise", random_state=0,
    )  # fmt: skip
    nominal = logistic(model(x), y).mean().item()
    gain = logistic(model(z), y).mean().item() - nominal
    assert gain >= 0.97 * (report.table.worst_case_risk[0] - nominal)
    assert gain <= report.table.upper_bound[0] - nominal
    assert spent(x, z) <= radius**2


def test_networks_at_a_penalty_end_where_the_slope_vanishes(network):
    model, x, y = network
    z = worst_inputs(model, logistic, x, y, Wasserstein(penalty=2.0), steps=40).requires_grad_()
    value = logistic(model(z), y) - 2.0 * ((z - x) ** 2).sum(1)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert slope.abs().max() < 1e-6
    assert (value >= logistic(model(x), y)).all()


def test_a_loss_of_the_package_is_the_same(network):
    model, x, y = network
    loss = get_loss("logistic", "classification", 2)
    first, second = (
        worst_inputs(model, one, x, y, Wasserstein(radius=0.3)) for one in (loss, logistic)
    )
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("radius", [0.05, 0.7])
def test_images_keep_shape_dtype_budget_and_bounds(kind, radius):
    model, x, y = images(kind)
    z = worst_inputs(model, CROSS_ENTROPY, x, y, Wasserstein(radius=radius, bounds=(0.0, 1.0)))
    assert (z.shape, z.dtype, z.requires_grad) == (x.shape, kind, False)
    assert spent(x, z) <= radius**2
    assert z.min() >= 0.0
    assert z.max() <= 1.0
    model.eval()
    before, after = (CROSS_ENTROPY(model(one), y).mean().item() for one in (x, z))
    assert after > before * 1.01


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_bounds_hold_where_a_precision_does_not_have_them(kind):
    x = torch.tensor([[0.2, 0.2]]).to(kind)
    model = nn.Linear(2, 1).to(kind)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    ball = Wasserstein(radius=9.0, bounds=(0.1, 0.3))
    z = worst_inputs(model, lambda f, y: f.squeeze(1), x, None, ball)
    assert z.double().min() >= 0.1
    assert z.double().max() <= 0.3


def test_a_batch_or_a_radius_with_nothing_to_gain_stays(linear):
    model, _, x, y = linear
    for ball, loss in (
        (Wasserstein(radius=0.0), squared),
        (Wasserstein(radius=1.0), lambda f, y: 0.0 * f.squeeze(1)),
        (Wasserstein(penalty=1.0), lambda f, y: 0.0 * f.squeeze(1)),
    ):
        assert torch.equal(worst_inputs(model, loss, x, y, ball), x)
    assert torch.equal(worst_inputs(model, squared, x, y, Wasserstein(1.0), steps=0), x)


def test_losses_that_overflow_on_the_way_are_not_taken():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    x = torch.zeros(2, 1)
    z = worst_inputs(model, lambda f, y: f.squeeze(1).exp(), x, None, Wasserstein(penalty=1e-3))
    assert torch.isfinite(z).all()
    assert torch.isfinite(model(z).exp()).all()


# What is left alone ------------------------------------------------------------------------------


def test_the_module_and_random_numbers_are_left_as_they_were():
    model, x, y = images()
    model.train()
    model[1].eval()  # frozen statistics
    for p in model[0].parameters():
        p.requires_grad_(False)
    CROSS_ENTROPY(model(x), y).mean().backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seeds = torch.get_rng_state()
    leaf = x.clone().requires_grad_()
    worst_inputs(model, CROSS_ENTROPY, leaf, y, Wasserstein(radius=0.3), steps=3)
    assert torch.equal(torch.get_rng_state(), seeds)
    assert leaf.grad is None
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [part.training for part in model.modules()] == modes
    for before, p in zip(grads, model.parameters()):
        assert (before is None and p.grad is None) or torch.equal(before, p.grad)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_modes_are_given_back_after_an_error():
    model, x, y = images()
    with pytest.raises(RuntimeError, match="broken"):
        worst_inputs(model, lambda f, y: _broken(), x, y, Wasserstein(0.1))
    assert all(part.training for part in model.modules())


def _broken():
    raise RuntimeError("broken")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(linear, mode):
    model, _, x, y = linear
    expected = worst_inputs(model, squared, x, y, Wasserstein(radius=0.3))
    with mode():
        z = worst_inputs(model, squared, x, y, Wasserstein(radius=0.3))
    assert torch.equal(z, expected)


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ambiguity", "words"),
    [
        (KL(radius=0.1), "RobustLoss"),
        (Wasserstein(radius=0.1, order=1), "order 2"),
        (Sinkhorn(epsilon=0.1, radius=0.1), "order 2"),
        (Wasserstein(radius=0.1, label_cost=1.0), "keeps labels"),
        (Wasserstein(radius=0.1, categorical_features=[0], swap_cost=1.0), "swaps no categories"),
    ],
)
def test_sets_that_are_not_for_it_say_what_is(linear, ambiguity, words):
    model, _, x, y = linear
    with pytest.raises(UnsupportedError, match=words):
        worst_inputs(model, squared, x, y, ambiguity)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(4)}, "floating tensor"),
        ({"x": torch.zeros(2, 4, dtype=torch.int64)}, "floating tensor"),
        ({"x": np.zeros((2, 4))}, "floating tensor"),
        ({"x": torch.empty(0, 4)}, "nothing to move"),
        ({"loss": "logistic"}, "callable"),
        ({"loss": lambda f, y: f.mean()}, "reduction='none'"),
        ({"loss": lambda f, y: f.detach().squeeze(1)}, "no gradient"),
        ({"steps": -1}, "steps"),
        ({"ambiguity": Wasserstein()}, "radius or a penalty"),
        ({"ambiguity": Wasserstein(0.1, bounds=(5.0, 6.0))}, "beyond its bounds"),
        ({"ambiguity": Wasserstein(0.1, immutable=["age"])}, "feature names"),
    ],
)
def test_bad_arguments_are_clear_errors(linear, change, words):
    model, _, x, y = linear
    given = {"module": model, "loss": squared, "x": x, "y": y, "ambiguity": Wasserstein(0.1)}
    with pytest.raises(InvalidDataError, match=words):
        worst_inputs(**{**given, **change})


def test_losses_that_are_not_finite_at_the_start_are_an_error(linear):
    model, _, x, y = linear
    with pytest.raises(NonFiniteError, match="not finite at x itself"):
        worst_inputs(model, lambda f, y: f.squeeze(1) / 0.0, x, y, Wasserstein(0.1))
