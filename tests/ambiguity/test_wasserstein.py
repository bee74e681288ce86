import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from drojko.ambiguity import Wasserstein
from drojko.exceptions import InvalidDataError, UnsupportedError

NAMES = ["age", "sex", "income"]


def resolved(names=NAMES, **settings):
    return Wasserstein(0.1, **settings).validate(3, names)


def test_the_plain_cost():
    cost = resolved()
    np.testing.assert_array_equal(cost.weights, np.ones(3))
    assert cost.lower is cost.upper is None
    assert cost.feature_names == tuple(NAMES)


@pytest.mark.parametrize(
    "weights",
    [
        {"age": 4, "income": 0.5},
        {0: 4, -1: 0.5},
        {np.int64(0): 4, "income": np.float32(0.5)},
        [4, 1, 0.5],
        np.array([4, 1, 0.5]),
        pd.Series([4, 1, 0.5]),
    ],
)
def test_weights_by_name_index_or_position(weights):
    np.testing.assert_array_equal(resolved(weights=weights).weights, [4.0, 1.0, 0.5])


def test_one_weight_for_all_and_infinite_weights():
    np.testing.assert_array_equal(resolved(weights=2).weights, [2.0, 2.0, 2.0])
    frozen = resolved(weights={"sex": np.inf})
    np.testing.assert_array_equal(frozen.mutable, [True, False, True])


@pytest.mark.parametrize(
    "immutable",
    ["sex", 1, ["sex"], [1], [-2], {"sex"}, (np.int64(1),), [False, True, False],
     np.array([False, True, False]), pd.Index(["sex"])],
)  # fmt: skip
def test_immutable_by_name_index_or_mask(immutable):
    cost = resolved(immutable=immutable, weights=3)
    np.testing.assert_array_equal(cost.weights, [3.0, np.inf, 3.0])


def test_nothing_immutable():
    assert resolved(immutable=[]).mutable.all()
    assert resolved(immutable=[False] * 3).mutable.all()


@pytest.mark.parametrize(
    ("bounds", "lower", "upper"),
    [
        ((0, 9), [0, 0, 0], [9, 9, 9]),
        ((None, 9), [-np.inf] * 3, [9, 9, 9]),
        ({"age": (0, 120), 2: (0, None)}, [0, -np.inf, 0], [120, np.inf, np.inf]),
        ([(0, 1), (None, None), (2, 2)], [0, -np.inf, 2], [1, np.inf, 2]),
        (np.array([[0, 1], [2, 3], [4, 5]]), [0, 2, 4], [1, 3, 5]),
        (pd.DataFrame([[0, 1], [2, 3], [4, 5]]).to_numpy(), [0, 2, 4], [1, 3, 5]),
    ],
)
def test_bounds_by_pair_name_or_row(bounds, lower, upper):
    cost = resolved(bounds=bounds)
    np.testing.assert_array_equal(cost.lower, lower)
    np.testing.assert_array_equal(cost.upper, upper)


def test_two_columns_tell_one_pair_from_two():
    one = Wasserstein(0.1, bounds=(0, 1)).validate(2)
    two = Wasserstein(0.1, bounds=[(0, 1), (2, 3)]).validate(2)
    np.testing.assert_array_equal(one.lower, [0, 0])
    np.testing.assert_array_equal(two.lower, [0, 2])


@pytest.mark.promise(8)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"agee": 2}}, "unknown feature 'agee'; did you mean 'age'.*age, sex, income"),
        ({"weights": {3: 2}}, "column index 3; the data have 3 columns"),
        ({"weights": {-4: 2}}, "column index -4"),
        ({"weights": {1.0: 2}}, "1.0 as a column"),
        ({"weights": {True: 2}}, "True as a column"),
        ({"weights": {"age": 0}}, "column 'age' has weight 0; weights must be positive"),
        ({"weights": {"age": -1}}, "weight -1"),
        ({"weights": {"age": float("nan")}}, "weight nan"),
        ({"weights": {"age": "2"}}, "weights got '2'; expected a number"),
        ({"weights": [1, 2]}, r"weights has shape \(2,\)"),
        ({"weights": 0}, "column 'age' has weight 0"),
        ({"weights": ["a", "b", "c"]}, "weights must be numbers"),
        ({"immutable": ["colour"]}, "immutable names the unknown feature 'colour'; the known ones"),
        ({"immutable": [True, False]}, "mask of length 2"),
        ({"immutable": [0.5]}, "0.5 as a column"),
        ({"immutable": True}, "immutable got True"),
        ({"immutable": 1.5}, "immutable got 1.5"),
        ({"bounds": {"age": (2, 1)}}, "column 'age' has lower=2 and upper=1"),
        ({"bounds": {"age": (float("nan"), 1)}}, "lower=nan"),
        ({"bounds": {"age": (np.inf, np.inf)}}, "lower=inf"),
        ({"bounds": {"age": 3}}, "bounds got 3; expected a pair"),
        ({"bounds": {"age": (1, 2, 3)}}, "expected a pair"),
        ({"bounds": {"age": ("low", 2)}}, "bounds got 'low'; expected a number"),
        ({"bounds": {"height": (1, 2)}}, "bounds names the unknown feature 'height'"),
        ({"bounds": [(0, 1), (0, 1)]}, "bounds got 2 entries"),
        ({"bounds": 3}, "bounds got 1 entries"),
        ({"order": 3}, "order=3; it must be 1 or 2"),
        ({"label_cost": 0}, "label_cost=0; it must be a positive number"),
        ({"label_cost": float("nan")}, "label_cost=nan"),
    ],
)
def test_wrong_settings_are_named_at_fit_time(settings, message):
    ambiguity = Wasserstein(0.1, **settings)
    with pytest.raises(InvalidDataError, match=message):
        ambiguity.validate(3, NAMES)


def test_names_need_named_columns():
    with pytest.raises(InvalidDataError, match="without feature names: pass a data frame"):
        resolved(names=None, immutable=["sex"])
    with pytest.raises(InvalidDataError, match="2 feature names for 3 columns"):
        resolved(names=["a", "b"])
    with pytest.raises(InvalidDataError, match="column 1 has weight 0"):
        resolved(names=None, weights={1: 0})


def test_order_one_has_norms_and_what_it_does_not_offer_says_so():
    assert Wasserstein(0.5, order=1, norm=np.inf).budget == 0.5
    resolved(order=1, norm=1)
    with pytest.raises(UnsupportedError, match="bounds need order=2"):
        resolved(order=1, bounds=(0, 1))
    with pytest.raises(InvalidDataError, match="use norm=2, or order=1"):
        resolved(norm=1)
    with pytest.raises(InvalidDataError, match="it must be 1, 2 or inf"):
        resolved(order=1, norm=3)


def test_settings_survive_clone_untouched():
    settings = {"weights": {"age": 2.0}, "immutable": ["sex"], "bounds": {"age": (0, None)}}
    ambiguity = clone(Wasserstein(0.1, **settings))
    ambiguity.validate(3, NAMES)
    assert {name: getattr(ambiguity, name) for name in settings} == settings


def test_resolving_does_not_touch_the_users_arrays():
    weights = np.array([1.0, 2.0, 3.0])
    cost = resolved(weights=weights, immutable=["sex"])
    np.testing.assert_array_equal(weights, [1.0, 2.0, 3.0])
    assert cost.weights is not weights
