"""The custom objective: gradients of the worst-case risk, and what boosting makes of them."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.datasets import make_classification

from drojko.ambiguity import (
    KL,
    MMD,
    ChiSquare,
    ClassShift,
    CressieRead,
    CVaR,
    Group,
    TotalVariation,
    Wasserstein,
)
from drojko.boosting import objective
from drojko.exceptions import InvalidDataError, NonFiniteError, UnsupportedError

SETS = [
    KL(radius=0.3), KL(penalty=0.5), ChiSquare(radius=0.5), CressieRead(1.5, radius=0.2),
    CVaR(alpha=0.3), TotalVariation(radius=0.2),
]  # fmt: skip


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.integers(0, 2, 40), rng.normal(size=40)


@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_without_smoothing_the_gradient_is_ratio_times_gradient(ambiguity, rows):
    y, f = rows
    grad, hess = objective(ambiguity, smoothing=0, damping=False)(y, f)
    ratio = ambiguity.dual(np.logaddexp(0.0, (1 - 2 * y) * f)).ratio
    p = expit(f)
    assert grad == pytest.approx(ratio * (p - y), abs=1e-12)
    assert hess == pytest.approx(np.maximum(ratio * p * (1 - p), 1e-6), abs=1e-12)


@pytest.mark.parametrize("ambiguity", SETS[:4], ids=repr)
def test_the_gradient_is_that_of_the_worst_case_risk(ambiguity, rows):
    y, f = rows
    weight = np.random.default_rng(1).uniform(0.2, 2.0, len(y))
    robust = objective(ambiguity, loss="squared", smoothing=0, damping=False)
    grad, _ = robust(y, f, weight)

    def risk(f):
        return ambiguity.dual((f - y) ** 2, weight).value

    for i in (0, 7, 23):
        step = np.zeros(len(f))
        step[i] = 1e-5
        slope = (risk(f + step) - risk(f - step)) / 2e-5
        assert grad[i] / weight.sum() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@given(st.integers(2, 5), st.integers(0, 1000))
def test_scores_of_several_classes(n_classes, seed):
    rng = np.random.default_rng(seed)
    y, f = rng.integers(0, n_classes, 12), rng.normal(size=(12, n_classes))
    grad, hess = objective(KL(radius=0.1), damping=False)(y, f)
    p = softmax(f, axis=1)
    ratio = KL(radius=0.1).dual(-np.log(p[np.arange(12), y])).ratio
    assert grad == pytest.approx(ratio[:, None] * (p - np.eye(n_classes)[y]), abs=1e-12)
    assert hess == pytest.approx(np.maximum(ratio[:, None] * p * (1 - p), 1e-6))
    assert np.abs(grad.sum(axis=1)).max() < 1e-12


def test_kinked_ratios_are_averaged_and_smooth_ones_are_not(rows):
    y, f = rows
    still = objective(CVaR(alpha=0.3), smoothing=0, damping=False)
    kept = objective(CVaR(alpha=0.3), damping=False)
    sharp, smooth = still(y, f)[0], kept(y, f)[0]
    plain = expit(f) - y
    assert smooth == pytest.approx(0.8 * plain + 0.2 * sharp)
    again = kept(y, f)[0]
    assert again == pytest.approx(0.8 * smooth + 0.2 * sharp)
    smooth = objective(ChiSquare(radius=0.1), damping=False)
    still = objective(ChiSquare(radius=0.1), smoothing=0, damping=False)
    assert smooth(y, f)[0].tolist() == still(y, f)[0].tolist()


def test_leaves_are_short_and_gains_of_splits_are_what_they_were(rows):
    """g / h is shorter by the damping, g^2 / h is not; another fit begins anew."""
    y, _ = rows
    sign = 2.0 * y - 1.0
    robust, bare = (objective(KL(radius=0.2), smoothing=0, damping=d) for d in (True, False))

    def damped(scores):
        (g, h), (g0, h0) = robust(y, scores), bare(y, scores)
        assert g * g / h == pytest.approx(g0 * g0 / h0)
        return np.unique((h / g / (h0 / g0)).round(6)).tolist()

    assert damped(np.zeros(40)) == [1024.0]
    assert damped(0.01 * sign) == [512.0]  # the risk fell
    for k in range(2, 12):
        last = damped(0.1 * k * sign)
    assert last == [1.0]
    assert damped(0.5 * sign) == [2.0]  # it rose
    assert damped(np.zeros(40)) == [1024.0]
    with pytest.raises(InvalidDataError, match="damping"):
        objective(KL(radius=0.2), damping="no")


def test_while_steps_are_short_ratios_are_averaged_for_every_set(rows):
    y, f = rows
    robust = objective(KL(radius=0.2))
    grad, _ = robust(y, f)
    losses = np.logaddexp(0.0, (1 - 2 * y) * f)
    ratio = 0.8 + 0.2 * KL(radius=0.2).dual(losses).ratio
    assert grad == pytest.approx(1024.0 * ratio * (expit(f) - y))


@pytest.mark.parametrize(
    "ambiguity", [CVaR(alpha=0.1), KL(radius=1.5), TotalVariation(radius=0.6)], ids=repr
)
def test_sets_whose_optimum_is_near_a_constant_do_not_push_the_risk_up(ambiguity):
    """With a tenth of the labels random; undamped it rises by 7 to 50 %, damped by .1."""
    lightgbm = pytest.importorskip("lightgbm")
    X, y = make_classification(600, 20, n_informative=5, flip_y=0.1, random_state=0)
    most = []
    for damping in (True, False):
        robust = objective(ambiguity, damping=damping)
        settings = {"n_estimators": 60, "num_leaves": 8, "verbose": -1, "n_jobs": 1}
        lightgbm.LGBMClassifier(objective=robust, **settings).fit(X, y)
        most.append(max(robust.robust_risks_) / robust.robust_risks_[0])
    assert most[0] < 1.0015
    assert most[1] > 1.03


def test_a_least_gain_of_splits_does_not_end_boosting_in_its_first_rounds():
    lightgbm = pytest.importorskip("lightgbm")
    X, y = make_classification(200, 5, flip_y=0.1, random_state=0)
    settings = {"n_estimators": 20, "min_split_gain": 0.5, "verbose": -1, "n_jobs": 1}
    trees = lightgbm.LGBMClassifier(objective=objective(KL(radius=0.1)), **settings).fit(X, y)
    assert trees.booster_.num_trees() == 20


def test_a_new_fit_forgets_the_last_one(rows):
    y, f = rows
    robust = objective(CVaR(alpha=0.3))
    first = robust(y, np.zeros(40))[0]
    robust(y, f)
    assert robust(y, np.zeros(40))[0].tolist() == first.tolist()
    assert robust.robust_risks_ == pytest.approx([np.log(2)])
    other = robust(y[:30], f[:30])[0]
    assert other.tolist() == objective(CVaR(alpha=0.3))(y[:30], f[:30])[0].tolist()


def test_copies_have_their_own_ratios_and_report_to_one_list(rows):
    y, f = rows
    robust = objective(CVaR(alpha=0.3))
    twin = copy.deepcopy(robust)
    twin(y, f)
    assert len(robust.robust_risks_) == 1
    assert robust(y, f)[0].tolist() == objective(CVaR(alpha=0.3))(y, f)[0].tolist()


def test_weights_are_those_of_repeated_rows(rows):
    y, f = rows
    times = np.random.default_rng(2).integers(1, 4, 40)
    once, _ = objective(KL(radius=0.3))(y, f, times)
    many, _ = objective(KL(radius=0.3))(np.repeat(y, times), np.repeat(f, times))
    ends = np.cumsum(times) - 1
    assert once / times == pytest.approx(many[ends], abs=1e-9)


def test_groups(rows):
    y, f = rows
    groups = np.where(np.arange(40) < 10, "a", "b")
    grad, _ = objective(Group(), groups=groups, smoothing=0)(y, f)
    losses = np.logaddexp(0.0, (1 - 2 * y) * f)
    worse = "a" if losses[:10].mean() > losses[10:].mean() else "b"
    assert (grad[groups != worse] == 0).all()
    assert (grad[groups == worse] != 0).all()
    with pytest.raises(InvalidDataError, match="needs groups="):
        objective(Group())
    with pytest.raises(InvalidDataError, match="groups of 9 rows, and 40 are fitted"):
        objective(Group(), groups=groups[:9])(y, f)


def test_directions_are_those_of_class_indices(rows):
    y, f = rows
    assert np.isfinite(objective(ClassShift(between=(0, 1), direction=1))(y, f)[0]).all()
    with pytest.raises(InvalidDataError, match="names no class; the classes are: 0, 1"):
        objective(ClassShift(between=(0, 1), direction="ill"))(y, f)


def test_the_metric_is_the_mean_loss(rows):
    y, f = rows
    name, value, larger = objective(CVaR(alpha=0.1)).evaluate(y, f)
    assert (name, larger) == ("nominal_logistic", False)
    assert value == pytest.approx(np.logaddexp(0.0, (1 - 2 * y) * f).mean())


@pytest.mark.parametrize("ambiguity", [Wasserstein(radius=0.1), MMD(radius=0.1)], ids=repr)
def test_sets_that_look_at_points_are_refused(ambiguity):
    with pytest.raises(UnsupportedError, match="CVaR"):
        objective(ambiguity)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([0, 1], [0.0, np.nan]), NonFiniteError, "learning rate"),
        (([0, 2], [0.0, 0.1]), InvalidDataError, "class indices from 0 to 1"),
        (([0.5, 1], [0.0, 0.1]), InvalidDataError, "class indices"),
        (([0, np.nan], [0.0, 0.1]), InvalidDataError, "not finite"),
        (([0, 1, 1], [0.0, 0.1]), InvalidDataError, "shapes"),
        (([0, 1], [0.0, 0.1], [1.0]), InvalidDataError, "2 numbers"),
        (([0, 1], [0.0, 0.1], [0.0, 0.0]), InvalidDataError, "not all 0"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        objective(KL(radius=0.1))(*arguments)


@pytest.mark.parametrize("settings", [{"smoothing": 1.0}, {"smoothing": "yes"}, {"loss": "hinge"}])
def test_bad_settings(settings):
    with pytest.raises(InvalidDataError, match=next(iter(settings))):
        objective(KL(radius=0.1), **settings)
    with pytest.raises(InvalidDataError, match="set"):
        objective("KL")


@pytest.mark.parametrize(
    "ambiguity", [SETS[0], SETS[2], SETS[4], TotalVariation(radius=0.1)], ids=repr
)
def test_the_worst_case_risk_of_lightgbm_falls(ambiguity):
    lightgbm = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(3)
    X = rng.normal(size=(600, 4))
    y = rng.random(600) < expit(6 * X[:, 0] + 3 * X[:, 1] * X[:, 2])
    robust = objective(ambiguity)
    trees = lightgbm.LGBMClassifier(n_estimators=60, objective=robust, verbose=-1, n_jobs=1)
    trees.fit(X, y)
    risks = np.array(robust.robust_risks_)
    assert (np.diff(risks[::10]) < 0).all()
    assert risks.max() <= risks[0] + 1e-9
    losses = np.logaddexp(0.0, (1 - 2 * y) * trees.predict(X, raw_score=True))
    assert ambiguity.dual(losses).value < risks[-1]  # after the last round
    assert isinstance(clone(trees).objective, type(robust))


def test_weights_and_early_stopping_in_lightgbm():
    lightgbm = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(3)
    X = rng.normal(size=(400, 3))
    y = (rng.random(400) < expit(X[:, 0])).astype(int)
    robust = objective(KL(radius=0.1))
    trees = lightgbm.LGBMClassifier(n_estimators=300, objective=robust, verbose=-1, n_jobs=1)
    stop = lightgbm.early_stopping(10, verbose=False)
    trees.fit(
        X[:300], y[:300], sample_weight=rng.uniform(0.5, 2.0, 300), callbacks=[stop],
        eval_X=X[300:], eval_y=y[300:], eval_metric=robust.evaluate,
    )  # fmt: skip
    assert trees.best_iteration_ < 300


def test_xgboost_takes_it():
    xgboost = pytest.importorskip("xgboost")
    rng = np.random.default_rng(3)
    X = rng.normal(size=(400, 3))
    y = rng.integers(0, 3, 400)
    y[X[:, 0] > 0.3] = 1
    robust = objective(CVaR(alpha=0.5))
    xgboost.XGBClassifier(n_estimators=30, objective=robust, n_jobs=1).fit(
        X, y, sample_weight=np.ones(400)
    )
    assert len(robust.robust_risks_) == 30
    assert robust.robust_risks_[-1] < robust.robust_risks_[0]
