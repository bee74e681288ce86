"""Promise 8: degenerate data give a result or an error that names the culprit and the remedy."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import Wasserstein
from drojko.exceptions import (
    DrojkoError,
    InvalidDataError,
    UnboundedRiskError,
    UnsupportedError,
)
from drojko.inner import ICNNJKO
from tests.estimators._cases import CHEAP, binary, fitted, frame, linear, mlp, regression, small_net

pytestmark = [
    pytest.mark.promise(8),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

KINDS = {
    "classifier": (DROClassifier(reference="empirical"), *binary()),
    "regressor": (DRORegressor(reference="empirical"), *regression()),
}


@pytest.fixture(params=KINDS)
def kind(request):
    estimator, X, y = KINDS[request.param]
    return clone(estimator), X.copy(), y.copy()


def spoiled(X, value, row=3, column=1):
    X = X.copy()
    X[row, column] = value
    return X


# -- degenerate data: a result ---------------------------------------------------------------------

REFERENCES = ["empirical", "kde", "gaussian", "mixture"]


def degenerate(rng):
    pair = np.array([[0.0, 1.0], [1.0, 0.0]])
    y = np.arange(12) % 2
    X = rng.normal(size=(12, 3)) + y[:, None]
    yield "n = 2", pair, np.array([0, 1])
    yield "d > n", rng.normal(size=(6, 20)), np.arange(6) % 2
    yield "a constant column", np.column_stack([X, np.full(12, 7.0)]), y
    yield "only constant columns", np.ones((10, 2)), np.arange(10) % 2
    yield "conflicting labels", np.repeat(pair, 4, axis=0), np.arange(8) % 2
    yield "equal rows", np.repeat(X[:4], 5, axis=0), np.repeat(y[:4], 5)
    yield "one row of a class", X, (np.arange(12) == 5).astype(int)
    yield "a tiny and a huge column", X * [1e-9, 1.0, 1e9], y
    yield "collinear columns", np.column_stack([X, X @ np.ones((3, 2))]), y


@pytest.mark.parametrize(
    ("model", "reference"),
    [*[("linear", name) for name in REFERENCES], ("mlp", "empirical"), ("mlp", "kde")],
)
@pytest.mark.parametrize("cls", [DROClassifier, DRORegressor])
@pytest.mark.filterwarnings("ignore:.*optimum is a constant model")
def test_degenerate_data_give_a_result(cls, model, reference, rng):
    # The hardest five where every reference is to be fitted as well.
    cases = list(degenerate(rng))[: None if reference == "empirical" else 5]
    for name, X, y in cases:
        make = linear if model == "linear" else mlp
        settings = {"n_draws": None if reference == "empirical" else 30, "random_state": 0}
        estimator = make(cls, 0.1, reference=reference, **settings)
        if model == "mlp":
            estimator.set_params(max_iter=2)
        estimator.fit(X, y)
        c = estimator.certificate_
        assert np.isfinite([c.lower, c.upper, c.transport_cost]).all(), name
        assert c.lower <= c.upper, name
        assert np.isfinite(np.asarray(estimator.predict(X), dtype=float)).all(), name
        assert estimator.worst_case_.sample(3, random_state=0)[0].shape == (3, X.shape[1]), name


def test_a_regression_of_a_constant_is_that_constant():
    X, _ = regression()
    model = linear(DRORegressor).fit(X, np.full(len(X), 5.0))
    np.testing.assert_allclose(model.predict(X), 5.0, rtol=1e-12)
    assert model.certificate_.upper < 1e-20


def test_constant_columns_carry_no_weight(rng):
    X, y = binary()
    model = linear().fit(np.column_stack([X, np.full(len(X), 3.0)]), y)
    assert model.coef_[0, 4] == 0.0
    np.testing.assert_allclose(model.coef_[0, :4], linear().fit(X, y).coef_[0], rtol=1e-6)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_two_hundred_classes(model, rng):
    y = np.arange(400) % 200
    X = np.column_stack([y / 20.0, rng.normal(size=400)])
    estimator = linear(max_iter=1, loss="hinge") if model == "linear" else None
    estimator = estimator or mlp(max_iter=1, inner="pointwise")
    if model == "mlp":  # one bound, where a ball takes a hundred
        estimator.set_params(ambiguity=Wasserstein(penalty=1.0))
    estimator.fit(X, y)
    assert estimator.decision_function(X).shape == (400, 200)
    assert len(estimator.classes_) == 200
    assert estimator.certificate_.lower <= estimator.certificate_.upper


# -- what cannot be fitted -------------------------------------------------------------------------


def test_numbers_that_are_none(kind):
    estimator, X, y = kind
    for value, text in [(np.nan, "holds nan in row 3"), (-np.inf, "holds -inf in row 3")]:
        with pytest.raises(InvalidDataError, match=f"column 1 of X {text}.*Pipeline"):
            estimator.fit(spoiled(X, value), y)
        with pytest.raises(InvalidDataError, match=rf"column 'b' of X {text}"):
            estimator.fit(frame(spoiled(X, value)), y)
        target = y.astype(float)
        target[0] = value
        with pytest.raises(ValueError, match=r"Input y contains (NaN|infinity)"):
            estimator.fit(X, target)


def test_predictions_refuse_what_fit_refuses(kind):
    estimator, X, y = kind
    estimator.fit(frame(X), y)
    with pytest.raises(InvalidDataError, match="column 'b' of X holds nan"):
        estimator.predict(frame(spoiled(X, np.nan)))
    with pytest.raises(ValueError, match="seen at fit time, yet now missing"):
        estimator.predict(frame(X[:, :2]))
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.predict(frame(X).rename(columns={"a": "z"}))


def test_too_few_rows(kind):
    estimator, X, y = kind
    for rows in (0, 1):
        with pytest.raises(ValueError, match=rf"{rows} sample\(s\).*minimum of 2"):
            estimator.fit(X[:rows], y[:rows])


def test_strings_name_their_column(kind):
    estimator, X, y = kind
    data = frame(X[:, :2])
    for values in (["m", "f"] * (len(X) // 2), pd.Categorical(["m", "f"] * (len(X) // 2))):
        data["sex"] = values
        with pytest.raises(InvalidDataError, match=r"column 'sex' of X.*OneHotEncoder"):
            estimator.fit(data, y)
    with pytest.raises(InvalidDataError, match=r"column 0 of X.*OneHotEncoder"):
        estimator.fit(np.array([["a", "b"], ["c", "d"]]), y[:2])


def test_shapes(kind):
    estimator, X, y = kind
    cases = [
        (X, y[:-1], "inconsistent numbers of samples"),
        (X[:, 0], y, "Expected 2D array"),
        (X[None], y, "dim 3"),
        (X, np.c_[y, y], "expected one label or target per row"),
        (X, None, "requires y"),
        (X[:, :0], y, r"0 feature\(s\)"),
    ]
    for data, target, text in cases:
        with pytest.raises(ValueError, match=text):
            estimator.fit(data, target)


def test_sample_weights(kind):
    estimator, X, y = kind
    n = len(X)
    cases = [
        (-np.ones(n), "Negative values"),
        (np.zeros(n), "non-zero"),
        (np.full(n, np.nan), "NaN"),
        (np.ones(3), "sample_weight.shape"),
        ([], "0 sample"),
    ]
    estimator.fit(X, y)
    for weight, text in cases:
        with pytest.raises(ValueError, match=text):
            clone(estimator).fit(X, y, sample_weight=weight)
        with pytest.raises(ValueError, match=text):
            estimator.robust_score(X, y, sample_weight=weight)


def test_classes_that_are_missing():
    X, y = binary()
    with pytest.raises(InvalidDataError, match=r"got 1 class, 'only', in y; it needs 2 or more"):
        DROClassifier().fit(X, np.full(len(X), "only"))
    with pytest.raises(InvalidDataError, match="class 1 has zero total sample_weight: drop its"):
        DROClassifier().fit(X, y, sample_weight=(y == 0).astype(float))
    with pytest.raises(InvalidDataError, match=r"no order.*int, str.*all strings"):
        DROClassifier().fit(X[:4], np.array([1, "a", 2, "b"], dtype=object))
    with pytest.raises(ValueError, match="Unknown label type"):
        DROClassifier().fit(X, X[:, 0])
    model = fitted("linear")[0]
    with pytest.raises(InvalidDataError, match=r"labels that are not in \[0, 1\]"):
        model.robust_score(X, y + 7)


AMBIGUITY = [
    ({"radius": -1.0}, "radius=-1.0; it must be a finite non-negative number"),
    ({"radius": np.nan}, "radius=nan"),
    ({"radius": np.inf}, "radius=inf"),
    ({"radius": "a"}, "radius='a'"),
    ({"radius": 1.0, "penalty": 1.0}, "give exactly one"),
    ({}, "needs a radius or a penalty"),
    ({"penalty": 0.0}, "penalty=0.0; it must be a finite positive number"),
    ({"penalty": np.nan}, "penalty=nan"),
    ({"radius": 1.0, "order": 3}, "order=3; it must be 1 or 2"),
    ({"radius": 1.0, "weights": [1.0]}, "weights has shape"),
    ({"radius": 1.0, "weights": {"a": -1.0}}, "column 'a' has weight -1; weights must be positive"),
    ({"radius": 1.0, "weights": {"A": 1.0}}, "weights names the unknown feature 'A'.*known ones"),
    ({"radius": 1.0, "immutable": ["age"]}, "immutable names the unknown feature 'age'.*known"),
    ({"radius": 1.0, "immutable": [99]}, "column index 99"),
    ({"radius": 1.0, "bounds": {"b": (100.0, None)}}, "column 'b' of X spans.*widen the bounds"),
    ({"radius": 1.0, "bounds": (1.0, 0.0)}, "expected lower <= upper"),
    ({"radius": 1.0, "label_cost": 0.0}, "label_cost=0.0"),
]


@pytest.mark.parametrize(("settings", "text"), AMBIGUITY, ids=lambda p: str(p)[:40])
def test_ambiguity_sets(kind, settings, text):
    estimator, X, y = kind
    with pytest.raises(DrojkoError, match=text) as caught:
        estimator.set_params(ambiguity=Wasserstein(**settings)).fit(frame(X), y)
    assert isinstance(caught.value, ValueError)
    estimator.set_params(ambiguity=None).fit(frame(X), y)
    with pytest.raises(DrojkoError, match=text):
        estimator.robust_score(frame(X), y, ambiguity=Wasserstein(**settings))


def test_names_without_a_frame(kind):
    estimator, X, y = kind
    with pytest.raises(InvalidDataError, match="pass a data frame, or use column indices"):
        estimator.set_params(ambiguity=Wasserstein(1.0, immutable=["a"])).fit(X, y)


def test_an_ambiguity_set_that_is_none(kind):
    estimator, X, y = kind
    with pytest.raises(ValueError, match=r"'ambiguity' parameter of .* must be an instance"):
        estimator.set_params(ambiguity=0.1).fit(X, y)
    estimator.set_params(ambiguity=None).fit(X, y)
    with pytest.raises(InvalidDataError, match=r"ambiguity=0.1; expected an ambiguity set such as"):
        estimator.robust_score(X, y, ambiguity=0.1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model": "forest"}, "'model' parameter"),
        ({"model": torch.nn.Linear(4, 1)}, r"model=lambda: MyNet\(\)"),
        ({"loss": "zero-one"}, "unknown loss 'zero-one'; known"),
        ({"reference": "data"}, "'reference' parameter"),
        ({"inner": "gradient"}, "'inner' parameter"),
        ({"inner": ICNNJKO(steps=-1)}, "ICNNJKO: steps=-1"),
        ({"inner": ICNNJKO(batch_size=0)}, "batch_size=0; expected an integer of at least 1"),
        ({"alpha": -1.0}, "'alpha' parameter"),
        ({"max_iter": 0}, "'max_iter' parameter"),
        ({"dtype": "float16"}, "'dtype' parameter"),
        ({"device": "abacus"}, "device='abacus' cannot be used.*device='cpu'"),
        ({"model": "mlp", "hidden_layer_sizes": (0,)}, r"hidden_layer_sizes=\(0,\); expected pos"),
        ({"model": "mlp", "activation": "step"}, "'activation' parameter"),
        ({"max_time": 0.0}, "'max_time' parameter"),
    ],
    ids=lambda p: str(p)[:40],
)
def test_settings(kind, settings, text):
    estimator, X, y = kind
    with pytest.raises(ValueError, match=text):
        estimator.set_params(**settings).fit(X, y)


class Random(torch.nn.Module):
    def forward(self, x):
        return x[:, 0] + torch.rand(())


class Mixing(torch.nn.Module):
    def forward(self, x):
        return x[:, 0] - x[:, 0].mean()


MODULES = [
    (lambda: 3, "returned int; expected a torch.nn.Module"),
    (lambda: small_net(5), r"fails on X of shape \(3, 4\)"),
    (lambda: small_net(4, 5), r"gives shape \(3, 5\) for 3 rows; expected \(3,\)"),
    (lambda: torch.nn.Identity(), r"gives shape \(3, 4\)"),
    (lambda: torch.nn.LSTM(4, 1), "gives tuple; expected a tensor"),
    (Random, "deterministic forward pass"),
    (Mixing, "mixes rows"),
]


@pytest.mark.parametrize(("model", "text"), MODULES, ids=[text[:12] for _, text in MODULES])
def test_modules_that_are_no_models(model, text):
    X, y = binary()
    with pytest.raises(InvalidDataError, match=text):
        DROClassifier(model=model, reference="empirical").fit(X, y)


def test_a_regression_has_no_pair_of_logits():
    X, y = regression()
    with pytest.raises(InvalidDataError, match=r"gives shape \(3, 2\).* \(3,\) or \(3, 1\)"):
        DRORegressor(model=lambda: small_net(10, 2)).fit(X, y)


@pytest.mark.parametrize("loss", [lambda f, y: f.sum(), lambda f, y: 3.0])
def test_losses_that_are_no_losses(loss):
    X, y = binary()
    with pytest.raises(InvalidDataError, match="expected one value per row"):
        linear(loss=loss).fit(X, y)


def test_nothing_is_asked_of_an_unfitted_estimator(kind):
    estimator, X, y = kind
    for ask in (
        lambda: estimator.predict(X),
        lambda: estimator.robust_score(X, y),
        lambda: estimator.worst_case_,
        lambda: estimator.history_,
    ):
        with pytest.raises(NotFittedError):
            ask()


def test_what_is_not_offered_says_what_is():
    X, y = regression()
    with pytest.raises(UnboundedRiskError, match="use order=2"):
        linear(DRORegressor).set_params(ambiguity=Wasserstein(1.0, order=1)).fit(X, y)
    movable = Wasserstein(0.1, label_cost=1.0)
    with pytest.raises(UnsupportedError, match="set label_cost=inf"):
        mlp(DRORegressor).set_params(ambiguity=movable).fit(X, y)
    model = linear(DRORegressor).set_params(ambiguity=movable).fit(X, y)
    assert model.worst_case_.risk() == pytest.approx(model.certificate_.worst_case_risk, rel=1e-9)
    assert not hasattr(linear(loss="hinge").fit(*binary()), "predict_proba")


def test_bounds_far_below_the_data_are_not_applied_silently():
    """Nothing is clipped: data outside of the bounds are an error at fit and at scoring."""
    X, y = binary()
    model = linear().fit(X, y)
    tight = Wasserstein(0.1, bounds=(0.0, X.max() - 0.1))
    with pytest.raises(InvalidDataError, match="widen the bounds or clip the data"):
        model.robust_certificate(X, y, tight)
    assert CHEAP.get_params()["steps"] == 5


def test_errors_are_errors_and_warnings_are_about_convergence():
    X, y = binary()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mlp(max_iter=1).fit(X, y)
    assert {w.category for w in caught} == {ConvergenceWarning}
    assert "raise max_iter" in str(caught[0].message)
    assert caught[0].filename.endswith(("base.py", "test_bad_input.py"))
