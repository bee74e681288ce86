"""Many columns: conjugate gradients against matrices, and the same optima with a proof."""

import numpy as np
import pytest
from scipy import sparse

from drojko import DROClassifier, DRORegressor
from drojko._driver import Limits
from drojko.ambiguity import KL, ChiSquare, CVaR, Sinkhorn, TotalVariation, Wasserstein
from drojko.exceptions import UnsupportedError
from drojko.losses import get_loss
from drojko.minimax import newton
from drojko.minimax.many_rows import ManyRows
from drojko.minimax.reweighting.many_rows import Divergent
from drojko.minimax.row_sums import hessian, inverse_of
from drojko.minimax.samples import fit_many
from drojko.minimax.transport.bound import Ground
from drojko.minimax.transport.many_rows import Transported
from drojko.minimax.transport.risk import RidgeData
from drojko.minimax.wide import by_products
from drojko.rows import Rows
from drojko.rows.rotated import Rotation
from drojko.rows.sparse import SparseTable


@pytest.fixture
def wide(monkeypatch):
    """Six parameters are many."""
    monkeypatch.setattr("drojko.rows.rows._COLUMNS", 5)


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    X = random.standard_normal((500, 12)) * (random.random((500, 12)) < 0.5)
    X[:, 4] = 0.0
    return X, X @ random.standard_normal(12) + random.logistic(size=500)


def objective(model):
    return model.certificate_.upper + 0.5 * model.alpha * np.sum(model.coef_**2)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("form", [{"radius": 0.1}, {"penalty": 2.0}, None])
def test_solutions_are_those_of_the_matrix(data, form):
    X, f = data
    y = (f > 0).astype(float)
    rows, loss = Rows(X, y), get_loss("logistic")
    if form is None:
        problem = Divergent(rows, loss, KL(0.1), 0.1)
    else:
        ground = Ground.of(rows, RidgeData(X, y, loss=loss), alpha=0.1, **form)
        problem = Transported(rows, loss, ground)
    z, p = problem.start()
    sums = problem.at(y, rows.w, rows.predict(z), problem.levels(z, p), None, True)
    rest = problem.rest(z, p, sums)
    matrix = hessian(rows, sums, rest, p.size)
    right = np.random.default_rng(1).standard_normal(len(matrix))
    right[4] = 0.0
    left = matrix @ inverse_of(rows, sums, rest, p.size)(right) - right
    left[4] = 0.0  # a dead column
    assert np.linalg.norm(left) <= 0.02 * np.linalg.norm(right)


CASES = [
    (Wasserstein(0.1), 0.0, "logistic"),
    (Wasserstein(0.1), 0.01, "logistic"),
    (Wasserstein(penalty=2.0), 0.0, "logistic"),
    (KL(0.1), 0.0, "logistic"),
    (KL(penalty=1.0), 0.01, "logistic"),
    (ChiSquare(0.1), 0.01, "logistic"),
    (Wasserstein(0.1, label_cost=4.0), 0.0, "huber"),
]


@pytest.mark.promise(17)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize(("ambiguity", "alpha", "loss"), CASES)
def test_the_optimum_is_that_of_newton_s_method_and_proven(
    data, monkeypatch, form, ambiguity, alpha, loss
):
    X, f = data
    kind, y = (DROClassifier, f > 0) if loss == "logistic" else (DRORegressor, f)
    model = kind(ambiguity, loss=loss, alpha=alpha, reference="empirical", tol=1e-6)
    exact = objective(model.fit(X, y))
    calls = []
    monkeypatch.setattr("drojko.rows.rows._COLUMNS", 5)
    monkeypatch.setattr(
        "drojko.minimax.row_sums.by_products",
        lambda *args, **kwargs: calls.append(1) or by_products(*args, **kwargs),
    )
    model.fit(form(X), y)
    assert model.status_ == "converged"
    assert 0.0 <= model.optimality_gap_ <= 1e-6
    assert abs(objective(model) - exact) <= 2e-6 * exact
    assert calls


@pytest.mark.promise(17)
@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("form", [{"radius": 0.1}, {"penalty": 2.0}, None], ids=str)
def test_bounds_hold_everywhere_and_close_as_fast_as_the_excess(data, form, intercept):
    """From points at random, too; next to the optimum they are as far from it as the value is."""
    X, f = data
    loss, y = get_loss("logistic"), (f > 0).astype(float)
    rows = Rows(X, y, np.random.default_rng(1).random(len(y)) + 0.1, intercept=intercept)
    if form is None:
        problem = Divergent(rows, loss, KL(0.1), 0.1)
    else:
        given = RidgeData(X, y, weight=rows.w, loss=loss)
        problem = Transported(rows, loss, Ground.of(rows, given, alpha=0.0, **form))
    assert rows.wide
    best = fit_many(problem, Limits(tol=1e-9), classes=True)
    assert best.relative_gap <= 1e-9
    solver = ManyRows(problem, 1e-9, np.arange(rows.n), exact=True)
    random, (z, p), bounds, near = np.random.default_rng(2), problem.start(), [], []
    for size in [0.0, 0.01, 0.1, 0.3]:
        state = solver.begin(z + size * random.standard_normal(z.size) * rows.free, p)
        for _ in range(6):
            bounds.append(solver._lower(state))
            excess = state.value - best.lower
            if 1e-8 * best.objective < excess < 1e-4 * best.objective:
                near.append((best.objective - bounds[-1]) / excess)
            state = solver.step(state)
    assert max(bounds) <= best.objective * (1 + 1e-12)
    assert near
    assert max(near) <= 20.0


@pytest.mark.usefixtures("wide")
def test_a_constant_model_is_proven_without_a_matrix(data, monkeypatch):
    X, f = data
    monkeypatch.setattr(newton, "MOST", 5)
    model = DROClassifier(Wasserstein(5.0), reference="empirical", tol=1e-6)
    with pytest.warns(UserWarning, match="constant model"):
        model.fit(X, f > 0)
    assert not model.coef_.any()
    assert model.optimality_gap_ <= 1e-6


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    ("ambiguity", "loss"), [(Wasserstein(0.1), "hinge"), (Sinkhorn(0.1, penalty=2.0), "logistic")]
)
def test_what_needs_a_matrix_says_so(data, monkeypatch, ambiguity, loss):
    X, f = data
    monkeypatch.setattr(newton, "MOST", 5)
    with pytest.raises(UnsupportedError, match="12 columns needs a matrix"):
        DROClassifier(ambiguity, loss=loss, reference="empirical").fit(X, f > 0)


@pytest.fixture
def no_room(wide, monkeypatch):
    """A matrix of six parameters has no room."""
    for module in ("newton", "reweighting.objective", "reweighting.solve"):
        monkeypatch.setattr(f"drojko.minimax.{module}.MOST", 5)
    monkeypatch.setattr("drojko.minimax.reweighting.solve.WIDE", 5)


@pytest.mark.promise(17)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("loss", ["hinge", "logistic"])
@pytest.mark.parametrize("ambiguity", [CVaR(0.7), TotalVariation(0.1), KL(0.1)], ids=repr)
def test_kinks_of_very_many_columns_are_proven(data, request, form, loss, ambiguity):
    X, f = data
    model = DROClassifier(ambiguity, loss=loss, reference="empirical", alpha=0.01, tol=1e-5)
    exact = objective(model.fit(X, f > 0))
    request.getfixturevalue("no_room")
    model.fit(form(X), f > 0)
    assert model.status_ == "converged"
    assert 0.0 <= model.optimality_gap_ <= 1e-5
    assert abs(objective(model) - exact) <= 2e-5 * exact


@pytest.mark.promise(17)
@pytest.mark.parametrize("alpha", [0.0, 1e-3])
@pytest.mark.parametrize("ambiguity", [TotalVariation(0.1), KL(0.1)], ids=repr)
def test_kinks_of_many_sparse_columns_are_solved_in_the_space_of_the_rows(
    monkeypatch, ambiguity, alpha
):
    random = np.random.default_rng(3)
    S = sparse.random_array((60, 400), density=0.1, rng=random, format="csr")
    y = S @ random.standard_normal(400) > 0
    model = DROClassifier(ambiguity, loss="hinge", reference="empirical", alpha=alpha)
    exact = objective(model.fit(S.toarray(), y))
    turned = []
    of = Rotation.of
    monkeypatch.setattr(Rotation, "of", lambda *args: turned.append(1) or of(*args))
    monkeypatch.setattr("drojko.minimax.reweighting.solve.WIDE", 100)
    model.fit(S, y)
    assert turned
    assert model.optimality_gap_ <= 1e-5
    assert abs(objective(model) - exact) <= 1e-5 * max(exact, 1e-6)


def test_squares_are_the_diagonal_of_the_gram_matrix(data):
    X, f = data
    h = np.random.default_rng(2).random(len(X))
    for rows in (Rows(X, f), Rows(X, f, limit=0), SparseTable(sparse.csr_array(X)).rows(f)):
        np.testing.assert_allclose(rows.squares(h), rows.gram(h).diagonal(), rtol=1e-12)


def test_a_plain_model_without_slopes_is_no_start_and_no_error(wide):
    rng = np.random.default_rng(147)
    X = sparse.random(79, 119, 0.2, "csr", random_state=147, data_rvs=rng.standard_normal)
    y = X[:, :5] @ rng.normal(size=5) + 0.5 * rng.logistic(size=79)
    found = DRORegressor(Wasserstein(0.45), loss="huber", reference="empirical", tol=1e-4)
    assert found.fit(X, y).optimality_gap_ <= 1e-4
