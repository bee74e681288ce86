"""The product of norms: its value and gradient, and what it does to a training run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from drojko._driver import Limits
from drojko.ambiguity import GroundCost
from drojko.exceptions import UnsupportedError
from drojko.minimax.conditioning import Conditioned
from drojko.minimax.norms import NormProduct
from drojko.minimax.transport.subgradient import Subgradient
from drojko.models import MLP, ModuleModel
from tests.minimax._problems import classification, gen, net, regression

WEIGHTS = np.array([1.0, 4.0, math.inf, 2.0])


def product(weights, root, gamma):
    """gamma times the spectral norms, by singular value decompositions that autograd follows."""
    norms = [torch.linalg.matrix_norm(w, 2) for w in [weights[0] * root, *weights[1:]]]
    return gamma * torch.stack(norms).prod()


def sequential():
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 1)
    ).double()


@pytest.mark.parametrize("kind", ["mlp", "wide", "sequential"])
def test_value_and_gradient_are_those_of_singular_values(kind):
    models = {
        "mlp": lambda: MLP(4, 3, hidden=(6, 5), generator=gen()),
        "wide": lambda: MLP(4, hidden=(2,), generator=gen()),
        "sequential": lambda: ModuleModel(sequential(), 1),
    }
    model = models[kind]()
    problem = replace(
        classification(net(), radius=0.1), model=model, cost=GroundCost(WEIGHTS), certified=0.3
    )
    norms = NormProduct(problem)
    weights = [w.detach().clone().requires_grad_() for w in model.parameters() if w.ndim == 2]
    root = torch.as_tensor(1.0 / WEIGHTS).sqrt()
    value = product(weights, root, 0.3)
    exact = torch.autograd.grad(value, weights)
    assert norms.value() == pytest.approx(value.item(), rel=1e-12)
    views = [torch.zeros_like(p) for p in model.parameters()]
    norms.add_gradient(views)
    found = [view for view, p in zip(views, model.parameters(), strict=True) if p.ndim == 2]
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert all(not view.any() for view in views if view.ndim == 1)


def test_power_iterations_follow_the_weights():
    problem = replace(classification(net(), radius=0.1), certified=1.0)
    norms, model = NormProduct(problem), problem.model
    generator = gen(3)
    with torch.no_grad():
        for _ in range(200):
            for w in model.weights:
                w += 1e-3 * torch.randn(w.shape, generator=generator, dtype=w.dtype)
            views = [torch.zeros_like(p) for p in model.parameters()]
            norms.add_gradient(views)
    weights = [w.detach().clone().requires_grad_() for w in model.weights]
    exact = torch.autograd.grad(product(weights, 1.0, 1.0), weights)
    for view, place, g in zip([views[k] for k in norms.places], norms.places, exact, strict=True):
        assert float((view - g).norm()) < 0.05 * float(g.norm()), place


def test_a_layer_of_zeros_has_no_gradient_that_is_nan():
    problem = replace(classification(net(), radius=0.1), certified=1.0)
    with torch.no_grad():
        problem.model.weights[0].zero_()
    norms = NormProduct(problem)
    views = [torch.zeros_like(p) for p in problem.model.parameters()]
    norms.add_gradient(views)
    assert norms.value() == 0.0
    assert all(bool(torch.isfinite(view).all()) for view in views)


def test_other_modules_are_refused_with_what_to_do():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            return self.layer(x)

    for module in (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 1)), Own()):
        problem = replace(
            classification(net(), radius=0.1), model=ModuleModel(module.double(), 1), certified=1.0
        )
        with pytest.raises(UnsupportedError, match=r"nn.Sequential of nn.Linear"):
            Subgradient().solve(problem, gen(), Limits(2))


@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_the_penalty_is_that_of_the_data_in_any_units(loss):
    """Conditioned problems divide the objective by the loss's unit: the penalty with it."""
    problem = replace(regression(net(), loss, radius=0.5), certified=0.7)
    before = NormProduct(problem).value()
    run = Conditioned.of(problem, True, 500, gen())
    model = problem.model
    with torch.no_grad():  # the same function, in the units of the run
        model.weights[0].mul_(run.problem.scale)
        model.weights[-1].div_(run.problem.target_scale)
    assert NormProduct(run.problem).value() * run.loss_unit == pytest.approx(before, rel=1e-12)


def test_it_shrinks_the_product_and_counts_as_a_regulariser():
    products, risks = [], []
    for weight in (0.0, 0.2):
        problem = replace(classification(net(), radius=0.1), certified=weight)
        run = Conditioned.of(problem, True, 500, gen())
        result = Subgradient().solve(run.problem, gen(), Limits(60))
        unit = replace(run.problem, certified=1.0)
        products.append(NormProduct(unit).value())
        risks.append(result.history["robust_risk"][-1])
    assert products[1] < 0.5 * products[0]
    assert risks[1] > risks[0]  # the objective includes it
