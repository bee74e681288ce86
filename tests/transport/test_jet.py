import pytest
import torch

from drojko.transport.icnn import ICNN
from drojko.transport.jet import forward, jet, log_det


def potential(d, gen, hidden=(16, 12, 8)):
    psi = ICNN(d, hidden=hidden, generator=gen)
    with torch.no_grad():
        for p in psi.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=gen, dtype=p.dtype))
    return psi


@pytest.mark.parametrize("hidden", [(7,), (16, 12, 8)])
@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_value_and_parameter_gradient_are_those_of_autograd(d, hidden, generator):
    psi = potential(d, generator, hidden)
    x, g = (torch.randn(20, d, generator=generator, dtype=torch.float64) for _ in range(2))
    c = torch.randn(20, generator=generator, dtype=torch.float64)
    found = jet(psi, x)
    hessian = psi.hessian(x)
    torch.testing.assert_close(found.image, psi.gradient(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.hessian, hessian, rtol=1e-12, atol=1e-12)
    value = (psi.gradient(x) * g).sum() + (c * torch.logdet(hessian)).sum()
    expected = torch.autograd.grad(value, list(psi.parameters()))
    for mine, theirs in zip(found.backward(g, c), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("d", [1, 2, 3, 30])
def test_log_det_and_inverse_factor(d, generator):
    root = torch.randn(9, d, d, generator=generator, dtype=torch.float64)
    matrices = root @ root.transpose(1, 2) + torch.eye(d, dtype=torch.float64)
    value, inverse = log_det(matrices)
    torch.testing.assert_close(value, torch.logdet(matrices), rtol=1e-11, atol=1e-11)
    product = inverse.transpose(1, 2) @ inverse @ matrices
    torch.testing.assert_close(product, torch.eye(d).to(product).expand(9, d, d))


def test_many_points_are_the_same_in_blocks(generator):
    psi = potential(2, generator)
    x = torch.randn(600, 2, generator=generator, dtype=torch.float64)
    image, hessian = forward(psi, x)
    # Other block sizes, other summation orders: rounding.
    torch.testing.assert_close(image, psi.gradient(x).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hessian, psi.hessian(x).detach(), rtol=1e-12, atol=1e-12)
