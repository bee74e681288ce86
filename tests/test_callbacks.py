import os
import signal

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.model_selection import GridSearchCV

from drojko import _callbacks
from drojko._callbacks import CallbackSupportMixin, FitProgress
from drojko._driver import Status, run
from drojko._sklearn import _fit_context
from drojko.exceptions import UnsupportedError


class Perceptron(CallbackSupportMixin, ClassifierMixin, BaseEstimator):
    """A toy: `max_iter` gradient steps towards the difference of the class means."""

    def __init__(self, max_iter=5, rate=0.5, verbose=0):
        self.max_iter = max_iter
        self.rate = rate
        self.verbose = verbose

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        target = X[y == self.classes_[1]].mean(0) - X[y == self.classes_[0]].mean(0)
        self.offset_ = X.mean(0)
        with FitProgress(self, self.max_iter, X=X, y=y) as progress:

            class Solver:
                def step(_, theta):
                    return theta + self.rate * (target - theta)

                def terminate(_, theta):
                    return None

            def callback(theta):
                return progress.step(lambda: {"coef_": theta})

            outcome = run(
                Solver(), np.zeros_like(target), max_iter=self.max_iter, callback=callback
            )
        self.coef_, self.n_iter_, self.status_ = outcome.state, outcome.n_iter, outcome.status
        if outcome.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return self

    def predict(self, X):
        return self.classes_[((X - self.offset_) @ self.coef_ > 0).astype(int)]


class Decorated(Perceptron):
    """With scikit-learn's own teardown around ours, as real estimators have it."""

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y):
        return super().fit(X, y)

    _parameter_constraints: dict = {}


class Spy:
    """Records every hook; `at(context)` may return True, or raise."""

    def __init__(self, at=lambda context: False):
        self.at = at
        self.log = []

    def setup(self, estimator, context):
        self.log.append(("setup", context.task_name, context.task_id))

    def teardown(self, estimator, context):
        self.log.append(("teardown", context.task_name, context.task_id))

    def on_fit_task_begin(self, estimator, context):
        self.log.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(self, estimator, context):
        self.log.append(("end", context.task_name, context.task_id))
        return self.at(context)


class Propagated(Spy):
    max_propagation_depth = None


@pytest.fixture
def data(rng):
    y = np.array(["no", "yes"])[np.arange(40) % 2]
    X = rng.normal(size=(40, 3)) + 2.0 * (y == "yes")[:, None]
    return X, y


def test_hooks_come_in_pairs_and_in_order(data):
    spy = Spy()
    Perceptron(max_iter=2).set_callbacks(spy).fit(*data)
    assert spy.log == [
        ("setup", "fit", 0),
        ("begin", "fit", 0),
        ("begin", "outer", 0),
        ("end", "outer", 0),
        ("begin", "outer", 1),
        ("end", "outer", 1),
        ("end", "fit", 0),
        ("teardown", "fit", 0),
    ]


@pytest.mark.promise(13)
@pytest.mark.parametrize("toy", [Perceptron, Decorated])
def test_a_hook_that_returns_true_stops_and_is_torn_down(data, toy):
    spy = Spy(at=lambda context: context.task_name == "outer" and context.task_id == 2)
    model = toy(max_iter=50).set_callbacks(spy).fit(*data)
    assert (model.n_iter_, model.status_) == (3, "callback")
    assert spy.log[-1][0] == "teardown"
    assert [entry[0] for entry in spy.log].count("teardown") == 1
    assert model.score(*data) > 0.8


def test_without_callbacks_nothing_is_kept(data):
    model = Perceptron().fit(*data)
    assert not [name for name in vars(model) if name.startswith(("_skl", "_callback"))]
    np.testing.assert_array_equal(model.coef_, Perceptron().set_callbacks(Spy()).fit(*data).coef_)


@pytest.mark.promise(15)
def test_scoring_monitor_gives_a_row_per_iteration(data):
    monitor = ScoringMonitor(scoring="accuracy")
    model = Perceptron(max_iter=4).set_callbacks(monitor).fit(*data)
    frame = monitor.get_logs().data_as_pandas
    assert frame["task_name"].tolist() == ["outer"] * 4
    # The steps shrink towards the same direction, so that each iterate predicts alike.
    assert frame["accuracy"].tolist() == [model.score(*data)] * 4


@pytest.mark.promise(15)
def test_grid_search_nests_the_tasks_and_shows_progress(data, capsys):
    monitor, bar, spy = ScoringMonitor(scoring="accuracy"), ProgressBar(), Propagated()
    search = GridSearchCV(Perceptron(max_iter=3).set_callbacks(monitor), {"rate": [0.1, 0.5]}, cv=2)
    search.set_callbacks(bar, spy).fit(*data)
    assert "Perceptron" in capsys.readouterr().out
    ends = [name for kind, name, _ in spy.log if kind == "end"]
    assert ends.count("outer") == 3 * (2 * 2 + 1)  # candidates x folds, and the refit
    assert [entry[0] for entry in spy.log].count("setup") == 1
    assert len(monitor.get_logs(select="all")) == 1  # one run: the whole search
    assert len(monitor.get_logs().data) == 3 * (2 * 2 + 1)


@pytest.mark.promise(13)
@pytest.mark.parametrize("searched", [False, True])
def test_ctrl_c_propagates_and_tears_down(data, searched):
    def at(context):
        if context.task_name == "outer" and context.task_id == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    spy = Propagated(at=at)
    model = Decorated(max_iter=50)
    search = GridSearchCV(model, {"rate": [0.1, 0.5]}, cv=2) if searched else model
    with pytest.raises(KeyboardInterrupt):
        search.set_callbacks(spy).fit(*data)
    kinds = [entry[0] for entry in spy.log]
    assert kinds.count("teardown") == kinds.count("setup") == 1
    assert [entry[1] for entry in spy.log if entry[0] == "end"].count("outer") == 2
    if not searched:
        assert model.status_ == "interrupted"
        assert model.predict(data[0]).shape == (40,)


def test_an_error_in_fit_tears_down(data):
    spy = Spy()
    model = Perceptron(rate="oops").set_callbacks(spy)
    with pytest.raises(TypeError):
        model.fit(*data)
    assert [entry[0] for entry in spy.log] == ["setup", "begin", "teardown"]
    assert not hasattr(model, "_callback_fit_ctx")


def test_verbose_attaches_a_bar_for_the_fit_only(data, capsys):
    spy = Spy()
    model = Perceptron(verbose=1).set_callbacks(spy).fit(*data)
    assert "Perceptron - fit" in capsys.readouterr().out
    assert model._skl_callbacks == [spy]
    Perceptron(verbose=1).set_callbacks(ProgressBar()).fit(*data)
    assert capsys.readouterr().out.count("Perceptron - fit") == 1  # not a second bar
    search = GridSearchCV(Perceptron(verbose=1), {"rate": [0.1]}, cv=2).fit(*data)
    assert "Perceptron" not in capsys.readouterr().out
    assert search.best_params_ == {"rate": 0.1}


def test_clone_keeps_the_callbacks(data):
    spy = Spy()
    clone(Perceptron(max_iter=1).set_callbacks(spy)).fit(*data)
    assert ("end", "outer", 0) in spy.log


def test_degrades_to_no_ops(data, monkeypatch):
    monkeypatch.setattr(_callbacks, "_management", None)
    spy = Spy()
    model = Perceptron(verbose=1).set_callbacks(spy).fit(*data)
    assert spy.log == []
    assert model.n_iter_ == 5
    standin = _callbacks._NoCallbacks()
    assert standin.set_callbacks() is standin
    with pytest.raises(UnsupportedError, match=r"no sklearn\.callback"):
        standin.set_callbacks(spy)


def test_estimator_without_callback_support():
    with FitProgress(BaseEstimator(), 3) as progress:
        assert not progress.step({"coef_": 1})
