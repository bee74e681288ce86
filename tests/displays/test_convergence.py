"""The history of a fit, drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko.displays import ConvergenceDisplay
from drojko.exceptions import InvalidDataError


def test_panels_show_the_history(classifier):
    display = ConvergenceDisplay.from_estimator(classifier)
    history = classifier.history_
    assert len(display.axes_) == 3
    assert display.ax_ is display.axes_[0]
    assert display.figure_ is display.ax_.figure
    for panel, name in zip(display.axes_, ("robust_risk", "transport_cost", "stationarity")):
        line = panel.lines[0]
        shown = np.isfinite(history[name])
        np.testing.assert_array_equal(line.get_xdata(), history["iteration"][shown])
        np.testing.assert_array_equal(line.get_ydata(), history[name][shown])
    assert classifier.status_ in display.ax_.get_title(loc="left")


def test_budget_is_the_squared_radius(classifier, iris):
    panel = ConvergenceDisplay.from_estimator(classifier, quantities=("transport_cost",)).ax_
    assert panel.lines[-1].get_ydata()[0] == pytest.approx(0.3**2)
    penalised = clone(classifier).set_params(ambiguity__radius=None, ambiguity__penalty=1.0)
    penalised.fit(*iris)
    display = ConvergenceDisplay.from_estimator(penalised, quantities=("transport_cost",))
    assert display.budget is None
    assert len(display.ax_.lines) == 1


def test_given_axes_are_divided_or_used(classifier):
    figure, (left, right) = plt.subplots(1, 2)
    display = ConvergenceDisplay.from_estimator(classifier, ax=left)
    assert display.figure_ is figure
    assert len(figure.axes) == 5
    display.plot(right, quantities=("robust_risk",))
    assert display.ax_ is right


def test_axes_without_a_grid_take_one_quantity_only(classifier):
    ax = plt.figure().add_axes((0.1, 0.1, 0.8, 0.8))
    display = ConvergenceDisplay(classifier.history_)
    with pytest.raises(InvalidDataError, match="one quantity"):
        display.plot(ax)
    assert display.plot(ax, quantities=("penalty",)).ax_ is ax


def test_pipelines_are_looked_into(classifier, iris):
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), clone(classifier))
    display = ConvergenceDisplay.from_estimator(pipeline.fit(*iris))
    assert len(display.history) == len(pipeline[-1].history_)
    assert display.ax_.lines[0].get_color() == "#0072B2"


def test_unknown_quantities_and_estimators_raise(classifier):
    display = ConvergenceDisplay(classifier.history_)
    with pytest.raises(InvalidDataError, match="robust_risk"):
        display.plot(quantities=("speed",))
    with pytest.raises(InvalidDataError, match="StandardScaler is no drojko estimator"):
        ConvergenceDisplay.from_estimator(StandardScaler())
