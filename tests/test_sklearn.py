import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.model_selection import GridSearchCV

from drojko._sklearn import NestedDefaults, _checked_targets, _classes
from drojko._validation import is_moderate
from drojko.ambiguity import Wasserstein
from drojko.exceptions import InvalidDataError


class Shift(NestedDefaults, ClassifierMixin, BaseEstimator):
    """Predicts "yes" above the radius of its ambiguity set."""

    _nested_defaults = {
        "ambiguity": lambda: Wasserstein(radius=0.1),
        "inner": {"near": lambda: Wasserstein(radius=1), "far": lambda: Wasserstein(radius=9)},
    }

    def __init__(self, ambiguity=None, *, inner="near"):
        self.ambiguity = ambiguity
        self.inner = inner

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.radius_ = self._nested("ambiguity").radius
        return self

    def predict(self, X):
        return self.classes_[(X[:, 0] > self.radius_).astype(int)]


@pytest.mark.promise(15)
def test_nested_key_makes_the_default_object():
    first, second = Shift(), Shift()
    assert first.set_params(ambiguity__radius=0.7) is first
    assert first.ambiguity.radius == 0.7
    assert second.ambiguity is None  # and the class default is nobody's
    assert Shift()._nested("ambiguity").radius == 0.1
    assert second._nested("ambiguity") is not second._nested("ambiguity")


def test_a_given_object_is_kept():
    ball = Wasserstein(radius=3, weights=2)
    shift = Shift(ball).set_params(ambiguity__radius=0.7)
    assert shift.ambiguity is ball
    assert (ball.radius, ball.weights) == (0.7, 2)
    assert shift._nested("ambiguity") is ball


@pytest.mark.parametrize("given", [None, Wasserstein(radius=5)])
def test_object_and_key_together(given):
    shift = Shift().set_params(ambiguity__radius=0.7, ambiguity=clone(given) if given else None)
    assert shift.ambiguity.radius == 0.7


def test_shorthands_and_wrong_names():
    assert Shift().set_params(inner__weights=2).inner.radius == 1
    assert Shift(inner="far")._nested("inner").radius == 9
    with pytest.raises(InvalidDataError, match=r"inner='middle' is unknown.*'near', 'far'"):
        Shift(inner="middle")._nested("inner")
    with pytest.raises(InvalidDataError, match="inner=None is unknown"):
        Shift(inner=None).set_params(inner__radius=1)
    with pytest.raises(ValueError, match="Invalid parameter 'radios'"):
        Shift().set_params(ambiguity__radios=1)
    assert Shift().set_params(inner="far").inner == "far"  # plain values stay plain


@pytest.mark.promise(15)
def test_grid_search_over_the_radius():
    X = np.linspace(0, 1, 20)[:, None]
    y = X[:, 0] > 0.5
    search = GridSearchCV(Shift(), {"ambiguity__radius": [0.1, 0.5, 0.9]}, cv=2).fit(
        X[::-1], y[::-1]
    )
    assert search.best_params_ == {"ambiguity__radius": 0.5}
    assert search.estimator.ambiguity is None


@pytest.mark.parametrize("labels", [[0, 1], [-7, 3, 900], [True, False], [10**9, 5]])
def test_labels_of_many_rows_are_those_of_sorting(labels):
    y = np.array(labels)[np.random.default_rng(0).integers(0, len(labels), 30_000)]
    for found, expected in zip(_classes(y), np.unique(y, return_inverse=True), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -1e80, 1e-80])
def test_one_odd_entry_of_many_is_seen(odd):
    X = np.ones((5000, 3))
    X[:, 1] = 0.0
    assert is_moderate(X)
    X[4097, 1] = odd
    assert not is_moderate(X)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "b", None], dtype=object),
        pd.Series(["a", "b", None]),
        pd.Series(["a", "b", np.nan], dtype=object),
        pd.Series([True, False, None], dtype="boolean"),
    ],
    ids=["none", "text", "nan", "boolean"],
)
def test_missing_labels_are_named(labels):
    with pytest.raises(InvalidDataError, match=r"y\[2\] is .* \(1 of 3 labels are missing\)"):
        _checked_targets(labels, numeric=False)
    assert _checked_targets(labels[:2], numeric=False) is not None
