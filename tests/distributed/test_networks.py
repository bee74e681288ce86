"""Networks on several processes: one process's model, and a certificate of all rows."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drojko.distributed.points import SharedPoints
from tests.distributed import _networks
from tests.distributed._launch import torchrun


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of three ranks, of which the second has no rows and the others lack a class."""
    out = tmp_path_factory.mktemp("networks")
    done = torchrun(3, _networks.__file__, out)
    assert done.returncode == 0, done.stderr[-6000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(3)]


ranked = [pytest.mark.dist, pytest.mark.slow, pytest.mark.promise(15)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(name, marks=ranked) for name in _networks.CASES])
def test_the_network_is_that_of_one_process_on_all_ranks(found, name):
    every = [json.dumps(one["cases"][name]) for one in found]
    assert every[0] == every[1] == every[2]
    got, alone = found[0]["cases"][name], _networks.numbers(_networks.fitted(name))
    assert got["status"] == alone["status"]
    # One process leaves the module at Lipschitz constants, which are near enough; ranks go on.
    proofs = ("linear-bounds", "lipschitz") if name == "module" else (alone["proof"],) * 2
    assert (got["proof"], alone["proof"]) == proofs
    # Rounding grows with the steps: ascents and Adam divide by small numbers.
    np.testing.assert_allclose(got["parameters"], alone["parameters"], rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(got["history"], alone["history"], rtol=1e-6)
    assert got["cost"] == pytest.approx(alone["cost"], rel=1e-6, abs=1e-12)
    certificate = dict(zip(("nominal", "lower", "upper", "risk", "penalty"), got["certificate"]))
    nominal, lower, upper, risk, penalty = alone["certificate"]
    assert certificate["nominal"] == pytest.approx(nominal, rel=1e-8)
    assert certificate["lower"] == pytest.approx(lower, rel=1e-6)
    assert certificate["risk"] == pytest.approx(risk, rel=1e-6)
    assert certificate["penalty"] == pytest.approx(penalty, rel=1e-4)
    assert certificate["upper"] >= certificate["lower"]
    assert certificate["upper"] >= lower * (1 - 1e-8)  # as far as the parameters agree
    # Each rank bounds its rows at one penalty, one process at several.
    assert certificate["upper"] == pytest.approx(upper, rel=0.01)
    assert bool(got["search"]) == (name == "thorough")


def _marked(test):
    for mark in ranked:
        test = mark(test)
    return test


@_marked
def test_worst_cases_of_the_ranks_make_that_of_all_rows(found):
    loss, cost = np.sum([one["attained"] for one in found], axis=0)
    _, lower, *_ = found[0]["cases"]["two classes"]["certificate"]
    # Rows go under one of two maps that are this close.
    assert loss == pytest.approx(lower, rel=1e-3)
    assert cost == pytest.approx(0.04, rel=1e-2)


@_marked
def test_what_ranks_do_without_is_refused_on_all_of_them(found):
    for one in found:
        for name, kind, words in (
            ("settings", "InvalidDataError", "hidden_layer_sizes is (6,) on rank 0 and (7,)"),
            ("KL", "NeedsArray", "model='mlp'"),
            ("swaps", "NeedsArray", "several ranks"),
            ("no hidden layer", "NeedsArray", "without hidden layers"),
            ("certified", "UnsupportedError", "set it to a number"),
            ("checkpoint", "UnsupportedError", "warm_start=True"),
        ):
            assert one["errors"][name][0] == kind, name
            assert words in one["errors"][name][1], name


@_marked
def test_networks_on_ranks_end_together(found):
    for rank, one in enumerate(found):
        kind, text = one["errors"]["raises"]
        assert (kind, text) == ("ValueError", "mine" if rank == 2 else "rank 2: mine")
        assert one["errors"]["Ctrl-C"][0] == "KeyboardInterrupt"
        assert (one["max_time"], one["callback"]) == ("max_time", "callback")
        assert one["seedless"] == found[0]["seedless"]
        assert one["later"]


def test_batches_are_those_of_one_process_and_each_row_is_on_one_rank():
    n, size = 23, 5
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=(n, 2)), rng.integers(0, 3, size=n), rng.uniform(size=n)
    w[[4, 15]] = 0.0
    kept = np.argsort(y, kind="stable")
    kept = kept[w[kept] > 0]
    order = torch.from_numpy(rng.permutation(len(kept)))
    batches: list = [[] for _ in range(0, len(kept), size)]
    for low, high in ((0, 9), (9, 9), (9, n)):
        ranks = SimpleNamespace(any=bool)
        table = SimpleNamespace(ranks=ranks, local=X[low:high], own=slice(low, high))
        part = SharedPoints(table, y, w, True, "")  # pyright: ignore
        assert part.mass == pytest.approx(w[low:high].sum() / w.sum())
        for batch, rows in zip(batches, part.batches(order, size), strict=True):
            batch += [part.points[0][row].tolist() for row in rows]
    for batch, places in zip(batches, order.split(size), strict=True):
        assert sorted(batch) == sorted(X[kept[places.numpy()]].tolist())
