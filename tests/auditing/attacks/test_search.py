"""Models without gradients: the search, its budget, and the loose bound."""

import math
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.tree import DecisionTreeClassifier

from drojko import audit
from drojko.ambiguity import Wasserstein
from drojko.auditing.attacks import search as searching
from drojko.auditing.attacks.pool import Pool
from drojko.auditing.attacks.search import LINES, RANDOM, Search, search
from drojko.auditing.reading.models import audited_model
from drojko.auditing.reading.setup import build_problem


def problem_of(model, X, y):
    read = audited_model(model, X, y)
    return build_problem(
        read, X, y, Wasserstein(0.1), loss=None, reference="kde", scale=None, sample_weight=None,
        groups=None, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def random_search(problem, pool, radii, calls, generator):
    """Random directions and distances alone: the plain alternative."""
    state = Search(problem, pool, radii, generator)
    state.random(calls)
    state.prune()


@pytest.mark.parametrize("radius", [0.05, 0.2])
def test_the_search_beats_random_moves_at_the_same_calls(forest, moons, radius):
    values = []
    for method in (search, random_search):
        problem = problem_of(forest, *moons)
        pool = Pool.of(problem.x, problem.y, problem.losses(problem.x, problem.y))
        before = problem.calls[0]
        method(problem, pool, [radius], 60, torch.Generator().manual_seed(1))
        values.append(pool.plan(problem.w, radius**2).risk)
        # One call of the model per row and step, and one on the rows for the donors.
        assert problem.calls[0] - before <= 61 * len(moons[1])
    assert values[0] >= values[1]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_rows_in_blocks_are_the_same_on_any_number_of_workers(monkeypatch, forest, moons, n_jobs):
    monkeypatch.setattr(searching, "_ROWS", 40)
    weights = (np.arange(len(moons[1])) % 3 > 0).astype(float)

    def table(jobs):
        report = audit(
            forest, *moons, Wasserstein(), radii=[0.1, 0.3], sample_weight=weights, random_state=0,
            max_evaluations=8_000, n_jobs=jobs,
        )  # fmt: skip
        risks = report.table[["random_noise_risk", "worst_case_risk"]].to_numpy().tolist()
        return risks, report.about["evaluations"]

    with joblib.parallel_config("threading"):
        assert table(n_jobs) == table(None)


def test_a_row_is_not_asked_about_where_it_stays():
    """A constant model: nothing is gained, so that no move is kept and none is put back."""
    X = np.linspace(0.0, 1.0, 30)[:, None]
    y = np.arange(30) % 2
    problem = problem_of(DecisionTreeClassifier(max_depth=1).fit(X, np.arange(30) % 2), X, y)
    problem = replace(problem, y=torch.zeros_like(problem.y))
    flat = Pool.of(problem.x, problem.y, torch.full((30,), 99.0, dtype=torch.float64))
    state = Search(problem, flat, [0.1], torch.Generator().manual_seed(0))
    before = problem.calls[0]
    state.improve()
    assert problem.calls[0] - before == 30  # one random move each


def test_the_search_ends_when_time_is_up(forest, moons):
    problem = problem_of(forest, *moons)
    pool = Pool.of(problem.x, problem.y, problem.losses(problem.x, problem.y))
    before = problem.calls[0]
    late = replace(problem, deadline=0.0)
    search(late, pool, [0.1], 400, torch.Generator().manual_seed(0))
    assert problem.calls[0] - before <= ((RANDOM + LINES) * 400 + 1) * len(moons[1])


@pytest.mark.parametrize("calls", [3, 20])
def test_no_more_rows_are_asked_about_than_the_budget_says(forest, moons, calls):
    problem = problem_of(forest, *moons)
    pool, n = Pool.of(problem.x, problem.y, problem.nominal), len(moons[1])
    before = problem.calls[0]
    search(problem, pool, [0.1, 0.3], calls, torch.Generator().manual_seed(0))
    donors = n  # whose answers the lines need
    assert calls * n <= problem.calls[0] - before <= calls * n + donors
    assert pool.plan(problem.w, 0.3**2).risk > float(problem.w @ problem.nominal)


def test_a_row_that_gains_nothing_waits(forest, moons):
    problem = problem_of(forest, *moons)
    pool = Pool.of(problem.x, problem.y, torch.full_like(problem.nominal, 99.0))
    state = Search(problem, pool, [0.1], torch.Generator().manual_seed(0))
    asked = []
    for _ in range(4):
        before = problem.calls[0]
        state.improve()
        asked.append(problem.calls[0] - before)
    assert asked[0] == len(moons[1]) > max(asked[1:]) > 0


def test_staying_rows_borrow_moves_of_their_own_class(forest, moons):
    problem = problem_of(forest, *moons)
    state = Search(problem, Pool.of(problem.x, problem.y, problem.nominal), [0.1],
                   torch.Generator().manual_seed(0))  # fmt: skip
    same = problem.y[state.near] == problem.y[:, None]
    assert same.all()
    assert (state.near != torch.arange(len(problem.y))[:, None]).all()
    move = torch.where(problem.y[:, None] == 0, 2e5, 4e5).expand_as(problem.x)
    moved = state.borrowed(move)
    own = (moved == problem.x + move).all(1)
    assert 0 < own.sum() < len(own)  # the rest tries a random move
    assert (moved - problem.x)[~own].abs().max() < 1.0


def test_a_stump_is_crossed_at_its_threshold():
    """The cheapest plan moves the rows nearest to the threshold just across it."""
    X = np.linspace(0.0, 1.0, 101)[:, None]
    y = (X[:, 0] > 0.5).astype(int)
    stump = DecisionTreeClassifier(max_depth=1).fit(X, y)
    report = audit(stump, X, y, Wasserstein(), radii=[0.05], random_state=0)
    distance = np.sort(np.abs(X[:, 0] - stump.tree_.threshold[0])) ** 2
    most = np.searchsorted(np.cumsum(distance) / 101, 0.05**2) + 1
    top = -math.log(1e-6)
    assert report.table.worst_case_risk[0] <= top * (most + 1) / 101
    assert report.table.worst_case_risk[0] >= 0.9 * top * (most - 1) / 101
    assert report.table.transport_cost[0] <= 0.05**2 * (1 + 1e-9)


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_order_one_moves_the_rows_nearest_to_a_threshold_across_it(norm, rng):
    """In the one column that counts all norms are the distance, and the plan is a sort."""
    X = np.column_stack([np.linspace(0.0, 1.0, 101), rng.normal(size=101)])
    y = (X[:, 0] > 0.5).astype(int)
    stump = DecisionTreeClassifier(max_depth=1).fit(X, y)
    ball = Wasserstein(order=1, norm=norm, weights=[4.0, 1.0])
    report = audit(stump, X, y, ball, radii=[0.02, 0.1], random_state=0)
    distance = np.sort(2.0 * np.abs(X[:, 0] - stump.tree_.threshold[0]))
    for radius, row in zip((0.02, 0.1), report.table.itertuples()):
        spent = np.cumsum(distance) / 101
        most = np.interp(radius, spent, np.arange(1, 102)) * -math.log(1e-6) / 101
        assert 0.93 * most <= row.worst_case_risk <= most * (1 + 1e-6) + 0.14
        assert row.transport_cost <= radius * (1 + 1e-9)
        assert row.proof == "largest-loss"
    worst = report.worst_case()
    moves = np.linalg.norm((worst.after - worst.before) * [2.0, 1.0], ord=norm, axis=1)
    assert worst.mass @ moves == pytest.approx(report.table.transport_cost.iloc[-1], rel=1e-9)


def test_the_bound_is_the_clipped_loss(forest, moons):
    table = audit(forest, *moons, Wasserstein(), radii=[0.0, 0.1, 5.0], random_state=0).table
    assert table.upper_bound.tolist()[1:] == pytest.approx([math.log1p(1e6)] * 2)
    assert table.upper_bound[0] == table.nominal_risk[0]
    assert table.proof.tolist() == ["dual", "largest-loss", "largest-loss"]
    assert (np.diff(table.worst_case_risk) > 0).all()
    assert (table.worst_case_risk <= table.upper_bound).all()
    assert table.finding[1].startswith("searched without gradients")


def test_regressors_without_gradients_have_no_bound(rng):
    X = rng.normal(size=(80, 2))
    y = X[:, 0] + 0.1 * rng.normal(size=80)
    model = GradientBoostingRegressor(n_estimators=10, random_state=0).fit(X, y)
    report = audit(model, X, y, Wasserstein(), radii=[0.2], random_state=0, max_evaluations=5000)
    assert report.table.upper_bound[0] == math.inf
    assert "no upper bound" in report.table.finding[0]
    assert report.table.worst_case_risk[0] > 1.5 * report.table.nominal_risk[0]
