"""More columns than rows, and many classes."""

import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, CVaR, Sinkhorn, Wasserstein
from drojko.minimax.reweighting import solve as reweighting
from drojko.minimax.sinkhorn import linear as sinkhorn
from drojko.minimax.transport import linear as transport

WEIGHTS = np.linspace(1.0, 3.0, 300).tolist()
CASES = [
    (DROClassifier, "logistic", Wasserstein(0.1), 0.0),
    (DROClassifier, "hinge", Wasserstein(0.3, weights=WEIGHTS), 0.0),
    (DROClassifier, "logistic", Wasserstein(penalty=5.0), 0.01),
    (DRORegressor, "squared", Wasserstein(0.1), 0.0),
    (DRORegressor, "huber", Wasserstein(0.2, label_cost=4.0), 0.01),
    (DROClassifier, "logistic", KL(0.1), 0.01),
    (DRORegressor, "squared", CVaR(0.7), 0.01),
    (DROClassifier, "logistic", Sinkhorn(0.1, radius=0.1), 0.0),
]


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    X = random.standard_normal((40, 300))
    X[:, 3], X[:, 7] = 0.1, X[:, 8]
    return X, X @ random.standard_normal(300) / 10.0 + random.standard_normal(40)


def objective(model):
    return model.certificate_.upper + 0.5 * model.alpha * np.sum(model.coef_**2)


@pytest.mark.parametrize(("kind", "loss", "ambiguity", "alpha"), CASES)
def test_many_columns_give_what_the_columns_themselves_give(
    data, monkeypatch, kind, loss, ambiguity, alpha
):
    X, f = data
    y = f > 0 if kind is DROClassifier else f
    model = kind(ambiguity, loss=loss, alpha=alpha, reference="empirical").fit(X, y)
    found, gap, coef = objective(model), model.optimality_gap_, model.coef_
    assert model.status_ == "converged"
    for module in (transport, sinkhorn, reweighting):
        monkeypatch.setattr(module, "is_wide", lambda X: False)
    before = objective(model.fit(X, y))
    assert abs(found - before) <= 2.0 * max(gap, model.optimality_gap_, 1e-9) * before
    assert gap <= 1e-5
    assert np.ravel(coef)[3] == 0.0 or abs(np.ravel(coef)[3]) < 1e-12


def test_columns_that_cannot_move_are_fitted_as_they_are(data):
    X, f = data
    model = DRORegressor(Wasserstein(0.3, immutable=[0]), reference="empirical", alpha=0.1)
    assert model.fit(X, f).status_ == "converged"


def test_several_classes_of_many_columns(data):
    X, f = data
    y = np.digitize(f, [-1.0, 1.0])
    model = DROClassifier(KL(0.1), reference="empirical", alpha=0.01).fit(X, y)
    assert model.coef_.shape == (3, 300)
    assert model.score(X, y) == 1.0


def test_callbacks_and_warm_starts_are_in_the_units_of_the_data(data):
    X, f = data
    model = DROClassifier(Wasserstein(0.1), reference="empirical", warm_start=True)
    first = model.fit(X, f > 0)
    coef, steps = first.coef_, first.n_iter_
    second = model.fit(X, f > 0)
    np.testing.assert_allclose(second.coef_, coef, rtol=1e-3, atol=1e-6)
    assert second.n_iter_ <= steps


def test_a_wide_table_takes_less_than_seconds():
    random = np.random.default_rng(0)
    X = random.standard_normal((200, 5000))
    y = X[:, :30].sum(axis=1) + random.logistic(size=200) > 0
    start = time.process_time()
    model = DROClassifier(Wasserstein(0.1), reference="empirical").fit(X, y)
    assert time.process_time() - start < 5.0  # measured: 0.2
    assert model.optimality_gap_ < 1e-6


def test_worst_cases_of_many_classes_are_stationary():
    random = np.random.default_rng(0)
    centres = random.standard_normal((40, 6))
    y = np.arange(2_000) % 40
    X = centres[y] + 2.0 * random.standard_normal((2_000, 6))
    model = DROClassifier(Wasserstein(0.1), reference="empirical", effort="none", max_iter=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X[:400], y[:400])
    loss = model._get_loss(40)
    f, gram = model.decision_function(X), model.coef_ @ model.coef_.T
    half = 3.0 / float((gram.diagonal() + gram.diagonal()[:, None] - 2.0 * gram).max())
    moves = loss.class_moves(f, y, gram, half, None, 1e-11)
    # A stationary point of the worst case: p = softmax(f + half (p - e_y) gram).
    p = moves.best()
    moved = torch.from_numpy(f + half * (p - np.eye(40)[y]) @ gram)
    np.testing.assert_allclose(p, torch.softmax(moved, 1).numpy(), rtol=0, atol=1e-9)
    nominal = loss.value(torch.from_numpy(f), torch.from_numpy(y)).numpy()
    assert (moves.values(0.0) >= nominal - 1e-12).all()
