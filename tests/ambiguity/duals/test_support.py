"""Sets on support points: smoothed duals, their derivatives, bounds at any dual point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation
from drojko.exceptions import InvalidDataError

SETS = {
    "kl": KL(0.2),
    "kl-penalty": KL(penalty=0.7),
    "chi-square": ChiSquare(0.8),
    "chi-square-penalty": ChiSquare(penalty=0.3),
    "cressie-read-3": CressieRead(3.0, 0.2),
    "cressie-read-1.5-penalty": CressieRead(1.5, penalty=0.4),
    "cressie-read-half": CressieRead(0.5, 0.1),
    "tv": TotalVariation(0.3),
    "tv-penalty": TotalVariation(penalty=1.2),
    "tv-all": TotalVariation(1.0),
    "cvar": CVaR(0.3),
    "kl-large": KL(50.0),
    "chi-square-large": ChiSquare(1e6),
    "kl-zero": KL(0.0),
    "cvar-one": CVaR(1.0),
}
sets = pytest.mark.parametrize("ambiguity", SETS.values(), ids=SETS.keys())


def problem(seed, n=12):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 1.0, n)
    return rng.normal(size=n), weights / weights.sum(), rng.normal(size=n)


@sets
@given(seed=st.integers(0, 10_000), smoothing=st.floats(1e-4, 2.0))
def test_the_smoothed_value_is_at_most_the_smoothing_below(ambiguity, seed, smoothing):
    losses, weights, _ = problem(seed)
    bound = ambiguity.on(None, weights)
    exact, smooth = bound.dual(losses), bound.dual(losses, smoothing)
    rounding = 1e-9
    assert smooth.value <= exact.value + rounding
    assert exact.value <= smooth.value + smoothing + rounding
    # The ratio is one of the set's: nonnegative, of mean one, and no worse than the dual value.
    assert (smooth.ratio >= 0).all()
    assert float(weights @ smooth.ratio) == pytest.approx(1.0, abs=1e-9)
    assert smooth.attained == pytest.approx(float(weights * smooth.ratio @ losses), abs=1e-9)
    price = ambiguity.penalty or 0.0
    assert smooth.attained - price * smooth.radius <= exact.value + rounding
    if ambiguity.budget is not None:
        assert smooth.radius <= ambiguity.budget * (1 + 1e-9) + rounding


@sets
@given(seed=st.integers(0, 10_000), smoothing=st.sampled_from([0.05, 0.5]))
def test_the_ratio_is_the_derivative_of_the_smoothed_value(ambiguity, seed, smoothing):
    losses, weights, direction = problem(seed)
    bound = ambiguity.on(None, weights)
    step = 1e-5
    here = bound.dual(losses, smoothing)
    up, down = (bound.dual(losses + s * direction, smoothing) for s in (step, -step))
    slope = weights * here.ratio @ direction
    assert (up.value - down.value) / (2 * step) == pytest.approx(slope, abs=1e-5)


@sets
def test_constant_losses_and_shifts(ambiguity):
    losses, weights, _ = problem(3)
    bound = ambiguity.on(None, weights)
    constant = bound.dual(np.full(12, 0.7), 0.1)
    assert 0.6 <= constant.value <= 0.7 + 1e-12
    assert constant.ratio == pytest.approx(np.ones(12), abs=1e-9)
    moved = bound.dual(losses + 5.0, 0.1)
    assert moved.value == pytest.approx(bound.dual(losses, 0.1).value + 5.0, abs=1e-9)


@sets
@given(seed=st.integers(0, 10_000))
def test_bounds_at_a_dual_point(ambiguity, seed):
    losses, weights, other = problem(seed)
    dual = ambiguity.dual(losses, weights)
    at_optimum = float(weights @ ambiguity.bounds_at(losses, dual.penalty, dual.shift))
    assert at_optimum == pytest.approx(dual.value, abs=1e-8)
    # Any dual point is an upper bound: the one of other losses too.
    point = ambiguity.dual(other, weights)
    with np.errstate(over="ignore"):
        bound = float(weights @ ambiguity.bounds_at(losses, point.penalty, point.shift))
    exact = ambiguity.dual(losses, weights).value
    assert bound >= exact - 1e-9 * max(1.0, abs(bound))


def test_copies_are_weights():
    losses, weights = np.array([0.3, 1.0, 2.0]), np.array([0.25, 0.25, 0.5])
    for ambiguity in (KL(0.1), ChiSquare(0.1), CVaR(0.4), TotalVariation(penalty=0.5)):
        whole = ambiguity.on(None, weights).dual(losses, 1e-7)
        copies = ambiguity.on(None, np.full(4, 0.25)).dual([0.3, 1.0, 2.0, 2.0], 1e-7)
        assert whole.value == pytest.approx(copies.value, abs=2e-7)


@pytest.mark.parametrize("weights", [[], [-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]])
def test_weights_must_be_masses(weights):
    with pytest.raises(InvalidDataError, match="weights"):
        KL(0.1).on(None, weights)


def test_losses_must_be_finite():
    with pytest.raises(InvalidDataError, match="finite"):
        CVaR(0.5).on(None, [0.5, 0.5]).dual([np.inf, 0.0], 0.1)
