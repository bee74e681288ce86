import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drojko.ambiguity import CVaR, TotalVariation
from drojko.exceptions import InvalidDataError


@given(seed=st.integers(0, 2**31), radius=st.floats(0, 0.99))
def test_maximum_and_tail(seed, radius):
    rng = np.random.default_rng(seed)
    losses, weights = rng.integers(0, 9, size=20) / 2, rng.uniform(0.1, 1, size=20)
    tail = CVaR(1 - radius).dual(losses, weights).value
    expected = radius * losses.max() + (1 - radius) * tail
    assert TotalVariation(radius).dual(losses, weights).value == pytest.approx(expected, abs=1e-12)


@given(seed=st.integers(0, 2**31), penalty=st.floats(1e-3, 10))
def test_penalised_form(seed, penalty):
    losses = np.random.default_rng(seed).integers(0, 9, size=20) / 2
    dual = TotalVariation(penalty=penalty).dual(losses)
    expected = np.maximum(losses, losses.max() - penalty).mean()
    assert dual.value == pytest.approx(expected, abs=1e-12)
    assert dual.shift == pytest.approx(losses.max() - penalty / 2, abs=1e-12)


def test_the_mass_of_equal_losses_is_shared():
    dual = TotalVariation(0.3).dual([1.0, 1.0, 4.0, 4.0])
    np.testing.assert_allclose(dual.ratio, [0.4, 0.4, 1.6, 1.6])
    assert dual.value == pytest.approx(2.5 + 0.3 * 3)
    assert dual.penalty == 3.0


def test_all_other_mass_gives_the_maximum():
    for radius in (0.75, 0.8, 1.0):
        dual = TotalVariation(radius).dual([0.0, 1.0, 2.0, 5.0])
        assert (dual.value, dual.penalty, dual.radius) == (5.0, 0.0, 0.75)


def test_bounds_at_an_offset():
    losses = np.array([100000001.15875874, 99999998.08872372])
    weights = np.array([0.9, 0.1])
    ball = TotalVariation(0.05)
    dual = ball.dual(losses, weights)
    bound = weights @ ball.bounds_at(losses, dual.penalty, dual.shift)
    assert bound == pytest.approx(dual.value, abs=1e-6)
    assert ball.bounds_at([losses[0] + 1.0], dual.penalty, dual.shift)[0] == np.inf


def test_more_than_all_mass_is_a_mistake():
    with pytest.raises(InvalidDataError, match=r"radius=1.5.*at most 1, where every"):
        TotalVariation(1.5).validate(2)
    with pytest.raises(InvalidDataError, match=r"radius=1.5"):
        TotalVariation(0.5).dual_path([1.0, 2.0], [0.5, 1.5])
