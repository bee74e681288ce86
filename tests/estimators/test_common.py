"""scikit-learn's whole check suite, and the checks that it does not include."""

from __future__ import annotations

import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_inplace_ensure_writeable,
    check_param_validation,
    parametrize_with_checks,
)

from tests._instances import INSTANCES

pytestmark = [
    pytest.mark.promise(15),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*optimum is a constant model"),  # of labels by chance
]


@parametrize_with_checks(INSTANCES, xfail_strict=True)
def test_scikit_learn(estimator, check):
    check(estimator)


FURTHER = [
    check_param_validation,
    check_dataframe_column_names_consistency,
    check_inplace_ensure_writeable,
]


@pytest.mark.parametrize("check", FURTHER, ids=lambda check: check.__name__)
@pytest.mark.parametrize("estimator", INSTANCES[:2], ids=lambda e: type(e).__name__)
def test_further_checks(estimator, check):
    check(type(estimator).__name__, clone(estimator))
