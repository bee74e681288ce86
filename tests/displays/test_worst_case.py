"""The worst case in two features."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris

from drojko import DROClassifier
from drojko.displays import WorstCaseDisplay
from drojko.exceptions import InvalidDataError


def test_default_features_take_the_largest_shares(classifier):
    display = WorstCaseDisplay.from_estimator(classifier, n_samples=40)
    spent = classifier.worst_case_.displacement().groupby("feature")["share"].sum()
    assert set(display.features) == set(spent.nlargest(2).index)
    assert display.share == pytest.approx(spent.nlargest(2).sum())
    assert display.source.shape == display.target.shape == (40, 2)
    assert display.boundary is None  # four features: no regions in a plane
    assert display.figure_ is display.ax_.figure
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == display.features


def test_names_and_indices_mean_the_same_and_immutable_columns_stay(classifier):
    by_name = WorstCaseDisplay.from_estimator(
        classifier, features=("sepal width (cm)", "petal length (cm)")
    )
    by_index = WorstCaseDisplay.from_estimator(classifier, features=(1, -2))
    np.testing.assert_array_equal(by_name.target, by_index.target)
    np.testing.assert_array_equal(by_name.source[:, 0], by_name.target[:, 0])
    assert np.abs(by_name.source[:, 1] - by_name.target[:, 1]).max() > 0


def test_all_draws_together_spend_the_budget(network, moons):
    """Two features and all atoms: the mean squared length of the arrows is the transport cost."""
    penalised = clone(network).set_params(ambiguity__radius=None, ambiguity__penalty=3.0)
    with pytest.warns(UserWarning, match="max_iter"):
        penalised.fit(*moons)
    display = WorstCaseDisplay.from_estimator(penalised, n_samples=10**6)
    assert len(display.y) == len(moons[1])
    cost = np.mean(np.sum((display.target - display.source) ** 2, axis=1))
    assert cost > 0
    assert cost == pytest.approx(penalised.certificate_.transport_cost, rel=1e-6)


@pytest.mark.parametrize("features", [(0, 1), (1, 0)])
def test_regions_agree_with_predictions(network, features):
    display = WorstCaseDisplay.from_estimator(network, features=features)
    first, second, margins = display.boundary
    grid = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    predicted = network.predict(grid[:, list(features)])
    np.testing.assert_array_equal(network.classes_[margins.argmax(axis=0).ravel()], predicted)


def test_regions_of_three_classes():
    X, y = load_iris(return_X_y=True)
    model = DROClassifier(reference="empirical").fit(X[:, 2:], y)
    display = WorstCaseDisplay.from_estimator(model, n_samples=20)
    first, second, margins = display.boundary
    assert margins.shape == (3, len(second), len(first))
    # One class is preferred at every point, and the runner-up is as far behind as it is ahead.
    best = np.sort(margins, axis=0)
    np.testing.assert_allclose(best[-1], -best[-2])
    assert (best[-1] >= 0).all()


def test_arrows_and_regions_can_be_left_out(network):
    display = WorstCaseDisplay.from_estimator(network)
    full = len(display.ax_.collections)
    bare = display.plot(arrows=False, boundary=False)
    assert len(bare.ax_.collections) == 4 < full  # reference and worst case of two classes


def test_regression_is_coloured_by_the_target(regressor):
    display = WorstCaseDisplay.from_estimator(regressor, n_samples=30)
    assert display.classes is None
    np.testing.assert_array_equal(display.ax_.collections[-1].get_array(), display.y)


def test_the_seed_chooses_the_draws(classifier):
    one, again, other = (
        WorstCaseDisplay.from_estimator(classifier, n_samples=20, random_state=seed).source
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ("petal length (cm)", "nothing")}, "'nothing' is unknown"),
        ({"features": (0, 4)}, "feature 4 is unknown"),
        ({"features": (0, 0)}, "two different"),
        ({"n_samples": 0}, "n_samples=0"),
    ],
)
def test_settings_that_cannot_be_used_raise(classifier, settings, message):
    with pytest.raises(InvalidDataError, match=message):
        WorstCaseDisplay.from_estimator(classifier, **settings)


def test_one_feature_is_no_picture(classifier, iris):
    single = clone(classifier).set_params(ambiguity__immutable=None)
    single.fit(iris[0][["petal length (cm)"]], iris[1])
    with pytest.raises(InvalidDataError, match="needs 2 features"):
        WorstCaseDisplay.from_estimator(single)


def test_from_report_takes_the_worst_case_of_a_radius(classifier):
    report = SimpleNamespace(worst_case=lambda radius: {0.3: classifier.worst_case_}[radius])
    display = WorstCaseDisplay.from_report(report, radius=0.3)
    direct = WorstCaseDisplay.from_estimator(classifier)
    np.testing.assert_array_equal(display.target, direct.target)
