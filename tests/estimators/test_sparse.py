"""Sparse matrices against the same numbers in an array."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from drojko import DROClassifier, DRORegressor, load
from drojko.ambiguity import (
    KL,
    MMD,
    ChiSquare,
    CVaR,
    Group,
    Sinkhorn,
    TotalVariation,
    Wasserstein,
)
from drojko.exceptions import UnsupportedError

SETS = [
    Wasserstein(0.1),
    Wasserstein(penalty=2.0),
    Wasserstein(0.1, label_cost=1.0),
    Wasserstein(0.1, order=1),
    Sinkhorn(0.1, penalty=2.0),
    KL(0.1),
    ChiSquare(penalty=1.0),
    CVaR(0.7),
    TotalVariation(0.1),
    Group(),
]
CASES = [(DROClassifier, "logistic"), (DROClassifier, "hinge"), (DRORegressor, "huber")]


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    X = random.standard_normal((300, 8)) * (random.random((300, 8)) < 0.3)
    X[:, 0] = 0.0
    f = X.sum(axis=1) + random.logistic(size=300)
    return X, f, np.arange(300) % 3


def objective(model):
    return model.certificate_.upper + 0.5 * model.alpha * np.sum(model.coef_**2)


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_the_fit_is_that_of_the_array(data, ambiguity, kind, loss):
    X, f, groups = data
    y = f > 0 if kind is DROClassifier else f
    model = kind(ambiguity, loss=loss, reference="empirical", alpha=0.01)
    dense = objective(model.fit(X, y, groups=groups))
    gap = model.optimality_gap_
    S = sparse.csr_array(X)
    before = S.data.copy()
    model.fit(S, y, groups=groups)
    assert abs(objective(model) - dense) <= 1e-8 * dense
    assert model.status_ == "converged"
    assert model.optimality_gap_ <= max(1e-5, 2.0 * gap)
    predicted = (np.asarray(model.predict(part), dtype=float) for part in (S, X))
    np.testing.assert_allclose(*predicted, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(model.score(S, y), model.score(X, y), rtol=1e-12)
    again = model.robust_certificate(S, y, groups=groups)
    assert abs(again.upper / model.certificate_.upper - 1.0) <= 1e-9
    assert abs(model.robust_certificate(X, y, groups=groups).upper / again.upper - 1.0) <= 1e-9
    np.testing.assert_array_equal(S.data, before)


def test_squared_loss_several_classes_and_other_formats(data):
    X, f, _ = data
    reg = DRORegressor(Wasserstein(0.1), reference="empirical")
    dense = objective(reg.fit(X, f))
    assert abs(objective(reg.fit(sparse.csc_matrix(X), f)) - dense) <= 1e-8 * dense
    y = np.digitize(f, [-1.0, 1.0])
    model = DROClassifier(Wasserstein(0.1), reference="empirical", tol=1e-5)
    upper = model.fit(X, y).certificate_.upper
    thin = model.fit(sparse.csr_array(X), y)
    assert thin.certificate_.upper == pytest.approx(upper, rel=1e-6)
    for ambiguity in (KL(0.1), Wasserstein(0.1, order=1)):
        clf = DROClassifier(ambiguity, reference="empirical", alpha=0.01, tol=1e-6)
        dense = objective(clf.fit(X, y))
        assert abs(objective(clf.fit(sparse.coo_array(X), y)) - dense) <= 1e-7 * dense


def test_weights_and_no_intercept(data):
    X, f, _ = data
    w = np.random.default_rng(1).integers(0, 3, 300)
    for ambiguity in (Wasserstein(0.1), KL(0.1)):
        model = DROClassifier(
            ambiguity, reference="empirical", fit_intercept=False, tol=1e-8, alpha=0.01
        )
        dense = objective(model.fit(X, f > 0, sample_weight=w))
        sparsely = objective(model.fit(sparse.csr_array(X), f > 0, sample_weight=w))
        assert abs(sparsely - dense) <= 1e-8 * dense


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "reference='kde'"),
        ({"model": "mlp", "reference": "empirical"}, "model='mlp'"),
        ({"reference": "empirical", "inner": "importance"}, "inner='importance'"),
        ({"reference": "empirical", "ambiguity": MMD(radius=0.1)}, "MMD"),
        (
            {"reference": "empirical", "ambiguity": Wasserstein(0.1, bounds=(-9.0, 9.0))},
            "Wasserstein",
        ),
    ],
)
def test_what_needs_an_array_says_so(data, settings, named):
    X, f, _ = data
    with pytest.raises(UnsupportedError, match=r"toarray") as caught:
        DROClassifier(**settings).fit(sparse.csr_array(X), f > 0)
    assert named in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_categories_and_networks_of_sparse_rows_are_refused(data):
    X, f, _ = data
    ambiguity = Wasserstein(0.1, categorical_features=[0], swap_cost=1.0)
    with pytest.raises(UnsupportedError, match="toarray"):
        DROClassifier(ambiguity, reference="empirical").fit(sparse.csr_array(X), f > 0)
    model = DROClassifier(KL(0.1), model="mlp", reference="empirical", max_iter=2, effort="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, f > 0)
    with pytest.raises(UnsupportedError, match="toarray"):
        model.predict(sparse.csr_array(X))


def test_bad_entries_are_refused(data):
    X, f, _ = data
    for value, words in ((np.nan, "NaN"), (np.inf, "infinity"), (1e200, "another unit")):
        S = sparse.csr_array(X)
        S.data[3] = value
        with pytest.raises(ValueError, match=words):
            DROClassifier(KL(0.1), reference="empirical").fit(S, f > 0)


def test_the_rows_are_not_kept_but_the_model_is(data, tmp_path):
    X, f, _ = data
    model = DROClassifier(Wasserstein(0.1), reference="empirical").fit(sparse.csr_array(X), f > 0)
    assert not hasattr(model, "worst_case_")
    assert not hasattr(model, "reference_")
    with pytest.raises(UnsupportedError, match="toarray"):
        _ = model.worst_case_
    model.save(tmp_path / "model.drojko")
    again = load(tmp_path / "model.drojko")
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert again.certificate_ == model.certificate_
    late = DROClassifier(Wasserstein(0.1), reference="empirical", effort="none")
    late.fit(sparse.csr_array(X), f > 0).save(tmp_path / "late.drojko")
    assert late.certificate_ is None


def test_the_tag_says_what_is_taken():
    kinds = [
        DROClassifier(KL(0.1)),
        DROClassifier(KL(0.1), reference="empirical"),
        DROClassifier(reference="empirical"),
        DRORegressor(reference="empirical"),
    ]
    tags = [model.__sklearn_tags__().input_tags.sparse for model in kinds]
    assert tags == [False, True, True, True]
