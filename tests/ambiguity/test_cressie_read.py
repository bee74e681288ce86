import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from drojko.ambiguity import KL, CressieRead
from drojko.exceptions import InvalidDataError


@pytest.mark.parametrize("k", [1.2, 1.5, 2.0, 3.0, 6.0])
@pytest.mark.parametrize("radius", [1e-3, 0.1, 0.7])
def test_the_formula_of_the_ball(k, radius, rng):
    losses = rng.normal(size=60)
    star = k / (k - 1)
    factor = (1 + k * (k - 1) * radius) ** (1 / k)

    def dual(c):
        return c + factor * np.mean(np.maximum(losses - c, 0) ** star) ** (1 / star)

    span = np.ptp(losses) * 100 * max(1, 1 / (k - 1)) / np.sqrt(radius)
    best = minimize_scalar(
        dual, bounds=(losses.min() - span, losses.max()), method="bounded",
        options={"xatol": 1e-11 * span, "maxiter": 2000},
    ).fun  # fmt: skip
    assert CressieRead(k, radius).dual(losses).value == pytest.approx(best, abs=1e-8)


def test_hellinger_is_order_one_half():
    # Two points: order 1/2 is 2 E (sqrt(q) - 1)^2 = 4 (1 - E sqrt(q)).
    p, target = 0.3, 0.6
    affinity = np.sqrt(p * target) + np.sqrt((1 - p) * (1 - target))
    dual = CressieRead(0.5, 4 * (1 - affinity)).dual([0.0, 1.0], [1 - p, p])
    assert dual.value == pytest.approx(target, rel=1e-12)
    for radius in (4.0, 10.0):  # beyond 1 / (k (1 - k)) every distribution is inside
        assert CressieRead(0.5, radius).dual(np.arange(100.0)).value == 99.0


@given(seed=st.integers(0, 2**31), radius=st.floats(1e-4, 1.5), below=st.booleans())
def test_order_one_is_the_limit(seed, radius, below):
    losses = np.random.default_rng(seed).normal(size=30)
    near = CressieRead(1 - 1e-7 if below else 1 + 1e-7, radius).dual(losses)
    assert near.value == pytest.approx(KL(radius).dual(losses).value, abs=1e-5)
    assert near.attained == pytest.approx(near.value, abs=1e-9)


@given(seed=st.integers(0, 2**31), k=st.sampled_from([0.1, 0.5, 0.9, 1.1, 2.5, 4.0]),
       radius=st.floats(1e-3, 3))  # fmt: skip
def test_the_first_order_conditions(seed, k, radius):
    losses = np.random.default_rng(seed).normal(size=25)
    dual = CressieRead(k, radius).dual(losses)
    if dual.penalty == 0:
        assert dual.value == losses.max()
        return
    # loss - shift - penalty * phi'(q) is 0 where q > 0, and not positive elsewhere.
    slope = (np.maximum(dual.ratio, 1e-300) ** (k - 1) - 1) / (k - 1)
    rest = losses - dual.shift - dual.penalty * slope
    used = dual.ratio > 1e-12
    np.testing.assert_allclose(rest[used], 0, atol=1e-6)
    assert (rest[~used] <= 1e-6).all()


@pytest.mark.parametrize("k", [1.5, 2.0, 3.0, 6.0])
def test_a_small_penalty_has_the_dual_point_of_the_maximum(k):
    losses = np.array([0.0, 1.0, 2.0, 5.0])
    family = CressieRead(k, penalty=0.01)
    dual = family.dual(losses)
    np.testing.assert_allclose(dual.ratio, [0, 0, 0, 4])
    np.testing.assert_allclose(
        np.exp(family.log_ratio_at(losses, dual.penalty, dual.shift)), dual.ratio, atol=1e-12
    )
    bound = family.bounds_at(losses, dual.penalty, dual.shift).mean()
    assert bound == pytest.approx(dual.value, abs=1e-12)


def test_orders_near_zero_reach_almost_all_distributions():
    losses = 1e8 + np.array([1.1639356, 0.89021625, -0.83225884])
    weights = [0.16296804739698445, 0.92802994174066, 0.1980517728530642]
    dual = CressieRead(0.01, 87.90866960840782).dual(losses, weights)
    assert dual.value == losses[0]
    assert np.isfinite(dual.penalty)


def test_ratios_that_jump_are_resolved():
    # At order 6 a ratio is a fifth root: it reaches 6e-4 at a distance below rounding.
    losses = [81583644.49685127, 268625846.8743211, 412396.7263614553, -176950.42342170386,
              379275.81533946336]  # fmt: skip
    weights = [1.0575473012897085, 1.6715525868691787, 1.3449857056080843, 1.0409800162850045,
               1.332346578320668]  # fmt: skip
    dual = CressieRead(6.0, 0.4831604744186626).dual(losses, weights)
    assert dual.attained == pytest.approx(dual.value, rel=1e-11)


@given(seed=st.integers(0, 2**31), radius=st.floats(1e-3, 3), penalty=st.floats(1e-3, 1e3))
def test_high_orders(seed, radius, penalty):
    losses = np.random.default_rng(seed).normal(size=25)
    dual = CressieRead(20.0, radius).dual(losses)
    # Here a ratio is a nineteenth root: rounding moves it by 0.15, the value to second order.
    assert dual.attained == pytest.approx(dual.value, abs=1e-7)
    assert dual.value <= losses.max()
    penalised = CressieRead(20.0, penalty=penalty).dual(losses)
    assert dual.value <= penalised.value + penalty * radius + 1e-9


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (1, r"k=1, where its limit is KL: use KL\(...\)"),
        (0, "k=0, .*use a small order such as k=0.1"),
        (-1.0, "k=-1.0; it must be a finite number, k > 1 or 0 < k < 1"),
        (float("nan"), "k=nan"),
        (float("inf"), "k=inf"),
        ("2", "k='2'"),
        (True, "k=True"),
    ],
)
def test_wrong_orders_are_refused_with_the_remedy(k, message):
    ambiguity = CressieRead(k, radius=0.1)
    with pytest.raises(InvalidDataError, match=message):
        ambiguity.dual([1.0, 2.0])
    with pytest.raises(InvalidDataError, match=message):
        ambiguity.dual_path([1.0, 2.0], [0.1])
    with pytest.raises(InvalidDataError, match=message):
        ambiguity.validate(2)
