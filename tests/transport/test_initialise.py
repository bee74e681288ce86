import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.transport import ICNN, bures_map, set_affine


def covariance(d, gen, rank=None):
    a = torch.randn(d, rank or d, generator=gen, dtype=torch.float64)
    return a @ a.T


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(-4, 4))
def test_gaussian_goes_exactly_to_gaussian(number, d, log_scale):
    """P S P = R with P symmetric positive semidefinite: the optimal map (Gelbrich 1990)."""
    gen = torch.Generator().manual_seed(number)
    s, r = covariance(d, gen), covariance(d, gen) * 10**log_scale
    ms, mr = torch.randn(2, d, generator=gen, dtype=torch.float64)
    matrix, shift = bures_map(ms, s, mr, r)
    # Conditioning of random covariances: their smallest eigenvalue may be 1e-6 of the largest.
    size = float(r.diagonal().max())
    torch.testing.assert_close(matrix @ s @ matrix.T, r, rtol=1e-5, atol=1e-7 * size)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-5, atol=1e-6 * float(matrix.norm()))
    assert float(torch.linalg.eigvalsh(matrix).min()) >= -1e-6 * float(matrix.norm())
    torch.testing.assert_close(matrix @ ms + shift, mr, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_singular_source_does_not_blow_up(dtype, generator):
    """Noise on the null space of S must not be inverted."""
    s = covariance(5, generator, rank=2).to(dtype)
    r = covariance(5, generator).to(dtype)
    zero = torch.zeros(5, dtype=dtype)
    matrix, _ = bures_map(zero, s, zero, r)
    values, vectors = torch.linalg.eigh(s)
    null = vectors[:, :3]
    # Rounding relative to the scale of the map on the rest, in either precision.
    assert float((matrix @ null).norm()) < 1e-2 * float(matrix.norm())
    assert float(matrix.norm()) < 10 * float((r.norm() / values[3:].min()).sqrt())


def test_a_point_is_carried_to_the_mean(generator):
    zero = torch.zeros(2, 2, dtype=torch.float64)
    target = torch.ones(2, dtype=torch.float64)
    matrix, shift = bures_map(torch.zeros(2), zero, target, torch.eye(2, dtype=torch.float64))
    assert not matrix.any()
    assert torch.equal(shift, target)


def test_set_affine_gives_the_map_up_to_the_softplus_layers(generator):
    psi = ICNN(3, hidden=(16, 16), generator=generator)
    matrix = covariance(3, generator) + torch.eye(3, dtype=torch.float64)
    shift = torch.randn(3, generator=generator, dtype=torch.float64)
    x = 10 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    layers = psi.gradient(x) - x
    set_affine(psi, matrix, shift)
    # The quadratic part is exact; rounding of an eigendecomposition.
    torch.testing.assert_close(psi.gradient(x) - layers, x @ matrix + shift, rtol=1e-9, atol=1e-9)


def test_set_affine_keeps_the_potential_convex(generator):
    psi = ICNN(2, hidden=(4,), generator=generator)
    set_affine(psi, -torch.eye(2, dtype=torch.float64), torch.zeros(2))
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(psi.hessian(x).detach()).min()) >= 1e-4 * (1 - 1e-9)
