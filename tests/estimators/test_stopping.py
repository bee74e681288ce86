"""Promise 13: Ctrl-C, callbacks and time limits keep the best model so far."""

import os
import signal

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import drojko
from drojko import DROClassifier
from drojko.approaches.transport import approach as _transport
from drojko.approaches.transport.linear import ExactTransport
from tests.estimators._cases import binary, mlp, unfitted

pytestmark = [
    pytest.mark.promise(13),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

#: One per solver: Newton, smoothed quasi-Newton, quasi-Newton with particles, subgradient (two).
ITERATIVE = [
    "linear",
    "absolute",
    "linear-classes",
    "callable-linear",
    "mlp",
    "mlp-kde",
    "mlp-squared",
]


class At:
    """Acts at the end of an outer iteration, as a user's callback does."""

    def __init__(self, iteration, act):
        self.iteration, self.act, self.torn_down = iteration, act, 0

    def setup(self, estimator, context): ...

    def teardown(self, estimator, context):
        self.torn_down += 1

    def on_fit_task_begin(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "outer" and context.task_id == self.iteration:
            return self.act()
        return False


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    return False


def stop():
    return True


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)  # noqa: TID251
    yield
    given_back = torch.get_num_threads() == 2
    torch.set_num_threads(1)  # noqa: TID251
    assert given_back


@pytest.mark.parametrize("name", ITERATIVE)
def test_ctrl_c_keeps_a_model_and_propagates(name, tmp_path):
    estimator, X, y = unfitted(name)
    callback = At(2, interrupt)
    estimator.set_callbacks(callback)
    with pytest.raises(KeyboardInterrupt, match="keyboard"):
        estimator.fit(X, y)
    assert (estimator.status_, estimator.n_iter_) == ("interrupted", 3)
    assert callback.torn_down == 1
    assert len(estimator.history_) == 3
    assert np.isfinite(estimator.score(X, y))
    assert estimator.certificate_ is None
    with pytest.raises(AttributeError, match=r"interrupted.*fit again"):
        estimator.worst_case_
    assert np.isfinite(estimator.robust_score(X, y))  # of what there is
    estimator.set_callbacks()
    if not callable(estimator.loss):
        estimator.save(tmp_path / "model")
        copy = drojko.load(tmp_path / "model")
        np.testing.assert_array_equal(copy.predict(X), estimator.predict(X))
    estimator.set_params(warm_start=True, max_iter=5).fit(X, y)
    assert estimator.status_ != "interrupted"
    assert estimator.worst_case_.risk() > 0


@pytest.mark.parametrize("name", ITERATIVE)
def test_what_is_kept_is_the_best_so_far(name):
    """Further iterations before the interrupt leave a model that is no worse."""
    robust = []
    for iteration in (0, 4 if name.startswith("linear") else 7):  # Newton's method ends early
        estimator, X, y = unfitted(name)
        estimator.set_params(max_iter=40, tol=1e-9).set_callbacks(At(iteration, interrupt))
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(X, y)
        robust.append(-estimator.robust_score(X, y))
    assert robust[1] < robust[0]


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_callback_that_stops_returns_a_whole_model(name):
    estimator, X, y = unfitted(name)
    callback = At(2, stop)
    estimator.set_params(tol=1e-9).set_callbacks(callback).fit(X, y)
    assert (estimator.status_, estimator.n_iter_) == ("callback", 3)
    assert "callback asked to stop" in estimator.message_
    assert callback.torn_down == 1
    assert estimator.certificate_.lower <= estimator.certificate_.upper
    assert estimator.worst_case_.risk() == estimator.certificate_.worst_case_risk


@pytest.mark.parametrize("name", ITERATIVE)
def test_max_time_returns_a_whole_model(name):
    estimator, X, y = unfitted(name)
    estimator.set_params(max_time=1e-9, max_iter=10_000).fit(X, y)
    assert estimator.status_ == "max_time"
    assert "raise max_time" in estimator.message_
    assert estimator.n_iter_ <= 2
    assert estimator.certificate_.lower <= estimator.certificate_.upper


def test_the_last_iteration_may_be_the_one_that_is_stopped():
    estimator, X, y = unfitted("mlp")
    estimator.set_params(max_iter=3).set_callbacks(At(2, interrupt))
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, y)
    assert estimator.status_ == "interrupted"


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_ctrl_c_while_the_certificate_is_computed(name, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    estimator, X, y = unfitted(name)
    expected = clone(estimator).fit(X, y).predict(X)
    monkeypatch.setattr(_transport, "assess", interrupted)
    monkeypatch.setattr(ExactTransport, "assess", interrupted)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, y)
    assert estimator.status_ == "interrupted"
    assert "certificate" in estimator.message_
    np.testing.assert_array_equal(estimator.predict(X), expected)
    assert estimator.certificate_ is None


@pytest.mark.parametrize("name", ["linear", "linear-classes", "mlp"])
def test_ctrl_c_ends_a_grid_search(name):
    estimator, X, y = unfitted(name)
    estimator.set_callbacks(At(1, interrupt))
    fits = []

    class Counting(type(estimator)):
        def _fit(self, *args):
            fits.append(self)
            return super()._fit(*args)

    estimator.__class__ = Counting
    search = GridSearchCV(estimator, {"ambiguity__radius": [0.1, 0.2]}, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, y)
    assert len(fits) == 1
    assert fits[0].status_ == "interrupted"
    assert fits[0].predict(X).shape == y.shape


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_an_error_in_a_callback_reaches_the_user(name):
    estimator, X, y = unfitted(name)

    def fail():
        raise RuntimeError("from the callback")

    callback = At(1, fail)
    with pytest.raises(RuntimeError, match="from the callback"):
        estimator.set_callbacks(callback).fit(X, y)
    assert callback.torn_down == 1


def test_a_fit_after_an_interrupted_one_forgets_it():
    X, y = binary()
    estimator = mlp().set_callbacks(At(1, interrupt))
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, y)
    estimator.set_callbacks().fit(X, y)
    np.testing.assert_array_equal(estimator.predict(X), mlp().fit(X, y).predict(X))
    assert estimator.worst_case_.risk() > 0


def test_a_refit_that_fails_leaves_the_last_one_whole():
    estimator, X, y = unfitted("linear")
    estimator.set_params(reference="empirical").fit(X, y)

    def fail():
        raise RuntimeError("in a callback")

    estimator.set_callbacks(At(0, fail))
    with pytest.raises(RuntimeError, match="in a callback"):
        estimator.fit(2.0 * X, y)
    points, _, _ = estimator.reference_.points(len(X), torch.Generator())
    assert float(points.abs().max()) == pytest.approx(np.abs(X).max())
    assert np.isfinite(estimator.worst_case_.risk())


def test_a_fit_that_fails_leaves_an_earlier_model_with_its_columns():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    model = DROClassifier(reference="empirical").fit(X, y)
    before = model.predict(X)
    with pytest.raises(ValueError, match="sample_weight"):
        model.fit(X[:, :1], np.arange(40) % 4, sample_weight=-np.ones(40))
    assert (model.n_features_in_, list(model.classes_)) == (3, [0, 1])
    np.testing.assert_array_equal(model.predict(X), before)
    new = DROClassifier(reference="empirical")
    with pytest.raises(ValueError, match="sample_weight"):
        new.fit(X, y, sample_weight=-np.ones(40))
    assert not hasattr(new, "n_features_in_")
