"""Losses: derivatives against autograd, worst cases against dense search and exact conditions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.losses import CallableLoss, CrammerSinger, Softmax, get_loss

F64 = torch.float64
SCALAR = {
    "logistic": get_loss("logistic"),
    "hinge": get_loss("hinge"),
    "squared": get_loss("squared"),
    "absolute": get_loss("absolute"),
    "huber": get_loss("huber"),
    "quantile": get_loss("quantile", q=0.8),
}


def labels(loss, f):
    if loss.task == "classification":
        return (torch.arange(f.shape[0]) % 2).long()
    return torch.linspace(-2.0, 2.0, f.shape[0], dtype=f.dtype)


@pytest.mark.parametrize("name", SCALAR)
def test_derivatives_match_autograd(name):
    loss = SCALAR[name]
    f = torch.linspace(-6.0, 5.7, 40, dtype=F64)
    y = labels(loss, f)
    auto = CallableLoss(loss.value, task=loss.task)
    torch.testing.assert_close(loss.gradient(f, y), auto.gradient(f, y))
    torch.testing.assert_close(loss.second_derivative(f, y), auto.second_derivative(f, y))
    assert float(loss.gradient(f, y).abs().max()) <= loss.lipschitz
    assert float(loss.second_derivative(f, y).max()) <= loss.curvature


@pytest.mark.parametrize("loss", [Softmax(), CrammerSinger()], ids=["softmax", "crammer-singer"])
def test_multiclass_gradient_and_bounds(loss):
    gen = torch.Generator().manual_seed(0)
    f = 3.0 * torch.randn(50, 4, generator=gen, dtype=F64)
    y = torch.randint(4, (50,), generator=gen)
    gradient = loss.gradient(f, y)
    torch.testing.assert_close(gradient, CallableLoss(loss.value).gradient(f, y))
    assert float(gradient.norm(dim=1).max()) <= loss.lipschitz + 1e-12


def test_softmax_of_two_classes_is_logistic():
    f = torch.linspace(-40.0, 40.0, 31, dtype=F64)
    y = (torch.arange(31) % 2).long()
    pair = torch.stack([torch.zeros_like(f), f], dim=1)
    torch.testing.assert_close(Softmax().value(pair, y), SCALAR["logistic"].value(f, y))


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(SCALAR)),
    f=st.floats(-30, 30),
    y=st.floats(-5, 5),
    log_kappa=st.floats(-2.5, 2.5),
)
def test_envelope_beats_a_dense_grid(name, f, y, log_kappa):
    loss = SCALAR[name]
    kappa = loss.growth + 10.0**log_kappa
    ft = torch.tensor([f], dtype=F64)
    yt = torch.tensor([int(y > 0)]) if loss.task == "classification" else torch.tensor([y])
    best = loss.robust_value(ft, yt, kappa)
    reach = 1.2 * float(loss.shift(ft, yt, kappa).abs()) + 1.0 / kappa + 1.0
    grid = f + torch.linspace(-reach, reach, 20001, dtype=F64)
    rival = (loss.value(grid, yt.expand(20001)) - kappa * (grid - f) ** 2).max()
    # Rounding of the two evaluations: 1e-12 of the terms that enter them.
    scale = 1.0 + float(best.abs()) + kappa * f * f
    assert float(best) >= float(rival) - 1e-12 * scale
    # The grid's step h costs at most (κ + L) h²; with a kink its slope times h.
    h = 2 * reach / 20000
    assert float(best) <= float(rival) + (kappa + 2.0) * h * h + 40.0 * h * min(1.0, 1.0 / kappa)


def logistic_objective(m, v, kappa):
    return np.logaddexp(0.0, v - m) - kappa * v * v


@pytest.mark.parametrize("kappa", [1e-6, 1e-3, 0.05, 0.124, 0.125, 0.126, 1.0, 1e4, 1e12])
def test_logistic_shift_is_stationary_and_global(kappa):
    m = np.concatenate(
        [np.linspace(-50, 60, 400), [-1e6, -1e3, 1e3, 1e6, 1 / (4 * kappa), 0.0, 1e-300]]
    )
    v = -SCALAR["logistic"].shift(torch.from_numpy(m), torch.ones(m.size).long(), kappa).numpy()
    assert np.isfinite(v).all()
    assert (v >= 0).all()
    assert (v <= 1 / (2 * kappa)).all()
    sigma = expit(v - m)
    # v itself carries an error of a few eps * |v - m| through sigma, hence the second term.
    slack = 4e-15 * sigma * (1.0 + np.abs(v - m))
    degenerate = np.abs(sigma * (1 - sigma) - 2 * kappa) < 1e-6 * kappa  # triple root: v is vague
    assert (np.abs(sigma - 2 * kappa * v) <= 2 * slack)[~degenerate].all()
    # All other stationary points: sign changes of the stationarity function on a fine mesh.
    mesh = np.linspace(0, 1, 4001) / (2 * kappa)
    best = logistic_objective(m[:, None], mesh[None, :], kappa).max(axis=1)
    ours = logistic_objective(m, v, kappa)
    assert (ours >= best - 1e-13 * (1 + np.abs(best) + kappa * v * v)).all()


def test_logistic_jump_is_at_one_over_four_kappa():
    kappa = 0.05
    m = torch.tensor([5.0 - 1e-9, 5.0 + 1e-9], dtype=F64)
    y = torch.ones(2).long()
    v = -SCALAR["logistic"].shift(m, y, kappa)
    value = SCALAR["logistic"].robust_value(m, y, kappa)
    assert float(v[0] - v[1]) > 5.0  # the maximiser jumps ...
    assert abs(float(value[0] - value[1])) < 2e-9  # ... and the value does not (slope at most 1)


@pytest.mark.parametrize("name", SCALAR)
def test_infinite_kappa_moves_nothing_and_dtype_is_kept(name):
    loss = SCALAR[name]
    for dtype in (torch.float32, F64):
        f = torch.linspace(-3, 3, 8, dtype=dtype)
        y = labels(loss, f)
        assert torch.equal(loss.envelope(f, y, math.inf), f)
        assert torch.equal(loss.robust_value(f, y, math.inf), loss.value(f, y))
        kappa = torch.tensor([2.0, math.inf] * 4, dtype=dtype)
        moved = loss.shift(f, y, kappa)
        assert moved.dtype == dtype
        assert bool((moved[1::2] == 0).all())
        torch.testing.assert_close(moved[::2], loss.shift(f[::2], y[::2], 2.0))


def test_closed_forms():
    f, y = torch.tensor([3.0, -1.0], dtype=F64), torch.tensor([1.0, 2.0], dtype=F64)
    lam = 1.7
    r = f - y
    torch.testing.assert_close(
        SCALAR["squared"].robust_value(f, y, lam), lam / (lam - 1) * r.square()
    )
    # Newsvendor: max(h(q-z), b(z-q)) gains h²/4λ and b²/4λ on its pieces.
    h, b = 0.2, 0.8
    expected = torch.maximum(h * r + h * h / (4 * lam), -b * r + b * b / (4 * lam))
    torch.testing.assert_close(SCALAR["quantile"].robust_value(f, y, lam), expected)
    torch.testing.assert_close(SCALAR["absolute"].robust_value(f, y, lam), r.abs() + 1 / (4 * lam))


def test_growth_is_the_threshold():
    f, y = torch.tensor([1.0]), torch.tensor([0.0])
    for kappa in (1.0, 0.5, -1.0):
        with pytest.raises(UnboundedRiskError, match="kappa > 1"):
            SCALAR["squared"].shift(f, y, kappa)
    with pytest.raises(UnboundedRiskError):
        SCALAR["logistic"].shift(f, y.long(), 0.0)


def move_rows(W, f, y, lam, loss, steps=400):
    """Gradient ascent on the logits of the moved points, from several starts."""
    best = loss.value(f, y)
    gen = torch.Generator().manual_seed(1)
    for _ in range(6):
        z = torch.randn(f.shape[0], W.shape[1], generator=gen, dtype=F64)
        for _ in range(steps):
            g = loss.gradient(f + z @ W.T, y) @ W
            z = z + 0.3 * (g / (2 * lam) - z)
        best = torch.maximum(best, loss.value(f + z @ W.T, y) - lam * z.square().sum(1))
    return best


@pytest.mark.parametrize("loss", [Softmax(), CrammerSinger()], ids=["softmax", "crammer-singer"])
def test_pairwise_bound_dominates_every_move(loss):
    gen = torch.Generator().manual_seed(3)
    W = torch.randn(4, 3, generator=gen, dtype=F64)
    f = 2.0 * torch.randn(60, 4, generator=gen, dtype=F64)
    y = torch.randint(4, (60,), generator=gen)
    pair = (W[:, None, :] - W[None, :, :]).square().sum(-1)
    for lam in (0.3, 2.0, 50.0):
        bound = loss.pairwise_upper_bound(f, y, pair, lam)
        reached = move_rows(W, f, y, lam, loss)
        assert bool((bound >= reached - 1e-12).all())
        if isinstance(loss, CrammerSinger):
            # Exact: one of the K moves (w_j - w_y) / (2 lam) attains the bound.
            moves = (W[None, :, :] - W[y][:, None, :]) / (2 * lam)
            at = torch.stack(
                [loss.value(f + z @ W.T, y) - lam * z.square().sum(1) for z in moves.unbind(1)]
            )
            torch.testing.assert_close(at.amax(0), bound)
    huge = loss.pairwise_upper_bound(f, y, pair, 1e12)
    torch.testing.assert_close(huge, loss.value(f, y), rtol=1e-9, atol=1e-9)


def test_softmax_input_curvature_bounds_the_hessian():
    gen = torch.Generator().manual_seed(5)
    W = torch.randn(5, 3, generator=gen, dtype=F64)
    pair = (W[:, None, :] - W[None, :, :]).square().sum(-1)
    p = torch.softmax(4 * torch.randn(200, 5, generator=gen, dtype=F64), dim=1)
    mean = p @ W
    hessian = torch.einsum("nk,ki,kj->nij", p, W, W) - mean[:, :, None] * mean[:, None, :]
    assert float(torch.linalg.eigvalsh(hessian).max()) <= float(Softmax.input_curvature(pair))


def test_get_loss():
    assert get_loss("huber", delta=2.0).delta == 2.0
    assert isinstance(get_loss("logistic", "classification", 5), Softmax)
    assert isinstance(get_loss("hinge", n_classes=3), CrammerSinger)
    custom = get_loss(lambda f, y: (f - y).abs(), task="regression")
    with pytest.raises(UnsupportedError):
        custom.shift(torch.zeros(1), torch.zeros(1), 1.0)
    for bad in ({"loss": "nope"}, {"loss": "squared", "task": "classification"}, {"loss": 3}):
        with pytest.raises(InvalidDataError):
            get_loss(**bad)
    with pytest.raises(InvalidDataError):
        get_loss("quantile", q=1.0)
    with pytest.raises(InvalidDataError):
        get_loss("squared", delta=1.0)
    with pytest.raises(InvalidDataError, match=r"shape \(3,\)"):
        CallableLoss(lambda f, y: f.sum()).value(torch.zeros(3), torch.zeros(3))


@pytest.mark.parametrize("sigma", [1e-6, 0.2, 1.95])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e4])
def test_worst_logistic_losses_from_nearby_ones_are_the_worst(sigma, scale):
    random = np.random.default_rng(0)
    u, y = scale * random.standard_normal(2000), random.integers(0, 2, 2000).astype(float)
    loss, near = get_loss("logistic"), None
    for f in (0.7 * u, u):  # the second time from the worst cases of the first
        least, p, bend, near = loss._worst_near(f, y, sigma, near, True)
        near = near.astype(np.float32)
    sure = loss.worst_jet(u, y, sigma, 0.0, np.full(2000, np.nan))
    value = least + (u + sigma * p) * p
    np.testing.assert_allclose(value, sure.value, rtol=1e-12, atol=1e-15 * scale)
    np.testing.assert_allclose(p, sure.u, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(bend, sure.uu, rtol=1e-5, atol=1e-14)
