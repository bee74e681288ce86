"""Several processes, one batch: two gloo ranks against one process on all rows."""

import json

import numpy as np
import pytest
import torch

from drojko.ambiguity import KL
from tests.distributed._launch import torchrun
from tests.nn import _ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(2, _ranks.__file__, out)
    assert done.returncode == 0, done.stderr[:6000]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", _ranks.CASES)
def test_ranks_of_unequal_lengths_give_the_value_and_gradient_of_all_rows(found, case):
    alone = _ranks.gradients(case, slice(None))
    assert found[0][case] == found[1][case]
    np.testing.assert_allclose(found[0][case], alone, rtol=0, atol=1e-8)


def test_a_rank_may_have_no_rows(found):
    exact = KL(0.2).dual(torch.arange(4.0)).value
    assert [one["empty"] for one in found] == pytest.approx([exact, exact], rel=1e-6)


def test_bad_losses_of_one_rank_are_an_error_on_all(found):
    assert found[0]["error"] == found[1]["error"]
    assert found[0]["error"].startswith("rank 1: losses[1] is nan")
