"""Sizes of sets that hold an environment: below the truth, and near it where cells can tell."""

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import norm

from drojko.ambiguity import ClassShift
from drojko.estimators.shifts.reach import auc, cells, reach_of_ratios, reach_of_shares


def sizes(score, inside):
    found = reach_of_ratios([cells(score, inside)], [inside], np.random.default_rng(0))
    return {one.name: float(one.needed[0]) for one in found}


def test_divergences_of_two_normals_from_below():
    """KL 1/2, total variation 2 Phi(1/2) - 1, chi-square e - 1 (twice that of the set's scale)."""
    rng = np.random.default_rng(0)
    inside = np.arange(40_000) % 2 == 0
    score = rng.normal(size=40_000) + inside
    found = sizes(score, inside)
    assert 0.8 * 0.5 < found["KL"] < 0.5
    exact = 2.0 * norm.cdf(0.5) - 1.0
    assert 0.95 * exact < found["TotalVariation"] < exact + 0.01
    assert 0.5 * (np.e - 1.0) < found["ChiSquare"] < np.e - 1.0
    # The ratio has no bound: a tail of alpha is an upper end only.
    assert found["CVaR"] < 0.2
    assert auc(score, inside) == pytest.approx(norm.cdf(np.sqrt(0.5)), abs=0.01)


def test_labels_by_chance_need_next_to_nothing():
    rng = np.random.default_rng(1)
    found = sizes(rng.normal(size=2000), rng.random(2000) < 0.2)
    assert found["KL"] < 0.02  # three standard deviations; the raw estimate has a mean of 0.006
    assert found["TotalVariation"] < 0.06
    assert found["CVaR"] > 0.8


def test_ties_and_constant_scores_have_cells():
    inside = np.arange(60) < 20
    assert sizes(np.zeros(60), inside)["KL"] == 0.0
    assert np.unique(cells(np.zeros(60), inside)).size == 1
    assert auc(np.zeros(60), inside) == 0.5


def test_shares_of_classes_are_what_the_set_counts():
    """A class shift of the size that is named holds the environment, and none much smaller."""
    y = np.repeat([0, 1, 0, 1], [300, 100, 100, 300])
    inside = np.arange(800) >= 400
    mass, odds = (one.needed[0] for one in reach_of_shares(y, [inside], 2))
    assert mass == pytest.approx(0.5, abs=0.002)
    assert odds == pytest.approx(logit(0.75) - logit(0.25), abs=0.02)
    loss = y[~inside].astype(float)
    for ambiguity in (ClassShift(radius=mass), ClassShift(between=(-odds, odds))):
        held = ambiguity.bind(None, y[~inside], None).dual(loss).value
        assert held == pytest.approx(y[inside].mean(), abs=2e-3)
