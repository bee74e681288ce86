import numpy as np
import ot
import pytest
import torch

from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.transport import (
    ICNN,
    AffineMap,
    BrenierMap,
    Composition,
    IdentityMap,
    TransportMap,
)


def randn(n, d, gen):
    return torch.randn(n, d, generator=gen, dtype=torch.float64)


@pytest.fixture
def brenier(trained):
    return trained.brenier()


def jacobian(transport, x):
    rows = []
    for i in range(len(x)):
        leaf = x[i : i + 1].clone().requires_grad_(True)
        normal = (leaf - transport.centre) / transport.scale
        out = transport.scale * transport.potential.gradient(normal) + transport.centre
        rows.append(
            torch.stack(
                [torch.autograd.grad(out[0, j], leaf, retain_graph=True)[0][0] for j in range(3)]
            )
        )
    return torch.stack(rows)


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_inverse_undoes_the_map(brenier, spread, generator):
    x = spread * randn(300, 3, generator)
    there = brenier.map(x)
    back = brenier.inverse(there)
    # The promise is 1e-9 in units of the data.
    assert float((back - x).abs().max()) < 1e-9 * spread
    y = spread * randn(100, 3, generator)  # the map is onto: any point has a source
    assert float((brenier.map(brenier.inverse(y)) - y).abs().max()) < 1e-9 * spread


def test_inverse_in_single_precision_and_with_context(generator):
    psi = ICNN(2, hidden=(8, 8), context=2, generator=generator, dtype=torch.float32)
    for p in psi.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    transport = BrenierMap(psi, torch.ones(2), 3.0)
    x = torch.randn(50, 2, generator=generator)
    c = torch.eye(2)[torch.arange(50) % 2]
    y = transport.map(x, c)
    assert y.dtype == torch.float32
    back = transport.inverse(y, c)
    assert back.dtype == torch.float32
    # A few units in the last place of y, through a Jacobian of condition ~100.
    assert float((back - x).abs().max()) < 1e-3
    assert psi.factor.dtype == torch.float32


def test_log_determinant_agrees_with_autograd(brenier, generator):
    x = randn(20, 3, generator)
    expected = torch.linalg.slogdet(jacobian(brenier, x)).logabsdet
    torch.testing.assert_close(brenier.log_abs_det_jacobian(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.promise(3)
def test_monotone_on_random_pairs(brenier, generator):
    for spread in (1e-3, 1.0, 1e3):
        x, z = spread * randn(500, 3, generator), spread * randn(500, 3, generator)
        assert bool((((brenier.map(x) - brenier.map(z)) * (x - z)).sum(1) > 0).all())


@pytest.mark.promise(3)
def test_pairing_is_optimal(brenier, generator):
    """By Brenier's theorem x -> T(x) is an optimal pairing: POT finds nothing cheaper."""
    x = randn(120, 3, generator)
    y = brenier.map(x)
    cost = ot.dist(x.numpy(), y.numpy())
    uniform = np.full(120, 1 / 120)
    exact = ot.emd2(uniform, uniform, cost)
    # Both sums of 120 squares in float64.
    np.testing.assert_allclose(float((y - x).square().sum(1).mean()), exact, rtol=1e-11)


def test_centre_and_scale_conjugate_the_potential(generator):
    psi = ICNN(2, hidden=(4,), generator=generator)
    centre, scale = torch.tensor([5.0, -1.0], dtype=torch.float64), 7.0
    transport = BrenierMap(psi, centre, scale)
    x = randn(9, 2, generator)
    expected = centre + scale * psi.gradient((x - centre) / scale)
    torch.testing.assert_close(transport(x), expected.detach(), rtol=1e-14, atol=1e-14)


def test_composition_inverts_and_adds_log_determinants(brenier, generator):
    affine = AffineMap(
        torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)) + 0.1, torch.ones(3)
    )
    both = Composition([affine, IdentityMap(), brenier])
    x = randn(40, 3, generator)
    torch.testing.assert_close(both.map(x), brenier.map(affine.map(x)), rtol=0, atol=0)
    assert float((both.inverse(both.map(x)) - x).abs().max()) < 1e-8
    expected = brenier.log_abs_det_jacobian(affine.map(x)) + torch.linalg.slogdet(affine.matrix)[1]
    torch.testing.assert_close(both.log_abs_det_jacobian(x), expected, rtol=1e-12, atol=1e-12)


def test_what_a_map_lacks_is_said():
    class Bare(TransportMap):
        def map(self, x, context=None):
            return x

    with pytest.raises(UnsupportedError, match="Bare has no inverse"):
        Bare().inverse(torch.zeros(1, 1))
    with pytest.raises(UnsupportedError, match="Jacobian"):
        Bare().log_abs_det_jacobian(torch.zeros(1, 1))
    with pytest.raises(InvalidDataError, match="at least one map"):
        Composition([])
