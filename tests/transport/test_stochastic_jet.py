import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drojko.transport.icnn import ICNN
from drojko.transport.jet import Probes, jet, lanczos, stochastic_jet


def potential(d, seed=0, hidden=(12, 9)):
    gen = torch.Generator().manual_seed(seed)
    psi = ICNN(d, hidden=hidden, generator=gen).double()
    with torch.no_grad():
        psi.w.add_(1.0)  # bent, so that the Hessians differ from point to point
    return psi, torch.randn(4, d, generator=gen, dtype=torch.float64), gen


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(2, 9), st.integers(1, 3))
def test_lanczos_reproduces_the_matrix_on_the_space_of_the_vector(seed, d, m):
    gen = torch.Generator().manual_seed(seed)
    a = torch.randn(4, d, d, generator=gen, dtype=torch.float64)
    a = a @ a.mT + 0.1 * torch.eye(d)
    v = torch.randn(4, m, d, generator=gen, dtype=torch.float64)
    basis, matrix = lanczos(lambda u: u @ a, v, d)
    eye = torch.eye(d, dtype=torch.float64).expand_as(matrix)
    torch.testing.assert_close(basis @ basis.mT, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(basis @ a.unsqueeze(1) @ basis.mT, matrix, rtol=0, atol=1e-8)


def test_lanczos_stops_where_the_space_is_exhausted():
    v = torch.ones(2, 1, 5, dtype=torch.float64)
    basis, matrix = lanczos(lambda u: 3.0 * u, v, 4)
    assert matrix[0, 0].diagonal().tolist() == pytest.approx([3.0, 1.0, 1.0, 1.0])
    assert basis[:, :, 1:].abs().max() == 0


@pytest.mark.parametrize("hidden", [(12,), (12, 9), (8, 8, 8)])
def test_vectors_are_inverse_roots_and_the_gradient_is_that_of_their_outer_products(hidden):
    d = 6
    psi, x, gen = potential(d, hidden=hidden)
    exact = jet(psi, x)
    found = stochastic_jet(psi, x, gen, Probes(count=20_000, steps=d))
    torch.testing.assert_close(found.image, exact.image)
    assert found.hessian is None
    torch.testing.assert_close(found.log_det, exact.log_det, rtol=0, atol=0.05)
    g, c = torch.randn(4, d, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5, 1.5]).double()
    for ours, theirs in zip(found.backward(g, c), exact.backward(g, c), strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03 * scale + 1e-9)


def test_the_gradient_is_that_of_its_own_estimate_in_expectation():
    # In one dimension a sign has nothing to choose: both are exact.
    psi, x, gen = potential(1)
    exact, found = jet(psi, x), stochastic_jet(psi, x, gen, Probes(1, 5))
    torch.testing.assert_close(found.log_det, exact.log_det)
    ones = torch.ones(4, dtype=torch.float64)
    for a, b in zip(found.backward(x, ones), exact.backward(x, ones), strict=True):
        torch.testing.assert_close(a, b)


def test_few_lanczos_steps_suffice_in_many_dimensions():
    psi, x, _ = potential(60, hidden=(32, 32))
    values = [
        stochastic_jet(psi, x, torch.Generator().manual_seed(3), Probes(4, steps)).log_det
        for steps in (20, 60)
    ]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-6)
