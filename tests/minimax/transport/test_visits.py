"""Worst cases in the first layer: the same problem as in the columns, in fewer coordinates."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drojko._driver import Limits
from drojko.ambiguity import GroundCost
from drojko.inner import Pointwise
from drojko.inner.transport.ascent import proximal_ascent
from drojko.losses import get_loss
from drojko.measures import ClassConditional, Empirical
from drojko.minimax.problem import RobustProblem
from drojko.minimax.sinkhorn.sampled import SinkhornProblem
from drojko.minimax.transport.subgradient import Subgradient
from drojko.minimax.transport.visits import room
from drojko.models import MLP
from tests.minimax._problems import gen, regression, state

N, D, WIDTH = 60, 40, 5


def problem(kind="classes", weights=None, **settings):
    """Random rows in 40 columns for a net of width 5."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D))
    y = rng.integers(3, size=N) if kind == "classes" else X[:, 0] + rng.standard_normal(N)
    outputs = 3 if kind == "classes" else 1
    dtype = settings.pop("dtype", torch.float64)
    atoms = (torch.as_tensor(X), torch.as_tensor(y), torch.full((N,), 1.0 / N).double())
    model = MLP(D, outputs, hidden=(WIDTH, 4), generator=gen(1), dtype=dtype)
    name = "logistic" if kind == "classes" else "squared"
    task = "classification" if kind == "classes" else "regression"
    made = settings.pop("made", RobustProblem)
    return made(
        ClassConditional(Empirical()).fit(X, y) if kind == "classes" else None,
        model,
        get_loss(name, task, 3),
        GroundCost(np.ones(D) if weights is None else weights),
        Pointwise(),
        n_labels=3 if kind == "classes" else 0,
        atoms=atoms,
        dtype=dtype,
        **{"penalty": 0.5, **settings},
    )


def both(given):
    """A visit in the first layer and one in the columns, of all rows."""
    x, y, w = given.draw(N, gen())
    rooms = [room(given, x, rows)[0] for rows in (N, 0)]
    return [visit(x, y, 1.3) for visit in rooms], w


def displacement(visit, given, q):
    """What q means for x."""
    if visit.batch.x.shape[1] == D:
        return visit.objective.decode(visit.batch, q) - visit.batch.x
    inverse = torch.as_tensor(given.cost.inverse_weights)
    return (visit.kept(q) @ given.model.weights[0].detach()) * inverse


ODD = np.where(np.arange(D) % 7 == 0, np.inf, 1.0 + np.arange(D) / D)


@pytest.mark.parametrize("weights", [None, ODD], ids=["plain", "weighted and immutable"])
@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_the_same_worst_cases_values_and_gradients(kind, weights):
    given = problem(kind, weights)
    (small, large), w = both(given)
    assert small.batch.q0.shape == (N, WIDTH)
    moved = [given.move(given.adversary(v.objective, 3), v.batch, v.start(0.0 * v.batch.q0), 3)
             for v in (small, large)]  # fmt: skip
    for name in ("value", "cost", "risk"):
        torch.testing.assert_close(
            getattr(moved[0], name), getattr(moved[1], name), rtol=1e-7, atol=1e-9
        )
    shifts = [displacement(v, given, m.q) for v, m in zip((small, large), moved, strict=True)]
    torch.testing.assert_close(*shifts, rtol=1e-6, atol=1e-8)
    cost = given.cost.cost(small.x.numpy(), (small.x + shifts[0]).numpy())
    np.testing.assert_allclose(cost, moved[0].cost, rtol=1e-7)
    gradients = [v.gradient(m, v.kept(m.q), w) for v, m in zip((small, large), moved, strict=True)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_both_forms_of_the_first_gradient_agree():
    """Fewer rows than units, or more."""
    given = problem()
    (small, _), _ = both(given)
    x, y, w = given.draw(N, gen())
    visit, _ = room(given, x, N)
    few = visit(x[:3], y[:3], 1.3)
    some = proximal_ascent(small.objective, small.batch, small.batch.q0, 4)
    moved = [given.move(given.adversary(v.objective, 0), v.batch, q, 0)
             for v, q in ((small, some.q), (few, some.q[:3]))]  # fmt: skip
    mask = torch.cat([w[:3], 0.0 * w[3:]])
    pairs = [(small, moved[0], mask), (few, moved[1], w[:3])]
    for a, b in zip(*(v.gradient(m, v.kept(m.q), s) for v, m, s in pairs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [N, 0], ids=["first layer", "columns"])
def test_what_is_kept_comes_back(rows):
    given = problem()
    x, y, _ = given.draw(N, gen())
    visit = room(given, x, rows)[0](x, y, 1.0)
    q = visit.batch.q0 + torch.randn(visit.batch.q0.shape, generator=gen(5), dtype=torch.float64)
    torch.testing.assert_close(visit.start(visit.kept(q)), q, rtol=1e-8, atol=1e-9)


def test_a_first_layer_without_full_rank_works():
    given = problem()
    with torch.no_grad():
        given.model.weights[0][1] = given.model.weights[0][0]
        given.model.weights[0][2] = 0.0
    result = Subgradient().solve(given, gen(), Limits(5), n_draws=N)
    assert np.isfinite(result.history["robust_risk"]).all()
    assert np.isfinite(state(given.model)).all()


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
@pytest.mark.parametrize("form", [{"penalty": 0.5}, {"penalty": None, "radius": 0.5}])
def test_a_run_ends_where_one_in_the_columns_does(dtype, rel, form, monkeypatch):
    """What is kept means the same: all but rounding, and a radius's first penalty, is equal."""
    risks = []
    for columns in (False, True):
        if columns:
            monkeypatch.setattr(
                "drojko.minimax.transport.subgradient.room", lambda p, x, rows: room(p, x, 0)
            )
        given = problem(dtype=dtype, **form)
        result = Subgradient().solve(given, gen(), Limits(15), n_draws=N, penalty=0.7)
        risks.append(result.history["robust_risk"])
    # Particles kept across steps of the weights differ by how the weights have moved.
    np.testing.assert_allclose(risks[0], risks[1], rtol=2e-2)
    assert risks[0][0] == pytest.approx(risks[1][0], rel=rel)


def test_who_stays_in_the_columns():
    x, _, _ = problem().draw(N, gen())
    bounded = replace(problem(), cost=GroundCost(np.ones(D), -9.0 * np.ones(D), 9.0 * np.ones(D)))
    wide = replace(problem(), model=MLP(D, 3, hidden=(D + 1,), generator=gen()))
    noisy = problem(made=SinkhornProblem)  # moves a row to many points
    for given in (bounded, wide, noisy):
        assert room(given, x, N)[1] == D
    assert room(problem(), x, N)[1] == WIDTH
    x, _, _ = regression().draw(N, gen())
    assert room(regression(), x, N)[1] == 4  # linear
