import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from drojko.ambiguity import ChiSquare, CressieRead, DensityRatioSet
from drojko.ambiguity.base import Divergence


@given(share=st.floats(1e-6, 1), seed=st.integers(0, 2**31))
def test_mean_plus_deviation_while_the_density_is_positive(share, seed):
    losses = np.random.default_rng(seed).exponential(size=50)
    lowest = (losses.mean() - losses.min()) / losses.std()
    radius = share / lowest**2  # the ratio is 1 - sqrt(share) at the smallest loss
    dual = ChiSquare(radius).dual(losses)
    assert dual.value == pytest.approx(losses.mean() + np.sqrt(radius * losses.var()), rel=1e-12)
    expected = 1 + np.sqrt(radius) * (losses - losses.mean()) / losses.std()
    np.testing.assert_allclose(dual.ratio, expected, atol=1e-12)
    penalty = losses.std() / (2 * np.sqrt(radius))
    assert dual.penalty == pytest.approx(penalty, rel=1e-9)
    penalised = ChiSquare(penalty=penalty).dual(losses)
    assert penalised.value == pytest.approx(losses.mean() + losses.var() / (4 * penalty), rel=1e-12)


@pytest.mark.parametrize("radius", [0.1, 1.0, 4.0, 30.0])
def test_gaussian_losses(radius):
    mu, s, n = 1.0, 2.0, 500_000

    def dual(eta):
        u = (mu - eta) / s
        second = s**2 * ((u**2 + 1) * norm.cdf(u) + u * norm.pdf(u))
        return eta + np.sqrt(1 + radius) * np.sqrt(second)

    exact = minimize_scalar(dual, bounds=(-50, 20), method="bounded", options={"xatol": 1e-10}).fun
    losses = mu + s * norm.ppf((np.arange(n) + 0.5) / n)
    # The quantile grid misses the far tail, of which larger radii see more.
    assert ChiSquare(radius).dual(losses).value == pytest.approx(exact, rel=1e-3)


@given(
    seed=st.integers(0, 2**31), radius=st.floats(1e-6, 30), penalty=st.floats(1e-3, 1e3),
    n=st.integers(1, 40),
)  # fmt: skip
def test_is_cressie_read_of_order_two(seed, radius, penalty, n):
    rng = np.random.default_rng(seed)
    losses, weights = rng.standard_cauchy(size=n), rng.uniform(0.1, 1, size=n)
    scale = np.abs(losses).max()
    chi = ChiSquare(radius).dual(losses, weights)
    read = CressieRead(2.0, radius / 2).dual(losses, weights)
    assert chi.value == pytest.approx(read.value, abs=1e-11 * scale)
    np.testing.assert_allclose(chi.ratio, read.ratio, atol=1e-7)
    chi = ChiSquare(penalty=penalty).dual(losses, weights)
    read = CressieRead(2.0, penalty=2 * penalty).dual(losses, weights)
    assert chi.value == pytest.approx(read.value, abs=1e-11 * scale)


def test_the_maximum_needs_one_over_its_mass():
    dual = ChiSquare(3.0).dual([0.0, 1.0, 2.0, 5.0])
    assert (dual.value, dual.penalty, dual.radius) == (5.0, 0.0, 3.0)
    assert ChiSquare(2.9).dual([0.0, 1.0, 2.0, 5.0]).value < 5.0


@pytest.mark.parametrize("size", [{"radius": 0.3}, {"radius": 5.0}, {"penalty": 0.3}])
def test_a_set_that_states_the_divergence_has_its_dual(size, rng):
    class Variance(DensityRatioSet):
        divergence = Divergence("chi-square", 2.0, 2.0)

    losses, weights = rng.normal(size=50), rng.uniform(size=50)
    own, exact = Variance(**size).dual(losses, weights), ChiSquare(**size).dual(losses, weights)
    for name in ("value", "penalty", "shift", "radius", "ratio"):
        np.testing.assert_allclose(getattr(own, name), getattr(exact, name), rtol=1e-9, atol=1e-12)
