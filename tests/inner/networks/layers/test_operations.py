"""Affine maps against their matrices, units against torch's functions."""

import math

import pytest
import torch
from torch.nn import functional as F

from drojko.inner.networks.layers import operations
from drojko.inner.networks.layers.operations import Affine, Unit, flat
from drojko.inner.networks.layers.tracing import traced


def steps(module):
    """The operations of a module with the shapes of what goes into them."""
    program = traced(module, torch.linspace(-1, 1, 16 * 7, dtype=torch.float64).view(7, 16))
    nodes = program.nodes
    return [(node.operation, [nodes[k].shape for k in node.sources], node.shape) for node in nodes]


def test_transposes_absolute_values_and_norms_are_those_of_the_matrix(module):
    for operation, before, after in steps(module):
        if not isinstance(operation, Affine):
            continue
        sizes = [math.prod(shape) for shape in before]
        zeros = [torch.zeros(sum(sizes), *shape, dtype=torch.float64) for shape in before]
        offset = operation.forward(*(z[:1] for z in zeros))
        eye = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, 1)
        parts = [e.reshape(-1, *shape) for e, shape in zip(eye, before, strict=True)]
        matrix = flat(operation.forward(*parts) - offset).T
        rows = torch.eye(math.prod(after), dtype=torch.float64).view(-1, *after)
        back = torch.cat([flat(b) for b in operation.back(rows)], 1)
        torch.testing.assert_close(back, matrix)
        torch.testing.assert_close(flat(operation.spread(*parts)).T, matrix.abs())
        ones = [torch.ones(1, *shape, dtype=torch.float64) for shape in before]
        size = matrix.abs().sum(1) + offset.flatten().abs()
        torch.testing.assert_close(operation.size(*ones).flatten(), size)
        for k, block in enumerate(matrix.split(sizes, 1)):
            far = float(operation.deviation(*torch.eye(len(sizes), dtype=torch.float64)[k]))
            assert far >= float(torch.linalg.matrix_norm(block, 2)) * (1 - 1e-12)


def test_norms_of_large_convolutions_are_bounds_that_are_near(module, monkeypatch):
    """By sums and on a torus, as where a matrix is too large: at least the norm."""
    found = [o for o, _, _ in steps(module) if isinstance(o, operations.Convolution)]
    exact = [o._norm() for o in found]
    monkeypatch.setattr(operations, "_DENSE", 0)
    for operation, norm in zip(found, exact, strict=True):
        bound = operation._norm()
        assert norm <= bound * (1 + 1e-9)
        if math.prod(operation.stride) == 1:
            assert bound <= 2.0 * norm


@pytest.mark.parametrize("shape", [(3, 7), (900, 1000), (1, 1), (4, 0)])
def test_a_spectral_norm_is_outwards(shape, generator):
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    exact = float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0
    assert exact <= operations.spectral_norm(matrix)


UNITS = {
    "relu": F.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu, "gelu": F.gelu,
    "elu": F.elu, "steep elu": lambda x: F.elu(x, 1.7), "flat elu": lambda x: F.elu(x, 0.3),
    "selu": F.selu, "celu": lambda x: F.celu(x, 0.4), "leaky": F.leaky_relu,
    "falling": lambda x: F.leaky_relu(x, -0.5), "steep": lambda x: F.leaky_relu(x, 3.0),
    "softplus": F.softplus, "sharp": lambda x: F.softplus(x, 5.0, 20.0), "abs": torch.abs,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0), "relu6": F.relu6,
    "from below": lambda x: x.clamp(min=-0.2), "from above": lambda x: x.clamp_max(0.4),
}  # fmt: skip


class Each(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def derivative(function, x):
    with torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("name", UNITS)
def test_units_are_between_their_lines(name, generator):
    unit = next(o for o, _, _ in steps(Each(UNITS[name])) if isinstance(o, Unit))
    grid = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    assert float((unit.forward(grid) - UNITS[name](grid)).abs().max()) <= unit.error + 1e-12
    size = 10 ** (4 * torch.rand(500, 1, generator=generator, dtype=torch.float64) - 3)
    ends = size * torch.randn(500, 2, generator=generator, dtype=torch.float64)
    low, high = ends.amin(1), ends.amax(1)
    share = torch.rand(500, 200, generator=generator, dtype=torch.float64)
    share[:, 0], share[:, 1] = 0.0, 1.0
    at = low[:, None] + share * (high - low)[:, None]
    value = UNITS[name](at)
    up, above, down, below = (part[:, None] for part in unit.lines(low, high, at[:, 2]))
    assert bool((value <= up * at + above).all())
    assert bool((value >= down * at + below).all())
    slope, above, below = (part[:, None] for part in unit.parallel(low, high))
    assert bool((value <= slope * at + above).all())
    assert bool((value >= slope * at + below).all())
    torch.testing.assert_close(unit.derivative(at), derivative(UNITS[name], at))
    least, most = (end[:, None] for end in unit.range(low, high))
    assert bool(((least <= value) & (value <= most)).all())
    slopes = (value - value[:, :1]) / (at - at[:, :1]).where(at != at[:, :1], torch.nan)
    known = slopes[(at - at[:, :1]).abs() > 1e-2]
    room = 1e-9 + unit.error * 1e2
    assert float(known.min()) >= unit.slopes[0] - room
    assert float(known.max()) <= unit.slopes[1] + room
