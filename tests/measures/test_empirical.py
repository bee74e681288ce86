import numpy as np
import pytest
import torch

from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.measures import Empirical


def test_points_are_the_rows_in_order_whatever_n(rng):
    x, w = rng.normal(size=(9, 2)), rng.uniform(1, 2, 9)
    x[4] = x[1]  # duplicates stay: rows keep their places
    for n in (1, 3, 1000):
        points, weights = Empirical().fit(x, w).points(n)
        np.testing.assert_array_equal(points, x)
        np.testing.assert_allclose(weights, w / w.sum(), rtol=1e-15)


def test_rows_without_weight_are_absent():
    atoms, _ = Empirical().fit([[0.0], [9.0], [1.0]], [1.0, 0.0, 2.0]).points(5)
    assert atoms.ravel().tolist() == [0.0, 1.0]


def test_frequencies_follow_weights(generator):
    measure = Empirical([[0.0], [1.0], [2.0]], [1, 2, 5])
    n = 20_000
    share = measure.sample(n, generator).ravel().long().bincount().double() / n
    # Six binomial standard errors.
    assert (share - torch.tensor([0.125, 0.25, 0.625])).abs().max() < 6 * 0.5 / n**0.5


def test_moments_are_numpys(rng):
    x, w = rng.normal(size=(20, 3)), rng.integers(1, 5, 20)
    measure = Empirical(x, w)
    np.testing.assert_allclose(measure.mean, np.average(x, axis=0, weights=w), rtol=1e-12)
    expected = np.cov(x.T, fweights=w, ddof=0)
    np.testing.assert_allclose(measure.covariance, expected, rtol=1e-10, atol=1e-14)


def test_a_single_row_is_a_point_mass(generator):
    measure = Empirical().fit([[3.0, 4.0]])
    assert measure.sample(2, generator).tolist() == [[3.0, 4.0]] * 2
    assert measure.covariance.abs().max() == 0


def test_there_is_no_density():
    with pytest.raises(UnsupportedError, match="KDE"):
        Empirical([[0.0]]).log_prob([[0.0]])


def test_direct_construction_is_checked():
    with pytest.raises(InvalidDataError, match="sample_weight"):
        Empirical([[0.0], [1.0]], [1.0, -1.0]).points(1)
