"""What the estimators offer: nets, losses, labels that move, fixed columns, warm starts."""

import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, make_moons
from sklearn.preprocessing import scale
from torch import nn

from drojko import DROClassifier, DRORegressor, radius_path
from drojko.ambiguity import KL, Wasserstein
from drojko.measures import KDE, Empirical, Gaussian
from tests.estimators._cases import (
    CHEAP,
    DRAWN,
    KINDS,
    ball,
    binary,
    classes,
    fitted,
    frame,
    linear,
    mlp,
    regression,
    small_net,
    softplus_loss,
    unfitted,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


# -- outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("callable")])
def test_shapes_of_outputs(name):
    model, X, _ = fitted(name)
    n, d = X.shape
    assert model.predict(X).shape == (n,)
    if name.startswith(("linear", "squared", "absolute", "huber", "quantile")):
        if isinstance(model, DRORegressor):
            assert model.coef_.shape == (d,)
            assert type(model.intercept_) is float
            np.testing.assert_allclose(X @ model.coef_ + model.intercept_, model.predict(X))
        else:
            k = len(model.classes_)
            rows = 1 if k == 2 else k
            assert (model.coef_.shape, model.intercept_.shape) == ((rows, d), (rows,))
            scores = (X @ model.coef_.T + model.intercept_).squeeze()
            np.testing.assert_allclose(scores, model.decision_function(X), atol=1e-12)
    else:
        assert not hasattr(model, "coef_")
    if isinstance(model, DROClassifier):
        k = len(model.classes_)
        assert model.decision_function(X).shape == ((n,) if k == 2 else (n, k))
        if model.loss != "hinge":
            p = model.predict_proba(X)
            np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-12)
            assert (p >= 0).all()
            np.testing.assert_array_equal(model.classes_[p.argmax(1)], model.predict(X))
        else:
            assert not hasattr(model, "predict_proba")


@pytest.mark.parametrize("name", ["linear", "linear-classes", "mlp-kde", "squared"])
def test_history(name):
    model, _, _ = fitted(name)
    history = model.history_
    assert history.columns.tolist() == [
        "iteration", "robust_risk", "penalty", "transport_cost", "stationarity", "seconds",
    ]  # fmt: skip
    assert len(history) == model.n_iter_
    assert history["iteration"].tolist() == list(range(1, model.n_iter_ + 1))
    assert (history["seconds"].diff().dropna() >= 0).all()
    assert history.notna().all(axis=None)
    history["penalty"] = -1.0
    assert (model.history_["penalty"] > 0).all()  # a copy was given away


def test_logistic_probabilities_are_calibrated_around_the_data():
    """Radius 0 is maximum likelihood: mean probability = share of the class."""
    X, y = binary()
    model = linear(radius=0.0).fit(X, y)
    assert model.predict_proba(X)[:, 1].mean() == pytest.approx(y.mean(), abs=1e-6)
    X, y = classes()
    model = linear(radius=0.0, tol=1e-5, max_iter=1000).fit(X, y)
    share = np.bincount(y) / len(y)
    np.testing.assert_allclose(model.predict_proba(X).mean(0), share, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "linear-classes", "linear-classes-hinge"])
def test_training_lowers_the_robust_risk(name):
    estimator, X, y = unfitted(name)
    model = estimator.set_params(max_iter=60).fit(X, y)
    plain = clone(estimator).set_params(ambiguity=ball(0.0)).fit(X, y)
    assert model.robust_score(X, y) > plain.robust_score(X, y, ambiguity=estimator.ambiguity)
    worst_guess = np.log(len(model.classes_)) if model.loss == "logistic" else 1.0
    assert model.certificate_.upper < worst_guess


# -- modules and callables -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "outputs"),
    [
        (lambda: small_net(4, 1), "(n, 1)"),
        (lambda: nn.Sequential(small_net(4, 1), nn.Flatten(0)), "(n,)"),
        (lambda: small_net(4, 2), "(n, 2)"),
    ],
    ids=["n-1", "n", "n-2"],
)
def test_two_classes_take_one_logit_or_two(net, outputs):
    X, y = binary()
    model = mlp(model=net, max_iter=20).fit(X, y)
    assert model.decision_function(X).shape == (len(X),)
    assert model.score(X, y) > 0.8
    module = model._fitted_model().module
    with torch.no_grad():
        f = getattr(module, "module", module)(torch.tensor(X))
    logit = f[:, 1] - f[:, 0] if outputs == "(n, 2)" else f.reshape(-1)
    np.testing.assert_array_equal(model.decision_function(X), logit.numpy())


def test_modules_for_many_classes_and_regression():
    X, y = classes()
    model = mlp(model=lambda: small_net(3, 3), max_iter=30).fit(X, y)
    assert model.score(X, y) > 0.6
    X, y = regression()
    y = (y - y.mean()) / y.std()
    model = mlp(DRORegressor, 0.01, model=lambda: small_net(10, 1), max_iter=60)
    assert model.fit(20 * X, y).score(20 * X, y) > 0.2


def test_the_users_module_is_not_touched_and_a_new_one_is_made():
    X, y = binary()
    made = []

    def factory():
        made.append(small_net())
        return made[-1]

    model = mlp(model=factory).fit(X, y)
    model.predict(X)
    assert len({id(net) for net in made}) == len(made)
    assert len(made) >= 2  # one to train, one to predict with


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(5)], ids=["dropout", "norm"])
def test_a_prediction_depends_on_its_row_alone(layer):
    def net():
        norm = type(layer)(layer.num_features) if isinstance(layer, nn.BatchNorm1d) else layer
        return nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 1))

    X, y = binary()
    with pytest.warns(UserWarning, match=f"{type(layer).__name__} of model rest"):
        model = mlp(model=net).fit(X, y)
    # Products of another shape may sum in another order.
    np.testing.assert_allclose(
        model.decision_function(X[:3]), model.decision_function(X)[:3], rtol=1e-12
    )


def test_a_frozen_layer_stays_frozen():
    def net():
        module = small_net()
        module[0].weight.requires_grad_(False)
        return module

    X, y = binary()
    before = mlp(model=net, max_iter=1, learning_rate=1e-300).fit(X, y).parameters_
    after = mlp(model=net, max_iter=5).fit(X, y).parameters_
    np.testing.assert_array_equal(before["module.0.weight"], after["module.0.weight"])
    assert not np.array_equal(before["module.2.weight"], after["module.2.weight"])


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_a_callable_loss_is_the_named_one(model):
    X, y = binary()
    make = linear if model == "linear" else mlp
    settings = {} if model == "linear" else {"max_iter": 30}
    named = make(**settings).fit(X, y)
    called = make(loss=softplus_loss, **settings).fit(X, y)
    # The same up to the accuracy of the worst cases in training, exact ones for the name.
    assert called.certificate_.upper == pytest.approx(named.certificate_.upper, rel=5e-3)
    X, y = regression()
    named = make(DRORegressor, 0.01, loss="absolute", **settings).fit(X, y)
    called = make(DRORegressor, 0.01, loss=lambda f, y: (f - y).abs(), **settings).fit(X, y)
    if model == "linear":  # the units of a perceptron's target come from the loss's name
        assert called.certificate_.upper == pytest.approx(named.certificate_.upper, rel=0.01)
    assert called.certificate_.lower <= called.certificate_.upper


def test_alpha_shrinks_the_weights_and_leaves_the_intercept():
    X, y = binary()
    for kind in ("linear", "linear-classes", "mlp"):
        estimator, X, y = unfitted(kind)
        estimator.set_params(max_iter=100)
        small, large = (clone(estimator).set_params(alpha=a).fit(X, y) for a in (1e-4, 10.0))
        size = {m: sum((v**2).sum() for k, v in m.parameters_.items() if "weights" in k)
                for m in (small, large)}  # fmt: skip
        assert size[large] < 0.5 * size[small]
    ridge = linear(DRORegressor, 0.0, alpha=1.0).fit(*regression())
    assert ridge.predict(regression()[0]).mean() == pytest.approx(regression()[1].mean())


@pytest.mark.parametrize("name", ["linear", "squared", "linear-classes", "mlp", "linear-bounds"])
def test_without_intercept_the_origin_is_undecided(name):
    estimator, X, y = unfitted(name)
    model = estimator.set_params(fit_intercept=False).fit(X, y)
    zero = np.zeros((1, X.shape[1]))
    if name == "mlp":
        assert all((v == 0).all() for k, v in model.parameters_.items() if "biases" in k)
        return
    f = model.predict(zero) if name == "squared" else model.decision_function(zero)
    assert np.ptp(np.append(f, 0.0)) == 0.0


# -- columns and labels ----------------------------------------------------------------------------

COLUMNS = ["linear", "linear-classes", "linear-kde", "mlp", "mlp-kde", "mlp-classes", "module"]


@pytest.mark.parametrize("name", COLUMNS)
def test_immutable_columns_never_move(name):
    estimator, X, y = unfitted(name)
    model = estimator.set_params(ambiguity=ball(0.5, immutable=["b"])).fit(frame(X), y)
    moved = model.worst_case_.transport(X, y) - X
    assert (moved[:, 1] == 0).all()
    assert (moved[:, [0, 2]] != 0).any()
    Z, _ = model.worst_case_.sample(20, random_state=0)
    if estimator.reference == "empirical":
        assert set(Z[:, 1]) <= set(X[:, 1])
    shares = model.worst_case_.displacement().groupby("feature")["share"].sum()
    assert shares["b"] == 0.0
    assert shares.sum() == pytest.approx(1.0)


def test_everything_immutable_is_plain_training():
    X, y = binary()
    fixed = linear().set_params(ambiguity=ball(5.0, immutable=[0, 1, 2, 3])).fit(X, y)
    plain = linear(radius=0.0).fit(X, y)
    np.testing.assert_allclose(fixed.coef_, plain.coef_, rtol=1e-5)
    assert fixed.certificate_.upper == pytest.approx(plain.certificate_.upper, rel=1e-8)


@pytest.mark.parametrize("name", ["linear", "linear-kde", "linear-classes", "mlp-kde", "module"])
def test_bounds_hold_for_samples_and_transport(name):
    estimator, X, y = unfitted(name)
    low, high = X.min(0) - 0.01 * X.std(0), X.max(0) + 0.01 * X.std(0)
    box = np.column_stack([low, high])
    # At 2 no use of the columns pays, which a linear model finds and says.
    radius = 0.5 if name.startswith("linear") else 2.0
    model = estimator.set_params(ambiguity=ball(radius, bounds=box), max_iter=5).fit(X, y)
    for Z in (model.worst_case_.sample(80, random_state=0)[0], model.worst_case_.transport(X, y)):
        slack = 1e-9 * (high - low)
        assert (low - slack <= Z).all()
        assert (high + slack >= Z).all()
    assert model.certificate_.transport_cost <= radius**2 * (1 + 1e-6)


@pytest.mark.parametrize("make", [linear, mlp], ids=["linear", "mlp"])
def test_labels_flip_where_that_is_cheap(make):
    X, y = binary()
    dear = make(radius=0.3).fit(X, y)
    cheap = clone(dear).set_params(ambiguity=ball(0.3, label_cost=0.05))
    # Every label may be bought: only the linear model is sure to find that nothing pays.
    with nullcontext() if make is mlp else pytest.warns(UserWarning, match="constant model"):
        cheap.fit(X, y)
    assert dear.worst_case_.sample(200, random_state=0)[1].mean() == pytest.approx(0.5, abs=0.1)
    # Half of the label's mass, as costs allow: 0.09 / 0.05 > 1 label per row could be bought.
    certificate = dear.robust_certificate(X, y, ball(0.3, label_cost=0.05))
    assert certificate.upper > dear.certificate_.upper * (1 + 1e-6)
    assert cheap.certificate_.upper <= certificate.upper * (1 + 1e-6)


def test_flips_of_a_linear_model_are_in_its_samples():
    X, y = binary()
    model = linear(radius=0.1).set_params(ambiguity=ball(0.1, label_cost=0.2)).fit(X, y)
    Z, labels = model.worst_case_.sample(20_000, random_state=0)
    f = (2 * labels - 1) * model.decision_function(Z)
    risk = np.logaddexp(0, -f)
    # Monte Carlo: five standard errors.
    assert risk.mean() == pytest.approx(
        model.certificate_.worst_case_risk, abs=5 * risk.std() / np.sqrt(len(risk))
    )


def test_a_finite_label_cost_in_regression_is_a_longer_vector():
    """Moving y too: (sqrt(MSE) + radius sqrt(|theta|^2 + 1 / label_cost))^2."""
    X, y = regression()
    model = DRORegressor(Wasserstein(0.02, label_cost=0.5), reference="empirical").fit(X, y)
    root = np.sqrt(np.mean((model.predict(X) - y) ** 2))
    exact = (root + 0.02 * np.sqrt(model.coef_ @ model.coef_ + 2.0)) ** 2
    assert model.certificate_.upper == pytest.approx(exact, rel=1e-9)


# -- starts and references -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "linear-classes", "callable-linear", "absolute"])
def test_a_warm_start_from_the_answer_ends_at_once(name):
    estimator, X, y = unfitted(name)
    model = estimator.set_params(max_iter=2000).fit(X, y)
    first, upper = model.n_iter_, model.certificate_.upper
    model.set_params(warm_start=True).fit(X, y)
    assert model.n_iter_ <= first
    assert model.certificate_.upper == pytest.approx(upper, rel=2e-3)


@pytest.mark.parametrize("name", ["mlp", "mlp-squared"])
def test_a_warm_start_of_a_perceptron_goes_on(name):
    estimator, X, y = unfitted(name)
    estimator.set_params(max_iter=40).fit(X, y)
    before = estimator.certificate_.upper
    estimator.set_params(warm_start=True, max_iter=20).fit(X, y)
    assert estimator.certificate_.upper < before
    cold = clone(estimator).set_params(warm_start=False).fit(X, y)
    assert estimator.certificate_.upper < cold.certificate_.upper


def test_a_warm_start_with_other_columns_starts_anew():
    X, y = binary()
    model = linear(warm_start=True).fit(X, y)
    model.fit(X[:, :2], y)
    np.testing.assert_array_equal(model.coef_, linear().fit(X[:, :2], y).coef_)


def test_a_path_over_radii_is_a_list_of_fits():
    X, y = binary()
    estimator = linear()
    path = radius_path(estimator, X, y, [0.05, 0.1, 0.4])
    uppers = [model.certificate_.upper for model in path]
    assert uppers == sorted(uppers)
    for model, radius in zip(path, [0.05, 0.1, 0.4], strict=True):
        assert model.ambiguity.radius == radius
        assert model.warm_start is False
        alone = linear(radius=radius).fit(X, y)
        assert model.certificate_.upper == pytest.approx(alone.certificate_.upper, rel=1e-7)
    assert not hasattr(estimator, "coef_")
    assert estimator.ambiguity.radius == 0.2


@pytest.mark.parametrize("reference", [Empirical(), Gaussian(), KDE(), "mixture"], ids=str)
def test_references_by_name_and_by_object(reference):
    X, y = binary()
    model = linear(reference=reference, **DRAWN).fit(X, y)
    assert model.certificate_.nominal_risk <= model.certificate_.upper
    assert list(model.reference_.sample(3)[0].shape) == [3, 4]
    if not isinstance(reference, str):
        assert not hasattr(reference, "atoms_")
        assert not hasattr(reference, "mean_")  # the object given is a template


def test_a_kde_spends_at_most_a_tenth_of_the_radius():
    X, y = binary()
    data = linear(radius=0.2).fit(X, y).certificate_.upper
    smooth = linear(radius=0.2, reference="kde", n_draws=4000, random_state=0).fit(X, y)
    wide = linear(radius=0.22).fit(X, y).certificate_.upper
    # W2(kde, data) <= 0.02, so each worst case is one of a slightly larger ball around the other.
    c = smooth.certificate_
    assert c.upper <= wide + 4 * c.standard_error
    assert (
        data
        <= linear(radius=0.22, reference="kde", n_draws=4000, random_state=0)
        .fit(X, y)
        .certificate_.upper
        + 4 * c.standard_error
    )


def test_more_draws_are_closer_to_the_reference():
    X, y = binary()
    errors = [
        linear(reference="gaussian", n_draws=100, random_state=0).fit(X, y).certificate_,
    ]
    assert 0 < errors[0].standard_error < 0.05


# -- robustness ------------------------------------------------------------------------------------


def test_a_robust_perceptron_is_more_robust_than_a_plain_one():
    X, y = make_moons(120, noise=0.2, random_state=0)
    robust = mlp(radius=0.3, max_iter=120, hidden_layer_sizes=(16,)).fit(X, y)
    plain = mlp(radius=0.0, max_iter=120, hidden_layer_sizes=(16,)).fit(X, y)
    at = ball(0.3)
    a, b = robust.robust_certificate(X, y, at), plain.robust_certificate(X, y, at)
    assert a.upper < b.lower  # proven of one, attained by an attack on the other
    assert a.nominal_risk > b.nominal_risk


def test_breast_cancer_objective():
    """The objective of the reference solver of the peer table: W2, radius 0.1."""
    X, y = load_breast_cancer(return_X_y=True)
    model = DROClassifier(Wasserstein(0.1), reference="empirical").fit(scale(X), y)
    assert model.certificate_.upper == pytest.approx(0.1045, abs=1e-4)
    assert model.score(scale(X), y) > 0.97


def test_frames_give_names_to_everything():
    X, y = binary()
    names = ["sepal length", "sepal width", "petal length", "petal width"]
    model = linear().fit(pd.DataFrame(X, columns=names), y)
    assert model.feature_names_in_.tolist() == names
    assert model.worst_case_.displacement()["feature"].unique().tolist() == names
    assert model.worst_case_.to_frame(3).columns.tolist() == [*names, "target"]
    assert CHEAP.steps == 5


@pytest.mark.parametrize(
    ("last", "odd"),
    [(torch.nn.Sigmoid(), True), (torch.nn.Softmax(1), True), (torch.nn.Identity(), False)],
)
def test_probabilities_in_the_place_of_logits_are_warned_of(last, odd):
    X, y = make_moons(40, noise=0.2, random_state=0)
    width = 2 if isinstance(last, torch.nn.Softmax) else 1

    def fit(**settings):
        clf = DROClassifier(
            KL(radius=0.1),
            model=lambda: torch.nn.Sequential(torch.nn.Linear(2, width), last),
            reference="empirical",
            max_iter=2,
            random_state=0,
            **settings,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clf.fit(X, y)
        return any("read as logits" in str(one.message) for one in caught)

    assert fit() == odd
    assert not fit(loss=lambda f, y: torch.nn.functional.softplus(-f * (2 * y - 1)))
