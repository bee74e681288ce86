"""Mistakes that other packages make, each of them made impossible: one test or more per kind."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning

import drojko
from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, MMD, CVaR, Group, Sinkhorn, Wasserstein
from drojko.exceptions import DrojkoError, InvalidDataError
from drojko.inner import ICNNJKO, Pointwise
from tests.estimators._cases import (
    FEW,
    KINDS,
    ball,
    binary,
    classes,
    fitted,
    linear,
    losses,
    mlp,
    regression,
    small_net,
    unfitted,
)

quiet = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


# 1. A reported robust loss that is no bound: a multiplier that collapsed or went negative.


@quiet
@pytest.mark.promise(1)
@pytest.mark.parametrize("name", KINDS)
def test_1_multipliers_are_positive_and_the_loss_is_above_the_nominal_one(name):
    model, _, _ = fitted(name)
    c = model.certificate_
    assert c.penalty > 0
    assert c.upper >= c.nominal_risk * (1 - 1e-9)
    assert (model.history_["penalty"] > 0).all()


@quiet
@pytest.mark.filterwarnings("ignore:.*optimum is a constant model:UserWarning")
@pytest.mark.promise(1)
@pytest.mark.parametrize("radius", [0.02, 0.3, 3.0])
@pytest.mark.parametrize("name", ["mlp", "mlp-squared", "mlp-absolute", "linear-bounds"])
def test_1_training_never_reports_less_than_the_loss_of_a_perfect_model(name, radius):
    """Losses are not negative, so a robust risk that is was priced at another multiplier."""
    estimator, X, y = unfitted(name)
    ambiguity = clone(estimator.ambiguity).set_params(radius=radius)
    model = estimator.set_params(ambiguity=ambiguity, max_iter=25).fit(X, y)
    assert (model.history_["robust_risk"] > 0).all()


# 2. A worst-case distribution whose loss is below the claimed value: see test_worst_case.


@quiet
@pytest.mark.promise(1)
@pytest.mark.parametrize("name", ["linear", "linear-classes", "squared", "mlp", "mlp-kde"])
def test_2_the_gap_is_told(name):
    c = fitted(name)[0].certificate_
    assert c.gap == c.upper - c.lower >= 0
    text = str(c)
    for word in ("lower bound", "upper", "gap", c.proof):
        assert word in text


# 3. Asking for the worst case refits or mutates the model.


@quiet
@pytest.mark.parametrize("name", [*FEW, "linear-bounds", "linear-mixture", "mlp", "module"])
def test_3_asking_changes_nothing(name):
    model, X, y = fitted(name)
    keep = {k: v for k, v in vars(model).items() if not k.endswith("_cache")}
    before = copy.deepcopy(keep)
    predictions = model.predict(X).copy()
    model.worst_case_.sample(5, random_state=0)
    model.worst_case_.transport(X, y)
    model.worst_case_.displacement()
    model.robust_score(X[::7], y[::7], ambiguity=ball(1.0))
    after = {k: v for k, v in vars(model).items() if not k.endswith("_cache")}
    assert after.keys() == before.keys()
    for key, value in before["parameters_"].items():
        np.testing.assert_array_equal(after["parameters_"][key], value)
    assert repr(after["certificate_"]) == repr(before["certificate_"])
    assert repr(after["ambiguity"]) == repr(before["ambiguity"])
    np.testing.assert_array_equal(model.predict(X), predictions)


# 4. A radius with several meanings; a robust objective that is a square root in one class.


@pytest.mark.parametrize("name", ["linear", "squared"])
def test_4_a_radius_is_the_root_mean_square_displacement_and_the_risk_a_mean_loss(name):
    model, X, y = fitted(name)
    c = model.certificate_
    moved = model.worst_case_.transport(X, y)
    rms = np.sqrt(((moved - X) ** 2).sum(1).mean())
    assert rms == pytest.approx(model.ambiguity.radius, rel=1e-4)
    assert c.nominal_risk == pytest.approx(losses(model, X, y).mean())
    assert losses(model, moved, y).mean() == pytest.approx(c.upper, rel=1e-4)


OTHERS = {
    "kl": KL(0.1),
    "cvar": CVaR(0.3),
    "mmd": MMD(radius=0.05),
    "group": Group(0.2),
    "order-one": Wasserstein(0.1, order=1),
    "sinkhorn": Sinkhorn(0.1, radius=0.02),
}


@pytest.mark.promise(1)
@pytest.mark.parametrize("name", OTHERS)
def test_1_to_4_other_families(name):
    """A bound with its gap, nothing changed by asking, one meaning of the radius."""
    X, y = binary()
    ambiguity, groups = clone(OTHERS[name]), (X[:, 0] > 6.0).astype(int)
    model = DROClassifier(ambiguity, reference="empirical", alpha=0.01).fit(X, y, groups=groups)
    c = model.certificate_
    assert c.penalty >= 0
    assert c.nominal_risk <= c.lower <= c.upper
    assert c.gap == c.upper - c.lower
    # What is spent is the discrepancy of the conventions, and the risk a mean loss.
    assert c.transport_cost <= ambiguity.budget * (1 + 1e-6)
    assert c.transport_cost >= ambiguity.budget * (1 - 1e-6)
    assert c.radius == (1 / 0.3 - 1 if name == "cvar" else ambiguity.radius)
    Z, labels = model.worst_case_.sample(4000, random_state=0)
    assert losses(model, Z, labels).mean() < 1.5 * c.upper
    before, settings = repr(c), repr(ambiguity)
    coef = model.coef_.copy()
    model.worst_case_.displacement()
    model.robust_score(X, y, ambiguity=ball(1.0))
    assert (repr(model.certificate_), repr(ambiguity)) == (before, settings)
    np.testing.assert_array_equal(model.coef_, coef)


# 5. Silent clamping of inputs; label conventions that differ between losses.


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), (1, 2), ("a", "b")])
def test_5_every_loss_takes_every_pair_of_labels(loss, labels):
    X, y = binary()
    model = linear(loss=loss).fit(X, np.array(labels)[y])
    np.testing.assert_array_equal(model.coef_, linear(loss=loss).fit(X, y).coef_)
    assert model.score(X, np.array(labels)[y]) > 0.9


def test_5_inputs_far_from_the_unit_box_are_taken_as_they_are():
    X, y = binary()
    model = linear(radius=200.0).fit(1000 * X - 3000, y)
    Z, _ = model.worst_case_.sample(100, random_state=0)
    assert np.ptp(Z, axis=0).min() > 1000
    assert Z.min() < -100


# 6. A worst case of order 1 that moves one atom by 1000 units, without a word about it.


def test_6_order_one_says_that_little_mass_moves_far():
    X, y = binary()
    model = DROClassifier(Wasserstein(0.1, order=1), reference="empirical").fit(X, y)
    assert "order=2" in repr(model.worst_case_)
    assert "order=2" in type(model.worst_case_).__doc__


@pytest.mark.parametrize("name", ["linear", "squared"])
def test_6_no_sample_moves_absurdly_far(name):
    model, X, y = fitted(name)
    step = np.linalg.norm(model.worst_case_.transport(X, y) - X, axis=1)
    assert step.max() < 10 * model.ambiguity.radius


# 7. Settings objects shared between instances; unseeded initialisation behind a random_state.


@quiet
@pytest.mark.promise(15)
@pytest.mark.parametrize("cls", [DROClassifier, DRORegressor])
def test_7_defaults_are_not_shared(cls):
    one, other = cls(), cls()
    one.set_params(ambiguity__radius=0.7, inner__steps=3)
    assert (other.ambiguity, other.inner) == (None, "icnn")
    assert (cls().ambiguity, cls().inner) == (None, "icnn")
    assert other._nested("ambiguity").radius == 0.1
    assert cls(inner="pointwise").set_params(inner__corrections=9).inner.corrections == 9
    copied = clone(one)
    copied.set_params(ambiguity__radius=0.9)
    assert one.ambiguity.radius == 0.7


@quiet
def test_7_a_fit_leaves_the_settings_given_to_it_alone():
    X, y = binary()
    inner, ambiguity = ICNNJKO(steps=5, hidden=[4]), ball(0.1, immutable=[0], weights={1: 2.0})
    before = repr((inner, ambiguity))
    a = mlp(inner=inner).set_params(ambiguity=ambiguity).fit(X, y)
    b = mlp(inner=inner).set_params(ambiguity=ambiguity).fit(X, y)
    assert repr((inner, ambiguity)) == before
    assert (a.inner, a.ambiguity) == (inner, ambiguity)
    np.testing.assert_array_equal(a.decision_function(X), b.decision_function(X))


# 8. Modes, lost intercepts, logits for probabilities.


@quiet
@pytest.mark.promise(11)
def test_8_a_loaded_model_keeps_its_intercept(tmp_path):
    X, y = binary()
    model = linear().fit(X + 100.0, y)
    assert abs(model.intercept_[0]) > 1
    model.save(tmp_path / "model")
    loaded = drojko.load(tmp_path / "model")
    assert loaded.intercept_ == model.intercept_
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))


@quiet
def test_8_probabilities_of_many_classes_are_probabilities():
    X, y = classes()
    for model in (linear(max_iter=20).fit(X, y), mlp().fit(X, y)):
        f, p = model.decision_function(X), model.predict_proba(X)
        np.testing.assert_allclose(np.log(p) - f, (np.log(p) - f)[:, :1] + 0 * f, atol=1e-9)
        np.testing.assert_allclose(p.sum(1), 1.0)


@quiet
def test_8_a_module_predicts_as_it_was_trained():
    def net():
        return torch.nn.Sequential(small_net(4, 8), torch.nn.Dropout(0.9), torch.nn.Linear(8, 1))

    X, y = binary()
    with pytest.warns(UserWarning, match="Dropout of model rest"):
        model = mlp(model=net).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), model.predict(X))
    assert losses(model, X, y).mean() == pytest.approx(model.certificate_.nominal_risk)


# 9. Separable data without a ridge term.


def separable():
    X, y = load_breast_cancer(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y


@pytest.mark.promise(8)
@pytest.mark.parametrize("kind", ["two classes", "three classes", "bounds"])
def test_9_separable_data_are_detected_and_the_advice_works(kind):
    rng = np.random.default_rng(0)
    y = np.arange(45) % (3 if kind == "three classes" else 2)
    X = 0.3 * rng.normal(size=(45, 2)) + 4.0 * np.eye(3)[y][:, :2]
    bounds = (-9.0, 9.0) if kind == "bounds" else None
    model = linear(radius=0.0).set_params(ambiguity=ball(0.0, bounds=bounds))
    with pytest.warns(ConvergenceWarning, match="classes can be separated.*alpha > 0.*radius > 0"):
        model.fit(X, y)
    assert model.status_ == "unbounded"
    assert model.score(X, y) == 1.0
    assert np.abs(model.coef_).max() < 1e4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clone(model).set_params(alpha=0.1).fit(X, y)
        clone(model).set_params(ambiguity__radius=0.1, max_iter=1000).fit(X, y)


def test_9_a_radius_regularises_real_separable_data():
    X, y = separable()
    with pytest.warns(ConvergenceWarning, match="can be separated"):
        plain = linear(radius=0.0).fit(X, y)
    assert plain.status_ == "unbounded"
    robust = linear(radius=0.1).fit(X, y)
    assert robust.status_ == "converged"
    assert np.linalg.norm(robust.coef_) < 10


def test_9_data_that_overlap_are_not_called_separable():
    X, y = classes()
    model = linear(radius=0.0, max_iter=2000).fit(X, y)
    assert model.status_ == "converged"
    X, y = binary()
    assert linear(radius=0.0).fit(X, y).status_ == "converged"


# 10. A default that fails on ordinary data; logs without a switch; a bare NotImplementedError.


@pytest.mark.promise(15)
@pytest.mark.parametrize("cls", [DROClassifier, DRORegressor])
def test_10_defaults_work_silently_on_ordinary_data(cls, capfd):
    X, y = separable() if cls is DROClassifier else regression()
    model = cls(random_state=0).fit(X, y)
    assert model.status_ == "converged"
    out = capfd.readouterr()
    assert out.out == out.err == ""


@quiet
@pytest.mark.promise(15)
def test_10_verbose_shows_a_progress_bar_and_nothing_else_does(capsys):
    X, y = binary()
    mlp(verbose=True).fit(X, y)
    assert "DROClassifier" in capsys.readouterr().out
    mlp(inner=Pointwise()).fit(X, y)
    assert capsys.readouterr().out == ""


@quiet
def test_10_what_is_not_implemented_says_what_is():
    X, y = regression()
    with pytest.raises(DrojkoError) as caught:
        mlp(DRORegressor).set_params(ambiguity=ball(0.1, label_cost=1.0)).fit(X, y)
    assert isinstance(caught.value, NotImplementedError)
    assert "label_cost=inf" in str(caught.value)
    model = mlp(DRORegressor).fit(X, y)  # nor is a bound given that leaves the targets' moves out
    with pytest.raises(DrojkoError, match="label_cost=inf"):
        model.robust_certificate(X, y, ball(0.1, label_cost=1.0))
    with pytest.raises(InvalidDataError, match="one of"):
        linear(inner="icnn").set_params(inner="none", inner__steps=3)
