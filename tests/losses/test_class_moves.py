"""Worst cases of linear models of many classes: attained values, and bounds that hold."""

import numpy as np
import pytest

from drojko.losses import get_loss
from drojko.losses.class_bounds import ceilings
from drojko.losses.class_moves import SoftmaxMoves, VertexMoves


def case(seed, n, k, far):
    """Logits, classes, a Gram matrix and 1 / 2 lambda with largest |w_j - w_k|^2 / 2 lambda."""
    random = np.random.default_rng(seed)
    W = random.standard_normal((k, k))
    f, y = 2.0 * random.standard_normal((n, k)), random.integers(0, k, n)
    gram = W @ W.T
    square = gram.diagonal() + gram.diagonal()[:, None] - 2.0 * gram
    return f, y, W, gram, far / square.max()


def gain(f, y, W, half, move):
    """Loss less cost of one row at moves (m, K)."""
    g = f + move @ W.T
    top = g.max(axis=1)
    losses = top + np.log(np.exp(g - top[:, None]).sum(axis=1)) - g[:, y]
    return losses - 0.5 / half * (move**2).sum(axis=1)


@pytest.mark.parametrize("far", [1e-6, 2.0, 3.99, 8.0, 30.0, 1e4])
@pytest.mark.parametrize("k", [3, 6])
def test_no_move_gains_more_than_the_ceiling(far, k):
    f, y, W, gram, half = case(int(far) + k, 6, k, far)
    moves = SoftmaxMoves(f, y, gram, half)
    found = moves.values(0.0)
    upper = ceilings(f, y, gram, half, found, moves.best(), 1e-3)
    random = np.random.default_rng(0)
    for i in range(len(f)):
        p = random.dirichlet(np.full(k, 0.3), 3_000)
        move = half * (p - np.eye(k)[y[i]]) @ W
        for _ in range(30):  # each step raises the gain
            g = f[i] + move @ W.T
            p = np.exp(g - g.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            move = half * (p - np.eye(k)[y[i]]) @ W
        best = gain(f[i], y[i], W, half, move).max()
        assert best <= upper[i] + 1e-9 * (1.0 + abs(upper[i]))
        own = half * (moves.best()[i] - np.eye(k)[y[i]]) @ W
        assert gain(f[i], y[i], W, half, own[None])[0] == pytest.approx(found[i], rel=1e-9)
    if far < 4.0:  # concave: both sides meet
        np.testing.assert_allclose(upper, found, rtol=1e-6)


def test_ceilings_close_where_basins_compete():
    f, y, _, gram, half = case(3, 200, 5, 9.0)
    moves = SoftmaxMoves(f, y, gram, half)
    found = moves.values(0.0)
    mean = float(found.mean())
    rough = ceilings(f, y, gram, half, found, moves.best(), 1e-3 * mean, nodes=0)
    fine = ceilings(f, y, gram, half, found, moves.best(), 1e-3 * mean)
    assert (found <= fine).all()
    assert (fine <= rough + 1e-12).all()
    assert (fine - found).mean() <= 3e-3 * mean < (rough - found).mean()


@pytest.mark.parametrize("moves", [SoftmaxMoves, VertexMoves])
def test_derivatives_of_smoothed_worst_cases(moves):
    f, y, _, gram, half = case(1, 30, 4, 6.0)
    w, mu = np.random.default_rng(1).dirichlet(np.ones(30)), 0.3 if moves is VertexMoves else 0.0
    _, pull, bend = moves(f, y, gram, half, None, 1e-12).sums(w, mu)
    df, dG = np.random.default_rng(2).standard_normal(f.shape), 1e-6 * np.diag(np.arange(4.0))
    values = [
        moves(f + s * 1e-6 * df, y, gram + s * dG, half, None, 1e-12).sums(w, mu)[0]
        for s in (1.0, -1.0)
    ]
    slope = 1e-6 * (pull * df).sum() + 0.5 * half * (bend * dG).sum()
    assert 0.5 * (values[0] - values[1]) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("far", [2.0, 9.0])  # one basin and several
@pytest.mark.parametrize("moves", [SoftmaxMoves, VertexMoves])
def test_curvature_is_the_change_of_derivatives(moves, far):
    f, y, _, gram, half = case(2, 30, 4, far)
    w, mu = np.random.default_rng(1).dirichlet(np.ones(30)), 0.3
    random = np.random.default_rng(2)
    df, dG = random.standard_normal(f.shape), random.standard_normal((4, 4))
    dG = dG + dG.T
    here = moves(f, y, gram, half, None, 1e-12)
    curves = here.curve(w, mu), here.contest(w, mu)
    pull, second = (sum(parts) for parts in zip(*(curve(df, half * dG) for curve in curves)))
    ends = [
        moves(f + s * 1e-6 * df, y, gram + s * 1e-6 * dG, half, here, 1e-12).sums(w, mu)
        for s in (1.0, -1.0)
    ]
    np.testing.assert_allclose((ends[0][1] - ends[1][1]) / 2e-6, pull, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose((ends[0][2] - ends[1][2]) / 2e-6, second, rtol=1e-3, atol=1e-6)
    assert (pull * df).sum() + 0.5 * half * (second * dG).sum() >= 0.0
    assert here.competing == (far > 4.0 or moves is VertexMoves)


@pytest.mark.parametrize("far", [2.0, 9.0])  # one basin and several
@pytest.mark.parametrize("moves", [SoftmaxMoves, VertexMoves])
def test_moves_rise_as_the_model_changes(moves, far):
    f, y, _, gram, half = case(2, 30, 4, far)
    w, mu = np.random.default_rng(1).dirichlet(np.ones(30)), 0.3
    random = np.random.default_rng(2)
    df, dG = random.standard_normal(f.shape), random.standard_normal((4, 4))
    dG = dG + dG.T
    here = moves(f, y, gram, half, None, 1e-12)
    rises = here.rises(df, half * dG)
    ends = [
        moves(f + s * 1e-5 * df, y, gram + s * 1e-5 * dG, half, here, 1e-12).values(mu)
        for s in (1.0, -1.0)
    ]
    guess = [here.raised(s * 1e-5 * rises).values(mu) for s in (1.0, -1.0)]
    np.testing.assert_allclose(ends[0] - ends[1], guess[0] - guess[1], rtol=1e-5, atol=1e-12)
    slope = here.slope(w, mu, rises)
    assert w @ (guess[0] - guess[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_hinge_is_a_maximum_over_vertices():
    f, y, W, gram, half = case(5, 20, 4, 5.0)
    loss = get_loss("hinge", "classification", 4)
    moves = loss.class_moves(f, y, gram, half, None, 0.0)
    D = ((W[:, None] - W) ** 2).sum(axis=2)
    for i in range(20):
        each = [f[i, j] - f[i, y[i]] + (j != y[i]) + 0.5 * half * D[j, y[i]] for j in range(4)]
        assert moves.values(0.0)[i] == pytest.approx(max(each), abs=1e-12)
