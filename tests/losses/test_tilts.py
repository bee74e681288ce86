"""One-dimensional tilts against independent quadrature, differences and closed forms."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from drojko.exceptions import UnboundedRiskError
from drojko.inner.sinkhorn.worst_case import draw_tilted
from drojko.losses import get_loss
from drojko.losses.tilts import logistic_moments, wide_logistic

NAMES = ("logistic", "hinge", "absolute", "quantile", "huber", "squared")
KINKS = {"hinge": (-1.0, 1.0), "huber": (-1.35, 1.35)}


def by_quadrature(loss, f, y, s, eta):
    """G by scipy's adaptive rule, pieces split at kinks and at every deviation."""

    def value(u):
        at = torch.tensor([f + u], dtype=torch.float64)
        return float(loss.value(at, torch.tensor([y], dtype=torch.float64))[0])

    reach = 9.0 * s + 2.0 * eta * s * s
    if loss.name == "squared":
        reach = 12.0 * s / np.sqrt(1.0 - 2.0 * eta * s * s) + 8.0 * abs(f - y)
    grid = np.linspace(-reach, reach, 81)
    # Labels are targets of regressions, and the hinge has its kinks at the predictions +-1.
    middle = 0.0 if loss.task == "classification" else y
    ends = {*grid, *(k + middle - f for k in (0.0, *KINKS.get(loss.name, ())))}
    ends = sorted(e for e in ends if -reach <= e <= reach)
    top = max(eta * value(u) - 0.5 * (u / s) ** 2 for u in ends)

    def density(u):
        return np.exp(eta * value(u) - 0.5 * (u / s) ** 2 - top)

    total = sum(quad(density, a, b, epsabs=0, epsrel=1e-12)[0] for a, b in pairwise(ends))
    return (top + np.log(total / (s * np.sqrt(2.0 * np.pi)))) / eta


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("s", "eta"), [(0.3, 1.0), (1.0, 0.4), (0.06, 40.0), (2.0, 0.1)])
def test_values_agree_with_adaptive_quadrature(name, s, eta):
    if name == "squared" and 2 * eta * s * s >= 1:
        eta = 0.3 / (s * s)
    loss = get_loss(name)
    for f, y in ((0.2, 1.0), (-2.5, 1.0), (1.7, 0.0)):
        found = loss.tilt(np.array([f]), np.array([y]), s, eta).value[0]
        # Both sides: 1e-12 relative in the integral, hence 1e-12 / eta in the value.
        expected = by_quadrature(loss, f, y, s, eta)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-11 / eta)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(NAMES), st.floats(0.05, 2.0), st.floats(0.02, 8.0), st.floats(-3.0, 3.0),
    st.integers(0, 1),
)  # fmt: skip
def test_derivatives_are_those_of_the_value(name, s, tilt, f, y):
    loss, T = get_loss(name), s / tilt
    if name == "squared":
        T = max(T, 3.0 * s * s)
    point, h = np.array([f, s, T]), 1e-5 * s

    def at(p):
        return loss.tilt(p[:1], np.array([float(y)]), p[1], 1.0 / p[2])

    def gradient(p):
        found = at(p)
        return np.array([found.mean[0, 0], found.mean[1, 0], -found.divergence[0]])

    ff, fs, ft, ss, st_, tt = (v[0] for v in at(point).second(1.0 / T))
    hessian = np.array([[ff, fs, ft], [fs, ss, st_], [ft, st_, tt]])
    for k in range(3):
        step = np.eye(3)[k] * (h if k < 2 else 1e-5 * T)
        size = np.abs(step).max()
        slope = (at(point + step).value[0] - at(point - step).value[0]) / (2 * size)
        # Central differences: error O(h^2) of the third derivative, and rounding over h.
        scale = 1.0 + np.abs(hessian).max()
        assert slope == pytest.approx(gradient(point)[k], rel=1e-5, abs=1e-6 * scale)
        bend = (gradient(point + step) - gradient(point - step)) / (2 * size)
        np.testing.assert_allclose(bend, hessian[k], rtol=1e-4, atol=1e-5 * scale)


def test_squared_loss_has_its_closed_form_and_its_threshold():
    r, s, eta = np.array([0.5, -2.0]), 0.7, 0.6
    k = 1.0 - 2.0 * eta * s * s
    found = get_loss("squared").tilt(r, np.zeros(2), s, eta)
    np.testing.assert_allclose(found.value, r**2 / k - np.log(k) / (2 * eta), rtol=1e-13)
    with pytest.raises(UnboundedRiskError, match="raise the penalty"):
        get_loss("squared").tilt(r, np.zeros(2), 1.0, 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_limits_of_the_temperature(name):
    """Large: the plain mean. Small with s^2 / T fixed: the one-dimensional worst case."""
    loss, f = get_loss(name), np.array([-1.3, 0.4, 2.0])
    y = np.array([1.0, 0.0, 1.0])
    plain = loss.tilt(f, y, 0.5, 0.0).value
    np.testing.assert_allclose(loss.tilt(f, y, 0.5, 1e-9).value, plain, atol=1e-6)
    eta = 1e6
    s = np.sqrt(0.25 / eta)  # kappa = 1 / (2 eta s^2) = 2
    robust = loss.robust_value(torch.from_numpy(f), torch.from_numpy(y), 2.0).numpy()
    np.testing.assert_allclose(loss.tilt(f, y, s, eta).value, robust, atol=1e-5)


def test_wide_noise_of_the_logistic_loss_agrees_with_the_trapezoidal_rule():
    f = np.array([-30.0, -2.0, 0.0, 35.0])
    for eta in (0.01, 0.3, 3.0):
        for first, second in zip(logistic_moments(f, 9.0, eta), wide_logistic(f, 9.0, eta)):
            np.testing.assert_allclose(first, second, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_moments_of_the_tilt(name):
    loss, n, s, eta = get_loss(name), 40_000, 0.4, 2.0
    for f, y in ((0.9, 1.0), (-1.0, 1.0)):
        gen = torch.Generator().manual_seed(3)
        u = draw_tilted(loss, np.full(n, f), np.full(n, y), s, eta, gen)
        found = loss.tilt(np.array([f]), np.array([y]), s, eta)
        losses = loss.value(torch.from_numpy(f + u), torch.full((n,), y).double()).numpy()
        # Five standard errors.
        error = 5.0 * np.sqrt(found.cov[5, 0] / n)
        assert abs(losses.mean() - found.mean[2, 0]) < error
        assert abs(u.mean() - s * s * eta * found.mean[0, 0]) < 5.0 * u.std() / np.sqrt(n)
