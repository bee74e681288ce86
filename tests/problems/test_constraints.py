"""Projections: nearest points, idempotent, non-expansive; regions of several variables."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drojko.exceptions import InvalidDataError
from drojko.problems import Ball, Box, Nonnegative, Simplex
from drojko.problems.constraints import build_region
from drojko.problems.parameters import Layout

SETS = [
    Box(-1.0, [0.5, 1.0, 2.0, 3.0]), Nonnegative(), Simplex(), Simplex(2.0, -0.5, 1.5),
    Simplex(1.0, -np.inf), Simplex(0.0, [-1.0, 0.0, -2.0, 0.0], 1.0),
    Ball(1.5, [1.0, 0.0, 0.0, 0.0]),
]  # fmt: skip
vectors = arrays(np.float64, 4, elements=st.floats(-100, 100))


def members(item, x):
    """The conditions of a set on a cvxpy variable."""
    if isinstance(item, Ball):
        return [cp.norm(x - np.asarray(item.centre)) <= item.radius]
    lower = 0.0 if isinstance(item, Nonnegative) else item.lower
    upper = None if isinstance(item, Nonnegative) else item.upper
    conditions = [cp.sum(x) == item.total] if isinstance(item, Simplex) else []
    if lower is not None and np.isfinite(lower).all():
        conditions.append(x >= np.asarray(lower))
    if upper is not None:
        conditions.append(x <= np.asarray(upper))
    return conditions


@pytest.mark.parametrize("item", SETS, ids=repr)
def test_nearest_point_by_a_conic_program(item, rng):
    v = 3 * rng.normal(size=4)
    x = cp.Variable(4)
    cp.Problem(cp.Minimize(cp.sum_squares(x - v)), members(item, x)).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(item.project(torch.tensor(v)), x.value, atol=1e-5)


@pytest.mark.parametrize("item", SETS, ids=repr)
@given(a=vectors, b=vectors)
def test_idempotent_and_non_expansive(item, a, b):
    p, q = (item.project(torch.tensor(v)) for v in (a, b))
    assert torch.allclose(item.project(p), p, atol=1e-9)
    assert (p - q).norm() <= np.linalg.norm(a - b) * (1 + 1e-9) + 1e-9
    if isinstance(item, Simplex):
        assert float(p.sum()) == pytest.approx(item.total, abs=1e-9)


def test_regions_of_several_variables():
    layout, flat = Layout.of({"w": np.array([2.0, 2.0]), "t": -1.0, "free": np.array([7.0])})
    region = build_region({"w": "simplex", "t": "nonnegative"}, layout)
    assert region.project(flat).tolist() == [0.5, 0.5, 0.0, 7.0]
    assert region.rows
    clipped = build_region({"t": lambda t: t.clamp(max=-2.0)}, layout)
    assert clipped.project(flat).tolist() == [2.0, 2.0, -2.0, 7.0]
    assert not clipped.rows


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("simplex", "give a dict"),
        ({"x": "simplex"}, "params are"),
        ({"w": "cube"}, "'nonnegative'"),
        ({"w": ("box", 2.0, 1.0)}, "lower exceeds upper"),
        ({"w": Box([0.0, 0.0, 0.0])}, "3 entries"),
        ({"w": Simplex(1.0, 0.0, 0.2)}, "cannot sum"),
    ],
)
def test_mistakes(constraint, message):
    layout, _ = Layout.of({"w": np.zeros(2), "t": 0.0})
    with pytest.raises(InvalidDataError, match=message):
        build_region(constraint, layout)


def test_a_ball_needs_a_radius():
    with pytest.raises(InvalidDataError, match="radius"):
        Ball(-1.0).project(torch.zeros(2))
