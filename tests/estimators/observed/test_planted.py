"""Planted shifts: how often intervals hold them, and how near distances come."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from drojko import observed_shift
from drojko.ambiguity import Wasserstein

REPEATS = 150


def gelbrich(mean, old, new):
    """W2 of N(0, old) and N(mean, new)."""
    root = np.real(sqrtm(old))
    cross = np.real(sqrtm(root @ new @ root))
    return np.sqrt(max(mean @ mean + np.trace(old + new - 2.0 * cross), 0.0))


def planted(name, d, rng):
    """Mean of the new law, and factors of the covariance of both."""
    factor, mean = np.eye(d), np.zeros(d)
    if "correlated" in name:
        square = rng.normal(size=(d, d))
        factor = np.linalg.cholesky(square @ square.T / d + 0.2 * np.eye(d))
    other = factor
    if "means" in name:
        mean = np.full(d, 0.5 / np.sqrt(d))
    if "wider" in name:
        other = 1.3 * factor
    if "turned" in name:
        other = np.linalg.qr(rng.normal(size=(d, d)))[0] @ factor
    return mean, factor, other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "d", "n", "m"),
    [
        ("none", 1, 200, 200),
        ("none", 8, 200, 120),
        ("means", 3, 200, 400),
        ("wider", 2, 150, 150),
        ("means, wider, correlated", 5, 300, 200),
        ("correlated, turned", 4, 200, 200),
    ],
)
def test_intervals_hold_what_was_planted(name, d, n, m):
    """95 % of them: fewer than 135 or more than 149 of 150 by chance once in 2,000 and 200 runs.

    Says on which side they miss, and by how many standard errors the squares are biased: too
    narrow, off and askew are told apart by that.
    """
    rng = np.random.default_rng([len(name), d])
    mean, factor, other = planted(name, d, rng)
    true = gelbrich(mean, factor @ factor.T, other @ other.T)
    found, ends = [], []
    for _ in range(REPEATS):
        old, new = (rng.normal(size=(rows, d)) for rows in (n, m))
        one = observed_shift(old @ factor.T, mean + new @ other.T, max_rows=8, random_state=0)
        found.append(one.distance)
        ends.append(one.interval)
    low, high = np.array(ends).T
    below, above = int((high < true - 1e-9).sum()), int((low > true + 1e-9).sum())
    off = (np.mean(found) - true) / (np.std(found) / np.sqrt(REPEATS))
    said = f"{name}: {below} end below {true:.3g}, {above} start above it; off by {off:.1f} errors"
    assert REPEATS * 0.9 <= REPEATS - below - above <= REPEATS - 1, said
    if true > 0.3:
        assert np.mean(found) == pytest.approx(true, rel=0.1), said


@pytest.mark.parametrize("d", [2, 12])
def test_columns_of_very_different_units(d):
    """The distance is that of the column that shifts, however small it is beside others."""
    rng = np.random.default_rng(d)
    units = np.geomspace(1e-3, 1e3, d)
    old, new = rng.normal(size=(300, d)) * units, rng.normal(size=(300, d)) * units
    new[:, -1] *= 1.5
    one = observed_shift(old, new, max_rows=50, random_state=0)
    assert one.interval[0] < 500.0 < one.interval[1]
    assert one.distance == pytest.approx(500.0, rel=0.25)
    assert one.table["column"][0] == f"x{d - 1}"


def test_what_means_and_covariances_do_not_show():
    """A ring, a normal law of the same covariance: of distance 0 by these."""
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 500, 2))
    old *= np.sqrt(2.0) / np.linalg.norm(old, axis=1)[:, None]
    one = observed_shift(old, new, random_state=0)
    # polar coordinates: radii are moved, E (sqrt(2) - R)^2 of a Rayleigh law
    true = np.sqrt(4.0 - 2.0 * np.sqrt(2.0) * np.sqrt(np.pi / 2.0))
    assert one.distance == pytest.approx(true, rel=0.1)
    assert one.interval[0] > 0.0


def test_shares_of_two_values():
    """W2 squared of a column of zeros and ones is the mass that moves; beside others, too."""
    rng = np.random.default_rng(0)
    for others in (0, 3):
        old, new = (
            np.column_stack([rng.random(1000) < share, rng.normal(size=(1000, others))])
            for share in (0.3, 0.5)
        )
        one = observed_shift(old, new, max_rows=200, random_state=0)
        assert one.distance**2 == pytest.approx(0.2, rel=0.25)
        assert one.table["column"][0] == "x0"


@pytest.mark.parametrize("rows", [40, 8])
def test_fewer_rows_than_columns(rows):
    rng = np.random.default_rng(rows)
    old, new = rng.normal(size=(2, rows, 60))
    one = observed_shift(old, new + 0.5, random_state=0)
    assert one.interval[0] < 0.5 * np.sqrt(60) < one.interval[1]
    assert one.at_most >= one.interval[1]


def test_columns_that_do_not_vary():
    rng = np.random.default_rng(0)
    same = np.ones((40, 2))
    assert observed_shift(same, same).interval == (0.0, 0.0)
    assert observed_shift(same, same + 1.0).distance == pytest.approx(np.sqrt(2.0))
    old, new = rng.normal(size=(2, 300, 2))
    old[:, 0] = 0.0  # grows a spread of 1
    one = observed_shift(old, new, random_state=0)
    assert one.interval[0] < 1.0 < one.interval[1]
    doubled = [np.column_stack([X, X.sum(1)]) for X in (old, new)]
    assert np.isfinite(observed_shift(*doubled, random_state=0).interval).all()


def test_order_one_of_a_move_in_many_columns():
    rng = np.random.default_rng(0)
    ball, held, found = Wasserstein(1.0, order=1), 0, []
    for _ in range(20):
        old, new = rng.normal(size=(2, 150, 15))
        new[:, 0] += 0.8
        one = observed_shift(old, new, ambiguity=ball, max_rows=60, random_state=0)
        held += one.interval[0] < 0.8 < one.interval[1]
        found.append(one.distance)
    assert held >= 17
    assert np.mean(found) == pytest.approx(0.8, rel=0.1)
