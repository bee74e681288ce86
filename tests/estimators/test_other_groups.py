"""Rows of groups that a fit never saw: a word on it, not a number alone."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import DROClassifier, audit, select_radius, shift_report
from drojko.ambiguity import CVaR, Group, Wasserstein
from drojko.exceptions import InvalidDataError


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 2))
    y = (X[:, 0] + rng.logistic(size=90) > 0).astype(int)
    return X, y, np.repeat(["a", "b", "c"], 30)


@pytest.fixture(scope="module")
def fitted(rows):
    X, y, groups = rows
    return DROClassifier(Group(), reference="empirical").fit(X, y, groups=groups)


OTHER = np.repeat(["a", "d", "e"], 30)


def test_a_certificate_names_groups_that_the_fit_never_saw(rows, fitted):
    X, y, groups = rows
    with pytest.warns(UserWarning, match=r"not fitted to, 'd', 'e' \(of a fit to 'a', 'b', 'c'\)"):
        found = fitted.robust_certificate(X, y, groups=OTHER)
    losses = np.logaddexp(0.0, (1 - 2 * y) * fitted.decision_function(X))
    assert found.upper == pytest.approx(max(losses[g == OTHER].mean() for g in "ade"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.robust_certificate(X[:60], y[:60], groups=groups[:60])  # fewer groups are no others
        fitted.robust_certificate(X, y, CVaR(alpha=0.5))
        fitted.robust_certificate(X, y, groups=pd.get_dummies(groups).astype(int))


def test_indicator_columns_without_names_say_nothing(rows):
    X, y, groups = rows
    members = np.column_stack([groups == g for g in "abc"]).astype(int)
    model = DROClassifier(Group(), reference="empirical").fit(X, y, groups=members)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.robust_certificate(X, y, groups=OTHER)


def test_an_audit_has_it_as_a_finding(rows, fitted):
    X, y, groups = rows
    found = audit(fitted, X, y, Group(), groups=OTHER).findings
    assert any(text.startswith("other groups") and "'d', 'e'" in text for text in found)
    piped = make_pipeline(StandardScaler(), DROClassifier(Group(), reference="empirical"))
    piped.fit(X, y, droclassifier__groups=groups)
    assert any("'d', 'e'" in text for text in audit(piped, X, y, Group(), groups=OTHER).findings)
    for model, places in ((fitted, groups), (LogisticRegression().fit(X, y), OTHER)):
        found = audit(model, X, y, Group(), groups=places).findings
        assert not any("other groups" in text for text in found)


def test_environments_that_are_left_out_are_so_by_intent(rows):
    X, y, groups = rows
    model = DROClassifier(Group(radius=0.1), reference="empirical")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select_radius(model, X, y, method="environments", groups=groups, radii=[0.0, 0.1])


def test_folds_that_train_without_a_group_are_named(rows):
    X, y, groups = rows
    rare = groups.copy()
    rare[0] = "z"
    model = DROClassifier(Group(radius=0.1), reference="empirical")
    with pytest.warns(UserWarning, match="of 3 is trained without the group 'z'"):
        select_radius(model, X, y, groups=rare, cv=3, radii=[0.1])


def test_missing_labels_and_too_few_of_them(rows):
    X, y, _ = rows
    holes = np.where(np.arange(90) % 3 == 1, np.nan, 1.0)
    model = DROClassifier(Wasserstein(radius=0.1), reference="empirical")
    with pytest.raises(InvalidDataError, match=r"groups\[1\] is missing"):
        select_radius(model, X, y, method="environments", groups=holes)
    with pytest.raises(InvalidDataError, match=r"groups\[1\] is missing"):
        shift_report(X, y, holes)
    with pytest.raises(InvalidDataError, match="groups has 9 rows and X has 90"):
        select_radius(model, X, y, method="environments", groups=OTHER[:9])
