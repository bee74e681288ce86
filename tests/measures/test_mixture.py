import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as Sklearn

from drojko.exceptions import InvalidDataError
from drojko.measures import Gaussian, GaussianMixture

MEANS = [[-4.0, 0.0], [3.0, 1.0]]
COVARIANCES = [[[1.0, 0.3], [0.3, 0.5]], [[0.4, 0.0], [0.0, 2.0]]]
PLANTED = GaussianMixture(means=MEANS, covariances=COVARIANCES, weights=[1, 3])


def test_log_prob_is_scipys(rng):
    x = rng.normal(size=(40, 2)) * 4
    density = sum(
        share * multivariate_normal(m, c).pdf(x)
        for share, m, c in zip([0.25, 0.75], MEANS, COVARIANCES, strict=True)
    )
    np.testing.assert_allclose(PLANTED.log_prob(x), np.log(density), rtol=1e-10)


def test_unweighted_fit_is_sklearns(generator):
    x = PLANTED.sample(300, generator).numpy()
    # Standardised columns: then our ridge is their reg_covar.
    x = (x - x.mean(0)) / x.std(0)
    ours = GaussianMixture(3, ridge=1e-5, random_state=4).fit(x)
    theirs = Sklearn(3, reg_covar=1e-5, max_iter=200, random_state=4).fit(x)
    np.testing.assert_allclose(ours.log_prob(x), theirs.score_samples(x), rtol=1e-8, atol=1e-8)


def test_bic_finds_the_planted_components(generator):
    measure = GaussianMixture().fit(PLANTED.sample(600, generator))
    assert len(measure.weights_) == 2
    order = measure.means_[:, 0].argsort()
    # Standard errors: 600 draws, 150 in the smaller component.
    np.testing.assert_allclose(measure.means_[order], MEANS, atol=0.5)
    np.testing.assert_allclose(measure.weights_[order], [0.25, 0.75], atol=0.12)
    normal = Gaussian([0.0], [[1.0]]).sample(200, generator)
    assert len(GaussianMixture().fit(normal).weights_) == 1


def test_one_component_is_the_weighted_gaussian(rng):
    x, w = rng.normal(size=(30, 2)) * [1, 9], rng.uniform(0.5, 2, 30)
    mixture, single = GaussianMixture(1, ridge=1e-6).fit(x, w), Gaussian(ridge=1e-6).fit(x, w)
    torch.testing.assert_close(mixture.log_prob(x), single.log_prob(x), rtol=1e-9, atol=1e-9)


def test_weighted_fit_is_a_stationary_point(rng, generator):
    x = PLANTED.sample(120, generator).numpy()
    w = np.where(x[:, 0] < 0, 6.0, 1.0) * rng.uniform(0.8, 1.2, 120)
    w /= w.sum()
    measure = GaussianMixture(2, ridge=1e-6).fit(x, w)
    terms = np.stack(
        [
            np.log(share) + multivariate_normal(m, c).logpdf(x)
            for share, m, c in zip(
                measure.weights_, measure.means_, measure.covariances_, strict=True
            )
        ],
        axis=1,
    )
    q = w[:, None] * np.exp(terms - np.logaddexp.reduce(terms, axis=1, keepdims=True))
    # One more step of expectation-maximisation changes nothing (it stopped at a gain of 1e-6).
    np.testing.assert_allclose(q.sum(0), measure.weights_, atol=1e-3)
    np.testing.assert_allclose(q.T @ x / q.sum(0)[:, None], measure.means_, atol=5e-3)
    assert measure.weights_[measure.means_[:, 0].argmin()] == pytest.approx(
        w[x[:, 0] < 0].sum(), abs=0.01
    )


def test_moments_are_the_mixtures():
    np.testing.assert_allclose(PLANTED.mean, [1.25, 0.75], rtol=1e-12)
    second = 0.25 * (np.array(COVARIANCES[0]) + np.outer(MEANS[0], MEANS[0]))
    second += 0.75 * (np.array(COVARIANCES[1]) + np.outer(MEANS[1], MEANS[1]))
    expected = second - np.outer([1.25, 0.75], [1.25, 0.75])
    np.testing.assert_allclose(PLANTED.covariance, expected, rtol=1e-12)


def test_points_are_stratified_and_centred(generator):
    x, w = PLANTED.points(40, generator)
    first = x[:10]
    assert len(x) == 40
    assert w[:10].sum().item() == pytest.approx(0.25)
    np.testing.assert_allclose(first.mean(0), MEANS[0], atol=1e-12)
    assert len(PLANTED.points(1, generator)[0]) == 2


def test_more_components_than_rows_are_not_fitted():
    measure = GaussianMixture(7).fit([[0.0], [1.0], [5.0]])
    assert len(measure.weights_) <= 3


def test_direct_construction_is_checked():
    with pytest.raises(InvalidDataError, match="covariances has shape"):
        GaussianMixture(means=MEANS, covariances=COVARIANCES[:1]).dim
    with pytest.raises(InvalidDataError, match="positive definite"):
        GaussianMixture(means=[[0.0]], covariances=[[[-1.0]]]).dim
    with pytest.raises(InvalidDataError, match="n is 0"):
        GaussianMixture(0).fit(MEANS)
