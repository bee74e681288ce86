"""The Sinkhorn set as settings: parameters, errors, geometry."""

import numpy as np
import pytest
from sklearn.base import clone

from drojko.ambiguity import Sinkhorn
from drojko.exceptions import InvalidDataError


def test_settings_are_those_given():
    ball = Sinkhorn(0.2, radius=0.5, weights={"a": 4.0}, immutable=["b"])
    assert clone(ball).get_params() == ball.get_params()
    assert ball.set_params(epsilon=1.0, radius=None, penalty=2.0).budget is None
    assert ball.epsilon == 1.0


def test_geometry_is_the_weighted_cost_on_mutable_columns():
    cost = Sinkhorn(0.2, radius=0.5, weights={"a": 4.0}, immutable=["b"]).validate(
        3, ["a", "b", "c"]
    )
    assert np.array_equal(cost.weights, [4.0, np.inf, 1.0])
    assert not cost.bounded


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epsilon": 0.0, "radius": 1.0}, r"epsilon=0.0.*positive.*Wasserstein"),
        ({"epsilon": -1.0, "radius": 1.0}, "epsilon=-1.0"),
        ({"epsilon": np.inf, "radius": 1.0}, "epsilon=inf"),
        ({"epsilon": 0.1, "radius": -0.5}, r"radius=-0.5.*\[0, inf\)"),
        ({"epsilon": 0.1, "penalty": 0.0}, "penalty=0.0"),
        ({"epsilon": 0.1}, "needs a radius or a penalty"),
        ({"epsilon": 0.1, "radius": 1.0, "penalty": 1.0}, "exactly one"),
        ({"epsilon": 0.1, "radius": 1.0, "weights": -1.0}, "weights must be positive"),
        ({"epsilon": 0.1, "radius": 1.0, "immutable": ["x"]}, "feature 'x'"),
    ],
)
def test_errors_name_the_parameter_and_the_range(settings, words):
    with pytest.raises(InvalidDataError, match=words):
        Sinkhorn(**settings).validate(2)
