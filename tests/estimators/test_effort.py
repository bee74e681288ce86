"""Effort and time: how hard a certificate is worked on, and when all of a fit ends."""

import pickle
import time

import numpy as np
import pytest
from sklearn.datasets import make_classification

import drojko
from drojko import DROClassifier, DRORegressor
from drojko.ambiguity import KL, CVaR, Group, Sinkhorn, Wasserstein
from drojko.exceptions import InvalidDataError

X, Y = make_classification(120, 4, flip_y=0.2, random_state=0)
T = X @ [1.0, 2.0, 0.0, -1.0] + np.random.default_rng(0).normal(size=120)
SETS = {
    "W2": Wasserstein(radius=0.2),
    "W2 price": Wasserstein(penalty=2.0),
    "W2 bounds": Wasserstein(radius=0.2, bounds={0: (-9.0, 9.0)}),
    "W1": Wasserstein(radius=0.2, order=1),
    "Sinkhorn": Sinkhorn(0.1, radius=0.2),
    "KL": KL(radius=0.1),
    "CVaR": CVaR(alpha=0.3),
    "Group": Group(),
}
pytestmark = pytest.mark.filterwarnings("ignore")


def pair(name, model="linear", **settings):
    """The same fit with a certificate and without one."""
    settings = {"reference": "empirical", "alpha": 1e-2, "random_state": 0, **settings}
    extra = {"groups": (X[:, 1] > 0).astype(int)} if name == "Group" else {}
    with_one = DROClassifier(SETS[name], model=model, **settings).fit(X, Y, **extra)
    without = DROClassifier(SETS[name], model=model, effort="none", **settings).fit(X, Y, **extra)
    return with_one, without


@pytest.mark.parametrize("name", SETS)
def test_no_certificate_the_same_model_and_its_worst_case_when_asked(name, tmp_path):
    certified, plain = pair(name)
    assert plain.certificate_ is None
    assert np.array_equal(plain.coef_, certified.coef_)
    assert plain.optimality_gap_ == pytest.approx(certified.optimality_gap_, nan_ok=True)
    copy = pickle.loads(pickle.dumps(plain))
    risk = certified.worst_case_.risk()
    assert plain.worst_case_.risk() == pytest.approx(risk, rel=1e-6)
    assert plain.certificate_ is None  # asking for one does not make the other
    copy.save(tmp_path / "model.drojko")
    assert drojko.load(tmp_path / "model.drojko").worst_case_.risk() == pytest.approx(
        risk, rel=1e-6
    )


def test_a_worst_case_that_waits_is_that_of_the_fit():
    """Settings that change afterwards do not reach it."""
    model = DROClassifier(Wasserstein(0.2), reference="empirical", effort="none").fit(X, Y)
    expected = model.robust_certificate(X, Y).worst_case_risk
    model.set_params(ambiguity__radius=3.0)
    assert model.worst_case_.risk() == pytest.approx(expected, rel=1e-9)


def test_networks_wait_as_well():
    model = DROClassifier(
        SETS["W2"], model="mlp", hidden_layer_sizes=8, effort="none", max_iter=5, random_state=0,
        reference="empirical",
    ).fit(X, Y)  # fmt: skip
    parameters = {name: value.copy() for name, value in model.parameters_.items()}
    found = model.robust_certificate(X, Y)
    assert model.worst_case_.risk() == pytest.approx(found.worst_case_risk, rel=1e-2)
    assert all(np.array_equal(model.parameters_[name], parameters[name]) for name in parameters)


def test_max_time_bounds_all_of_a_fit_of_a_network():
    settings = {"model": "mlp", "hidden_layer_sizes": 32, "random_state": 0, "max_iter": 100_000}
    began = time.perf_counter()
    model = DROClassifier(SETS["W2"], max_time=1.0, **settings).fit(X, Y)
    assert time.perf_counter() - began < 20.0  # a stall of the machine aside
    assert model.status_ == "max_time"
    assert model.history_.seconds.iloc[-1] < 1.0  # the certificate had its part
    assert model.certificate_.lower <= model.certificate_.upper


def test_a_thorough_certificate_that_time_cuts_off_says_so():
    settings = {"model": "mlp", "hidden_layer_sizes": 32, "random_state": 0, "max_iter": 3}
    model = DROClassifier(SETS["W2"], effort="thorough", reference="empirical", **settings)
    with pytest.warns(UserWarning, match=r"effort='thorough' was cut off after max_time=0.05 s"):
        model.set_params(max_time=0.05).fit(X, Y)
    assert model.certificate_.lower <= model.certificate_.upper
    with pytest.warns(UserWarning, match="cut off"):
        model.robust_certificate(X, Y, effort="thorough", max_time=0.01)


def test_networks_of_many_rows_are_certified_on_a_sample_of_them():
    """With a standard error that covers the mean loss of all rows; the same for the same seed."""
    rng = np.random.default_rng(0)
    many = rng.normal(size=(3_000, 3))
    label = (many[:, 0] + rng.normal(size=3_000) > 0).astype(int)
    how = {"model": "mlp", "hidden_layer_sizes": 4, "reference": "empirical", "random_state": 0}
    one, two = (DROClassifier(SETS["W2"], max_iter=2, **how).fit(many, label) for _ in range(2))
    claim = one.certificate_
    assert claim.standard_error > 0.0
    assert claim.lower <= claim.upper
    assert (claim.lower, claim.upper) == (two.certificate_.lower, two.certificate_.upper)
    f = one.decision_function(many)
    loss = np.logaddexp(0.0, np.where(label == 1, -f, f)).mean()
    assert claim.nominal_risk == pytest.approx(loss, abs=5 * claim.standard_error)


@pytest.mark.parametrize("value", ["slow", None, 3])
def test_unknown_efforts(value):
    with pytest.raises(ValueError, match="effort"):
        DRORegressor(effort=value).fit(X, T)
    model = DRORegressor(reference="empirical").fit(X, T)
    with pytest.raises(InvalidDataError, match="effort"):
        model.robust_certificate(X, T, effort=value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "1"])
def test_times_that_cannot_be(value):
    model = DRORegressor(reference="empirical").fit(X, T)
    with pytest.raises(InvalidDataError, match="max_time"):
        model.robust_certificate(X, T, max_time=value)
