"""Derivatives of the smoothed worst case, and its distance from the exact one."""

import math

import numpy as np
import pytest
import torch

from drojko.losses import get_loss
from drojko.losses.jets import jet

LOSSES = [
    get_loss("logistic"),
    get_loss("hinge"),
    get_loss("absolute"),
    get_loss("quantile", q=0.8),
    get_loss("huber"),
]


def points(loss, n=41):
    u = np.linspace(-6.0, 7.0, n)
    y = (np.arange(n) % 2).astype(float) if loss.task == "classification" else np.sin(np.arange(n))
    return u, y


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.3, 2.5, 20.0])
def test_exact_value_and_mixture(loss, sigma):
    u, y = points(loss)
    exact = loss.robust_value(torch.from_numpy(u), torch.from_numpy(y), 0.25 / sigma).numpy()
    plain = jet(loss, u, y, sigma, 0.0)
    np.testing.assert_allclose(plain.value, exact, rtol=1e-12, atol=1e-13)
    smooth = jet(loss, u, y, sigma, 1e-3)
    # Smoothing adds at most slope * width, and `bias` is what it adds to its own plan.
    assert (smooth.value >= exact - 1e-13).all()
    assert (smooth.value <= exact + 2e-3).all()
    plan = sum(
        a.weight * (a.slope * u + np.square(a.slope) * sigma + loss.least(a.slope, y))
        for a in smooth.atoms
    )
    np.testing.assert_allclose(smooth.value - smooth.bias, plan, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.3, 2.5, 20.0])
@pytest.mark.parametrize("price", [None, (0.8, 0.4)], ids=["fixed", "flips"])
def test_derivatives_match_differences(loss, sigma, price):
    if price is not None and loss.task == "regression":
        price = None
    u, y = points(loss)
    mu, h = 0.2, 1e-5

    def at(du=0.0, ds=0.0, dl=0.0):
        moved = None if price is None else (price[0] + dl, price[1])
        return jet(loss, u + du, y, sigma + ds, mu, moved)

    j, size = at(), np.zeros_like(u)
    away = np.ones_like(u, dtype=bool)
    if loss.name == "huber":  # its slope has corners, where second differences mean nothing
        corner = loss.delta * max(1 - 2 * sigma, 0)
        away = np.abs(np.abs(u - y) - corner) > 0.05
    pairs = {"u": {"du": h}, "s": {"ds": h}, **({} if price is None else {"l": {"dl": h}})}
    for name, step in pairs.items():
        back = {key: -value for key, value in step.items()}
        plus, minus = at(**step), at(**back)
        np.testing.assert_allclose(
            getattr(j, name) + size, (plus.value - minus.value) / (2 * h), atol=1e-8, rtol=1e-7
        )
        for other in pairs:
            pair = next(p for p in (name + other, other + name) if hasattr(j, p))
            slope = (getattr(plus, other) - getattr(minus, other)) / (2 * h)
            np.testing.assert_allclose(
                (getattr(j, pair) + size)[away], (slope + size)[away], atol=1e-7, rtol=1e-6
            )


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_zero_sigma_is_the_loss(loss):
    u, y = points(loss)
    f, t = torch.from_numpy(u), torch.from_numpy(y)
    j = jet(loss, u, y, 0.0, 0.0)
    np.testing.assert_allclose(j.value, loss.value(f, t).numpy(), atol=1e-14)
    np.testing.assert_allclose(np.square(j.u) + 0 * u, np.asarray(j.s) + 0 * u, atol=1e-14)


def test_a_tie_between_labels_without_a_width():
    j = jet(get_loss("hinge"), np.array([0.25, 0.0]), np.ones(2), 0.0, 0.0, (1.0, 0.5))
    np.testing.assert_array_equal(j.value, [0.75, 1.0])  # at .25 both labels give .75
    weights = np.stack([np.broadcast_to(a.weight, 2) for a in j.atoms])
    assert (weights >= 0.0).all()  # and finite
    np.testing.assert_allclose(weights.sum(axis=0), 1.0)


def test_logistic_far_tails():
    loss, y = LOSSES[0], np.ones(4)
    u = np.array([-1e6, -800.0, 800.0, 1e6])
    for mu in (0.0, 1e-3):
        for sigma in (0.0, 1e-3, 3.0):
            j = jet(loss, u, y, sigma, mu)
            assert np.isfinite(j.value).all()
            assert j.value[0] == pytest.approx(1e6 + sigma, rel=1e-12)
            # Smoothing leaves mu²/(4|x|) of mass on the other side, at most.
            assert abs(j.value[3]) <= mu
            assert math.isfinite(float(np.sum(j.uu)))
