"""Estimators against reweightings: fits, certificates, worst cases, scikit-learn's conventions."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV

import drojko
from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation
from drojko.exceptions import UnboundedRiskError
from tests.estimators._cases import binary, classes, losses, regression

SETS = [
    KL(0.1),
    KL(penalty=1.0),
    ChiSquare(0.3),
    CressieRead(3.0, 0.1),
    TotalVariation(0.1),
    TotalVariation(penalty=1.0),
    CVaR(0.2),
]


def linear(ambiguity, kind=DROClassifier, **settings):
    return kind(ambiguity, **{"reference": "empirical", "alpha": 0.01, **settings})


@pytest.mark.parametrize("ambiguity", SETS, ids=str)
def test_certificates_of_atoms_are_exact(ambiguity):
    X, y = binary()
    model = linear(ambiguity).fit(X, y)
    certificate = model.certificate_
    exact = ambiguity.dual(losses(model, X, y))
    assert model.status_ == "converged"
    assert certificate.upper == pytest.approx(exact.value, rel=1e-9)
    assert certificate.lower == pytest.approx(exact.value, rel=1e-9)
    assert certificate.lower <= certificate.upper
    assert certificate.worst_case_risk == pytest.approx(exact.attained, rel=1e-9)
    assert certificate.transport_cost == pytest.approx(exact.radius, rel=1e-9)
    assert certificate.proof == "dual"
    assert certificate.standard_error == 0
    assert model.robust_score(X, y) == pytest.approx(-exact.value, rel=1e-9)
    assert model.worst_case_.risk() == pytest.approx(exact.attained, rel=1e-9)
    Z, labels = model.worst_case_.sample(20, random_state=0)
    assert Z.shape == (20, 4)
    assert set(labels) <= set(y)
    assert list(model.history_) == [
        "iteration",
        "robust_risk",
        "penalty",
        "transport_cost",
        "stationarity",
        "seconds",
    ]


@pytest.mark.parametrize("reference", ["kde", "gaussian", "mixture"])
@pytest.mark.parametrize("ambiguity", [KL(0.1), ChiSquare(0.3), CVaR(0.2)], ids=str)
def test_certificates_of_continuous_references_are_sandwiches(ambiguity, reference):
    X, y = binary()
    model = linear(ambiguity, reference=reference, random_state=0).fit(X, y)
    c = model.certificate_
    assert c.nominal_risk <= c.lower <= c.upper
    assert 0 < c.standard_error < 0.1 * c.upper
    assert c.gap <= 6 * c.standard_error


def test_radius_zero_is_scikit_learn():
    X, y = binary()
    plain = LogisticRegression(C=np.inf, tol=1e-12, max_iter=100_000).fit(X, y)
    model = linear(KL(0.0), alpha=0.0).fit(X, y)
    assert model.coef_ == pytest.approx(plain.coef_, rel=1e-4, abs=1e-6)
    assert losses(model, X, y).mean() == pytest.approx(losses_of(plain, X, y), rel=1e-9)
    X, y = regression()
    squares = LinearRegression().fit(X, y)
    model = linear(ChiSquare(0.0), DRORegressor, alpha=0.0).fit(X, y)
    assert model.coef_ == pytest.approx(squares.coef_, rel=1e-6)


def losses_of(plain, X, y):
    return np.logaddexp(0.0, -(2 * y - 1) * plain.decision_function(X)).mean()


def test_weights_are_copies():
    X, y = binary()
    weight = np.arange(len(y)) % 3
    copies = np.repeat(np.arange(len(y)), weight)
    first = linear(ChiSquare(0.3)).fit(X, y, sample_weight=weight)
    second = linear(ChiSquare(0.3)).fit(X[copies], y[copies])
    assert first.coef_ == pytest.approx(second.coef_, rel=1e-6)
    assert first.certificate_.upper == pytest.approx(second.certificate_.upper, rel=1e-9)


def test_regression_classes_and_networks():
    X, y = regression()
    for loss in ("squared", "absolute", "huber", "quantile"):
        model = linear(CVaR(0.3), DRORegressor, loss=loss).fit(X, y)
        assert model.certificate_.upper >= losses(model, X, y).mean()
    X, y = classes()
    for loss in ("logistic", "hinge"):
        model = linear(KL(0.1), loss=loss).fit(X, y)
        assert model.status_ == "converged"
        assert model.coef_.shape == (3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        net = linear(KL(0.1), model="mlp", hidden_layer_sizes=(6,), max_iter=5, random_state=0).fit(
            X, y
        )
    assert net.certificate_.upper == pytest.approx(KL(0.1).dual(losses(net, X, y)).value, rel=1e-9)
    assert len(net.history_) == 5


def test_infinite_moments_are_an_error_that_says_how_much_is_enough():
    X, y = regression()
    with pytest.raises(UnboundedRiskError, match="smallest penalty that is finite is") as found:
        linear(KL(penalty=500.0), DRORegressor, reference="gaussian", random_state=0).fit(X, y)
    least = float(str(found.value).split("finite is ")[1].split(":")[0])
    model = linear(KL(penalty=3.0 * least), DRORegressor, reference="gaussian", random_state=0)
    assert np.isfinite(model.fit(X, y).certificate_.upper)
    ball = linear(KL(0.5), DRORegressor, reference="gaussian", random_state=0).fit(X, y)
    assert ball.certificate_.penalty > 2.0 * np.var(y - ball.predict(X)) * 0.5
    assert linear(KL(penalty=500.0), DRORegressor).fit(X, y).certificate_.upper < np.inf


def test_separable_classes_are_unbounded():
    X, y = binary()
    X = X + 100.0 * y[:, None]
    with pytest.warns(ConvergenceWarning, match="alpha"):
        model = linear(KL(0.1), alpha=0.0).fit(X, y)
    assert model.status_ == "unbounded"


def test_warm_start_files_and_searches(tmp_path):
    X, y = binary()
    model = linear(CVaR(0.2), warm_start=True).fit(X, y)
    value, count = model.certificate_.upper, model.n_iter_
    model.fit(X, y)
    assert model.n_iter_ <= count
    assert model.certificate_.upper == pytest.approx(value, rel=1e-5)
    model.save(tmp_path / "model.drojko")
    loaded = drojko.load(tmp_path / "model.drojko")
    assert np.array_equal(loaded.predict(X), model.predict(X))
    assert loaded.worst_case_.risk() == model.worst_case_.risk()
    search = GridSearchCV(clone(linear(KL(0.1))), {"ambiguity__radius": [0.0, 0.1]}, cv=2)
    assert search.fit(X, y).best_score_ > 0.8
