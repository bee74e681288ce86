"""Scrambled nets of Gaussians and mixtures."""

import numpy as np
import pytest
import torch

from drojko._random import spawn
from drojko.measures import Gaussian, GaussianMixture
from drojko.measures.mixture import net

COVARIANCE = [[2.0, 0.6], [0.6, 0.5]]


def averages(measure, n, seeds, draw):
    gen = torch.Generator().manual_seed(3)
    found = [draw(measure, n, spawn(gen)).cos().prod(1).mean() for _ in range(seeds)]
    return np.array([float(value) for value in found])


@pytest.mark.parametrize(
    "measure",
    [
        Gaussian([1.0, -1.0], COVARIANCE),
        GaussianMixture(means=[[0.0, 0.0], [3.0, 1.0]], covariances=[COVARIANCE, COVARIANCE]),
    ],
    ids=["Gaussian", "GaussianMixture"],
)
def test_averages_are_unbiased_with_a_smaller_error(measure):
    many = averages(measure, 1024, 40, net)
    plain = averages(measure, 1024, 40, lambda m, n, gen: m.sample(n, gen))
    exact = float(measure.sample(2_000_000, torch.Generator().manual_seed(0)).cos().prod(1).mean())
    assert many.std() < 0.3 * plain.std()
    # Four standard errors of the mean of 40, and of the reference of two million draws.
    assert many.mean() == pytest.approx(exact, abs=4 * many.std() / np.sqrt(40) + 4 * 5e-4)


def test_one_seed_gives_one_net():
    measure = Gaussian([0.0], [[1.0]])
    first, second = (net(measure, 64, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, net(measure, 64, torch.Generator().manual_seed(8)))
