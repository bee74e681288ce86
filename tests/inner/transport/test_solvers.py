import math

import pytest
import torch

from drojko.exceptions import InvalidDataError
from drojko.inner import ICNNJKO, InnerSolver, Pointwise, get_inner
from drojko.inner.transport.candidates import LearnedMap, Stay, Support
from drojko.inner.transport.solvers import ModifiedJKO
from drojko.losses import CallableLoss
from drojko.models import MLP, ModuleModel

SMALL = ICNNJKO(steps=30, hidden=(16,), batch_size=64, rounds=2)


def mean_gain(adversary, batch):
    base = adversary.objective.value(batch, batch.q0)
    return float((adversary.solve(batch).value - base).mean())


@pytest.mark.promise(5)
@pytest.mark.parametrize("penalty", [8.0, 21.0])
def test_shared_basins_beat_an_ascent_from_each_sample(build, moons, penalty, generator):
    """Below the threshold of the moons' perceptron (curvature ~260), on draws of its own too."""
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, penalty)
    train = batch.take(torch.arange(0, 300, 2))
    held = batch.take(torch.arange(1, 300, 2))
    pointwise = Pointwise(anchors=0).fit(adversary.objective, train, generator, n_labels=2)
    shared = SMALL.fit(adversary.objective, train, generator, n_labels=2)
    for part in (train, held):
        ascent, best = mean_gain(pointwise, part), mean_gain(shared, part)
        assert best > 1.3 * ascent
        # Measured per sample as well: few lose, and those little.
        worse = pointwise.solve(part).value - shared.solve(part).value
        assert float(worse.clamp_min(0).mean()) < 0.02 * ascent


@pytest.mark.promise(5)
@pytest.mark.parametrize("solver", [SMALL, SMALL.__class__(**{**SMALL.get_params(), "maps": 0})])
def test_a_planted_worst_case_is_found(build, solver, generator):
    """A narrow bump among the points of the other label: no slope leads there from x."""

    class Bump(torch.nn.Module):
        def forward(self, z):
            centre = z.new_tensor([3.0, 0.0])
            return 10.0 * torch.exp(-(z - centre).square().sum(1) / (2 * 0.15**2))

    loss = CallableLoss(lambda f, y: f * (y == 0))
    x = 0.1 * torch.randn(80, 2, generator=generator, dtype=torch.float64)
    y = torch.arange(80) % 2
    x[y == 1] += torch.tensor([3.0, 0.0], dtype=torch.float64)
    adversary, batch = build(ModuleModel(Bump(), 1), loss, x, y, 0.5)
    ascent = (
        Pointwise(anchors=0).fit(adversary.objective, batch, generator, n_labels=2).solve(batch)
    )
    found = solver.fit(adversary.objective, batch, generator, n_labels=2).solve(batch)
    zero = y == 0
    assert float(ascent.value[zero].max()) < 1e-6  # an ascent from the sample sees nothing
    distance = (x[zero] - torch.tensor([3.0, 0.0], dtype=torch.float64)).square().sum(1)
    expected = 10.0 - 0.5 * distance  # at the centre of the bump
    assert bool((found.value[zero] >= expected).all())
    assert float((found.value[zero] - expected).max()) < 0.05  # it leans a little towards x
    assert not found.cost[~zero].any()


def test_candidates_follow_the_settings(build, moons, generator):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 20.0)
    kinds = lambda s: [type(c) for c in s.candidates]  # noqa: E731

    def fit(how=None, **settings):
        solver = ICNNJKO(steps=2, hidden=(4,), **settings)
        return solver.fit(adversary.objective, batch, generator, n_labels=2, **(how or {}))

    assert kinds(fit()) == [Stay, LearnedMap, Support]
    assert kinds(fit(maps=2, anchors=0)) == [Stay, LearnedMap, LearnedMap, Support]
    assert kinds(fit(maps=0, anchors=0, support=0)) == [Stay]
    few = fit(anchors=1)  # every label has an anchor all the same
    assert sorted(few.search.anchors.y.tolist()) == [0, 1]
    # Atoms are moved by a search of their own: nothing is learned for other draws.
    assert kinds(fit({"atoms": True})) == [Stay]
    assert fit({"effort": "thorough"}).search.effort == "thorough"


def test_proven_concave_problems_need_no_map(build, moons, generator):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 1e5)
    solved = ICNNJKO().fit(adversary.objective, batch, generator, n_labels=2)
    assert solved.candidates == (Stay(),)
    assert solved.corrections >= 200
    moved = solved.solve(batch)
    bound, proof = solved.upper(moved)
    assert proof == "strong-concavity"
    torch.testing.assert_close(bound, moved.value, rtol=1e-10, atol=1e-12)


def test_ridge_problems_are_solved_by_formula(build, linear, generator):
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    adversary, batch = build(linear([1.0, 2.0, 3.0]), "hinge", x, torch.arange(20) % 2)
    for solver in (ICNNJKO(), Pointwise()):
        solved = solver.fit(adversary.objective, batch, generator, n_labels=2)
        assert solved.exact
        assert solved.candidates == (Stay(),)


def test_regression_has_no_labels_to_condition_on(build, generator):
    model = MLP(2, 1, hidden=(6,), generator=generator)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    adversary, batch = build(model, "huber", x, x.sum(1), 0.02)
    solved = SMALL.fit(adversary.objective, batch, generator)
    assert [type(c) for c in solved.candidates] == [Stay, LearnedMap, Support]
    ascent = Pointwise(anchors=0).fit(adversary.objective, batch, generator)
    assert mean_gain(solved, batch) >= mean_gain(ascent, batch) - 1e-6


@pytest.mark.promise(10)
def test_a_fit_is_decided_by_its_generator(build, moons, seed):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 20.0)
    before = torch.get_rng_state()
    values = []
    for number in (seed, seed, seed + 1):
        gen = torch.Generator().manual_seed(number)
        solver = ICNNJKO(steps=5, hidden=(8,), rounds=0, support=0, anchors=8)
        solved = solver.fit(adversary.objective, batch, gen, n_labels=2)
        values.append(solved.candidates[1].brenier.map(batch.q0, torch.eye(2).double()[y]))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_jko_steps_raise_the_value_of_the_map(build, generator):
    """A linear softmax model above its threshold: one smooth map, learned almost wholly."""
    model = MLP(2, 3, hidden=(), generator=generator)
    x = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (300,), generator=generator)
    adversary, batch = build(model, "logistic", x, y, 1.0)
    settings = ICNNJKO(steps=150, hidden=(32,))
    candidate = settings.learn_map(adversary.objective, batch, generator, 3)
    objective = adversary.objective
    base = objective.value(batch, batch.q0)
    (start,) = candidate.starts(objective, batch)
    gain = float((objective.value(batch, start) - base).mean())
    best = mean_gain(Pointwise().fit(objective, batch, generator), batch)
    assert 0.8 * best < gain <= best
    solver = ModifiedJKO(settings, objective, batch, generator, candidate.condition)
    state = solver.init(None)
    first = solver.step(state)
    assert first.step == 1
    assert solver.finite(first)
    assert set(solver.record(first)) == {"gain", "corrected", "gap"}
    assert first.corrected >= first.gain >= 0.0


def test_the_bures_start_is_the_affine_map_of_a_quadratic_problem(build, generator):
    """Linear softmax, small moves: the first targets are nearly an affine image."""
    model = MLP(2, 3, hidden=(), generator=generator)
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (400,), generator=generator)
    adversary, batch = build(model, "logistic", x, y, 0.5)
    objective = adversary.objective
    gains = {}
    for start in ("identity", "bures"):
        settings = ICNNJKO(steps=0, hidden=(8,), initialisation=start, batch_size=400)
        candidate = settings.learn_map(objective, batch, torch.Generator().manual_seed(0), 3)
        (points,) = candidate.starts(objective, batch)
        gains[start] = float((objective.value(batch, points)).mean())
    assert gains["bures"] > gains["identity"]
    with pytest.raises(InvalidDataError, match="initialisation='zero'"):
        get_inner(ICNNJKO(initialisation="zero"))


def test_a_map_stops_at_its_tolerance_and_at_its_time(build, moons, generator, monkeypatch):
    model, x, y = moons
    adversary, batch = build(model, "logistic", x, y, 20.0)
    steps = []
    original = ModifiedJKO.step
    monkeypatch.setattr(ModifiedJKO, "step", lambda s, t: steps.append(1) or original(s, t))
    for settings, most in ((ICNNJKO(tol=1e9, steps=50), 10), (ICNNJKO(tol=0.0, steps=12), 12)):
        steps.clear()
        settings.learn_map(adversary.objective, batch, generator, 2)
        assert len(steps) == most
    steps.clear()
    ICNNJKO(steps=10**6).learn_map(adversary.objective, batch, generator, 2, max_time=0.05)
    assert 1 <= len(steps) < 1000


def test_names_and_settings_objects():
    assert isinstance(get_inner(None), ICNNJKO)
    assert isinstance(get_inner("pointwise"), Pointwise)
    mine = ICNNJKO(steps=7)
    assert get_inner(mine) is mine
    assert mine.set_params(hidden=(3,)).get_params()["hidden"] == (3,)
    for bad in ("newton", 3, ICNNJKO):
        with pytest.raises(InvalidDataError, match=r"choose one of|expected one of"):
            get_inner(bad)


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": -1},
        {"steps": 1.5},
        {"hidden": (4, 0)},
        {"hidden": ("a",)},
        {"tol": math.nan},
        {"learning_rate": math.inf},
        {"maps": True},
        {"batch_size": 0},
        {"fits": 0},
    ],
)
def test_settings_out_of_range_are_named(setting):
    (name,) = setting
    with pytest.raises(InvalidDataError, match=f"ICNNJKO: {name}="):
        get_inner(ICNNJKO(**setting))


def test_the_base_class_solves_nothing(build, moons):
    with pytest.raises(NotImplementedError):
        InnerSolver().fit(None, None, None)
