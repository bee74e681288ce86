"""The scorer of the worst group: by hand, in a search, with groups that are small or overlap."""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score

from drojko import make_worst_group_scorer
from drojko.exceptions import InvalidDataError


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    place = rng.integers(0, 3, 240)
    x = rng.normal(size=240)
    y = (x * np.array([1.0, 1.0, -1.0])[place] + 0.3 * rng.normal(size=240) > 0).astype(int)
    return np.column_stack([x, place]), y


def test_it_is_the_least_score_by_hand(rows):
    X, y = rows
    model = LogisticRegression().fit(X, y)
    each = [-log_loss(y[X[:, 1] == g], model.predict_proba(X[X[:, 1] == g])) for g in range(3)]
    worst = make_worst_group_scorer("neg_log_loss", column=1)
    assert worst(model, X, y) == pytest.approx(min(each))
    again = pickle.loads(pickle.dumps(worst))
    assert again(model, X, y) == worst(model, X, y)
    frame = pd.DataFrame(X, columns=["x", "place"])
    named = make_worst_group_scorer("neg_log_loss", column="place")
    assert named(LogisticRegression().fit(frame, y), frame, y) == pytest.approx(min(each))
    weight = np.where(X[:, 1] == 2, 0.5, 3.0)  # constant in each group: no matter
    assert worst(model, X, y, sample_weight=weight) == pytest.approx(min(each))
    assert make_worst_group_scorer(column=1)(model, X, y) == pytest.approx(
        min(model.score(X[X[:, 1] == g], y[X[:, 1] == g]) for g in range(3))
    )


def test_overlapping_and_small_groups(rows):
    X, y = rows
    model = LogisticRegression().fit(X, y)
    members = np.column_stack([np.ones(240), X[:, 1] == 2, X[:, 0] > 0]).astype(int)
    worst = make_worst_group_scorer("accuracy")
    each = [model.score(X[m > 0], y[m > 0]) for m in members.T]
    assert worst(model, X, y, groups=members) == min(each)
    # Rows of few: scored together, and not one by one (where one error is an accuracy of 0).
    alone = np.arange(240)
    assert worst(model, X, y, groups=alone) == model.score(X, y)
    assert make_worst_group_scorer("accuracy", min_rows=1)(model, X, y, groups=alone) == 0.0


def test_in_searches_by_a_column_and_by_routing(rows):
    X, y = rows
    grid = {"C": [1e-4, 1.0]}
    search = GridSearchCV(
        LogisticRegression(), grid, scoring=make_worst_group_scorer("accuracy", column=1), cv=3
    ).fit(X, y)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = make_worst_group_scorer("accuracy").set_score_request(groups=True)
        found = cross_val_score(
            LogisticRegression(C=1.0), X, y, scoring=routed, cv=3, params={"groups": X[:, 1]}
        )
    assert found.mean() == pytest.approx(search.cv_results_["mean_test_score"][1])


def test_bad_input_is_named(rows):
    X, y = rows
    model = LogisticRegression().fit(X, y)
    with pytest.raises(InvalidDataError, match="has no groups"):
        make_worst_group_scorer("accuracy")(model, X, y)
    with pytest.raises(InvalidDataError, match="one per row"):
        make_worst_group_scorer("accuracy")(model, X, y, groups=X[:7, 1])
    with pytest.raises(InvalidDataError, match="1 or more"):
        make_worst_group_scorer(min_rows=0)
