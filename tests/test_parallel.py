"""Jobs on joblib's workers: the same results, errors with their radius, nothing left behind."""

import signal
import threading
import time
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch

import drojko
from drojko import DROClassifier, audit, radius_path, select_radius
from drojko.ambiguity import KL, MMD, Sinkhorn, Wasserstein
from drojko.estimators._parallel import in_parallel, named, workers
from drojko.exceptions import InvalidDataError, NonFiniteError

RADII = [0.3, 0.01, 0.1]
BACKENDS = ["threading", pytest.param("loky", marks=[pytest.mark.dist, pytest.mark.slow])]


@pytest.fixture
def data(rng):
    X = rng.normal(size=(90, 3))
    return X, (X[:, 0] + rng.normal(size=90) > 0).astype(int)


@pytest.fixture
def model():
    return DROClassifier(KL(radius=0.1), reference="empirical", alpha=1e-3)


# The same results --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_select_radius_is_the_same_bit_by_bit(model, data, backend):
    model.set_params(random_state=np.random.RandomState(3))
    alone = select_radius(model, *data, radii=RADII, cv=3, random_state=0)
    with joblib.parallel_config(backend):
        found = select_radius(model, *data, radii=RADII, cv=3, random_state=0, n_jobs=2)
    pd.testing.assert_frame_equal(found.table, alone.table, check_exact=True)
    assert (found.radius, found.message) == (alone.radius, alone.message)


def test_the_number_may_come_from_the_configuration(model, data):
    alone = select_radius(model, *data, radii=RADII, cv=3, random_state=0)
    with joblib.parallel_config("threading", n_jobs=2):
        found = select_radius(model, *data, radii=RADII, cv=3, random_state=0)
    pd.testing.assert_frame_equal(found.table, alone.table, check_exact=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_path_does_not_depend_on_the_number_of_jobs(data, backend):
    model = DROClassifier(
        Wasserstein(0.1), model="mlp", hidden_layer_sizes=(4,), max_iter=5, random_state=0,
        reference="empirical", effort="none",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = radius_path(model, *data, RADII, n_jobs=1)
        with joblib.parallel_config(backend):
            two = radius_path(model, *data, RADII, n_jobs=2)
    for first, second, radius in zip(one, two, RADII, strict=True):
        assert first.ambiguity.radius == second.ambiguity.radius == radius
        assert np.array_equal(first.decision_function(data[0]), second.decision_function(data[0]))


def test_a_path_of_fits_of_their_own_is_that_of_warm_starts_up_to_tol(model, data):
    model.set_params(tol=1e-6)
    chain = radius_path(model, *data, [0.01, 0.1])
    own = radius_path(model, *data, [0.01, 0.1], n_jobs=2)
    for first, second in zip(chain, own, strict=True):
        assert second.status_ == "converged"
        assert first.certificate_.upper == pytest.approx(second.certificate_.upper, rel=1e-6)
        assert second.get_params()["warm_start"] is False


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "ambiguity",
    [KL(0.1), MMD(radius=0.1), Wasserstein(0.1, order=1), Sinkhorn(epsilon=0.1, radius=0.1)],
    ids=lambda s: type(s).__name__,
)
def test_audits_are_the_same_bit_by_bit(model, data, ambiguity, backend):
    model.fit(*data)
    alone = audit(model, *data, ambiguity, radii=RADII, random_state=0)
    with joblib.parallel_config(backend):
        found = audit(model, *data, ambiguity, radii=RADII, random_state=0, n_jobs=2)
    pd.testing.assert_frame_equal(found.table, alone.table, check_exact=True)
    pd.testing.assert_frame_equal(found.checks, alone.checks, check_exact=True)
    first, second = (one.worst_case().sample(5, 0)[0] for one in (alone, found))
    assert np.array_equal(first, second)


@pytest.mark.dist
@pytest.mark.slow
def test_dask_workers_do_the_same(model, data):
    distributed = pytest.importorskip("distributed")
    alone = select_radius(model, *data, radii=RADII, cv=3, random_state=0)
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(**settings) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        found = select_radius(model, *data, radii=RADII, cv=3, random_state=0, n_jobs=2)
    pd.testing.assert_frame_equal(found.table, alone.table, check_exact=True)


# Errors and interrupts ---------------------------------------------------------------------------


def broken(f, y):
    raise ZeroDivisionError("mine")


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_errors_name_their_radius(model, data, n_jobs):
    with (
        joblib.parallel_config("threading"),
        pytest.raises(InvalidDataError, match=r"radius=-1\.0;.*\(at radius=-1\)$"),
    ):
        radius_path(model, *data, [0.1, -1.0], n_jobs=n_jobs)
    model.set_params(loss=broken)
    with (
        joblib.parallel_config("threading"),
        pytest.raises(NonFiniteError, match=r"mine.*\(at radius=0\.[12]\)$"),
    ):
        select_radius(model, *data, radii=[0.1, 0.2], cv=2, n_jobs=n_jobs)


@pytest.mark.dist
@pytest.mark.slow
def test_errors_of_other_processes_name_their_radius_too(model, data):
    model.set_params(loss=broken)
    with pytest.raises(NonFiniteError, match=r"mine.*\(at radius=0\.[12]\)$"):
        radius_path(model, *data, [0.1, 0.2], n_jobs=2)


def test_errors_of_audits_name_their_size(model, data, monkeypatch):
    from drojko.auditing import certified

    def struck(ambiguity, *args, **kwargs):
        raise InvalidDataError(f"no {ambiguity.radius}")

    monkeypatch.setattr(certified, "reweighted_certificate", struck)
    with pytest.raises(InvalidDataError, match=r"no 0\.1 \(at radius=0\.1\)"):
        audit(model.fit(*data), *data, KL(), radii=[0.1, 0.3], random_state=0)


def test_errors_of_other_kinds_keep_their_message():
    with pytest.raises(KeyError) as caught, named("radius=1"):
        raise KeyError("x")
    assert caught.value.args == ("x",)
    assert caught.value.__notes__ == ["at radius=1"]


def test_ctrl_c_keeps_what_other_workers_have_done(model, data, monkeypatch):
    room = drojko.estimators.radius.cv
    inside, run, seen, struck = room._fold, room.in_parallel, [], []

    def watched(*args):
        for one in run(*args):
            seen.append(one)
            yield one

    def fold(*args):
        if len(seen) >= 2 and not struck:
            struck.append(True)
            signal.raise_signal(signal.SIGINT)  # strikes in the main thread, as from a keyboard
        time.sleep(0.05)
        return inside(*args)

    monkeypatch.setattr(room, "in_parallel", watched)
    monkeypatch.setattr(room, "_fold", fold)
    with joblib.parallel_config("threading"), pytest.raises(KeyboardInterrupt) as caught:
        select_radius(model, *data, radii=[0.1], cv=20, random_state=0, n_jobs=2)
    assert f"on {len(seen)} held-out folds" in caught.value.result.message
    assert 2 <= len(seen) < 20
    for thread in threading.enumerate():  # what ran then ends by itself, but not after Python has
        if "worker" in thread.name:
            thread.join(30.0)


@pytest.mark.parametrize("n_jobs", [0, 1.5, "two", True])
def test_numbers_of_jobs_that_are_none_are_errors(model, data, n_jobs):
    for call in (
        lambda: radius_path(model, *data, [0.1], n_jobs=n_jobs),
        lambda: select_radius(model, *data, radii=[0.1, 0.2], n_jobs=n_jobs),
        lambda: audit(model.fit(*data), *data, KL(0.1), n_jobs=n_jobs),
    ):
        with pytest.raises(InvalidDataError, match="n_jobs"):
            call()


# What is left alone ------------------------------------------------------------------------------


def threads(_):
    return torch.get_num_threads()


def spelt(filters):
    """Filters of warnings, patterns as texts: scikit-learn's workers compile them."""
    return [tuple(getattr(part, "pattern", part) for part in one) for one in filters]


def test_workers_have_one_thread_and_give_it_back():
    before = torch.get_num_threads()
    filters = spelt(warnings.filters)
    torch.set_num_threads(2)  # noqa: TID251  of this test's own
    try:
        with joblib.parallel_config("threading"):
            assert list(in_parallel(threads, [(i,) for i in range(4)], 2)) == [1] * 4
        assert list(in_parallel(threads, [(0,)], 1)) == [1]
        assert list(in_parallel(threads, [(0,)], None)) == [2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)  # noqa: TID251
    assert torch.get_num_threads() == before
    assert spelt(warnings.filters) == filters


def test_results_come_in_order_from_backends_that_give_all_at_once():
    with joblib.parallel_config("multiprocessing"):
        assert list(in_parallel(pow, [(2, k) for k in range(5)], 2)) == [1, 2, 4, 8, 16]


def test_no_more_workers_than_jobs():
    assert (workers(None, 3), workers(8, 3), workers(-1, 1)) == (1, 3, 1)


def test_searches_are_silent_on_several_workers(model, data, capsys):
    model.set_params(verbose=True)
    with joblib.parallel_config("threading"):
        path = radius_path(model, *data, [0.01, 0.1], n_jobs=2)
        select_radius(model, *data, radii=[0.01, 0.1], cv=2, n_jobs=2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert all(one.verbose is True for one in path)
    assert model.verbose is True
