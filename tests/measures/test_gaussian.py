import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone

from drojko.exceptions import InvalidDataError
from drojko.measures import Gaussian

MEAN, COVARIANCE = [1.0, -2.0, 0.5], [[2.0, 0.3, 0.0], [0.3, 1.0, -0.4], [0.0, -0.4, 0.7]]


def test_log_prob_is_scipys(rng):
    x = rng.normal(size=(50, 3)) * 3
    expected = multivariate_normal(MEAN, COVARIANCE).logpdf(x)
    np.testing.assert_allclose(Gaussian(MEAN, COVARIANCE).log_prob(x), expected, rtol=1e-12)


def test_fit_is_weighted_moments_plus_ridge(rng):
    x, w = rng.normal(size=(30, 2)) * [1, 50], rng.integers(1, 4, 30)
    covariance = np.cov(x.T, fweights=w, ddof=0)
    for ridge in (0.0, 1e-6, 0.5):
        measure = Gaussian(ridge=ridge).fit(x, w)
        np.testing.assert_allclose(measure.mean, np.average(x, axis=0, weights=w), rtol=1e-12)
        expected = covariance + ridge * np.diag(np.diag(covariance))
        np.testing.assert_allclose(measure.covariance, expected, rtol=1e-10)


def test_constant_column_gets_the_others_scale():
    measure = Gaussian(ridge=1e-4).fit([[0.0, 7.0], [2.0, 7.0]])
    # Standard deviation 1 in the first column, hence ridge 1e-4 in both.
    np.testing.assert_allclose(measure.covariance, [[1 + 1e-4, 0], [0, 1e-4]], rtol=1e-12)


def test_points_match_the_mean_exactly(generator):
    x, w = Gaussian(MEAN, COVARIANCE).points(10, generator)
    np.testing.assert_allclose(w @ x, MEAN, rtol=1e-12)
    assert len(Gaussian(MEAN, COVARIANCE).points(7, generator)[0]) == 7


def test_settings_and_properties_share_a_name():
    given = Gaussian(MEAN, COVARIANCE)
    assert given.get_params()["mean"] is MEAN
    assert clone(given).mean.tolist() == MEAN
    fitted = Gaussian().fit([[0.0], [2.0]])
    assert fitted.mean.tolist() == [1.0]
    assert fitted.get_params()["mean"] is None
    assert Gaussian().set_params(mean=[3.0], covariance=[[1.0]]).mean.tolist() == [3.0]


@pytest.mark.parametrize(
    "covariance", [[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]], [[1.0, 0.0]]]
)
def test_no_covariance(covariance):
    with pytest.raises(InvalidDataError, match=r"covariance|mean"):
        Gaussian([0.0, 0.0], covariance).dim


def test_float32_queries_are_evaluated_in_double():
    x = torch.tensor([[0.5, 0.25, 1.0]])
    exact = Gaussian(MEAN, COVARIANCE).log_prob(x.double())
    assert torch.equal(Gaussian(MEAN, COVARIANCE).log_prob(x), exact)
