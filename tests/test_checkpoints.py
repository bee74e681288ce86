"""Checkpoints: what is killed goes on to the same bits; what is damaged or another's is refused."""

import errno
import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

import drojko
from drojko import DROClassifier, DRORegressor, radius_path
from drojko._driver import Status, run
from drojko._driver import checkpoints as module
from drojko._driver.checkpoints import Checkpoint
from drojko._driver.snapshots import code_in, dumped, fingerprint, loaded
from drojko.ambiguity import KL, MMD, CVaR, Sinkhorn, Wasserstein
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows import ICNNScheme, ImportanceCorrectedScheme, JKOFlow, SemiDualScheme
from drojko.flows.functionals import DivergenceTo, Entropy, KLDivergence, PotentialEnergy
from drojko.flows.line_scheme import LineScheme
from drojko.measures import Gaussian, GaussianMixture
from drojko.minimax.passes import Passes
from drojko.models import MLP

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X, Y = make_moons(60, noise=0.2, random_state=0)
SETTINGS = {"model": "mlp", "hidden_layer_sizes": (6,), "max_iter": 8, "effort": "none"}


def network(ambiguity=None, **changes):
    settings = {**SETTINGS, "random_state": 0, "reference": "empirical", **changes}
    return DROClassifier(ambiguity or Wasserstein(0.2), **settings)


def same(one, other):
    assert one.parameters_.keys() == other.parameters_.keys()
    assert all(np.array_equal(one.parameters_[k], other.parameters_[k]) for k in one.parameters_)
    for name in one._history.keys() - {"seconds"}:
        assert np.array_equal(one._history[name], other._history[name], equal_nan=True), name
    assert one.n_iter_ == other.n_iter_
    assert one.status_ == other.status_
    return True


def interrupted(estimator, monkeypatch, at=5, data=(X, Y)):
    """Ctrl-C in the middle of a pass, when its work is done and not yet a state."""
    closed, calls = Passes.closed, []

    def strike(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return closed(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Passes, "closed", strike)
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(*data)


# -- states as plain values ----------------------------------------------------------------------


def test_states_come_back_with_what_they_share(generator):
    flat = torch.randn(6, generator=generator, dtype=torch.float64)
    both = [1]
    model = MLP(2, 1, hidden=(3,), generator=generator)
    state = {
        "flat": flat, "view": flat[2:4], "twice": (both, both), "own": Wasserstein(0.25),
        "array": np.arange(6.0).reshape(2, 3), "number": np.float32(0.5), "set": {1, 2},
        "status": Status.CONVERGED, "order": OrderedDict(b=1, a=2), "model": model,
        "generator": generator, "dtype": torch.float32, "bytes": b"ab", "nan": float("nan"),
    }  # fmt: skip
    found = loaded(dumped(state))
    found["flat"][2] = 7.0
    assert float(found["view"][0]) == 7.0
    assert float(flat[2]) != 7.0
    assert found["twice"][0] is found["twice"][1]
    assert found["own"].radius == 0.25
    assert np.array_equal(found["array"], state["array"])
    assert found["number"] == np.float32(0.5)
    assert found["number"].dtype == np.float32
    assert found["status"] is Status.CONVERGED
    assert list(found["order"]) == ["b", "a"]
    assert (found["set"], found["bytes"], found["dtype"]) == ({1, 2}, b"ab", torch.float32)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    assert torch.equal(found["model"](x), model(x))
    pair = (generator, found["generator"])
    assert torch.equal(*(torch.rand(4, generator=g) for g in pair)) is False
    again = loaded(dumped(generator))
    assert torch.equal(torch.rand(4, generator=again), torch.rand(4, generator=generator))


def test_an_object_that_holds_itself():
    flow = KL(0.1)
    flow.itself = flow
    found = loaded(dumped(flow))
    assert found.itself is found


def test_what_the_caller_gave_is_not_stored():
    class Own:
        pass

    then, now = Own(), Own()
    assert loaded(dumped({"a": [then]}, (then,)), (now,))["a"][0] is now
    with pytest.raises(UnsupportedError, match=r"cannot hold .*Own"):
        dumped({"a": Own()})
    energy = PotentialEnergy(lambda z: z[:, 0])
    assert energy.potential in code_in(energy)


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def test_no_code_runs_on_load(tmp_path, monkeypatch):
    """A pickle with a valid digest, and a state that names a foreign class."""
    monkeypatch.chdir(tmp_path)
    keeper = Checkpoint("run", 0.0)
    buffer = io.BytesIO()
    torch.save(Trap(), buffer)
    for content in (buffer.getvalue(), pickle.dumps(Trap())):
        keeper._ready = content
        keeper.write()
        with pytest.raises(Exception, match="eights"):
            Checkpoint("run").resumed(None)
    for name in (
        "subprocess.Popen",
        "drojko._driver.checkpoints.os",
        "builtins.eval",
        "drojko.os.x",
    ):
        node = {"kind": "object", "at": 0, "class": name, "held": None}
        buffer = io.BytesIO()
        torch.save(node, buffer)
        with pytest.raises(InvalidDataError, match="does not load"):
            loaded(buffer.getvalue())
    assert not os.path.exists("trapped")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(3.0), np.arange(3.0).reshape(3, 1)), (np.arange(3), np.arange(3.0)),
        (np.array([0.0]), np.array([-0.0])), ((1, 2), [1, 2]), ((1, (2,)), ((1, 2),)),
        (KL(0.1), KL(0.2)), (KL(0.1), CVaR(0.1)), ({"a": 1}, {"a": 2}), ("1", 1),
        (np.array(["a", "b"]), np.array(["a", "c"])), (len, max),
    ],
)  # fmt: skip
def test_fingerprints_tell_apart(one, other):
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(one)


# -- the loop ------------------------------------------------------------------------------------


class Heron:
    """The square root of two; its steps count in the solver, too."""

    def __init__(self):
        self.steps = 0

    def step(self, x):
        self.steps += 1
        return (x + 2 / x) / 2

    def terminate(self, x):
        return Status.CONVERGED if abs(x * x - 2) < 1e-9 else None

    def carried(self):
        return self.steps

    def restore(self, carried):
        self.steps = carried


def test_a_run_goes_on_where_it_was(tmp_path):
    path = tmp_path / "run"
    first = run(Heron(), 9.0, max_iter=2, best=abs, keeper=Checkpoint(path, 0.0))
    assert first.status == "max_iter"
    solver = Heron()
    second = run(solver, 9.0, max_iter=20, best=abs, keeper=Checkpoint(path, 0.0))
    whole = run(Heron(), 9.0, max_iter=20, best=abs)
    assert (second.state, second.best_state) == (whole.state, whole.best_state)
    assert (second.n_iter, second.status) == (whole.n_iter, whole.status)
    assert solver.steps == whole.n_iter
    assert [row["iteration"] for row in second.history] == list(range(1, whole.n_iter + 1))
    assert [r["seconds"] for r in second.history] == sorted(r["seconds"] for r in second.history)
    last = Heron()
    third = run(last, 9.0, max_iter=20, best=abs, keeper=Checkpoint(path, 0.0))
    assert third.status is Status.CONVERGED  # which has nothing left to do
    assert third.state == whole.state
    assert last.steps == whole.n_iter


def test_an_error_of_a_callback_leaves_a_file(tmp_path):
    def broken(x):
        if x < 2.0:
            raise RuntimeError("mine")
        return False

    with pytest.raises(RuntimeError, match="mine"):
        run(Heron(), 9.0, max_iter=20, callback=broken, keeper=Checkpoint(tmp_path / "run"))
    solver = Heron()
    run(solver, 9.0, max_iter=20, keeper=Checkpoint(tmp_path / "run"))
    assert solver.steps == run(Heron(), 9.0, max_iter=20).n_iter


# -- networks ------------------------------------------------------------------------------------


@pytest.mark.promise(13)
@pytest.mark.parametrize(
    ("ambiguity", "changes"),
    [
        (Wasserstein(0.2), {}),
        (Wasserstein(0.2), {"reference": "kde"}),
        (Wasserstein(0.2), {"reference": "gaussian"}),  # drawn anew, and an input-convex map
        (Wasserstein(0.2), {"early_stopping": True}),
        (Wasserstein(0.2), {"effort": "fast", "dtype": "float32"}),
        (KL(0.1), {}),
        (CVaR(0.5), {"reference": "gaussian"}),
        (CVaR(0.5), {}),  # whose dual starts where the last one ended
        (MMD(radius=0.1), {}),
        (Sinkhorn(0.1, radius=0.2), {}),  # which draws within a pass
    ],
)
def test_interrupted_fits_end_with_the_same_bits(tmp_path, monkeypatch, ambiguity, changes):
    whole = network(ambiguity, **changes).fit(X, Y)
    kept = {"checkpoint": str(tmp_path / "fit"), "checkpoint_every": 1e9, **changes}
    interrupted(network(ambiguity, **kept), monkeypatch)
    found = network(ambiguity, **kept).fit(X, Y)
    assert same(found, whole)
    if whole.certificate_ is not None:
        assert found.certificate_.upper == whole.certificate_.upper
        assert found.certificate_.lower == whole.certificate_.lower
    with monkeypatch.context() as patch:  # an ended one trains no further
        patch.setattr(Passes, "opened", None)
        assert same(network(ambiguity, **kept).fit(X, Y), whole)


KILLED = """
import sys, time
import numpy as np
from sklearn.datasets import make_moons
from drojko import DROClassifier
from drojko.ambiguity import Wasserstein
from drojko.minimax.passes import Passes
closed = Passes.closed
def slow(self, state, *args, **kwargs):
    if state.iteration == 4:
        open(sys.argv[1] + ".reached", "w").close()
        time.sleep(600)
    return closed(self, state, *args, **kwargs)
Passes.closed = slow
X, y = make_moons(60, noise=0.2, random_state=0)
DROClassifier(Wasserstein(0.2), model="mlp", hidden_layer_sizes=(6,), max_iter=8, effort="none",
              random_state=0, reference="empirical", checkpoint=sys.argv[1], checkpoint_every=0.0
              ).fit(X, y)
"""


@pytest.mark.promise(13)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_process(tmp_path):
    path = tmp_path / "fit"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=tmp_path)
    try:
        reached = tmp_path / "fit.reached"
        for _ in range(1200):
            if reached.exists() or child.poll() is not None:
                break
            time.sleep(0.1)
        assert reached.exists()
    finally:
        child.kill()
        child.wait()
    assert path.exists()
    found = network(checkpoint=path, checkpoint_every=0.0).fit(X, Y)
    assert same(found, network().fit(X, Y))


def test_other_data_and_settings_are_named(tmp_path):
    path = str(tmp_path / "fit")
    weight = np.ones(len(X))
    network(checkpoint=path).fit(X, Y, sample_weight=weight)
    before = (tmp_path / "fit").read_bytes()
    other = X.copy()
    other[3, 1] += 1e-12
    flipped = Y.copy()
    flipped[0] = 1 - flipped[0]
    for changes, data, name in (
        ({}, (other, Y, weight), "X"),
        ({}, (X, flipped, weight), "y"),
        ({}, (X, np.where(Y, "b", "a"), weight), "classes"),
        ({}, (X, Y, weight * (1 + (np.arange(60) == 2))), "sample_weight"),
        ({"tol": 1e-4, "max_iter": 9}, (X, Y, weight), "max_iter, tol"),
        ({"ambiguity": Wasserstein(0.3)}, (X, Y, weight), "ambiguity"),
        ({"random_state": 1}, (X, Y, weight), "random_state"),
        ({"random_state": None}, (X, Y, weight), "random_state"),
        ({"hidden_layer_sizes": (7,)}, (X, Y, weight), "hidden_layer_sizes"),
    ):
        with pytest.raises(InvalidDataError, match=f"a different {name}: ") as error:
            network(checkpoint=path, **changes).fit(data[0], data[1], sample_weight=data[2])
        assert "remove the file" in str(error.value)
    assert (tmp_path / "fit").read_bytes() == before
    same(
        network(checkpoint=path, max_time=100.0, verbose=False).fit(X, Y, sample_weight=weight),
        network().fit(X, Y, sample_weight=weight),
    )


def test_a_seed_of_the_system_is_that_of_the_call_that_began(tmp_path, monkeypatch):
    kept = {"checkpoint": tmp_path / "fit", "random_state": None}
    interrupted(network(**kept), monkeypatch)
    head = (tmp_path / "fit").read_bytes().split(b"\n")[1][64:]
    seed = json.loads(head)["seed"]
    found = network(**kept).fit(X, Y)
    again = network(random_state=0)
    monkeypatch.setattr("drojko.estimators._base._seed", lambda state: seed)
    assert same(found, again.fit(X, Y))


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "digest"])
def test_damaged_files_are_said_and_the_one_before_is_used(tmp_path, monkeypatch, damage):
    path = tmp_path / "fit"
    kept = {"checkpoint": path, "checkpoint_every": 0.0}
    interrupted(network(**kept), monkeypatch)
    before = tmp_path / "fit.previous"
    assert before.exists()
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "bit":
        content[middle] ^= 1
    if damage == "digest":
        content[30] = ord("0") if content[30] != ord("0") else ord("1")
    path.write_bytes({"cut": content[:middle], "empty": b""}.get(damage, content))
    with pytest.warns(UserWarning, match=r"cut or altered: going on from the one before"):
        found = network(**kept).fit(X, Y)
    assert same(found, network().fit(X, Y))
    for one in (path, before):
        one.write_bytes(one.read_bytes()[:-1])
    with pytest.raises(InvalidDataError, match="remove what is there"):
        network(**kept).fit(X, Y)


def test_a_damaged_file_never_takes_the_place_of_the_whole_one(tmp_path, monkeypatch):
    path, before = tmp_path / "fit", tmp_path / "fit.previous"
    interrupted(network(checkpoint=path, checkpoint_every=0.0), monkeypatch)
    whole = before.read_bytes()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cut or altered"):
        found = network(checkpoint=path).fit(X, Y)  # which writes once
    assert same(found, network().fit(X, Y))
    assert before.read_bytes() == whole


def test_files_of_another_kind_stay(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("chapter one")
    for settings in ({"checkpoint": path}, {"checkpoint": tmp_path}, {"checkpoint": "\0"}):
        with pytest.raises(InvalidDataError):
            network(**settings).fit(X, Y)
    assert path.read_text() == "chapter one"
    with pytest.raises(InvalidDataError, match="no folder"):
        network(checkpoint=tmp_path / "none" / "fit").fit(X, Y)
    with pytest.raises(ValueError, match="checkpoint_every"):
        network(checkpoint=path, checkpoint_every=-1.0).fit(X, Y)


def test_a_full_disk_does_not_end_training(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "fit"
    whole = network().fit(X, Y)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.warns(UserWarning, match=r"could not be written .*No space left"):
            found = network(checkpoint=path, checkpoint_every=0.0).fit(X, Y)
    assert same(found, whole)
    assert list(tmp_path.iterdir()) == []  # no half of a file either
    assert same(network(checkpoint=path, checkpoint_every=0.0).fit(X, Y), whole)
    kept = path.read_bytes()
    with monkeypatch.context() as patch:  # nor does it cost the file that there was
        patch.setattr(module.os, "fsync", full)
        with pytest.warns(UserWarning, match="could not be written"):
            network(checkpoint=path).fit(X, Y)
    assert path.read_bytes() == kept


# -- with other settings -------------------------------------------------------------------------


def test_time_limits_are_of_each_call(tmp_path, monkeypatch):
    kept = {"checkpoint": tmp_path / "fit", "max_time": 1e-9}
    calls = 0
    while True:
        calls += 1
        found = network(**kept, checkpoint_every=1e9).fit(X, Y)
        if found.status_ != "max_time":
            break
        assert calls < 40
        kept["max_time"] = 0.05 * calls
    assert same(found, network().fit(X, Y))


def test_a_callback_that_stops_lets_the_next_call_go_on(tmp_path):
    class Stop:
        def __init__(self):
            self.seen = []

        def setup(self, estimator, context): ...

        def teardown(self, estimator, context): ...

        def on_fit_task_begin(self, estimator, context): ...

        def on_fit_task_end(self, estimator, context, **kwargs):
            self.seen.append(context.task_id if hasattr(context, "task_id") else None)
            return len(self.seen) == 3

    path, heard = tmp_path / "fit", Stop()
    first = network(checkpoint=path)
    first.set_callbacks(heard).fit(X, Y)
    assert first.status_ == "callback"
    assert first.n_iter_ == 3
    found = network(checkpoint=path).fit(X, Y)
    assert same(found, network().fit(X, Y))


def test_warm_starts_name_the_model_they_began_with(tmp_path, monkeypatch):
    path = tmp_path / "fit"
    warm = network(warm_start=True, random_state=3).fit(X, Y)
    start = {k: v.copy() for k, v in warm.parameters_.items()}
    penalty = warm.certificate_
    whole = network(warm_start=True)
    interrupted(warm.set_params(checkpoint=path, random_state=0), monkeypatch)
    again = network(warm_start=True, checkpoint=path)
    with pytest.raises(InvalidDataError, match="different model to start from"):
        again.fit(X, Y)
    first = network(warm_start=True, random_state=3).fit(X, Y)
    assert all(np.array_equal(first.parameters_[k], start[k]) for k in start)
    assert first.certificate_ is penalty is None
    found = first.set_params(checkpoint=path, random_state=0).fit(X, Y)
    whole.set_params(random_state=3).fit(X, Y)
    assert same(found, whole.set_params(random_state=0).fit(X, Y))


def test_linear_fits_say_that_they_need_none(tmp_path):
    path = tmp_path / "fit"
    with pytest.warns(UserWarning, match="checkpoint is for networks"):
        fitted = DROClassifier(KL(0.1), reference="empirical", checkpoint=path).fit(X, Y)
    assert fitted.status_ == "converged"
    with pytest.warns(UserWarning, match="checkpoint is for networks"):
        DRORegressor(KL(0.1), reference="empirical", checkpoint=path).fit_batches([(X, X[:, 0])])
    assert not path.exists()


def test_sweeps_leave_it_aside_and_models_are_saved_with_it(tmp_path):
    path = tmp_path / "fit"
    models = radius_path(network(checkpoint=path), X, Y, [0.1, 0.2])
    assert len(models) == 2
    assert not path.exists()
    fitted = network(checkpoint=str(path)).fit(X, Y)
    fitted.save(tmp_path / "model")
    assert drojko.load(tmp_path / "model").checkpoint == str(path)


# -- flows ---------------------------------------------------------------------------------------


TWO = GaussianMixture(means=[[-2.0], [1.0]], covariances=[[[0.04]], [[0.04]]])
OU = PotentialEnergy(lambda z: (z[:, 0] - 2.0) ** 2 / 8) + Entropy()
FLOWS = {
    "icnn": lambda: JKOFlow(OU, ICNNScheme(n_particles=100), step_size=0.5),
    "line": lambda: JKOFlow(OU, LineScheme(n_particles=100), step_size=0.5),
    "adaptive": lambda: JKOFlow(OU, LineScheme(n_particles=100), step_size=0.2, adaptive=0.1),
    "semidual": lambda: JKOFlow(
        DivergenceTo(Gaussian([2.0], [[4.0]])),
        SemiDualScheme(hidden=(8,), iterations=10, n_particles=200, tol=0.0),
        step_size=0.5,
    ),
    "importance": lambda: JKOFlow(
        KLDivergence(TWO.log_prob),
        ImportanceCorrectedScheme(
            width=8, iterations=8, n_particles=500, n_calibration=1000, rejections=[0, 1, 1, 1]
        ),
        step_size=[0.1, 0.2, 0.4, 0.8],
    ),
}


@pytest.mark.promise(13)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FLOWS)
def test_interrupted_flows_end_with_the_same_bits(tmp_path, name):
    start, path = Gaussian([0.0], [[1.0]]), tmp_path / "flow"

    def stop(state):
        if state.step == 2:
            raise KeyboardInterrupt
        return False

    whole = FLOWS[name]().run(start, 4, 0)
    with pytest.raises(KeyboardInterrupt):
        FLOWS[name]().run(start, 4, 0, stop, checkpoint=path)
    same_start = Gaussian([0.0], [[1.0]])
    found = FLOWS[name]().run(same_start, 4, 0, checkpoint=path, checkpoint_every=0.0)
    seen = []
    again = FLOWS[name]().run(same_start, 4, 0, seen.append, checkpoint=path)
    assert seen == []  # an ended one takes no step
    for result in (found, again):
        assert result.status == whole.status
        for column in whole.columns.keys() - {"seconds"}:
            both = (result.columns[column], whole.columns[column])
            assert np.array_equal(*both, equal_nan=True), column
        assert len(result.measures) == len(whole.measures)
        for one, other in zip(result.measures[1:], whole.measures[1:], strict=True):
            draws = [m.sample(20, torch.Generator().manual_seed(1)) for m in (one, other)]
            assert torch.equal(*draws)
    assert found.measures[0] is same_start


def test_flows_of_another_call_are_named(tmp_path):
    path, start = tmp_path / "flow", Gaussian([0.0], [[1.0]])

    def other(z):
        return z[:, 0] ** 2

    scheme = LineScheme(n_particles=50)
    JKOFlow(OU, scheme, step_size=0.5).run(start, 2, 0, checkpoint=path)
    for flow, initial, n_steps, seed, name in (
        (JKOFlow(OU, scheme, step_size=0.4), start, 2, 0, "steps"),
        (JKOFlow(OU, scheme, step_size=0.5), start, 3, 0, "steps"),
        (JKOFlow(OU, scheme, step_size=0.5), start, 2, 1, "random_state"),
        (JKOFlow(OU, scheme, step_size=0.5), Gaussian([0.1], [[1.0]]), 2, 0, "initial measure"),
        (JKOFlow(OU, LineScheme(n_particles=51), step_size=0.5), start, 2, 0, "scheme"),
        (JKOFlow(PotentialEnergy(other) + Entropy(), scheme, step_size=0.5), start, 2, 0,
         "functional"),
    ):  # fmt: skip
        with pytest.raises(InvalidDataError, match=f"a different {name}: "):
            flow.run(initial, n_steps, seed, checkpoint=path)


def test_a_file_is_not_written_again_and_again(tmp_path, monkeypatch):
    """One file for many steps where none is due, and two generations where each is."""
    written = []
    replacing = module.replacing
    monkeypatch.setattr(module, "replacing", lambda p: written.append(p) or replacing(p))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network(checkpoint=tmp_path / "one").fit(X, Y)
    assert len(written) == 1
    network(checkpoint=tmp_path / "two", checkpoint_every=0.0).fit(X, Y)
    assert len(written) == 1 + 1 + 8 + 1  # before the first pass, after each, and at the end
    assert (
        hashlib.sha256((tmp_path / "two").read_bytes()[84:]).hexdigest().encode()
        == ((tmp_path / "two").read_bytes()[20:84])
    )
