"""Worst cases within boxes: against every slope of a fine grid."""

import numpy as np
import pytest
import torch

from drojko.inner.reach import Reach, reachable, worst_slope
from drojko.losses import get_loss

LOSSES = [("logistic", "classification"), ("hinge", "classification"), ("huber", "regression"),
          ("absolute", "regression"), ("squared", "regression")]  # fmt: skip


def boxes(rng, loss, n=20):
    """A reach, outputs and labels; of the squared loss one that is finite without the box."""
    r = int(rng.integers(1, 6))
    slope, price = rng.normal(size=r) * np.exp(rng.normal()), float(np.exp(2.0 * rng.normal()))
    price += 1.1 * loss.growth * slope @ slope
    low, high = -np.exp(2.0 * rng.normal(size=(n, r))), np.exp(2.0 * rng.normal(size=(n, r)))
    y = rng.integers(2, size=n) * 1.0 if loss.task == "classification" else rng.normal(size=n)
    return Reach(slope, price, low, high), 3.0 * rng.normal(size=n), y


def attained(loss, f, y, reach, p):
    """The loss where the box lets a slope take the rows, less what that costs."""
    s, _, cost = reach.at(p)
    value = loss.value(torch.from_numpy(f + s), torch.from_numpy(y)).numpy()
    return value - reach.price * cost


@pytest.mark.parametrize(("name", "task"), LOSSES)
@pytest.mark.promise(1)
def test_no_slope_is_worse(name, task, seed):
    rng, loss = np.random.default_rng(seed), get_loss(name, task)
    assert reachable(loss)
    for _ in range(10):
        reach, f, y = boxes(rng, loss)
        p, best = worst_slope(loss, f, y, reach)
        np.testing.assert_allclose(attained(loss, f, y, reach, p), best, rtol=1e-12, atol=1e-12)
        end = loss.lipschitz if np.isfinite(loss.lipschitz) else 60.0
        for q in np.linspace(-end, end, 1001):
            assert (attained(loss, f, y, reach, np.full(len(f), q)) <= best + 1e-12).all()


@pytest.mark.promise(1)
def test_moves_are_feasible_and_no_other_is_worse(seed):
    rng, loss = np.random.default_rng(seed), get_loss("logistic")
    reach, f, y = boxes(rng, loss)
    p, best = worst_slope(loss, f, y, reach)
    move, _ = reach.move(p)
    assert (move >= reach.low).all()
    assert (move <= reach.high).all()
    for _ in range(200):
        other = rng.uniform(reach.low, reach.high) * rng.uniform()
        at = torch.from_numpy(f + other @ reach.slope)
        value = loss.value(at, torch.from_numpy(y)).numpy() - reach.price * (other**2).sum(1)
        assert (value <= best + 1e-12).all()


def test_two_basins(seed):
    # Just where staying and flipping sides are as good, Newton's method sees one of them.
    loss, n = get_loss("logistic"), 201
    f, y = np.linspace(1.0, 6.0, n), np.ones(n)
    reach = Reach(np.array([2.0, 0.5]), 0.25, np.tile([-1.5, -9.0], (n, 1)), np.full((n, 2), 9.0))
    p, best = worst_slope(loss, f, y, reach)
    grid = [attained(loss, f, y, reach, np.full(n, q)) for q in np.linspace(-1.0, 0.0, 20_001)]
    np.testing.assert_allclose(best, np.max(grid, axis=0), atol=1e-7)
    assert p.min() < -0.7
    assert p.max() > -0.2


def test_without_bounds_it_is_the_shift_of_the_loss(seed):
    rng = np.random.default_rng(seed)
    for name, task in LOSSES:
        loss = get_loss(name, task)
        reach, f, y = boxes(rng, loss)
        free = Reach(reach.slope, reach.price)
        kappa = free.price / free.square
        known = loss.robust_value(torch.from_numpy(f), torch.from_numpy(y), kappa).numpy()
        np.testing.assert_allclose(worst_slope(loss, f, y, free)[1], known, rtol=1e-10)
