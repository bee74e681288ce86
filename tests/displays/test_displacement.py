"""Bars of the transport budget."""

from types import SimpleNamespace

import numpy as np
import pytest

from drojko.displays import DisplacementDisplay
from drojko.exceptions import InvalidDataError


def widths(display):
    return np.array([patch.get_width() for patch in display.ax_.patches])


def test_shares_sum_to_one_and_the_largest_comes_first(classifier):
    display = DisplacementDisplay.from_estimator(classifier)
    assert widths(display).sum() == pytest.approx(1.0, rel=1e-9)
    per_feature = widths(display).reshape(2, -1).sum(axis=0)  # a row of bars for each class
    assert (np.diff(per_feature) <= 0).all()
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels == display.ranking()
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert legend == ["class 1", "class 2"]


def test_an_immutable_column_takes_nothing(classifier):
    display = DisplacementDisplay.from_estimator(classifier)
    assert display.ranking()[-1] == "sepal width (cm)"
    assert widths(display).reshape(2, -1)[:, -1].sum() == 0.0


def test_what_is_left_out_is_named(classifier):
    display = DisplacementDisplay.from_estimator(classifier, max_features=2)
    left_out = 1.0 - widths(display).sum()
    assert f"(2 other features: {left_out:.0%})" in display.ax_.get_xlabel()
    with pytest.raises(InvalidDataError, match="max_features=0"):
        display.plot(max_features=0)


def test_regression_has_one_bar_a_feature(regressor):
    display = DisplacementDisplay.from_estimator(regressor)
    assert len(display.ax_.patches) == 10
    assert display.ax_.get_legend() is None
    # The displacement of a linear model is along its coefficients: shares are their squares.
    moved = regressor.coef_ * (regressor.feature_names_in_ != "sex")
    share = display.displacement.set_index("feature")["share"].to_numpy()
    np.testing.assert_allclose(share, moved**2 / np.sum(moved**2), atol=1e-9)


def test_nothing_moves(classifier, iris):
    from sklearn.base import clone

    still = clone(classifier).set_params(ambiguity__radius=0.0, alpha=0.1).fit(*iris)
    display = DisplacementDisplay.from_estimator(still)
    assert widths(display).sum() == 0.0
    assert "nothing moves" in [text.get_text() for text in display.ax_.texts]


def test_from_report_asks_for_the_worst_case(classifier):
    asked = []

    def worst_case(radius):
        asked.append(radius)
        return classifier.worst_case_

    report = SimpleNamespace(worst_case=worst_case)
    display = DisplacementDisplay.from_report(report, radius=0.3)
    assert asked == [0.3]
    assert display.displacement.equals(classifier.worst_case_.displacement())


def test_sets_that_reweight_name_their_own_shares_and_the_mass_of_classes(iris):
    from drojko import DROClassifier
    from drojko.ambiguity import KL

    clf = DROClassifier(KL(radius=0.1), reference="empirical").fit(*iris)
    display = DisplacementDisplay.from_estimator(clf)
    assert display.ax_.get_xlabel().startswith("share of the change, in standard deviations")
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    moved = display.displacement.groupby("class")["mass"].first()
    assert legend == [f"class {k} (mass {100 * v:+.1f} points)" for k, v in moved.items()]
