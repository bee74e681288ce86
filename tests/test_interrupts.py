"""Ctrl-C at any moment: it propagates, nothing stays changed, and what there is by then is kept.

Moments are drawn anew with ``--seed``; ``--long`` tries 200 of them.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from threadpoolctl import threadpool_info
from torch.nn.functional import softplus

import drojko
from drojko import DROClassifier, DRORegressor, MinimaxProblem, radius_path, select_radius
from drojko._driver import keeping
from drojko.ambiguity import KL, MMD, CVaR, Sinkhorn, Wasserstein
from drojko.flows import ImportanceCorrectedScheme, JKOFlow, SemiDualScheme, functionals
from drojko.measures import Gaussian
from drojko.problems import newsvendor

pytestmark = [
    pytest.mark.promise(13),
    pytest.mark.filterwarnings("ignore"),
]
ROOT = Path(drojko.__file__).parent.parent
RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 3))
Y = (X[:, 0] + 0.5 * RNG.normal(size=80) > 0).astype(int)
T = X @ [1.0, 2.0, 3.0] + RNG.normal(size=80)
MANY = RNG.normal(size=(30_000, 5))
LABELS = (MANY[:, 0] + RNG.normal(size=30_000) > 0).astype(int)


class Heard:
    """Counts what ends; a callback of estimators, flows and decisions alike."""

    def __init__(self):
        self.count = 0

    def __call__(self, *args):
        self.count += 1
        return False

    def setup(self, estimator, context): ...

    def teardown(self, estimator, context): ...

    def on_fit_task_begin(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context):
        self.count += context.task_name == "outer"
        return False


def fit(estimator, x=X, y=Y):
    def work(heard):
        estimator.set_callbacks(heard).fit(x, y)

    return work


WELL = functionals.PotentialEnergy(lambda x: 0.5 * x.square().sum(1)) + functionals.Entropy()


def flow(scheme=None, energy=WELL):
    def work(heard):
        start = Gaussian([3.0, 0.0], [[0.2, 0.0], [0.0, 0.2]])
        JKOFlow(energy, scheme, step_size=0.2).run(start, 3, random_state=0, callback=heard)

    return work


def semidual_flow():
    scheme = SemiDualScheme(iterations=60, n_particles=1000, batch_size=128, target_batch=256)
    return flow(scheme, functionals.DivergenceTo(torch.from_numpy(X[:, :2])))


def corrected_flow():
    scheme = ImportanceCorrectedScheme(
        width=8, iterations=40, n_particles=1000, n_calibration=2000, integration_steps=2
    )
    return flow(scheme)


def decision(ambiguity, convex):
    def loss(t, z):
        return (z @ t - 1.0).square() + (z @ t - 0.5).abs() + 0.1 * (t * t).sum()

    problem = MinimaxProblem(loss, torch.zeros(3), X, ambiguity, convex=convex)
    return lambda heard: problem.solve(random_state=0, callback=heard, max_iter=50)


def softened(p, y):
    return softplus(p) - p * y


def audited(ambiguity, radii):
    model = DROClassifier(reference="empirical").fit(X, Y)

    def work(heard):
        drojko.audit(model, X, Y, ambiguity, radii=radii, random_state=0)

    return work


SMALL = {"reference": "empirical", "random_state": 0}
CASES = {
    "transport": lambda: fit(DROClassifier(random_state=0)),
    "many rows": lambda: fit(DROClassifier(**SMALL), MANY, LABELS),
    "kl": lambda: fit(DROClassifier(KL(radius=0.1), **SMALL)),
    "cvar": lambda: fit(DRORegressor(CVaR(alpha=0.3), loss="absolute", **SMALL), X, T),
    "order one": lambda: fit(DROClassifier(Wasserstein(radius=0.1, order=1), **SMALL)),
    "sinkhorn": lambda: fit(DROClassifier(Sinkhorn(0.1, radius=0.1), **SMALL)),
    "mmd": lambda: fit(DROClassifier(MMD(radius=0.1), **SMALL)),
    "classes": lambda: fit(DROClassifier(**SMALL), X, Y + (X[:, 1] > 0.5)),
    "callable": lambda: fit(DROClassifier(loss=softened, **SMALL)),
    "network": lambda: fit(DROClassifier(model="mlp", max_iter=5, random_state=0)),
    "network, kl": lambda: fit(DROClassifier(KL(radius=0.1), model="mlp", max_iter=5, **SMALL)),
    "importance": lambda: fit(DROClassifier(KL(radius=0.1), inner="importance", random_state=0)),
    "flow": flow,
    "flow, semi-dual": semidual_flow,
    "flow, importance": corrected_flow,
    "audit": lambda: audited(Wasserstein(), [0.1, 0.2, 0.4]),
    "audit, kl": lambda: audited(KL(), [0.1, 0.2, 0.3, 0.4]),
    "decision": lambda: decision(Wasserstein(radius=0.1), True),
    "decision, kl": lambda: decision(KL(radius=0.1), None),
    "newsvendor": lambda: (
        lambda heard: newsvendor(RNG.gamma(4.0, 25.0, size=300), Wasserstein(radius=10.0)).solve(
            callback=heard
        )
    ),
    "select_radius": lambda: (
        lambda heard: select_radius(DROClassifier(**SMALL, alpha=1e-3), X, Y, random_state=0)
    ),
    "radius_path": lambda: (
        lambda heard: radius_path(
            DROClassifier(**SMALL).set_callbacks(heard), X, Y, np.linspace(0.02, 0.4, 12)
        )
    ),
    "dual_path": lambda: (
        lambda heard: KL(radius=0.1).dual_path(
            RNG.exponential(size=200_000), np.linspace(0.01, 1.0, 40)
        )
    ),
}


def settings():
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    handler = signal.getsignal(signal.SIGINT)
    config = sklearn.get_config()
    return torch.get_num_threads(), pools, torch.is_grad_enabled(), handler, np.geterr(), config


@contextmanager
def timer(seconds):
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def interrupted(name, share):
    """Run a case and interrupt it after a share of its time; whether it came to that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name not in interrupted.seconds:
            CASES[name]()(Heard())  # imports, caches
            work, began = CASES[name](), time.perf_counter()
            work(Heard())
            interrupted.seconds[name] = time.perf_counter() - began
        work, heard, before = CASES[name](), Heard(), settings()
        caught, returned = None, False
        try:
            with timer(max(share * interrupted.seconds[name], 1e-4)):
                work(heard)
                returned = True
        except KeyboardInterrupt as error:
            caught = error
        assert settings() == before
        if caught is None or returned:  # the timer, too, takes time to end
            return False
        assert heard.count == 0 or caught.result is not None
        return True


interrupted.seconds = {}


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Shells start background jobs, and these their children, with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)  # noqa: TID251
    yield
    torch.set_num_threads(1)  # noqa: TID251


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ctrl_c_at_any_moment(name, rng, request, two_threads):
    if not request.config.getoption("--long") and name not in (
        "transport", "many rows", "kl", "callable", "decision", "audit, kl", "radius_path"
    ):  # fmt: skip
        pytest.skip("with --long")
    moments = 9 if request.config.getoption("--long") else 2
    count = sum(interrupted(name, share) for share in rng.uniform(0.02, 0.95, size=moments))
    assert count > 0


# What is kept ------------------------------------------------------------------------------------


def test_the_estimator_is_the_result():
    class Third(Heard):
        def on_fit_task_end(self, estimator, context):
            super().on_fit_task_end(estimator, context)
            if self.count == 3:
                signal.raise_signal(signal.SIGINT)

    for model in (
        DROClassifier(**SMALL),
        DROClassifier(model="mlp", random_state=0),
        DROClassifier(loss=softened, **SMALL),
        DROClassifier(KL(radius=0.1), **SMALL),
    ):
        with pytest.raises(KeyboardInterrupt) as caught:
            model.set_callbacks(Third()).fit(X, Y)
        assert caught.value.result is model
        assert (model.status_, model.n_iter_) == ("interrupted", 3)
        assert model.predict(X).shape == Y.shape


@pytest.mark.parametrize("name", ["kl", "network, kl", "flow", "decision, kl"])
def test_a_signal_after_the_last_line_carries_the_result(name, monkeypatch):
    """Between the end of the work and its return to the caller, in whatever surrounds it."""

    def struck(work, so_far):
        def and_strike():
            work()
            raise KeyboardInterrupt

        return keeping(and_strike, so_far)

    for module in ("drojko._sklearn", "drojko.flows.jko", "drojko.problems.problem"):
        monkeypatch.setattr(importlib.import_module(module), "keeping", struck)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KeyboardInterrupt) as caught:
            CASES[name]()(Heard())
    assert caught.value.result is not None
    # Nothing of an earlier fit passes for this one's.
    model = DROClassifier(**SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y)
    monkeypatch.setattr(DROClassifier, "_fit", lambda *args: None)
    with pytest.raises(KeyboardInterrupt) as caught:
        model.fit(X, Y)
    assert not hasattr(caught.value, "result")


def test_the_sample_that_goes_first_does_not_swallow_an_interrupt(monkeypatch):
    """Many rows: a sample of them is solved before, and its interrupt is the fit's."""
    from drojko.minimax import many_rows

    def strike(self, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(many_rows.ManyRows, "step", strike)
    with pytest.raises(KeyboardInterrupt):
        DROClassifier(**SMALL).fit(MANY, LABELS)


def test_parts_that_are_done_are_the_result(monkeypatch):
    fits, inside = [], DROClassifier._fit

    def counted(self, *args, **kwargs):
        fits.append(self)
        if len(fits) == 4:
            raise KeyboardInterrupt
        return inside(self, *args, **kwargs)

    monkeypatch.setattr(DROClassifier, "_fit", counted)
    model = DROClassifier(**SMALL, alpha=1e-3)
    with pytest.raises(KeyboardInterrupt) as caught:
        radius_path(model, X, Y, [0.5, 0.1, 0.2, 0.3, 0.4])
    radii = [None if one is None else one.ambiguity.radius for one in caught.value.result]
    assert radii == [None, 0.1, 0.2, 0.3, None]
    fits[:] = [None] * 5
    monkeypatch.setattr(sys.modules["drojko.estimators.radius.cv"], "_fold", fold_or_interrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        select_radius(model, X, Y, radii=[0.1, 0.2], random_state=0)
    selection = caught.value.result
    assert selection.radius == 0.2
    assert "2 held-out folds" in selection.message


def fold_or_interrupt():
    done = []

    def fold(*args):
        done.append(args)
        if len(done) == 3:
            raise KeyboardInterrupt
        return [[0.5, 0.4, 1.0, 1.0], [0.4, 0.4, 1.0, 1.0]]

    return fold


def test_an_audit_keeps_the_sizes_that_are_done(monkeypatch):
    from drojko.auditing import certified

    model = DROClassifier(**SMALL).fit(X, Y)
    inside, calls = certified.reweighted_certificate, []

    def third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return inside(*args, **kwargs)

    monkeypatch.setattr(certified, "reweighted_certificate", third)
    with pytest.raises(KeyboardInterrupt) as caught:
        drojko.audit(model, X, Y, KL(), radii=[0.1, 0.2, 0.3, 0.4], random_state=0)
    report = caught.value.result
    assert list(report.table.radius) == [0.1, 0.2]
    assert report.about["interrupted"]
    assert report.worst_case(0.2).risk() == pytest.approx(report.table.worst_case_risk[1])


def test_a_decision_keeps_its_params_where_the_certificate_is_interrupted(monkeypatch):
    problem = newsvendor([10.0, 20.0, 60.0], Wasserstein(radius=1.0), shortage=3.0)

    def strike(*args):
        raise KeyboardInterrupt

    order = problem.solve().params
    monkeypatch.setattr(problem, "_certify", strike)
    with pytest.raises(KeyboardInterrupt, match="result") as caught:
        problem.solve()
    solution = caught.value.result
    assert (solution.status, solution.params) == ("interrupted", order)
    assert np.isnan(solution.objective)
    assert "interrupted" in repr(solution)


# Errors of the user's own ------------------------------------------------------------------------


class Own(ValueError):
    """Raised by a loss, a model or a callback."""


def failing(after, how):
    """A loss that raises, or is NaN, from some call on."""
    calls = []

    def loss(p, y):
        calls.append(1)
        if len(calls) > after and how is Own:
            raise Own("mine")
        return softened(p, y) * (np.nan if len(calls) > after else 1.0)

    return loss


class Failing(torch.nn.Module):
    def __init__(self, after, how):
        super().__init__()
        self.line, self.left, self.how = torch.nn.Linear(3, 1), after, how

    def forward(self, x):
        self.left -= 1
        if self.left < 0 and self.how is Own:
            raise Own("mine")
        return self.line(x) * (np.nan if self.left < 0 else 1.0)


@pytest.mark.parametrize("how", [Own, drojko.exceptions.NonFiniteError])
@pytest.mark.parametrize("ambiguity", [Wasserstein(0.1), KL(0.1), CVaR(0.3)], ids=repr)
@pytest.mark.parametrize("kind", ["loss", "model"])
def test_what_fails_leaves_the_last_finite_model(kind, ambiguity, how):
    if kind == "loss":
        after = 150 if ambiguity.moves else 15
        model = DROClassifier(ambiguity, loss=failing(after, how), **SMALL)
    else:
        model = DROClassifier(ambiguity, model=lambda: Failing(30, how), max_iter=200, **SMALL)
    with pytest.raises(how) as caught:
        model.fit(X, Y)
    if how is Own:
        assert str(caught.value) == "mine"
    assert model.status_ == ("failed" if how is Own else "non_finite")
    assert type(caught.value).__name__ in model.message_
    assert model.n_iter_ >= 1
    assert all(np.isfinite(value).all() for value in model.parameters_.values())
    assert len(model.history_) == model.n_iter_
    assert model.certificate_ is None


def test_a_decision_whose_loss_turns_nan_names_the_last_one():
    calls = []

    def loss(t, z):
        calls.append(1)
        return (z @ t - 1.0).square() * (np.nan if len(calls) > 8 else 1.0)

    problem = MinimaxProblem(loss, torch.zeros(3), X, KL(radius=0.1), convex=True)
    with pytest.raises(drojko.exceptions.NonFiniteError, match="NaN") as caught:
        problem.solve()
    assert torch.isfinite(caught.value.last_state).all()
    assert caught.value.last_state.shape == (3,)


# The command line --------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    frame = pd.DataFrame(RNG.normal(size=(20_000, 20))).add_prefix("c")
    frame.assign(y=np.where(frame.c0 > 0, "a", "b")).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def command(folder, *arguments):
    environment = dict(os.environ, PYTHONPATH=":".join([str(ROOT), *sys.path]))
    return subprocess.Popen(
        [sys.executable, "-m", "drojko", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_stopped_command_writes_what_it_has(table, tmp_path, rng, request):
    moments = rng.uniform(2.0, 12.0, size=10) if request.config.getoption("--long") else [9.0]
    for seconds in moments:
        arguments = ("t.csv", "--target", "y", "--model", "mlp", "-o", "m.drojko")
        process = command(tmp_path, "fit", *arguments)
        time.sleep(float(seconds))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 130, out + err
        assert "Traceback" not in err
        assert "interrupted" in err or seconds < 4.0
        partial = tmp_path / "m.drojko.partial"
        assert partial.exists() == ("m.drojko.partial" in err)
        if partial.exists():
            model = drojko.load(partial)
            assert model.status_ == "interrupted"
            assert f"after {model.n_iter_} iterations" in err
            partial.unlink()
        assert [found.name for found in tmp_path.iterdir()] == ["t.csv"]
