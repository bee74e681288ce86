import doctest
import math

import numpy as np
import pytest
import torch

from benchmarks import exact_flows
from benchmarks.exact_flows import (
    Barenblatt,
    barenblatt_step,
    gaussian_step,
    ornstein_uhlenbeck_law,
    symmetric_kl,
)
from drojko.exceptions import InvalidDataError
from drojko.measures import Gaussian


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(exact_flows).failed == 0


def test_the_published_chains():
    """Reference values of a 1-D chain and of one whose matrices do not commute."""
    law, target = Gaussian([0.0], [[1.0]]), Gaussian([2.0], [[4.0]])
    means, variances = [], []
    for _ in range(4):
        law = gaussian_step(law, target, 0.5)
        means.append(float(law.mean))
        variances.append(float(law.covariance))
    np.testing.assert_allclose(means, [0.222222, 0.419753, 0.595336, 0.751410], atol=6e-7)
    np.testing.assert_allclose(variances, [1.551714, 2.017001, 2.400274, 2.712581], atol=6e-7)
    law = Gaussian([1.0, -1.0], [[1.0, -0.4], [-0.4, 0.8]])
    target = Gaussian([0.0, 0.5], [[2.0, 0.6], [0.6, 0.5]])
    for _ in range(2):
        law = gaussian_step(law, target, 0.2)
    np.testing.assert_allclose(law.mean, [0.557024, 0.047975], atol=6e-7)
    np.testing.assert_allclose(
        law.covariance, [[1.123331, 0.130568], [0.130568, 0.409056]], atol=6e-7
    )


def test_the_chain_meets_the_law_at_first_order():
    """SymKL of the chain goes like h^2, so that halving h divides it by about 4."""
    start = Gaussian([0.0, 0.0], np.eye(2))
    target = Gaussian([-0.5, 0.9], [[2.5, -0.24], [-0.24, 0.39]])
    errors = []
    for h in (0.05, 0.025, 0.0125):
        law = start
        for _ in range(round(0.5 / h)):
            law = gaussian_step(law, target, h)
        errors.append(symmetric_kl(law, ornstein_uhlenbeck_law(start, target, 0.5)))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.05)


def test_symmetric_kl_is_the_mean_log_ratio():
    p = Gaussian([0.0, 1.0], [[1.0, 0.3], [0.3, 2.0]])
    q = Gaussian([0.5, 1.0], [[2.0, 0.1], [0.1, 1.0]])
    gen = torch.Generator().manual_seed(0)
    x, y = p.sample(200_000, gen), q.sample(200_000, gen)
    drawn = float((p.log_prob(x) - q.log_prob(x)).mean() + (q.log_prob(y) - p.log_prob(y)).mean())
    assert symmetric_kl(p, q) == pytest.approx(drawn, rel=0.02)  # three standard errors
    assert symmetric_kl(p, p) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize(("d", "m"), [(1, 2.0), (2, 2.0), (3, 2.0), (2, 3.5), (6, 2.0)])
def test_barenblatt_has_mass_one_and_its_moments(d, m):
    law = Barenblatt(d, m, 1.3)
    radius = torch.linspace(0.0, law.radius, 20_001, dtype=torch.float64)
    x = torch.zeros(len(radius), d, dtype=torch.float64)
    x[:, 0] = radius
    sphere = 2.0 * math.pi ** (0.5 * d) / math.gamma(0.5 * d)
    shell = law.log_prob(x).exp() * sphere * radius ** (d - 1)
    assert float(torch.trapezoid(shell, radius)) == pytest.approx(1.0, abs=1e-4)
    second = float(torch.trapezoid(shell * radius**2, radius))
    assert float(law.covariance.trace()) == pytest.approx(second, rel=1e-3)
    points, w = law.points(4000, torch.Generator().manual_seed(0))
    assert float(w @ points.square().sum(1)) == pytest.approx(second, rel=1e-3)
    drawn = law.sample(40_000, torch.Generator().manual_seed(0)).square().sum(1).mean()
    assert float(drawn) == pytest.approx(second, rel=0.03)  # six standard errors


def test_barenblatt_constants_and_chains():
    np.testing.assert_allclose(
        [Barenblatt(d).constant_ for d in (1, 2, 3, 6)],
        [0.3605624, 0.1994711, 0.1348101, 0.0697153], atol=1e-7,
    )  # fmt: skip
    for d, ends in {1: (1.143030, 1.257534), 3: (1.083326, 1.147134)}.items():
        scale, found = 1.0, []
        for _ in range(20):
            scale = barenblatt_step(scale, d, 2.0, 0.05)
            found.append(scale)
        np.testing.assert_allclose([found[9], found[19]], ends, atol=6e-7)


def test_mistakes_are_told():
    with pytest.raises(InvalidDataError, match="m > 1"):
        Barenblatt(2, 1.0)
    with pytest.raises(InvalidDataError, match="positive"):
        gaussian_step(Gaussian([0.0], [[1.0]]), Gaussian([0.0], [[1.0]]), 0.0)
    with pytest.raises(InvalidDataError, match=">= 0"):
        ornstein_uhlenbeck_law(Gaussian([0.0], [[1.0]]), Gaussian([0.0], [[1.0]]), -1.0)
