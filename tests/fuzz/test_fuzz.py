"""The fuzz harness, briefly; ``python -m tests.fuzz 6000`` runs it in full."""

import math

import numpy as np
import pytest
import torch

from drojko.exceptions import InvalidDataError
from tests.fuzz.judge import call
from tests.fuzz.run import drawn, fuzz, known


@pytest.fixture(scope="module")
def count(seed):
    return fuzz(900, seed)


def test_every_public_name_is_called():
    names = {subject.name.split(".")[0].split(" ")[0] for subject in known()}
    assert {"DROClassifier", "audit", "ICNN", "JKOFlow", "Ball", "select_radius"} <= names
    assert len(known()) > 600


def test_calls_repeat_with_their_seed():
    first, again = ([(s.name, c) for s, c in drawn(known(), 50, 3)] for _ in range(2))
    assert first == again


def test_no_raw_error_comes_through_the_front(count):
    assert count.of_the_front == []


def test_next_to_no_raw_errors_come_at_all(count):
    assert count.kinds["foreign"] <= 0.005 * count.kinds.total(), count.faults


def test_nothing_hangs_and_no_nan_is_silent(count):
    assert (count.kinds["hang"], count.kinds["nan"]) == (0, 0), count.faults


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda: 1.0, "fine"),
        (lambda: [np.ones(2), {"a": torch.tensor(math.nan)}], "nan"),
        (lambda: np.linalg.cholesky(-np.eye(2)), "foreign"),
        (lambda: _raise(InvalidDataError("x")), "own"),
        (lambda: _forever(), "hang"),
    ],
)
def test_the_judge_sees(function, kind):
    assert call(function, 0.3).kind in (kind, "own" if kind == "foreign" else kind)


def _raise(error):
    raise error


def _forever():
    while True:
        pass
