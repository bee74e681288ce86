"""Duals from a point nearby against those that sort the losses."""

import numpy as np
import pytest

from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR

SETS = [
    KL(0.3),
    KL(penalty=2.0),
    ChiSquare(0.5),
    ChiSquare(penalty=3.0),
    CressieRead(1.5, 0.2),
    CressieRead(3.0, penalty=2.0),
    CVaR(0.3),
    CVaR(0.85),
]


def cases(scale):
    random = np.random.default_rng(0)
    for n in (2, 7, 60):
        for digits in (0, 1, 8):  # ties
            losses = random.standard_normal(n).round(digits)
            w = random.random(n)
            yield scale * losses, w / w.sum(), 1.0 + 1e-3 * random.standard_normal(2)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("ambiguity", SETS, ids=repr)
def test_it_is_the_dual(ambiguity, scale):
    if ambiguity.penalty is not None:
        ambiguity = type(ambiguity)(
            **{**ambiguity.get_params(), "penalty": scale * ambiguity.penalty}
        )
    found = 0
    for losses, w, off in cases(scale):
        exact = ambiguity.dual(losses, w)
        levels = off * [exact.shift, exact.penalty]
        near = ambiguity.dual_near(losses, w, levels[: 1 if isinstance(ambiguity, CVaR) else 2])
        if near is None:  # at the largest loss, or equal losses
            continue
        found += 1
        size = np.abs(losses).max()
        # Rounding of sums over 60 numbers, and 1e-13 between both sides.
        assert near.value == pytest.approx(exact.value, abs=1e-11 * size)
        assert near.attained == pytest.approx(exact.attained, abs=1e-10 * size)
        assert near.radius == pytest.approx(exact.radius, rel=1e-8)
        assert near.value >= near.attained - near.radius * (ambiguity.penalty or 0) - 1e-12 * size
    assert found >= 4


@pytest.mark.parametrize("ambiguity", [KL(5.0), CVaR(0.1)], ids=repr)
def test_a_worst_case_that_is_the_largest_loss_is_left_to_others(ambiguity):
    losses, w = np.array([0.0, 1.0, 2.0]), np.full(3, 1 / 3)
    dual = ambiguity.dual(losses, w)
    assert dual.value == 2.0
    assert ambiguity.dual_near(losses, w, [dual.shift, dual.penalty]) is None or isinstance(
        ambiguity, CVaR
    )
