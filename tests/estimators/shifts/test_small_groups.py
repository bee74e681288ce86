"""Groups of a few rows: joined where that is asked for, named where they are all that counts."""

import warnings

import numpy as np
import pandas as pd
import pytest

from drojko import DRORegressor
from drojko.ambiguity import Group, group_columns
from drojko.exceptions import InvalidDataError

N = 300
rng = np.random.default_rng(0)
X = rng.normal(size=(N, 2))
Y = X[:, 0] + 0.1 * rng.normal(size=N)
PLACE = np.repeat(["a", "b", "c"], [200, 97, 3])
HARD = Y + np.where(PLACE == "c", 20.0 * rng.normal(size=N), 0.0)


def test_a_tiny_group_that_takes_all_the_weight_is_named():
    model = DRORegressor(Group(), reference="empirical")
    with pytest.warns(UserWarning, match="3 of 300 rows takes all the weight"):
        model.fit(X, HARD, groups=PLACE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, HARD, groups=group_columns(PLACE, min_rows=20))
        assert model.worst_case_.group_weights["0 = others"] > 0.99  # of 100 rows
        DRORegressor(Group(radius=0.1), reference="empirical").fit(X, HARD, groups=PLACE)
        model.fit(X, Y, groups=PLACE)  # where it is no harder than others


def test_columns_of_labels_become_groups_that_overlap():
    frame = pd.DataFrame(
        {"place": PLACE, "age": np.arange(N) // 60, "one": 1}, index=range(7, N + 7)
    )
    found = group_columns(frame, min_rows=50)
    assert list(found.index) == list(frame.index)
    # "c" has 3 rows: it is joined with the next larger group, so that both have 100.
    assert list(found) == ["place = a", "place = others", *(f"age = {k}" for k in range(5))]
    assert found["place = others"].sum() == 100
    assert (found.filter(like="place").sum(axis=1) == 1).all()
    assert (found.filter(like="age").sum(axis=1) == 1).all()
    losses = rng.exponential(size=N)
    risks = [losses[found[name] == 1].mean() for name in found]
    assert Group().on(groups=found).dual(losses).value == pytest.approx(max(risks))
    every = group_columns(PLACE)
    assert list(every) == ["0 = a", "0 = b", "0 = c"]


@pytest.mark.parametrize(
    ("labels", "least", "words"),
    [
        (PLACE, 0, "1 to 300"),
        (PLACE, 301, "1 to 300"),
        ([["a", "u"], [None, "u"]], 1, "missing"),
        ([["a", "u"], ["b", "v"]], 2, "two groups of 2 rows"),
    ],
)
def test_bad_input_is_named(labels, least, words):
    with pytest.raises(InvalidDataError, match=words):
        group_columns(labels, min_rows=least)
