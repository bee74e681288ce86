"""Sets are equal by their parameters."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from drojko.ambiguity import KL, MMD, CVaR, Group, Sinkhorn, Wasserstein

SETS = [
    KL(0.1), KL(penalty=0.1), CVaR(0.2), Group(), Sinkhorn(0.1, radius=0.2), MMD(radius=0.1),
    Wasserstein(0.1), Wasserstein(0.1, order=1), Wasserstein(0.1, label_cost=2.0),
    Wasserstein(0.1, weights=np.array([1.0, np.nan])), Wasserstein(0.1, weights={"a": 1.0}),
    Wasserstein(0.1, weights={"a": 2.0}), Wasserstein(0.1, weights=torch.ones(3)),
    Wasserstein(0.1, immutable=["a", "b"]), Wasserstein(0.1, immutable=["a"]),
    Wasserstein(0.1, bounds=(0.0, [1.0, 2.0])), Wasserstein(float("nan")),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SETS)))
def test_copies_are_equal_and_others_are_not(number):
    own = SETS[number]
    assert clone(own) == own
    assert (clone(own) != own) is False
    assert [k for k, other in enumerate(SETS) if clone(other) == own] == [number]


def test_parameters_of_other_types_with_the_same_values():
    weights = [
        np.array([1.0, 2.0]),
        [1, 2],
        (1.0, 2.0),
        pd.Series([1.0, 2.0]),
        torch.tensor([1, 2]),
    ]
    sets = [Wasserstein(np.float64(0.1), weights=part) for part in weights]
    assert all(one == Wasserstein(0.1, weights=[1.0, 2.0]) for one in sets)
    assert Wasserstein(0.1, weights=weights[0]) != Wasserstein(0.1, weights=np.ones(3))


def test_subclasses_and_other_objects_are_others():
    class Own(KL):
        pass

    assert Own(0.1) != KL(0.1)
    assert Own(0.1) == Own(0.1)
    assert KL(0.1) != "KL(radius=0.1)"
    assert KL(0.1) != None  # noqa: E711
    assert KL(0.1) in [CVaR(0.1), KL(0.1)]


def test_sets_that_change_have_no_hash():
    with pytest.raises(TypeError, match="unhashable"):
        hash(KL(0.1))
