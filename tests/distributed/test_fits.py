"""One fit on several processes: the answer of one process, bit by bit the same on all of them."""

import json

import numpy as np
import pytest

from tests.distributed import _fits
from tests.distributed._launch import torchrun

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.promise(15)]


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(request.param, _fits.__file__, out)
    assert done.returncode == 0, done.stderr[-6000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _fits.CASES)
def test_the_fit_is_that_of_one_process_on_all_ranks(found, name):
    every = [one["cases"][name] for one in found]
    assert all(one == every[0] for one in every)
    alone = _fits.numbers(_fits.fitted(name))
    got = np.array([float.fromhex(value) for value in every[0]])
    assert len(got) == len(alone)
    size = len(np.ravel(_fits.CASES[name][0].coef_)) + 1
    np.testing.assert_allclose(got[:size], alone[:size], rtol=1e-8, atol=1e-8)
    certificate = slice(size + 2, size + 8)
    np.testing.assert_allclose(got[certificate], alone[certificate], rtol=1e-8, atol=1e-10)


def test_the_worst_cases_of_the_ranks_make_that_of_all_rows(found):
    alone = _fits.fitted("order 2").certificate_
    loss, cost = np.sum([one["attained"] for one in found], axis=0)
    assert loss == pytest.approx(alone.worst_case_risk, rel=1e-7)
    assert cost == pytest.approx(alone.transport_cost, rel=1e-6)


def test_without_a_certificate_the_worst_case_is_there(found):
    assert all(one["later"] for one in found)


ERRORS = {
    "widths": ("InvalidDataError", "the number of columns is 4 on rank 0 and 3 on rank 1"),
    "names": ("InvalidDataError", "column 2 is 'c' on rank 0 and 'z' on rank 1"),
    "dtypes": ("InvalidDataError", "the dtype of X is float64 on rank 0 and float32 on rank 1"),
    "settings": ("InvalidDataError", "ambiguity__radius is 0.2 on rank 0 and 0.3 on rank 1"),
    "weights": ("InvalidDataError", "sample_weight is given on rank 0 and not given on rank 1"),
    "kinds of labels": ("InvalidDataError", "y is labels on rank 0 and numbers on rank 1"),
    "one class": ("InvalidDataError", "got 1 class, 'no'"),
    "MMD": ("NeedsArray", "MMD with these settings"),
    "measure": ("NeedsArray", "reference='kde'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_together_is_refused_on_all_ranks(found, name):
    kind, words = ERRORS[name]
    for one in found:
        assert one["errors"][name][0] == kind
        assert words in one["errors"][name][1]


def test_what_one_rank_raises_is_raised_by_all(found):
    for rank, one in enumerate(found):
        for name, kinds, words in (
            ("parameter", ("InvalidParameterError", "ValueError"), "The 'alpha' parameter"),
            ("NaN", ("ValueError", "InvalidDataError"), "NaN"),
            ("raises", ("ValueError",), "mine"),
            ("batches", ("InvalidDataError",), "gives its batches only once"),
        ):
            kind, text = one["errors"][name]
            assert kind in kinds, name
            assert words in text, name
            assert text.startswith("rank 1: ") == (rank != 1)


def test_ctrl_c_on_one_rank_is_one_on_all(found):
    for one in found:
        assert one["errors"]["Ctrl-C"][0] == "KeyboardInterrupt"


def test_ranks_end_together_by_callbacks_and_clocks(found):
    assert [one["callback"] for one in found] == ["callback"] * len(found)
    assert [one["max_time"] for one in found] == ["max_time"] * len(found)
