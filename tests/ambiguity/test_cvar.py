import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import norm

from drojko.ambiguity import CVaR
from drojko.exceptions import InvalidDataError


@settings(max_examples=200)
@given(seed=st.integers(0, 2**31), alpha=st.floats(0.01, 1), n=st.integers(1, 15))
def test_equals_the_linear_program(seed, alpha, n):
    rng = np.random.default_rng(seed)
    losses, weights = rng.integers(-4, 5, size=n) / 2, rng.uniform(0.1, 1, size=n)
    weights /= weights.sum()
    program = linprog(-weights * losses, A_eq=[weights], b_eq=[1], bounds=(0, 1 / alpha))
    dual = CVaR(alpha).dual(losses, weights)
    assert dual.value == pytest.approx(-program.fun, abs=1e-8)
    assert dual.attained == pytest.approx(dual.value, abs=1e-12)
    assert weights @ dual.ratio == pytest.approx(1, abs=1e-12)
    assert (dual.ratio >= 0).all()
    assert (dual.ratio <= (1 + 1e-12) / alpha).all()
    # The dual point: t + E (loss - t)_+ / alpha, and as a ball of ess sup ratio - 1.
    t = dual.shift
    over = weights @ np.maximum(losses - t, 0)
    assert t + over / alpha == pytest.approx(dual.value, abs=1e-12)
    assert dual.penalty == pytest.approx(over, abs=1e-12)
    assert dual.radius == pytest.approx(dual.ratio.max() - 1, abs=1e-9)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**31), alpha=st.floats(0.05, 1), n=st.integers(1, 15))
def test_bounds_every_reweighting_inside(seed, alpha, n):
    rng = np.random.default_rng(seed)
    losses, weights = rng.normal(size=n), rng.dirichlet(np.ones(n))
    value = CVaR(alpha).dual(losses, weights).value
    for p in rng.dirichlet(np.full(n, 0.3), size=8):
        # Towards the reference until no ratio is above 1 / alpha.
        most = (p / weights).max()
        share = min(1.0, (1.0 / alpha - 1.0) / (most - 1.0)) if most > 1.0 else 1.0
        inside = weights + share * (p - weights)
        assert inside @ losses <= value + 1e-9


def test_limits():
    losses = np.array([0.0, 3.0, 1.0, 8.0])
    whole = CVaR(1.0).dual(losses)
    assert whole.value == 3.0
    np.testing.assert_array_equal(whole.ratio, 1)
    for alpha in (0.25, 0.1, 1e-300):
        dual = CVaR(alpha).dual(losses)
        assert (dual.value, dual.penalty, dual.radius) == (8.0, 0.0, 3.0)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3, 0.9])
def test_gaussian_losses(alpha):
    n = 400_000
    losses = 2.0 + 3.0 * norm.ppf((np.arange(n) + 0.5) / n)
    expected = 2.0 + 3.0 * norm.pdf(norm.ppf(alpha)) / alpha
    assert CVaR(alpha).dual(losses).value == pytest.approx(expected, rel=1e-4)


@given(seed=st.integers(0, 2**31))
def test_the_path_over_tail_masses(seed):
    losses = np.random.default_rng(seed).normal(size=30)
    alphas = np.linspace(1, 0.02, 30)
    values = CVaR(0.5).dual_path(losses, alphas)
    each = [CVaR(alpha).dual(losses).value for alpha in alphas]
    np.testing.assert_allclose(values, each, atol=1e-12)
    assert (np.diff(values) >= -1e-12).all()
    # Concave in the radius 1/alpha - 1, in which the set is a ball.
    slopes = np.diff(values) / np.diff(1 / alphas)
    assert (np.diff(slopes) <= 1e-9).all()


@pytest.mark.parametrize("alpha", [0, -0.1, 1.5, float("nan"), float("inf"), "0.1", True, None])
def test_alpha_outside_of_its_meaning(alpha):
    ambiguity = CVaR(alpha)
    for call in (lambda: ambiguity.validate(2), lambda: ambiguity.dual([1.0, 2.0])):
        with pytest.raises(InvalidDataError, match="CVaR got alpha="):
            call()
    with pytest.raises(InvalidDataError, match=r"alpha=1\.5; the tail mass must be in"):
        CVaR(0.5).dual_path([1.0, 2.0], [0.5, 1.5])


def test_alpha_is_the_only_size():
    ambiguity = CVaR(0.25)
    assert ambiguity.get_params() == {"alpha": 0.25}
    assert ambiguity.budget == 3.0
    assert ambiguity.set_params(alpha=0.5).budget == 1.0
    with pytest.raises(TypeError):
        CVaR(0.5, radius=0.1)
