"""Instances as ``loss=``: the same as names, in every place that takes a name."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import drojko
from drojko import DROClassifier, DRORegressor, audit
from drojko.ambiguity import KL, CVaR, Wasserstein
from drojko.baselines import ConvexDROClassifier, ConvexDRORegressor
from drojko.exceptions import InvalidDataError
from drojko.losses import (
    Absolute,
    CallableLoss,
    CrammerSinger,
    Hinge,
    Huber,
    Logistic,
    Quantile,
    Softmax,
    Squared,
    get_loss,
)

NAMED = [Logistic(), Hinge(), Squared(), Absolute(), Huber(2.0), Quantile(0.3), Softmax()]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    score = X @ [1.0, -1.0] + 0.5 * rng.normal(size=60)
    return X, score, (score > 0).astype(int), np.digitize(score, [-0.7, 0.7])


def test_losses_are_plain_values():
    for k, loss in enumerate(NAMED):
        twin = pickle.loads(pickle.dumps(loss))
        assert twin == loss
        assert hash(twin) == hash(loss)
        assert eval(repr(loss)) == loss
        assert all(loss != other for other in NAMED[k + 1 :])
    assert Huber(1.0) != Huber(2.0)
    assert Quantile(0.5) != Absolute()
    assert Huber() != "huber"


@pytest.mark.parametrize(("loss", "name"), [(Hinge(), "hinge"), (Logistic(), "logistic")])
def test_a_classifier_takes_an_instance(table, tmp_path, loss, name):
    X, _, binary, several = table
    settings = {"reference": "empirical", "random_state": 0}
    for y in (binary, several):
        model = clone(DROClassifier(KL(0.1), loss=loss, alpha=0.01, **settings)).fit(X, y)
        same = DROClassifier(KL(0.1), loss=name, alpha=0.01, **settings).fit(X, y)
        np.testing.assert_array_equal(model.coef_, same.coef_)
        assert model.certificate_ == same.certificate_
        assert hasattr(model, "predict_proba") == (name == "logistic")
        model.save(tmp_path / "model.drojko")
        loaded = drojko.load(tmp_path / "model.drojko")
        assert loaded.loss == loss
        np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
        assert loaded.robust_certificate(X, y) == model.robust_certificate(X, y)


def test_a_loss_of_the_other_number_of_classes_is_its_counterpart(table):
    X, _, binary, several = table
    assert get_loss(Hinge(), n_classes=3) == CrammerSinger()
    assert get_loss(Softmax(), n_classes=2) == Logistic()
    assert get_loss(CrammerSinger(), n_classes=2) == Hinge()
    custom = CallableLoss(lambda f, y: (f.sum(-1) - y) ** 2)
    assert not get_loss(custom, n_classes=3).scalar
    assert get_loss(custom, n_classes=2) == custom
    for loss, y in ((Softmax(), binary), (Logistic(), several)):
        model = DROClassifier(CVaR(0.5), loss=loss, reference="empirical", alpha=0.01).fit(X, y)
        assert model.predict_proba(X).shape == (60, len(model.classes_))


def test_a_regressor_searches_over_instances(table, tmp_path):
    X, target, _, _ = table
    losses = [Huber(0.5), Quantile(0.5), Squared()]
    search = GridSearchCV(
        DRORegressor(Wasserstein(radius=0.1), reference="empirical"), {"loss": losses}, cv=3
    ).fit(X, target)
    assert search.best_params_["loss"] in losses
    model = DRORegressor(Wasserstein(radius=0.1), loss=Huber(0.5), reference="empirical")
    assert model.get_params()["loss"] == Huber(0.5)
    same = DRORegressor(Wasserstein(radius=0.1), loss="huber", delta=0.5, reference="empirical")
    np.testing.assert_array_equal(model.fit(X, target).coef_, same.fit(X, target).coef_)
    model.set_params(loss=Quantile(0.9)).fit(X, target)
    model.save(tmp_path / "model.drojko")
    loaded = drojko.load(tmp_path / "model.drojko")
    assert repr(loaded.loss) == "Quantile(q=0.9)"
    assert (model.predict(X) > target).mean() > 0.7


def test_baselines_and_audits_take_an_instance(table):
    X, target, binary, _ = table
    for loss, name in ((Hinge(), "hinge"), (Logistic(), "logistic")):
        one, two = (ConvexDROClassifier(KL(0.1), loss=k, alpha=0.01) for k in (loss, name))
        assert one.fit(X, binary).objective_ == pytest.approx(two.fit(X, binary).objective_)
    one, two = ConvexDRORegressor(loss=Quantile(0.3)), ConvexDRORegressor(loss="quantile")
    two.set_params(quantile=0.3)
    assert one.fit(X, target).objective_ == pytest.approx(two.fit(X, target).objective_)
    model = DROClassifier(KL(0.1), reference="empirical", alpha=0.01).fit(X, binary)
    with_instance = audit(model, X, binary, KL(0.1), loss=Hinge(), random_state=0)
    with_name = audit(model, X, binary, KL(0.1), loss="hinge", random_state=0)
    assert with_instance.table["upper_bound"][0] == with_name.table["upper_bound"][0]


def test_unknown_names_are_told_the_nearest(table):
    X, target, binary, _ = table
    for call in (
        lambda: get_loss("hingee"),
        lambda: DROClassifier(loss="Hinge").fit(X, binary),
        lambda: ConvexDROClassifier(loss="hinges").fit(X, binary),
    ):
        with pytest.raises(InvalidDataError, match="did you mean 'hinge'"):
            call()
    with pytest.raises(InvalidDataError, match="known: absolute, huber, quantile, squared"):
        DRORegressor(loss="cubic").fit(X, target)
    with pytest.raises(InvalidDataError, match="is for classification, but the task is regr"):
        DRORegressor(loss=Hinge()).fit(X, target)
    with pytest.raises(InvalidDataError, match="delta: parameters of a name"):
        get_loss(Huber(), delta=2.0)
