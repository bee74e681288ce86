"""Class weights are sample weights by class."""

import numpy as np
import pytest
from sklearn.datasets import make_classification

from drojko import DROClassifier
from drojko.ambiguity import KL, Wasserstein

X, Y = make_classification(200, 4, weights=[0.85], flip_y=0.1, random_state=0)
NAMES = np.array(["no", "yes"])[Y]


def fit(ambiguity, weight=None, **settings):
    settings = {"reference": "empirical", "alpha": 1e-2, **settings}
    return DROClassifier(ambiguity, **settings).fit(X, NAMES, sample_weight=weight)


@pytest.mark.parametrize("ambiguity", [Wasserstein(radius=0.1), KL(radius=0.1)])
def test_they_multiply_the_weights_of_the_rows(ambiguity):
    rows = np.random.default_rng(0).uniform(0.5, 2.0, size=len(Y))
    one = fit(ambiguity, rows, class_weight={"no": 1.0, "yes": 3.0})
    other = fit(ambiguity, rows * np.where(Y == 1, 3.0, 1.0))
    np.testing.assert_allclose(one.coef_, other.coef_, rtol=1e-12)
    assert one.certificate_.upper == other.certificate_.upper


def test_balanced_gives_every_class_the_same_mass():
    model = fit(Wasserstein(radius=0.1), class_weight="balanced")
    _, label, mass = model.reference_.points(200, None)
    assert float(mass[label == 0].sum()) == pytest.approx(0.5)
    assert (model.predict(X) == "yes").sum() > (fit(Wasserstein(0.1)).predict(X) == "yes").sum()


@pytest.mark.parametrize("weight", ["even", 2.0])
def test_weights_that_cannot_be(weight):
    with pytest.raises(ValueError, match="class_weight"):
        fit(Wasserstein(radius=0.1), class_weight=weight)


def test_a_class_of_no_weight_is_named():
    with pytest.raises(ValueError, match="'yes' has zero"):
        fit(Wasserstein(radius=0.1), class_weight={"no": 1.0, "yes": 0.0})
