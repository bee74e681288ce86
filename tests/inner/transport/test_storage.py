import math

import numpy as np
import pytest
import torch

from drojko.ambiguity import GroundCost
from drojko.inner import ICNNJKO, Pointwise
from drojko.inner.transport.storage import pack, pack_module, unpack, unpack_module
from drojko.models import MLP


def plain(value):
    """Whether a state holds arrays and plain values only: what a model file may store."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(plain(v) for v in value)
    return value is None or isinstance(value, str | int | float | bool | np.ndarray)


@pytest.fixture
def learned(build, moons, generator):
    model, x, y = moons
    adversary, batch = build(
        model, "logistic", x, y, 15.0, cost=GroundCost(np.array([1.0, 2.0])), n_labels=2
    )
    solver = ICNNJKO(steps=5, hidden=(8,), rounds=1)
    return solver.fit(adversary.objective, batch, generator, n_labels=2, label_cost=3.0), batch


@pytest.mark.promise(11)
def test_a_round_trip_moves_every_point_alike(learned, moons):
    adversary, batch = learned
    assert len(adversary.candidates) == 3
    state = pack(adversary)
    assert plain(state)
    back = unpack(state, moons[0], adversary.objective.loss)
    a, b = adversary.solve(batch), back.solve(batch)
    assert torch.equal(a.q, b.q)
    assert torch.equal(a.labels, b.labels)
    assert torch.equal(a.value, b.value)
    for name in ("screening", "corrections", "tol", "n_labels", "label_cost"):
        assert getattr(back, name) == getattr(adversary, name)
    assert back.objective.penalty == adversary.objective.penalty


@pytest.mark.promise(11)
@pytest.mark.parametrize("kind", ["box", "classes", "row space"])
def test_linear_models_round_trip(build, linear, kind, generator):
    x = torch.rand(30, 3, generator=generator, dtype=torch.float64)
    y = torch.arange(30) % 2
    box = GroundCost(np.array([1.0, np.inf, 2.0]), np.zeros(3), np.ones(3))
    model = linear(torch.randn(3, 3, generator=generator) if kind == "classes" else [1.0, 2, 3])
    adversary, batch = build(model, "hinge", x, y, 0.5, cost=box if kind == "box" else None)
    adversary = Pointwise().fit(adversary.objective, batch, generator, n_labels=3)
    back = unpack(pack(adversary), model, adversary.objective.loss)
    a, b = adversary.solve(batch), back.solve(batch)
    assert torch.equal(a.q, b.q)
    assert back.exact == adversary.exact
    assert math.isinf(back.label_cost)


def test_the_state_is_a_copy_and_may_be_read_only(learned, moons):
    adversary, batch = learned
    state = pack(adversary)
    before = adversary.solve(batch).q

    def freeze(value):
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        for v in value.values() if isinstance(value, dict) else ():
            freeze(v)
        for v in value if isinstance(value, list) else ():
            freeze(v)

    freeze(state)
    back = unpack(state, moons[0], adversary.objective.loss)
    adversary.search.anchors.x.zero_()
    adversary.candidates[-1].points.zero_()
    assert torch.equal(back.solve(batch).q, before)


def test_single_precision_stays_single(learned, moons):
    adversary, batch = learned
    model = MLP(2, 1, hidden=(16, 16), activation="tanh", dtype=torch.float32)
    unpack_module(model, {k: v.astype(np.float32) for k, v in pack_module(moons[0]).items()})
    back = unpack(pack(adversary), model, adversary.objective.loss, dtype=torch.float32)
    single = back.objective.batch(batch.x.float(), batch.y)
    moved = back.solve(single)
    assert moved.q.dtype == torch.float32
    assert not any(p.requires_grad for p in model.parameters())
    # Single precision, amplified where the two precisions end in different basins.
    whole = adversary.solve(batch)
    assert float(moved.value.mean()) == pytest.approx(float(whole.value.mean()), rel=1e-2)
