"""Order 1 from the estimators: certificates, worst cases, settings, files."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import drojko
from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Wasserstein
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from tests.estimators._cases import binary, classes, regression


def order_one(radius=0.1, **settings):
    return Wasserstein(radius, order=1, **settings)


def test_a_value_that_convex_solvers_agree_on_is_reproduced():
    # .24414 on 80 % of the rows (stratified, standardised), labels fixed, Euclidean norm.
    X, y = load_breast_cancer(return_X_y=True)
    X, _, y, _ = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
    X = StandardScaler().fit_transform(X)
    clf = DROClassifier(order_one(), reference="empirical").fit(X, y)
    assert clf.certificate_.upper == pytest.approx(0.24414, abs=5e-6)
    assert clf.status_ == "converged"


@pytest.mark.parametrize("norm", [1, 2, np.inf])
@pytest.mark.parametrize("form", [{"radius": 0.1}, {"radius": None, "penalty": 2.0}])
@pytest.mark.parametrize("label_cost", [np.inf, 1.0])
@pytest.mark.parametrize("reference", ["empirical", "kde"])
def test_certificates_are_sandwiches(norm, form, label_cost, reference):
    X, y = binary()
    ball = order_one(norm=norm, label_cost=label_cost, **form)
    clf = DROClassifier(ball, reference=reference, random_state=0).fit(X, y)
    found = clf.certificate_
    assert found.proof == "dual"
    assert found.nominal_risk <= found.worst_case_risk + 1e-12
    assert found.lower <= found.upper
    assert found.gap <= 1e-3 * found.upper + 1e-9
    assert (found.standard_error > 0) == (reference == "kde")
    if ball.radius is not None:
        assert found.transport_cost == pytest.approx(0.1)
        # The value is E loss + radius * lambda up to what labels add.
        assert found.upper >= found.nominal_risk + 0.1 * found.penalty - 1e-9
    assert clf.worst_case_.sample(7, random_state=0)[0].shape == (7, 4)
    assert len(clf.worst_case_.displacement()) == 8


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_several_classes(loss):
    X, y = classes()
    clf = DROClassifier(order_one(), loss=loss, reference="empirical").fit(X, y)
    rows = clf.coef_[:, None] - clf.coef_[None]
    slope = np.linalg.norm(rows, axis=-1).max()
    assert clf.certificate_.upper == pytest.approx(clf.certificate_.nominal_risk + 0.1 * slope)
    assert clf.certificate_.relative_gap < 1e-3


@pytest.mark.parametrize("loss", ["absolute", "huber", "quantile"])
@pytest.mark.parametrize("label_cost", [np.inf, 0.5])
def test_regression(loss, label_cost):
    X, y = regression()
    reg = DRORegressor(order_one(0.01, label_cost=label_cost), loss=loss, reference="empirical")
    reg.fit(X, y)
    assert reg.status_ == "converged"
    assert reg.certificate_.relative_gap < 1e-3
    assert reg.robust_certificate(X, y).upper == pytest.approx(reg.certificate_.upper)


def test_a_new_certificate_grows_with_the_radius():
    X, y = binary()
    clf = DROClassifier(order_one(), reference="empirical").fit(X, y)
    uppers = [clf.robust_certificate(X, y, order_one(r)).upper for r in (0.0, 0.1, 0.2, 0.4)]
    assert uppers[1] == pytest.approx(clf.certificate_.upper, rel=1e-9)
    np.testing.assert_allclose(np.diff(uppers) / [0.1, 0.1, 0.2], clf.certificate_.penalty)


def test_order_one_is_less_than_order_two_at_the_same_radius():
    # W1 <= W2: the ball of order 1 is the larger one.
    X, y = binary()
    one = DROClassifier(order_one(), reference="empirical").fit(X, y)
    two = DROClassifier(Wasserstein(0.1), reference="empirical").fit(X, y)
    assert one.certificate_.upper >= two.certificate_.lower
    zero = DROClassifier(order_one(0.0), reference="empirical").fit(X, y)
    plain = DROClassifier(Wasserstein(0.0), reference="empirical").fit(X, y)
    np.testing.assert_allclose(zero.coef_, plain.coef_)


def test_weights_immutable_columns_and_sample_weight():
    X, y = binary()
    ball = order_one(immutable=[0], weights={1: 4.0})
    once = DROClassifier(ball, reference="empirical").fit(X, y, np.where(np.arange(100) < 9, 2, 1))
    twice = DROClassifier(ball, reference="empirical")
    twice.fit(np.concatenate([X, X[:9]]), np.concatenate([y, y[:9]]))
    np.testing.assert_allclose(once.coef_, twice.coef_, rtol=1e-4, atol=1e-5)
    moved = once.worst_case_.transport(X, y) - X
    assert moved.any()
    assert not moved[:, 0].any()
    slope = np.sqrt(once.coef_[0, 1] ** 2 / 4 + (once.coef_[0, 2:] ** 2).sum())
    assert once.certificate_.penalty == pytest.approx(slope, rel=1e-9)


def test_clone_save_load_warm_start_and_history(tmp_path):
    X, y = binary()
    clf = DROClassifier(order_one(norm=np.inf), reference="empirical", warm_start=True).fit(X, y)
    assert clone(clf).get_params()["ambiguity__norm"] == np.inf
    clf.save(tmp_path / "model.drojko")
    back = drojko.load(tmp_path / "model.drojko")
    np.testing.assert_array_equal(back.predict(X), clf.predict(X))
    assert back.worst_case_.risk() == clf.worst_case_.risk()
    first = clf.worst_case_.sample(9, random_state=3)[0]
    np.testing.assert_array_equal(back.worst_case_.sample(9, random_state=3)[0], first)
    history = clf.history_
    assert len(history) == clf.n_iter_
    assert history["robust_risk"].iloc[-1] == pytest.approx(clf.certificate_.upper, rel=1e-6)
    before = clf.certificate_.upper
    assert clf.fit(X, y).certificate_.upper == pytest.approx(before, rel=1e-7)


def test_float32_keeps_the_penalty_form_finite():
    X, y = classes()
    ball = Wasserstein(penalty=0.5, order=1)
    clf = DROClassifier(ball, reference="empirical", dtype="float32").fit(X, y)
    assert np.isfinite(clf.certificate_.upper)


def test_what_has_no_closed_form_says_what_to_do():
    X, y = regression()
    with pytest.raises(UnboundedRiskError, match="use order=2"):
        DRORegressor(order_one()).fit(X, y)
    X, y = binary()
    with pytest.raises(UnsupportedError, match="order=1 needs a linear model"):
        DROClassifier(order_one(), model="mlp").fit(X, y)
    with pytest.raises(UnsupportedError, match="Lipschitz constant"):
        DROClassifier(order_one(), loss=lambda f, t: f.square()).fit(X, y)
