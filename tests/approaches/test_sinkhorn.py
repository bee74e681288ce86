"""Estimators with Sinkhorn sets, end to end."""

import math
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import scale

import drojko
from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Sinkhorn, Wasserstein
from drojko.exceptions import UnboundedRiskError
from drojko.inner.sinkhorn.worst_case import GibbsWorstCase
from drojko.losses import get_loss
from drojko.minimax.sinkhorn.linear import sinkhorn_risk
from drojko.minimax.transport.risk import RidgeData

X, Y = load_diabetes(return_X_y=True)
X, Y = scale(X), (Y - Y.mean()) / Y.std()
FLOWERS, KIND = load_iris(return_X_y=True)
FLOWERS = scale(FLOWERS)
TWO = KIND > 0
BALL = Sinkhorn(epsilon=0.1, radius=0.05)


def test_squared_regression_has_the_closed_certificate():
    reg = DRORegressor(Sinkhorn(0.1, penalty=3.0), reference="empirical").fit(X, Y)
    a, mse = reg.coef_ @ reg.coef_, np.mean((reg.predict(X) - Y) ** 2)
    exact = 3 / (3 - a) * mse - 0.15 * math.log(1 - a / 3)
    c = reg.certificate_
    assert reg.status_ == "converged"
    assert c.proof == "ridge-1d"
    assert c.lower == pytest.approx(exact, rel=1e-12)
    assert c.upper == pytest.approx(exact, rel=1e-12)
    assert c.worst_case_risk - 3 * c.transport_cost == pytest.approx(exact, rel=1e-10)
    assert reg.history_["transport_cost"].iloc[-1] > 0


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber", "quantile"])
def test_balls_of_regressions_are_exact_on_both_sides(loss):
    reg = DRORegressor(BALL, loss=loss, reference="empirical").fit(X, Y)
    c = reg.certificate_
    assert c.nominal_risk < c.lower <= c.upper
    assert c.relative_gap < 1e-10
    assert c.transport_cost == pytest.approx(0.05, rel=1e-9)
    assert c.radius == 0.05
    same = reg.robust_certificate(X, Y)
    assert same.upper == pytest.approx(c.upper, rel=1e-10)
    plain = DRORegressor(Wasserstein(0.0), loss=loss, reference="empirical").fit(X, Y)
    assert plain.robust_certificate(X, Y, BALL).upper >= c.upper * (1 - 1e-9)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_small_epsilon_gives_the_wasserstein_classifier(loss):
    data = FLOWERS[TWO], KIND[TWO]
    near = DROClassifier(Sinkhorn(1e-6, radius=0.04), loss=loss, reference="empirical").fit(*data)
    exact = DROClassifier(Wasserstein(0.2), loss=loss, reference="empirical").fit(*data)
    assert near.certificate_.upper == pytest.approx(exact.certificate_.upper, rel=1e-3)


def test_the_worst_case_attains_its_risk():
    clf = DROClassifier(BALL, reference="empirical").fit(FLOWERS[TWO], KIND[TWO])
    worst = clf.worst_case_
    assert isinstance(worst, GibbsWorstCase)
    Z, labels = worst.sample(40_000, random_state=0)
    margin = clf.decision_function(Z) * np.where(labels == clf.classes_[1], 1, -1)
    losses = np.logaddexp(0, -margin)
    assert abs(losses.mean() - worst.risk()) < 5 * losses.std() / 200
    assert np.isfinite(worst.log_prob(Z[:20], labels[:20])).all()
    assert worst.displacement()["share"].sum() == pytest.approx(1.0)
    assert worst.to_frame(5).shape == (5, 5)


def test_continuous_references_have_standard_errors():
    reg = DRORegressor(BALL, random_state=0).fit(X, Y)
    exact = DRORegressor(BALL, reference="empirical").fit(X, Y).certificate_
    c = reg.certificate_
    assert c.proof == "ridge-1d"
    assert 0 < c.standard_error < 0.1
    assert abs(c.upper - exact.upper) < 5 * c.standard_error + 0.01


@pytest.mark.parametrize(
    "settings", [{}, {"loss": "hinge"}, {"model": "mlp", "hidden_layer_sizes": (6,)}]
)
def test_other_models_have_sandwiches(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf = DROClassifier(
            BALL, reference="empirical", random_state=0, max_iter=30, **settings
        ).fit(FLOWERS, KIND)  # fmt: skip
    c = clf.certificate_
    assert c.proof in {"lipschitz", "strong-concavity", "linear-bounds"}
    assert c.nominal_risk < c.lower <= c.upper
    assert c.transport_cost == pytest.approx(0.05, rel=1e-3)
    # Half as many particles again, from another seed: the same dual value within its error.
    again = clf.robust_certificate(FLOWERS, KIND)
    error = math.hypot(c.standard_error, again.standard_error)
    assert abs(again.lower - c.lower) < 6 * error + 1e-3


def test_sampled_certificates_agree_with_the_exact_one():
    import torch

    clf = DROClassifier(BALL, reference="empirical").fit(FLOWERS[TWO], KIND[TWO])

    def loss(f, y):
        return torch.nn.functional.softplus(f * (1.0 - 2.0 * y))

    other = DROClassifier(BALL, loss=loss, reference="empirical", random_state=0)
    other.fit(FLOWERS[TWO], KIND[TWO])
    found = other.certificate_
    assert found.proof == "local-estimate"
    data = RidgeData(FLOWERS[TWO], KIND[TWO] - 1.0, loss=get_loss("logistic"))
    exact = sinkhorn_risk(
        data, other.coef_[0], other.intercept_[0], epsilon=0.1, radius=0.05
    ).value  # fmt: skip
    # The bias of 512 particles is far below these tolerances; the model's is that of 256.
    assert found.lower == pytest.approx(exact, abs=6 * found.standard_error + 1e-3)
    best = clf.certificate_.upper
    assert best <= exact * (1 + 1e-9)
    assert exact == pytest.approx(best, rel=0.02)


def test_weights_are_copies_and_warm_starts_agree():
    weight = 1.0 + np.arange(len(Y)) % 3
    rows = np.repeat(np.arange(len(Y)), weight.astype(int))
    reg = DRORegressor(BALL, reference="empirical", warm_start=True)
    first = clone(reg).fit(X, Y, sample_weight=weight).certificate_.upper
    assert first == pytest.approx(reg.fit(X[rows], Y[rows]).certificate_.upper, rel=1e-10)
    again = reg.set_params(ambiguity__radius=0.06).fit(X[rows], Y[rows]).certificate_.upper
    cold = clone(reg).fit(X[rows], Y[rows]).certificate_.upper
    assert again == pytest.approx(cold, rel=1e-9)


def test_radius_zero_is_the_smoothed_risk_even_for_separable_classes():
    two = KIND < 2
    clf = DROClassifier(Sinkhorn(0.1, radius=0.0), reference="empirical")
    c = clf.fit(FLOWERS[two], KIND[two]).certificate_
    assert clf.status_ == "converged"
    assert c.transport_cost == 0.0
    assert np.isinf(c.penalty)
    assert c.upper > c.nominal_risk > 0.0
    Z, _ = clf.worst_case_.sample(100, random_state=0)
    assert np.isfinite(Z).all()


def test_too_small_a_penalty_names_the_smallest_finite_one():
    reg = DRORegressor(Wasserstein(0.0), reference="empirical").fit(X, Y)
    a = reg.coef_ @ reg.coef_
    with pytest.raises(UnboundedRiskError, match=rf"penalty > {a:.6g}"):
        reg.robust_certificate(X, Y, Sinkhorn(0.1, penalty=0.5 * a))


def test_search_and_files(tmp_path):
    grid = {"ambiguity__radius": [0.01, 0.1], "ambiguity__epsilon": [0.05]}
    search = GridSearchCV(DRORegressor(BALL, reference="empirical"), grid, cv=2).fit(X, Y)
    best = search.best_estimator_
    best.save(tmp_path / "model.drojko")
    loaded = drojko.load(tmp_path / "model.drojko")
    assert np.array_equal(loaded.predict(X), best.predict(X))
    Z, _ = loaded.worst_case_.sample(10, random_state=0)
    assert np.array_equal(Z, best.worst_case_.sample(10, random_state=0)[0])
