import numpy as np
import pytest
import torch
from sklearn.base import clone

from drojko.exceptions import UnsupportedError
from drojko.measures import KDE, Gaussian, Pushforward


class Affine:
    def __init__(self, matrix, shift):
        self.matrix = torch.tensor(matrix, dtype=torch.float64)
        self.shift = torch.tensor(shift, dtype=torch.float64)

    def map(self, x):
        return x @ self.matrix.T + self.shift

    def inverse(self, y):
        return torch.linalg.solve(self.matrix, (y - self.shift).T).T

    def log_abs_det_jacobian(self, x):
        return torch.linalg.slogdet(self.matrix)[1].expand(len(x))


class OneWay:
    def map(self, x):
        return x**2


A, SHIFT = np.array([[2.0, 0.5], [0.0, -0.3]]), [1.0, -1.0]
MEAN, COVARIANCE = np.array([0.5, 2.0]), np.array([[1.0, 0.2], [0.2, 0.6]])


def test_affine_image_of_a_gaussian(rng, generator):
    image = Pushforward(Gaussian(MEAN, COVARIANCE), Affine(A, SHIFT))
    exact = Gaussian(A @ MEAN + SHIFT, A @ COVARIANCE @ A.T)
    y = rng.normal(size=(20, 2)) * 3
    torch.testing.assert_close(image.log_prob(y), exact.log_prob(y), rtol=1e-10, atol=1e-10)
    x = image.sample(40_000, generator)
    # Six standard errors.
    assert ((x.mean(0) - exact.mean).abs() < 6 * exact.covariance.diagonal().sqrt() / 200).all()
    assert image.dim == 2


def test_points_move_with_their_weights(rng):
    base, affine = KDE().fit(rng.normal(size=(5, 2)), [1, 2, 3, 4, 5]), Affine(A, SHIFT)
    x, w = base.points(10, torch.Generator().manual_seed(1))
    y, v = Pushforward(base, affine).points(10, torch.Generator().manual_seed(1))
    assert torch.equal(y, affine.map(x))
    assert torch.equal(w, v)


def test_composition_of_pushforwards(rng):
    base, affine = Gaussian(MEAN, COVARIANCE), Affine(A, SHIFT)
    twice = Pushforward(Pushforward(base, affine), affine)
    exact = Gaussian(A @ (A @ MEAN + SHIFT) + SHIFT, A @ A @ COVARIANCE @ A.T @ A.T)
    y = rng.normal(size=(5, 2))
    torch.testing.assert_close(twice.log_prob(y), exact.log_prob(y), rtol=1e-9, atol=1e-9)


def test_a_map_without_inverse_has_no_density(generator):
    image = Pushforward(Gaussian(MEAN, COVARIANCE), OneWay())
    assert (image.sample(10, generator) >= 0).all()
    with pytest.raises(UnsupportedError, match="OneWay has no inverse"):
        image.log_prob([[1.0, 1.0]])
    with pytest.raises(UnsupportedError, match="no fit"):
        image.fit([[1.0, 1.0], [0.0, 0.0]])


def test_draws_carry_no_graph_and_clone_works(generator):
    affine = Affine(A, SHIFT)
    affine.matrix.requires_grad_(True)
    image = Pushforward(Gaussian(MEAN, COVARIANCE), affine)
    assert not image.sample(3, generator).requires_grad
    assert not image.points(3, generator)[0].requires_grad
    assert torch.equal(
        *(m.sample(3, torch.Generator().manual_seed(0)) for m in (image, clone(image)))
    )
