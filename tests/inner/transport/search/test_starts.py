import pytest
import torch

from drojko.inner.transport.search.starts import Anchors, draw, reach
from drojko.models import MLP


@pytest.fixture
def problem(build, generator):
    model = MLP(3, 4, hidden=(8,), activation="tanh", generator=generator)
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    adversary, batch = build(model, "logistic", x, torch.arange(60) % 4, 0.1)
    return adversary.objective, batch


def test_anchors_are_of_every_other_label_in_turn(problem, generator):
    objective, batch = problem
    anchors = Anchors(batch.x, batch.y, True)
    index = anchors.pick(objective, batch, anchors.seen(objective)[1], 9, generator)
    taken = batch.y[index]
    assert not (taken == batch.y).any()
    for row in range(len(batch)):
        assert torch.bincount(taken[:, row], minlength=4).tolist().count(3) == 3
    # A label without anchors is passed over.
    some = (batch.y != 2).nonzero().squeeze(1)
    part = Anchors(batch.x[some], batch.y[some], True)
    index = part.pick(objective, batch, part.seen(objective)[1], 9, generator)
    taken = part.y[index]
    assert not (taken == batch.y).any()
    assert not (taken == 2).any()


def test_one_label_alone_is_drawn_from_all_rows(problem, generator):
    objective, batch = problem
    zeros = batch.take((batch.y == 0).nonzero().squeeze(1))
    anchors = Anchors(zeros.x, zeros.y, True)
    index = anchors.pick(objective, zeros, anchors.seen(objective)[1], 40, generator)
    assert len(index.unique()) == len(zeros)


def test_without_labels_far_predictions_are_preferred(build, generator):
    model = MLP(2, 1, hidden=(6,), generator=generator)
    x = torch.randn(80, 2, generator=generator, dtype=torch.float64)
    adversary, batch = build(model, "squared", x, x.sum(1), 10.0)
    anchors = Anchors(x, batch.y, False)
    f = anchors.seen(adversary.objective)[1]
    index = anchors.pick(adversary.objective, batch, f, 50, generator)
    picked = (f[index] - batch.y).square().mean()
    assert float(picked) > 1.2 * float((f[:, None] - batch.y).square().mean())


def test_starts_lie_where_their_families_say(problem, generator):
    objective, batch = problem
    anchors = Anchors(batch.x, batch.y, True)
    far = reach(objective, batch)
    assert float(far) > 0
    towards = draw(objective, batch, anchors, (5, 0, 0), far, generator)
    # On the line to a row of another label, at a share of .5 to 1.5 of the way.
    for start in towards:
        move = (start - batch.q0).unsqueeze(1)
        whole = batch.q0 - batch.q0.unsqueeze(1)
        share = (move * whole).sum(2) / whole.square().sum(2).clamp_min(1e-300)
        off = (move - share.unsqueeze(2) * whole).norm(dim=2)
        near = (off < 1e-9) & (share > 0.499) & (share < 1.501)
        assert bool((near & (batch.y[:, None] != batch.y)).any(1).all())
    spheres = draw(objective, batch, anchors, (0, 0, 7), far, generator)
    distance = (spheres - batch.q0).norm(dim=2) / far
    assert bool(((distance > 0.2499) & (distance < 4.001)).all())
    assert draw(objective, batch, anchors, (2, 3, 4), far, generator).shape == (9, 60, 3)


def test_cells_of_a_linear_model_lie_along_its_slope(build, linear, generator):
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    y = torch.arange(30) % 2
    adversary, batch = build(linear([1.0, 2.0, -1.0]), "logistic", x, y, 0.3, reduce=False)
    anchors = Anchors(x, y, True)
    cells = draw(adversary.objective, batch, anchors, (0, 6, 0), 1.0, generator)
    theta = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    move = (cells - batch.q0) * adversary.objective.coordinates.scale
    along = move @ theta / theta.square().sum()
    assert float((move - along.unsqueeze(2) * theta).norm(dim=2).max()) < 1e-12
    # The sign is the one that raises the loss, the length at most 1.5 |theta| / 2 lambda.
    assert bool((along * (1 - 2 * y) >= 0).all())
    assert float(along.abs().max()) <= 1.5 / (2 * 0.3)
