import numpy as np
import torch

from drojko.ambiguity import GroundCost
from drojko.inner import proximal_ascent
from drojko.inner.transport.search.polish import bundle, free
from drojko.losses import CallableLoss
from drojko.models import ModuleModel


class Roof(torch.nn.Module):
    """min(a'x, b'x + 1): concave, with a kink that the maximum lies on."""

    def forward(self, x):
        return torch.minimum(2.0 * x[:, 0] + x[:, 1], 1.0 - 3.0 * x[:, 0] + 0.5 * x[:, 1])


def roof(build, generator, **settings):
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64) * 0.3
    loss = CallableLoss(lambda f, y: f)
    adversary, batch = build(ModuleModel(Roof(), 1), loss, x, x[:, 0], 1.0, **settings)
    return adversary.objective, batch


def exact(batch, x):
    """max over p of min of two planes minus |p - x|^2, by its dual: a mixture of the slopes."""
    a = torch.tensor([2.0, 1.0], dtype=torch.float64)
    b = torch.tensor([-3.0, 0.5], dtype=torch.float64)
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for t in torch.linspace(0, 1, 20_001, dtype=torch.float64):
        g = t * a + (1 - t) * b
        best = torch.minimum(best, x @ g + (1 - t) + g.square().sum() / 4.0)
    return best


def test_a_maximum_on_a_kink_is_reached(build, generator):
    objective, batch = roof(build, generator)
    start = proximal_ascent(objective, batch, batch.q0, 60)
    found = bundle(objective, batch, start, 30)
    truth = exact(batch, batch.x)
    assert bool((found.value >= start.value).all())
    assert float((found.value - truth).max()) <= 1e-9  # the dual on a grid lies above
    assert float((truth - found.value).max()) < 1e-6
    assert float((truth - start.value).max()) > 1e-3  # where steps along one slope stall
    torch.testing.assert_close(found.value, objective.value(batch, found.q))


def test_bounds_hold_and_the_maximum_within_them_is_reached(build, generator):
    cost = GroundCost(np.ones(2), np.array([-1.5, -2.0]), np.array([0.05, 0.3]))
    objective, batch = roof(build, generator, cost=cost, reduce=False)
    inside = objective.coordinates.project(batch.q0)
    batch = objective.batch(objective.decode(batch, inside), batch.y)
    start = proximal_ascent(objective, batch, batch.q0, 20)
    found = bundle(objective, batch, start, 40)
    x = objective.decode(batch, found.q)
    assert bool((x <= torch.tensor([0.05, 0.3]).double() + 1e-12).all())
    grid = torch.cartesian_prod(
        torch.linspace(-1.5, 0.05, 621).double(), torch.linspace(-2.0, 0.3, 461).double()
    )
    value = objective.loss.value(objective.model.linearise(grid)[0], grid[:, 0])
    best = torch.stack([(value - (grid - row).square().sum(1)).max() for row in batch.x])
    assert bool((found.value >= best - 1e-6).all())
    assert float((found.value - best).max()) < 2e-2  # cells of the grid are .0025 and .005 wide


def test_gradients_out_of_active_bounds_do_not_count(build, generator):
    cost = GroundCost(np.ones(2), np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    objective, _ = roof(build, generator, cost=cost, reduce=False)
    c = objective.coordinates
    q = torch.stack([c.upper, c.lower, 0.5 * (c.upper + c.lower)])
    gradient = torch.tensor([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    assert free(objective, q, gradient).tolist() == [[0.0, -1.0], [1.0, 0.0], [1.0, -1.0]]


def test_what_overflows_is_passed_over(build, generator):
    class Cliff(torch.nn.Module):
        def forward(self, x):
            return torch.where(x[:, 0] < 0.5, x[:, 0] * 3.0, torch.inf)

    x = torch.zeros(3, 2, dtype=torch.float64)
    x[:, 0] = torch.tensor([0.0, 0.2, 0.4])
    adversary, batch = build(ModuleModel(Cliff(), 1), CallableLoss(lambda f, y: f), x, x[:, 0], 1.0)
    objective = adversary.objective
    start = proximal_ascent(objective, batch, batch.q0, 3)
    found = bundle(objective, batch, start, 20)
    assert bool(torch.isfinite(found.value).all())
    assert bool((found.value >= start.value).all())
