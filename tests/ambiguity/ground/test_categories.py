"""Categorical columns: how they are named, what swaps cost, which rows are valid."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from drojko.ambiguity import Wasserstein, one_hot_groups
from drojko.exceptions import InvalidDataError, UnsupportedError

NAMES = ["age", "sex", "red", "green", "blue"]
X = np.array([[3.0, 0, 1, 0, 0], [5.0, 1, 0, 0, 1], [4.0, 1, 0, 1, 0]])


def resolve(features, swap_cost=math.inf, **settings):
    ball = Wasserstein(1.0, categorical_features=features, swap_cost=swap_cost, **settings)
    return ball.validate(5, NAMES)


def columns(cost):
    return [c.tolist() for c in cost.categories.columns]


@pytest.mark.parametrize(
    "features",
    [
        ["sex", ["red", "green", "blue"]],
        [1, (2, 3, 4)],
        [-4, np.array(["red", "green", "blue"])],
        ["sex", [2, "green", -1]],
    ],
)
def test_names_indices_and_groups_say_the_same(features):
    cost = resolve(features)
    assert columns(cost) == [[1], [2, 3, 4]]
    assert cost.mutable.tolist() == [True, False, False, False, False]
    assert not cost.swaps


def test_a_mask_lists_columns_one_by_one():
    assert columns(resolve([False, True, True, False, True])) == [[1], [2], [4]]
    assert resolve([False] * 5).categories is None
    assert resolve([]).categories is None


def test_swap_costs_by_number_column_and_group():
    group = ["red", "green", "blue"]
    assert resolve(["sex", group], 2.0).categories.costs.tolist() == [2.0, 2.0]
    assert resolve(["sex", group], {"sex": 3}).categories.costs.tolist() == [3.0, math.inf]
    for key in ("green", 3, ("red", "green", "blue"), (2, 4)):
        assert resolve(["sex", group], {key: 0.5}).categories.costs.tolist() == [math.inf, 0.5]
    # What is immutable stays, whatever its price.
    both = resolve(["sex", group], 1.0, immutable=["blue"])
    assert both.categories.costs.tolist() == [1.0, math.inf]


@pytest.mark.parametrize(
    ("features", "swap_cost", "match"),
    [
        (["six"], 1.0, "unknown feature 'six'; did you mean 'sex'"),
        ([7], 1.0, "column index 7"),
        ("from_dtype", 1.0, "from_dtype"),
        (["sex", ["red", "sex"]], 1.0, "lists column 'sex' twice"),
        ([[]], 1.0, "empty group"),
        ([True, False], 1.0, "mask of length 2"),
        (["sex"], 0.0, "must be positive"),
        (["sex"], -1.0, "must be positive"),
        (["sex"], math.nan, "must be positive"),
        (["sex"], "low", "expected a number"),
        (["sex"], {"sex": 0}, "of 'sex' is 0"),
        (["sex"], {"age": 1}, "no group of categorical_features; the groups are: 'sex'"),
        (["sex", ["red", "blue"]], {("red", "sex"): 1}, "no group"),
        (None, {"sex": 1}, "name them in categorical_features"),
        (None, 0.0, "must be positive"),
    ],
)
def test_wrong_settings_are_named(features, swap_cost, match):
    with pytest.raises(InvalidDataError, match=match):
        resolve(features, swap_cost)


def test_order_one_has_no_categories():
    with pytest.raises(UnsupportedError, match="order=2"):
        resolve(["sex"], 1.0, order=1)


def test_categories_are_what_the_data_show():
    cost = resolve(["age", "sex", ["red", "green", "blue"]], 1.0).observed(X)
    age, sex, colour = cost.categories.values
    assert age[:, 0].tolist() == [3.0, 4.0, 5.0]
    assert sex[:, 0].tolist() == [0.0, 1.0]
    assert sorted(colour.tolist()) == sorted(np.eye(3).tolist())
    # A column that no row uses is a category; rows without a 1 are one where there are any.
    few = resolve([["red", "green", "blue"]], 1.0).observed(X[:1]).categories.values[0]
    assert len(few) == 3
    none = np.vstack([X, [[9.0, 0, 0, 0, 0]]])
    assert len(resolve([["red", "green", "blue"]], 1.0).observed(none).categories.values[0]) == 4
    # Known ones are kept beside those of other rows.
    again = resolve(["age"], 1.0).observed(X + 10, cost.categories.known)
    assert again.categories.values[0][:, 0].tolist() == [3.0, 4.0, 5.0, 13.0, 14.0, 15.0]


@pytest.mark.parametrize("row", [[0, 0, 1, 1, 0], [0, 0, 0.5, 0.5, 0], [0, 0, -1, 0, 0]])
def test_a_group_that_is_not_one_hot_is_an_error(row):
    cost = resolve([["red", "green", "blue"]])
    cost.check_inside(X)
    with pytest.raises(InvalidDataError, match=r"\('red', 'green', 'blue'\) is not one-hot: row 3"):
        cost.check_inside(np.vstack([X, row]))
    with pytest.raises(InvalidDataError, match="not one-hot"):
        cost.check_inside(torch.tensor(np.vstack([X, row])))


def test_the_cost_of_moves_and_swaps():
    cost = resolve(["sex", ["red", "green", "blue"]], {"sex": 0.5, "red": 2.0}, weights={"age": 4})
    cost = cost.observed(X)
    moved = X.copy()
    moved[0, 0] += 1  # 4
    moved[1, 1] = 0  # 0.5
    moved[2, 2:] = [1, 0, 0]  # 2
    for kind in (np.asarray, torch.tensor):
        assert cost.cost(kind(X), kind(moved)).tolist() == [4.0, 0.5, 2.0]
    fixed = resolve(["sex", ["red", "green", "blue"]], {"sex": 0.5}).observed(X)
    assert fixed.cost(X, moved).tolist() == [1.0, 0.5, math.inf]
    assert "categorical: 'sex', ('red', 'green', 'blue')" in repr(cost)


def test_other_units_keep_costs_relative():
    categories = resolve(["sex"], 3.0).observed(X).categories
    scaled = categories.rescaled(np.array([0.0, 0.5, 0, 0, 0]), 2.0)
    assert scaled.values[0][:, 0].tolist() == [-0.25, 0.25]
    assert scaled.costs.tolist() == [0.75]


def test_groups_of_encoders():
    table = pd.DataFrame(
        {
            "age": [1.0, 2, 3],
            "city": ["a_b", "c", "d"],
            "pet": ["x", "y", "x"],
            "up": ["n", "y", "n"],
        }
    )
    encode = ColumnTransformer(
        [
            ("number", StandardScaler(), ["age"]),
            ("one", OneHotEncoder(sparse_output=False), ["city", "pet"]),
            (
                "two",
                make_pipeline(
                    FunctionTransformer(feature_names_out="one-to-one"),
                    OneHotEncoder(drop="if_binary", sparse_output=False),
                ),
                ["up"],
            ),
        ]
    ).fit(table)
    expected = [
        ["one__city_a_b", "one__city_c", "one__city_d"],
        ["one__pet_x", "one__pet_y"],
        ["two__up_y"],
    ]
    assert one_hot_groups(encode) == expected
    names = encode.get_feature_names_out()
    assert names[0] == "number__age"
    encoded = pd.DataFrame(encode.transform(table), columns=names)
    cost = Wasserstein(1.0, categorical_features=one_hot_groups(encode), swap_cost=1.0)
    cost = cost.validate(len(names), names)
    cost.check_inside(encoded)
    assert columns(cost) == [[1, 2, 3], [4, 5], [6]]
    with pytest.raises(InvalidDataError, match="one_hot_groups got StandardScaler"):
        one_hot_groups(StandardScaler())
