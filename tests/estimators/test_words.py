"""What a status says: proven gaps, stalls, optima that are constant; points drawn once."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import (
    KL,
    MMD,
    ChiSquare,
    CressieRead,
    CVaR,
    Group,
    TotalVariation,
    Wasserstein,
)
from drojko.approaches.reweighting.support import Reweighted
from drojko.measures import ClassConditional, Joint

SETS = [
    Wasserstein(radius=0.1),
    Wasserstein(penalty=3.0),
    Wasserstein(radius=0.1, order=1),
    KL(radius=0.1),
    KL(penalty=2.0),
    ChiSquare(radius=0.1),
    CressieRead(3.0, radius=0.1),
    TotalVariation(radius=0.1),
    CVaR(alpha=0.5),
    Group(radius=0.2),
]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    return X, X @ [1.0, -1.0, 0.5] + rng.normal(size=60), {"groups": np.arange(60) % 3}


def told(model, X, y, groups):
    known = groups if model.ambiguity.knows_groups else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y, **known)
    return [(one.category, str(one.message)) for one in caught]


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
@pytest.mark.parametrize("loss", ["squared", "huber", "absolute", "logistic", "hinge"])
def test_converged_is_a_proven_gap(ambiguity, loss, data):
    X, y, groups = data
    if loss == "squared" and ambiguity.order == 1:
        pytest.skip("no worst case")
    classes = loss in ("logistic", "hinge")
    kind, y = (DROClassifier, (y > 0).astype(int)) if classes else (DRORegressor, y)
    for tol in (1e-3, 1e-5):
        model = kind(ambiguity, loss=loss, reference="empirical", alpha=0.01, tol=tol)
        assert told(model, X, y, groups) == []
        assert model.status_ == "converged"
        assert 0.0 <= model.optimality_gap_ <= tol
    early = kind(ambiguity, loss=loss, reference="empirical", alpha=0.01, tol=1e-5, max_iter=1)
    words = told(early, X, y, groups)
    assert (early.status_ == "converged") == (early.optimality_gap_ <= 1e-5)
    if early.status_ != "converged":
        assert [category for category, _ in words] == [ConvergenceWarning]
        assert early.status_ in words[0][1]


def test_a_stall_is_told(data, monkeypatch):
    X, y, groups = data
    fit = Reweighted.fit

    def stalled(self, start):
        parameters, found = fit(self, start)
        return parameters, replace(found, status="stalled", message="Look here.", gap=0.5)

    monkeypatch.setattr(Reweighted, "fit", stalled)
    model = DRORegressor(KL(radius=0.1), reference="empirical", alpha=0.01)
    ((category, message),) = told(model, X, y, groups)
    assert category is ConvergenceWarning
    assert "stalled: Look here." in message
    assert (model.status_, model.optimality_gap_) == ("stalled", 0.5)


def test_a_constant_optimum_is_told():
    X, y = make_classification(15000, 20, n_informative=5, flip_y=0.1, random_state=0)
    model = DROClassifier(CVaR(alpha=0.2), reference="empirical")
    ((category, message),) = told(model, X, y, {})
    assert category is UserWarning
    assert "constant model" in message
    assert model.status_ == "converged"
    assert np.ptp(model.decision_function(X)) < 1e-4
    assert model.certificate_.upper == pytest.approx(np.log(2.0), rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"ambiguity": KL(radius=0.1), "model": "mlp", "max_iter": 5},
        {"ambiguity": MMD(radius=0.1)},
    ],
    ids=["network", "kernel"],
)
def test_where_nothing_is_proven_there_is_no_number(settings, data):
    X, y, groups = data
    model = DROClassifier(**settings, reference="empirical", alpha=0.01, random_state=0)
    told(model, X, (y > 0).astype(int), groups)
    assert np.isnan(model.optimality_gap_)


@pytest.mark.parametrize("label_cost", [np.inf, 1.0])
def test_bounds_are_proven(label_cost, data):
    X, y, _ = data
    ball = Wasserstein(radius=0.1, bounds=(-10.0, 10.0), label_cost=label_cost)
    model = DROClassifier(ball, reference="empirical").fit(X, y > 0)
    assert model.status_ == "converged"
    assert 0.0 <= model.optimality_gap_ <= 1e-6
    assert model.certificate_.proof == "ridge-1d"


@pytest.mark.parametrize("ambiguity", [*SETS[:9], MMD(radius=0.1)], ids=repr)
@pytest.mark.parametrize("classes", [True, False])
def test_a_linear_model_on_its_rows_draws_nothing(ambiguity, classes, data, monkeypatch):
    X, y, groups = data
    kind = ClassConditional if classes else Joint
    points, calls = kind.points, []

    def counted(self, *args, **kwargs):
        calls.append(1)
        return points(self, *args, **kwargs)

    monkeypatch.setattr(kind, "points", counted)
    if classes:
        model, y = DROClassifier(ambiguity, reference="empirical"), (y > 0).astype(int)
    else:
        model = DRORegressor(ambiguity, loss="huber", reference="empirical")
    told(model, X, y, groups)
    assert calls == []
    assert len(model.reference_.points(len(X), torch.Generator())[0]) == len(X)
    assert calls == [1]
