import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from drojko.ambiguity import KL


@pytest.mark.parametrize("radius", [1e-4, 0.01, 0.1, 0.5])
def test_gaussian_losses(radius):
    # Midpoint quantiles miss 1e-6 of each tail, which matters less the smaller the radius is.
    n = 500_000
    losses = 2.0 + 3.0 * norm.ppf((np.arange(n) + 0.5) / n)
    dual = KL(radius).dual(losses)
    assert dual.value == pytest.approx(2.0 + 3.0 * np.sqrt(2 * radius), rel=2e-4)
    assert dual.penalty == pytest.approx(3.0 / np.sqrt(2 * radius), rel=2e-3)
    penalised = KL(penalty=4.0).dual(losses)
    assert penalised.value == pytest.approx(2.0 + 9.0 / 8.0, rel=1e-4)


@pytest.mark.parametrize("penalty", [1e-12, 1e-3, 0.5, 3.0, 1e3, 1e12])
def test_penalised_form_is_the_entropic_risk_without_overflow(penalty, rng):
    losses, weights = 100 * rng.normal(size=40), rng.uniform(size=40)
    weights /= weights.sum()
    dual = KL(penalty=penalty).dual(losses, weights)
    if penalty < 1e6:  # above, the textbook formula is the one that cancels
        expected = penalty * logsumexp(losses / penalty, b=weights)
    else:
        expected = weights @ losses + weights @ (losses - weights @ losses) ** 2 / (2 * penalty)
    assert dual.value == dual.shift == pytest.approx(expected, rel=1e-10)


def test_two_points_by_hand():
    # Bernoulli(p) tilted to Bernoulli(q): the radius is the binary divergence.
    p, q = 0.2, 0.55
    radius = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    dual = KL(radius).dual([0.0, 1.0], [1 - p, p])
    assert dual.value == pytest.approx(q, rel=1e-12)
    np.testing.assert_allclose(dual.ratio, [(1 - q) / (1 - p), q / p], rtol=1e-11)
    slope = np.log(q / p) - np.log((1 - q) / (1 - p))
    assert dual.penalty == pytest.approx(1 / slope, rel=1e-11)


def test_the_maximum_is_reached_at_minus_log_of_its_mass():
    losses, weights = [0.0, 3.0, 3.0, 1.0], [0.4, 0.1, 0.1, 0.4]
    limit = -np.log(0.2)
    below = KL(limit * (1 - 1e-6)).dual(losses, weights)
    assert below.value < 3.0
    assert below.value == pytest.approx(3.0, abs=1e-5)
    assert below.penalty > 0
    at = KL(limit * (1 + 1e-12)).dual(losses, weights)
    assert (at.value, at.penalty) == (3.0, 0.0)
    assert at.radius == pytest.approx(limit, rel=1e-12)


def test_small_radii_move_by_the_deviation(rng):
    losses = rng.exponential(size=1000)
    for radius in (1e-30, 1e-20, 1e-12):
        gain = KL(radius).dual(losses - losses.mean()).value
        assert gain == pytest.approx(losses.std() * np.sqrt(2 * radius), rel=1e-5)
