import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.inner import proximal_ascent
from drojko.losses import CallableLoss
from drojko.models import MLP, ModuleModel


class Quadratic(torch.nn.Module):
    """z'Az / 2 + b'z as a model; the loss is the prediction itself."""

    def __init__(self, matrix, slope):
        super().__init__()
        self.matrix, self.slope = torch.nn.Parameter(matrix), torch.nn.Parameter(slope)

    def forward(self, z):
        return 0.5 * ((z @ self.matrix) * z).sum(1) + z @ self.slope


VALUE = CallableLoss(lambda f, y: f, task="regression")


def quadratic(build, gen, d=4, penalty=3.0, cost=None):
    a = torch.randn(d, d, generator=gen, dtype=torch.float64)
    a = 0.5 * (a + a.T)
    a *= 1.5 * penalty / torch.linalg.eigvalsh(a).abs().max()  # below 2 * penalty
    b = torch.randn(d, generator=gen, dtype=torch.float64)
    x = torch.randn(30, d, generator=gen, dtype=torch.float64)
    model = ModuleModel(Quadratic(a, b), 1)
    adversary, batch = build(model, VALUE, x, torch.zeros(30), penalty, cost=cost)
    return adversary.objective, batch, a, b


def test_quadratic_loss_reaches_its_closed_form(build, generator):
    """T(x) = (2 penalty I - A)^{-1} (2 penalty x + b), METHOD section 4, case 1."""
    objective, batch, a, b = quadratic(build, generator)
    m = 6.0 * torch.eye(4, dtype=torch.float64) - a
    expected = torch.linalg.solve(m, (6.0 * batch.x + b).T).T
    found = proximal_ascent(objective, batch, batch.q0, 300)
    # Values fix the maximiser only to the root of their rounding.
    torch.testing.assert_close(objective.decode(batch, found.q), expected, rtol=1e-6, atol=1e-6)
    value = 0.5 * ((expected @ a) * expected).sum(1) + expected @ b
    value = value - 3.0 * (expected - batch.x).square().sum(1)
    torch.testing.assert_close(found.value, value, rtol=1e-12, atol=1e-12)
    assert float(found.gradient.abs().max()) < 1e-5


def test_linear_loss_takes_one_step(build, linear, generator):
    """T(x) = x + theta / (2 penalty) with the weights of the cost, METHOD section 4, case 3."""
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    weights = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
    x = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    adversary, batch = build(
        linear(theta), VALUE, x, torch.zeros(10), 2.5, cost=GroundCost(weights.numpy())
    )
    found = proximal_ascent(adversary.objective, batch, batch.q0, 1)
    expected = x + theta / weights / 5.0
    torch.testing.assert_close(adversary.objective.decode(batch, found.q), expected)
    gain = (theta.square() / weights).sum() / 10.0
    torch.testing.assert_close(found.value, x @ theta + gain)


@pytest.mark.parametrize("penalty", [0.01, 0.3, 30.0])
def test_no_value_ever_decreases(build, moons, penalty):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, penalty)
    last = adversary.objective.value(batch, batch.q0)
    for steps in range(25):
        found = proximal_ascent(adversary.objective, batch, batch.q0, steps)
        assert bool((found.value >= last).all())
        exact = adversary.objective.value(batch, found.q)
        torch.testing.assert_close(found.value, exact, rtol=1e-12, atol=1e-12)
        last = found.value


def test_bounds_are_respected_and_the_constrained_maximum_found(build, generator):
    """A separable quadratic on a box: the maximiser is the clipped one, column by column."""
    a = torch.diag(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    b = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    cost = GroundCost(np.array([1.0, 2.0, 3.0]), np.full(3, -1.0), np.array([1.0, 1.0, np.inf]))
    x = torch.rand(50, 3, generator=generator, dtype=torch.float64) * 2 - 1
    model = ModuleModel(Quadratic(a, b), 1)
    adversary, batch = build(model, VALUE, x, torch.zeros(50), 1.0, cost=cost)
    found = proximal_ascent(adversary.objective, batch, batch.q0, 300)
    z = adversary.objective.decode(batch, found.q)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    free = (2 * weights * x + b) / (2 * weights - a.diagonal())
    expected = cost.project(free)
    torch.testing.assert_close(z, expected, rtol=1e-6, atol=1e-6)
    # Where some column sits on its bound a tolerance still ends the ascent, at the same point.
    stopped = proximal_ascent(adversary.objective, batch, batch.q0, 300, tol=1e-12)
    torch.testing.assert_close(stopped.value, found.value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("penalty", [0.3, 3.0, 300.0])
def test_leaving_finished_samples_alone_changes_nothing(build, moons, penalty):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, penalty)
    order = torch.argsort(x[:, 0])
    batch = batch.take(order)
    whole = proximal_ascent(adversary.objective, batch, batch.q0, 400)
    part = proximal_ascent(adversary.objective, batch, batch.q0, 400, tol=1e-13)
    # A sample is left once it would gain less than the tolerance.
    torch.testing.assert_close(part.value, whole.value, rtol=1e-9, atol=1e-9)
    value, gradient = adversary.objective.value_and_gradient(batch, part.q)
    torch.testing.assert_close(part.value, value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(part.gradient, gradient, rtol=1e-9, atol=1e-9)


def test_a_tolerance_saves_work(build, moons):
    model, x, y = moons
    rows = []

    class Counting(MLP):
        def linearise(self, x):
            rows.append(len(x))
            return super().linearise(x)

    counting = Counting(2, 1, hidden=(16, 16), activation="tanh")
    counting.load_state_dict(model.state_dict())
    adversary, batch = build(counting, "logistic", x, y, 300.0)
    totals = []
    for tol in (0.0, 1e-9):
        rows.clear()
        proximal_ascent(adversary.objective, batch, batch.q0, 60, tol=tol)
        totals.append(sum(rows))
    assert totals[1] < 0.7 * totals[0]


@pytest.mark.parametrize("start", [np.nan, np.inf, 1e200])
def test_a_hopeless_start_falls_back_to_the_sample(build, linear, generator, start):
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    adversary, batch = build(linear([1.0, 1.0]), VALUE, x, torch.zeros(5))
    q = batch.q0.clone()
    q[::2] = start
    found = proximal_ascent(adversary.objective, batch, q, 3)
    expected = proximal_ascent(adversary.objective, batch, batch.q0, 30)
    torch.testing.assert_close(found.value, expected.value)


def test_the_start_is_not_written_to(build, moons):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 10.0)
    before = batch.q0.clone()
    proximal_ascent(adversary.objective, batch, batch.q0, 100, tol=1e-6)
    assert torch.equal(batch.q0, before)
