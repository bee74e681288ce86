import contextlib
import pickle

import numpy as np
import pytest
from sklearn.base import clone

from drojko.ambiguity import (
    KL,
    MMD,
    AmbiguitySet,
    ChiSquare,
    CressieRead,
    CVaR,
    TotalVariation,
    Wasserstein,
)  # fmt: skip
from drojko.exceptions import DrojkoError, InvalidDataError


class Ball(AmbiguitySet):
    """The smallest ambiguity set there can be: what a subclass has to write."""

    def __init__(self, radius=None, *, penalty=None):
        self.radius = radius
        self.penalty = penalty

    def resolve(self, n_features, feature_names=None):
        return n_features, feature_names


KINDS = [Ball, Wasserstein]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [{"radius": 0}, {"radius": 0.5}, {"penalty": np.float32(2)}])
def test_exactly_one_of_radius_and_penalty_is_fine(kind, size):
    kind(**size).validate(3)
    kind(**size)._validate_params()  # what an estimator's fit calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({}, "needs a radius or a penalty: give .*radius=.*penalty="),
        ({"radius": 0.1, "penalty": 1.0}, "radius=0.1 and penalty=1.0: give exactly one"),
        ({"radius": -0.1}, "radius=-0.1; it must be a finite non-negative number"),
        ({"radius": float("nan")}, "radius=nan"),
        ({"radius": float("inf")}, "radius=inf"),
        ({"radius": "0.1"}, "radius='0.1'"),
        ({"radius": True}, "radius=True"),
        ({"penalty": 0}, "penalty=0; it must be a finite positive number"),
        ({"penalty": -1.0}, "penalty=-1.0"),
        ({"penalty": float("nan")}, "penalty=nan"),
        ({"penalty": float("inf")}, "penalty=inf"),
    ],
)
def test_wrong_sizes_are_refused_at_fit_time_only(kind, size, message):
    ambiguity = kind(**size)  # the constructor stores and nothing else
    with pytest.raises(InvalidDataError, match=f"{kind.__name__} .*{message}"):
        ambiguity.validate(3)
    with pytest.raises(DrojkoError):
        ambiguity._validate_params()


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_in_scikit_learns_manner(kind):
    ambiguity = kind(0.3)
    assert ambiguity.radius == 0.3
    with pytest.raises(TypeError):
        kind(0.3, 1.0)
    copied = clone(ambiguity).set_params(radius=None, penalty=2.0)
    assert (copied.radius, copied.penalty) == (None, 2.0)
    assert ambiguity.get_params()["radius"] == 0.3
    assert repr(ambiguity) == f"{kind.__name__}(radius=0.3)"
    assert repr(pickle.loads(pickle.dumps(ambiguity))) == repr(ambiguity)


def test_budget_is_in_the_units_of_the_discrepancy():
    assert Ball(radius=0.3).budget == 0.3
    assert Wasserstein(radius=0.3).budget == 0.3**2
    assert Wasserstein(penalty=1.0).budget is None


def test_validate_returns_what_resolve_does():
    assert Ball(radius=1).validate(2, ["a", "b"]) == (2, ["a", "b"])


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError):
        AmbiguitySet()


@pytest.mark.parametrize(
    "kind", [KL, ChiSquare, TotalVariation, CVaR, lambda r: CressieRead(3.0, r)]
)
def test_a_ratio_below_zero_is_none(kind):
    with pytest.raises(InvalidDataError, match=r"ratio holds -0\.5"):
        kind(0.5).discrepancy(np.array([-0.5, 2.5]), np.array([0.5, 0.5]))


@pytest.mark.parametrize(
    "ambiguity", [KL(0.1), ChiSquare(0.1), TotalVariation(0.1), CVaR(0.5), MMD(radius=0.1)]
)
def test_smoothing_without_end_is_a_number_or_an_error(ambiguity):
    bound = ambiguity.on(np.arange(4.0)[:, None], np.full(4, 0.25))
    losses = np.array([0.0, 1.0, 2.0, 5.0])
    for smoothing in (1e100, 1e200):
        assert -smoothing <= bound.dual(losses, smoothing=smoothing).value <= 5.0
    with contextlib.suppress(InvalidDataError):
        assert bound.dual(losses, smoothing=1e308).value <= 5.0


def test_smoothing_that_overflows_is_refused():
    bound = MMD(radius=0.1).on(np.arange(4.0)[:, None], np.full(4, 0.25))
    with pytest.raises(InvalidDataError, match="smoothing="):
        bound.dual(np.array([0.0, 1.0, 2.0, 5.0]), smoothing=1e308)
