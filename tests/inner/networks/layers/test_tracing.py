"""Which modules are read, that the programs are the same functions, and what is named else."""

import pytest
import torch
from torch import nn

from drojko.exceptions import UnsupportedError
from drojko.inner.networks.layers.tracing import traced


def rows(generator, n=20):
    return torch.randn(n, 16, generator=generator, dtype=torch.float64)


def test_a_program_is_its_module(module, generator):
    program = traced(module, rows(generator))
    x = 10 * rows(generator, 50)
    torch.testing.assert_close(program.forward(x)[-1], module(x), rtol=1e-9, atol=1e-9)


def test_a_float32_module_is_read_in_float64_and_left_alone(generator):
    module = nn.Sequential(nn.Unflatten(1, (1, 16)), nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten())
    program = traced(module, rows(generator).float())
    assert program.forward(rows(generator))[-1].dtype == torch.float64
    assert module[1].weight.dtype == torch.float32


def test_hooks_and_functions_between_layers_are_seen(generator):
    module = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    module[0].register_forward_hook(lambda module, args, out: 2 * out + 1)
    x = rows(generator)
    program = traced(module, x)
    torch.testing.assert_close(program.forward(x)[-1], module(x).detach())


class Run(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run, self.calls = run, 0
        self.layer = nn.Linear(16, 3).double()

    def forward(self, x):
        self.calls += 1
        return self.run(self, x)


def overwriting(self, x):
    h = self.layer(x)
    view = h[:, :2]
    view.mul_(2.0)
    return h


REFUSED = {
    "layer_norm": lambda self, x: self.layer(nn.functional.layer_norm(x, (16,))),
    "products": lambda self, x: self.layer(x) * x[:, :3],
    "log": lambda self, x: self.layer(x).log(),
    "exp": lambda self, x: self.layer(x).exp(),
    "tanh'": lambda self, x: nn.functional.gelu(self.layer(x), approximate="tanh"),
    "mixes rows": lambda self, x: self.layer(x - x.mean(0)),
    "gt": lambda self, x: torch.where(x[:, :3] > 0, self.layer(x), x[:, 3:6]),
    "item": lambda self, x: self.layer(x) * float(x.sum() > 0),
    "no fixed function": lambda self, x: self.layer(x) + 1e-3 * self.calls,
    "numpy": lambda self, x: self.layer(x) + torch.from_numpy(x.numpy().copy())[:, :3],
    "row to row": lambda self, x: self.layer(x) + torch.rand(len(x), 3, generator=(
        torch.Generator().manual_seed(0)), dtype=x.dtype),
    "overwrites": overwriting,
    "does not depend": lambda self, x: torch.ones(len(x), 3, dtype=x.dtype),
    "besides its values": lambda self, x: nn.functional.max_pool1d(
        x[:, None], 2, return_indices=True)[1][:, 0, :3] + x[:, :3],
    "flip": lambda self, x: self.layer(x).sort(1).values,
    "to_copy": lambda self, x: self.layer(x.float()),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_has_no_bounds_is_named(why, generator):
    run = REFUSED[why]
    match = {"flip": "sort", "item": "mixes rows", "numpy": "row to row"}
    with torch.no_grad(), pytest.raises(UnsupportedError, match=match.get(why, why)):
        traced(Run(run), rows(generator))


def test_a_module_that_is_not_finite_somewhere_is_refused_or_the_same(generator):
    def run(self, x):
        return torch.where(x[:, :3].abs() > 1, torch.nan, self.layer(x))

    with pytest.raises(UnsupportedError, match=r"abs|gt|where"):
        traced(Run(run), rows(generator))


def test_rows_that_change_places_are_seen(generator):
    with pytest.raises(UnsupportedError, match="no fixed function"):
        traced(Run(lambda self, x: self.layer(x.flip(0))), rows(generator))


def test_what_cannot_be_copied_is_named(generator):
    module = Run(lambda self, x: self.layer(x))
    module.lock = __import__("threading").Lock()
    with pytest.raises(UnsupportedError, match="cannot be copied"):
        traced(module, rows(generator))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_rows_are_enough(generator, n):
    module = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = rows(generator, n)
    torch.testing.assert_close(traced(module, x).forward(x)[-1], module(x).detach())
