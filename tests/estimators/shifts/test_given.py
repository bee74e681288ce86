"""Held-out scores and what environments add to them, against closed forms and scikit-learn."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

from drojko.estimators.shifts.given import (
    FOLDS,
    _fit,
    columns_of,
    gain_of_moves,
    gain_of_slopes,
    moves,
    scores,
)

rng = np.random.default_rng(0)
N = 400
X = columns_of(rng.normal(size=(N, 3)), squares=False)
PLACE = np.arange(N) % 4
FOLD = rng.permutation(N) % FOLDS


@pytest.mark.parametrize("logistic", [True, False])
def test_fits_are_those_of_scikit_learn(logistic):
    y = X @ [1.0, -2.0, 0.5] + rng.logistic(size=N)
    if logistic:
        y = (y > 0).astype(float)
        other = LogisticRegression(C=1.0 / (0.05 * N), tol=1e-8).fit(X, y)
    else:
        other = Ridge(alpha=0.05 * N).fit(X, y)
    found = _fit(X, y, np.zeros(N), 0.05, logistic, np.zeros(4))
    # The intercept has a weak prior of spread 3: 1 / (9 n) of a curvature of about 0.2.
    assert found[1:] == pytest.approx(np.ravel(other.coef_), rel=5e-3)
    assert found[0] == pytest.approx(float(np.ravel(other.intercept_)[0]), abs=5e-3)
    # A score that is known already leaves nothing to fit but what the penalty had held back.
    offset = X @ np.ravel(other.coef_) + found[0]
    free = _fit(X, y, offset, 1e6, logistic, np.zeros(4))
    assert np.abs(free).max() < 5e-3


def test_no_score_has_seen_its_row():
    y = rng.normal(size=N)
    found = scores(X, y, False, FOLD)
    changed = y.copy()
    changed[FOLD == 2] += 100.0 * rng.normal(size=(FOLD == 2).sum())
    # The folds' penalties are chosen by the others: with one penalty no score moves at all.
    again = scores(X[:, :0], changed, False, FOLD)
    plain = scores(X[:, :0], y, False, FOLD)
    assert again[FOLD == 2] == pytest.approx(plain[FOLD == 2])
    assert not np.allclose(again[FOLD != 2], plain[FOLD != 2])
    assert found.shape == (N,)


def test_levels_of_numbers_are_means_with_the_spread_of_a_meta_analysis():
    """Paule and Mandel: of equal errors, the variance of the means less the error's square."""
    level = np.array([-1.0, 0.0, 0.5, 2.5])
    noise = rng.normal(size=(N // 4, 4))
    noise = (noise - noise.mean(0)) / noise.std(0)
    y = (level + noise).ravel()
    found = moves(np.zeros(N), y, PLACE, 4, False)
    assert found.move == pytest.approx(level)
    left = float(y.var())
    error = (N // 4 + 5 * left) / (N // 4 + 5) / (N // 4)
    assert found.error**2 == pytest.approx(error)
    assert found.spread**2 == pytest.approx(level.var(ddof=1) - error)
    kept = level.mean() + (level - level.mean()) * found.spread**2 / (found.spread**2 + error)
    assert found.kept == pytest.approx(kept)


def test_the_spread_between_many_places_is_found_and_none_is_not():
    place = np.repeat(np.arange(300), 40)
    level = np.random.default_rng(1).normal(size=300)
    draw = np.random.default_rng(2)
    score = draw.normal(size=len(place))
    for spread in (0.0, 0.8):
        y = (draw.random(len(place)) < expit(score + spread * level[place])).astype(float)
        found = moves(score, y, place, 300, True)
        assert found.spread == pytest.approx((spread * level).std(ddof=1), abs=0.08)
        if spread == 0.0:
            assert found.p > 1e-3
        else:
            # Shrunk levels are nearer to the truth than raw ones.
            raw = np.mean((found.move - spread * level) ** 2)
            assert np.mean((found.kept - spread * level) ** 2) < raw
            assert found.p < 1e-12


def test_gains_are_of_rows_that_were_held_out():
    """A level of its own for every row of noise gains nothing; slopes gain only where they are."""
    y = rng.normal(size=N)
    alone = np.arange(N)
    gain, _ = gain_of_moves(np.zeros(N), y, alone, N, False, FOLD)
    assert gain.mean() < 1e-3
    own = np.where(PLACE == 0, 2.0, -2.0)
    y = own * X[:, 0] + 0.1 * rng.normal(size=N)
    gain = gain_of_slopes(X, np.zeros(N), y, PLACE, 4, False, FOLD)
    assert gain.mean() == pytest.approx(0.5 * np.mean(y**2), rel=0.05)
    y = rng.normal(size=N)
    assert gain_of_slopes(X, np.zeros(N), y, PLACE, 4, False, FOLD).mean() < 1e-3
