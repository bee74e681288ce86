"""Risk over the radius."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko.ambiguity import Wasserstein
from drojko.displays import RobustnessCurveDisplay
from drojko.exceptions import InvalidDataError

RADII = [0.0, 0.2, 0.4]


def test_linear_models_are_exact_and_the_risk_grows(classifier, iris):
    display = RobustnessCurveDisplay.from_estimator(classifier, *iris, radii=RADII)
    assert display.exact
    assert set(display.proof) <= {"ridge-1d", "dual"}
    nominal = log_loss(iris[1], classifier.predict_proba(iris[0]))
    assert display.nominal_risk == pytest.approx(nominal, rel=1e-9)
    assert display.worst_case_risk[0] == pytest.approx(nominal, rel=1e-9)
    assert (np.diff(display.upper_bound) > 0).all()
    assert (display.worst_case_risk <= display.upper_bound * (1 + 1e-9)).all()
    line = display.ax_.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), RADII)
    np.testing.assert_array_equal(line.get_ydata(), display.worst_case_risk)


def test_the_estimators_own_set_is_the_default(classifier, iris):
    """Immutable columns stay: a worst case in fewer directions is milder."""
    own = RobustnessCurveDisplay.from_estimator(classifier, *iris, radii=[0.4])
    free = RobustnessCurveDisplay.from_estimator(
        classifier, *iris, radii=[0.4], ambiguity=Wasserstein(penalty=1.0)
    )
    assert own.upper_bound[0] < free.upper_bound[0]
    expected = classifier.robust_certificate(*iris, Wasserstein(radius=0.4)).upper
    assert free.upper_bound[0] == pytest.approx(expected, rel=1e-9)


def test_default_radii_reach_twice_that_of_the_fit(classifier, iris):
    display = RobustnessCurveDisplay.from_estimator(classifier, *iris)
    np.testing.assert_allclose(display.radii, np.linspace(0, 0.6, 9))
    penalised = clone(classifier).set_params(ambiguity__radius=None, ambiguity__penalty=1.0)
    penalised.fit(*iris)
    display = RobustnessCurveDisplay.from_estimator(penalised, *iris)
    spent = np.sqrt(penalised.certificate_.transport_cost)
    assert display.radii[-1] == pytest.approx(2 * spent)


def test_two_models_share_one_picture(classifier, iris):
    one = RobustnessCurveDisplay.from_estimator(classifier, *iris, radii=RADII, name="one")
    other = clone(classifier).set_params(ambiguity__radius=0.05).fit(*iris)
    two = RobustnessCurveDisplay.from_estimator(other, *iris, radii=RADII, name="two", ax=one.ax_)
    assert two.ax_ is one.ax_
    assert len({line.get_color() for line in two.ax_.lines}) == 2
    legend = [text.get_text() for text in two.ax_.get_legend().get_texts()]
    assert sum(text.startswith("one: ") for text in legend) == 2
    assert sum(text.startswith("two: ") for text in legend) == 2
    # The model for the larger radius is the better one there, and the worse one at zero.
    assert one.upper_bound[-1] < two.upper_bound[-1]
    assert one.nominal_risk > two.nominal_risk


def test_a_loose_bound_is_drawn_with_its_proof():
    display = RobustnessCurveDisplay(
        radii=[0.0, 0.2], nominal_risk=0.1, worst_case_risk=[0.1, 0.3], upper_bound=[0.1, 0.9],
        proof=("dual", "lipschitz"),
    ).plot()  # fmt: skip
    assert not display.exact
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert "upper bound (lipschitz)" in legend
    assert "worst case found (lower bound)" in legend
    np.testing.assert_array_equal(display.ax_.lines[1].get_ydata(), [0.1, 0.9])
    assert len(display.plot(upper=False, nominal=False).ax_.lines) == 1


def test_networks(network, moons):
    display = RobustnessCurveDisplay.from_estimator(network, *moons, radii=[0.0, 0.2])
    assert (display.worst_case_risk <= display.upper_bound).all()
    assert display.worst_case_risk[0] < display.worst_case_risk[1]


def test_an_estimate_is_not_called_a_bound():
    display = RobustnessCurveDisplay(
        radii=[0.1, 0.2], nominal_risk=0.1, worst_case_risk=[0.2, 0.3], upper_bound=[0.2, 0.3],
        proof=("local-estimate", "lipschitz"),
    ).plot()  # fmt: skip
    assert not display.exact
    legend = " ".join(text.get_text() for text in display.ax_.get_legend().get_texts())
    assert "no proof" in legend
    assert "upper bound" not in legend


def test_risks_of_different_size_get_a_logarithmic_axis():
    settings = {"radii": [0.1, 0.2], "nominal_risk": 0.1, "proof": ("dual", "dual")}
    wide = RobustnessCurveDisplay(worst_case_risk=[1, 9], upper_bound=[1, 9], **settings)
    assert wide.plot().ax_.get_yscale() == "log"
    narrow = RobustnessCurveDisplay(worst_case_risk=[0.2, 0.3], upper_bound=[0.2, 0.3], **settings)
    assert narrow.plot().ax_.get_ylim()[0] == 0


def test_pipelines_transform_the_data(classifier, iris):
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), clone(classifier))
    pipeline.fit(*iris)
    display = RobustnessCurveDisplay.from_estimator(pipeline, *iris, radii=RADII)
    direct = RobustnessCurveDisplay.from_estimator(
        pipeline[-1], pipeline[0].transform(iris[0]), iris[1], radii=RADII
    )
    np.testing.assert_array_equal(display.upper_bound, direct.upper_bound)


def test_radii_must_be_a_list(classifier, iris):
    for radii in ([], 0.5):
        with pytest.raises(InvalidDataError, match="radii"):
            RobustnessCurveDisplay.from_estimator(classifier, *iris, radii=radii)


def test_from_report_sorts_the_table():
    table = pd.DataFrame(
        {
            "radius": [0.2, 0.1],
            "nominal_risk": [0.1, 0.1],
            "worst_case_risk": [0.3, 0.2],
            "upper_bound": [0.4, 0.25],
            "proof": ["lipschitz", "lipschitz"],
        }
    )
    display = RobustnessCurveDisplay.from_report(SimpleNamespace(table=table), name="net")
    np.testing.assert_array_equal(display.upper_bound, [0.25, 0.4])
    with pytest.raises(InvalidDataError, match="penalty"):
        RobustnessCurveDisplay.from_report(SimpleNamespace(table=table.drop(columns="radius")))


def test_a_second_model_on_the_same_axes_is_in_the_picture():
    radii = np.array([0.0, 0.1, 0.2])
    low, high = np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.5, 0.9])

    def display(nominal, risks, name):
        return RobustnessCurveDisplay(
            radii=radii, nominal_risk=nominal, worst_case_risk=risks, upper_bound=risks,
            proof=("dual",) * 3, name=name,
        )  # fmt: skip

    first = display(0.1, low, "a").plot()
    display(0.2, high, "b").plot(first.ax_)
    bottom, top = first.ax_.get_ylim()
    assert bottom == 0
    assert top > 0.9
