"""Audits of wrong labels, of probabilities, and of callables without gradients."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris, make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.svm import LinearSVC

from drojko import audit
from drojko.ambiguity import KL, Wasserstein
from drojko.exceptions import InvalidDataError

A, B = make_classification(120, 4, random_state=0, flip_y=0.1, weights=[0.7])
EQUAL = np.full(len(B), 1 / len(B))


def flips(model, radius):
    """The largest share of wrong labels that a mean squared move buys: the cheapest rows first."""
    w, b = model.coef_[0], model.intercept_[0]
    margin = (2 * B - 1) * (A @ w + b)
    wrong, prices = (margin <= 0).sum(), np.sort(margin[margin > 0] ** 2 / (w @ w))
    left = len(B) * radius**2
    spent = np.cumsum(prices)
    k = int(np.searchsorted(spent, left))
    part = 0.0 if k == len(prices) else (left - (spent[k - 1] if k else 0.0)) / prices[k]
    return (wrong + k + part) / len(B)


@pytest.mark.parametrize("radius", [0.1, 0.4])
def test_wrong_labels_of_a_linear_model_are_found_at_their_prices(radius):
    model = LogisticRegression().fit(A, B)
    row = audit(model, A, B, Wasserstein(radius), loss="zero-one", random_state=0).table.iloc[0]
    exact = flips(model, radius)
    assert exact * (1 - 1e-3) <= row.worst_case_risk <= exact + 1e-9
    assert row.worst_case_accuracy == pytest.approx(1 - row.worst_case_risk, abs=1e-9)
    assert row.upper_bound == pytest.approx(1.0)


@pytest.mark.parametrize(
    "model",
    [
        FixedThresholdClassifier(LogisticRegression(), threshold=0.1),
        LinearSVC(),
        RandomForestClassifier(10, max_depth=2, random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_wrong_labels_are_those_of_predict_and_areas_those_of_scores(model):
    model.fit(A, B)
    row = audit(model, A, B, KL(radius=0.1), loss="zero-one").table.iloc[0]
    wrong = (model.predict(A) != B).astype(float)
    assert row.nominal_risk == pytest.approx(wrong.mean(), abs=1e-12)
    assert row.worst_case_risk == pytest.approx(KL(0.1).on(A, EQUAL).dual(wrong).value, rel=1e-9)
    answer = getattr(model, "predict_proba", lambda X: model.decision_function(X))(A)
    score = answer[:, 1] if answer.ndim == 2 else answer
    assert row.nominal_auc == pytest.approx(roc_auc_score(B, score), rel=1e-12)


def test_wrong_labels_of_several_classes():
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(X, y)
    row = audit(model, X, y, KL(radius=0.1), loss="zero-one").table.iloc[0]
    assert row.nominal_risk == pytest.approx((model.predict(X) != y).mean(), abs=1e-12)


class Labels(ClassifierMixin, BaseEstimator):
    """Gives labels and nothing else."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return (np.asarray(X)[:, 0] > 0).astype(int)


def test_models_that_give_labels_alone():
    model = Labels().fit(A, B)
    row = audit(model, A, B, KL(radius=0.1)).table.iloc[0]
    assert row.nominal_risk == pytest.approx((model.predict(A) != B).mean(), abs=1e-12)
    with pytest.raises(InvalidDataError, match="labels alone"):
        audit(model, A, B, KL(radius=0.1), loss="logistic")


def test_losses_of_probabilities():
    model = LogisticRegression().fit(A, B)
    p = model.predict_proba(A)[:, 1]
    for loss, values in (("squared", (p - B) ** 2), ("absolute", np.abs(p - B))):
        row = audit(model, A, B, KL(radius=0.1), loss=loss).table.iloc[0]
        assert row.nominal_risk == pytest.approx(values.mean(), rel=1e-12)
        exact = KL(0.1).on(A, EQUAL).dual(values).value
        assert row.worst_case_risk == pytest.approx(exact, rel=1e-9)
    assert values.mean() > brier_score_loss(B, p)
    X, y = load_iris(return_X_y=True)
    several = LogisticRegression(max_iter=1000).fit(X, y)
    brier = np.mean(np.sum((several.predict_proba(X) - np.eye(3)[y]) ** 2, axis=1)) / 2
    row = audit(several, X, y, KL(radius=0.1), loss="squared").table.iloc[0]
    assert row.nominal_risk == pytest.approx(brier, rel=1e-9)
    with pytest.raises(InvalidDataError, match="about probabilities"):
        audit(LinearSVC().fit(A, B), A, B, KL(radius=0.1), loss="squared")


@pytest.mark.parametrize(
    "loss",
    [
        lambda f, y: (f > 0) != y,
        lambda f, y: ((f > 0).long() != y).numpy(),
        lambda f, y: [float((a > 0) != (b > 0)) for a, b in zip(f, y, strict=True)],
    ],
)
def test_callables_without_gradients(loss):
    model = LogisticRegression().fit(A, B)
    wrong = (model.predict(A) != B).astype(float)
    report = audit(model, A, B, KL(radius=0.1), loss=loss)
    assert report.table.worst_case_risk[0] == pytest.approx(
        KL(0.1).on(A, EQUAL).dual(wrong).value, rel=1e-9
    )
    moved = audit(model, A, B, Wasserstein(0.4), loss=loss, random_state=0, max_evaluations=20_000)
    assert moved.table.worst_case_risk[0] >= 0.95 * flips(model, 0.4)
    assert moved.table.worst_case_risk[0] <= flips(model, 0.4) + 1e-9


def test_a_callable_that_fails_says_on_what():
    model = LogisticRegression().fit(A, B)
    with pytest.raises(InvalidDataError, match="the loss fails on predictions"):
        audit(model, A, B, KL(radius=0.1), loss=lambda f, y: f.nothing)
    with pytest.raises(InvalidDataError, match="expected a number for each"):
        audit(model, A, B, KL(radius=0.1), loss=lambda f, y: [1.0])
