import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.exceptions import NotFittedError

from drojko.exceptions import InvalidDataError
from drojko.measures import KDE, Empirical, Gaussian, GaussianMixture, Joint


@pytest.fixture
def data(rng):
    x = rng.normal(size=(50, 2))
    return x, x @ [1.0, -2.0] + 0.1 * rng.normal(size=50)


def test_gaussian_conditional_is_the_regression_of_x_on_y():
    rho = 0.6
    joint = Joint(Gaussian([1.0, 2.0], [[1.0, rho], [rho, 1.0]]))
    y = np.array([0.0, 2.0, 5.0])
    expected = norm(1 + rho * (y - 2), np.sqrt(1 - rho**2)).logpdf(0.3)
    np.testing.assert_allclose(joint.log_prob(np.full((3, 1), 0.3), y), expected, rtol=1e-12)


@pytest.mark.parametrize("template", [Gaussian(), GaussianMixture(2)])
def test_conditional_density_integrates_to_one(template, data):
    x, y = data
    joint = Joint(template).fit(x[:, :1], y)
    grid = np.linspace(-12, 12, 4001)
    for label in (-1.0, 0.0, 2.0):
        density = joint.log_prob(grid[:, None], label).exp().numpy()
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-8)


def test_kde_keeps_labels_with_their_atoms(data, generator):
    x, y = data
    joint = Joint(KDE(0.3)).fit(x, y)
    drawn, label, w = joint.points(200, generator)
    np.testing.assert_allclose(w, np.full(200, 1 / 200), rtol=1e-12)
    np.testing.assert_array_equal(label, np.repeat(y, 4))
    # Given its label, a point is normal around its atom.
    expected = norm(x[:3], 0.3 * x.std(0)).logpdf(0.5).sum(1)
    value = joint.log_prob(np.full((3, 2), 0.5), y[:3])
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    assert joint.log_prob(np.zeros((1, 2)), 123.0).item() == -np.inf
    assert torch.isfinite(joint.log_prob(drawn.float(), label.float())).all()
    assert torch.isfinite(joint.log_prob(drawn, label.float())).all()


def test_kde_settings_keep_their_columns(data):
    x, y = data
    template = KDE(fixed=[-1], max_shift=0.01, shift_weights=[4.0, 1.0])
    joint = Joint(template).fit(x, y)
    assert (joint.measure_.bandwidth_ > 0).tolist() == [True, False, False]
    assert joint.measure_.bandwidth_[0] == pytest.approx(0.005, rel=1e-12)
    assert template.fixed == [-1]


def test_empirical_points_are_the_rows(data):
    x, y = data
    points, label, _ = Joint(Empirical()).fit(x, y).points(3)
    np.testing.assert_array_equal(points, x)
    np.testing.assert_array_equal(label, y)


@pytest.mark.promise(4)
@pytest.mark.parametrize("template", [KDE(), Gaussian(), GaussianMixture(2)])
def test_weight_is_number_of_copies(template, data, rng):
    x, y = data
    k = rng.integers(0, 3, 50)
    weighted = Joint(template).fit(x, y, k)
    copies = Joint(template).fit(np.repeat(x, k, axis=0), np.repeat(y, k))
    torch.testing.assert_close(weighted.log_prob(x, y), copies.log_prob(x, y))


def test_a_fitted_measure_needs_no_fit(data):
    x, y = data
    assert Joint(KDE().fit(np.column_stack([x, y]))).dim == 2
    for template in (None, KDE()):
        with pytest.raises(NotFittedError, match="call fit"):
            Joint(template).dim


def test_bad_labels_are_named(data):
    with pytest.raises(InvalidDataError, match="y contains NaN"):
        Joint().fit(data[0], np.full(50, np.nan))
    with pytest.raises(InvalidDataError, match="y has shape"):
        Joint().fit(data[0], data[1][:-1])
