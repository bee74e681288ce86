import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drojko.exceptions import InvalidDataError
from drojko.transport import ICNN

DEPTHS = [(5,), (6, 4), (4, 5, 3)]


def potential(hidden, context, seed, dtype=torch.float64):
    """A potential far from its start: every parameter is drawn at unit scale."""
    gen = torch.Generator().manual_seed(seed)
    psi = ICNN(3, hidden=hidden, context=context, generator=gen)
    for p in psi.parameters():
        p.data.copy_(torch.randn(p.shape, generator=gen, dtype=torch.float64))
    return psi.to(dtype)


def inputs(n, context, seed):
    gen = torch.Generator().manual_seed(seed + 100)
    x = torch.randn(n, 3, generator=gen, dtype=torch.float64)
    c = torch.randn(n, context, generator=gen, dtype=torch.float64) if context else None
    return x, c


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("hidden", DEPTHS)
def test_gradient_and_hessian_agree_with_autograd(hidden, context, seed):
    psi = potential(hidden, context, seed)
    x, c = inputs(7, context, seed)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(psi(leaf, c).sum(), leaf, create_graph=True)
    columns = [torch.autograd.grad(gradient[:, j].sum(), leaf, retain_graph=True) for j in range(3)]
    hessian = torch.stack([column for (column,) in columns], 2)
    # Two routes through a few dozen float64 operations.
    torch.testing.assert_close(psi.gradient(x, c), gradient, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(psi.hessian(x, c), hessian, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("hidden", DEPTHS)
def test_parameter_gradient_agrees_with_autograd(hidden, context, seed):
    psi = potential(hidden, context, seed)
    x, c = inputs(7, context, seed)
    g = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    out, backward = psi.linearise(x, c)
    expected = torch.autograd.grad((g * psi.gradient(x, c)).sum(), list(psi.parameters()))
    torch.testing.assert_close(out, psi.gradient(x, c).detach(), rtol=0, atol=0)
    found = backward(g)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@given(st.integers(0, 10**6), st.sampled_from(DEPTHS), st.floats(0.0, 6.0))
def test_every_parameter_value_is_strongly_convex(number, hidden, log_spread):
    """The least eigenvalue is the strong convexity that no parameter can remove, or more."""
    psi = potential(hidden, 2, number)
    x, c = inputs(5, 2, number)
    values = torch.linalg.eigvalsh(psi.hessian(x * 10**log_spread, c).detach())
    # Eigenvalues of a rank-deficient sum carry rounding of eps times the largest.
    assert float((values[:, 0] + 1e-12 * values[:, -1]).min()) >= 1e-4 * (1 - 1e-9)


@pytest.mark.promise(3)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_convex_after_training_far_away_and_in_single_precision(trained, dtype, spread, generator):
    psi = ICNN(3, hidden=(32, 32), dtype=dtype)
    psi.load_state_dict({k: v.to(dtype) for k, v in trained.potential.state_dict().items()})
    x = spread * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    hessian = psi.hessian(x.to(dtype)).detach().double()
    torch.testing.assert_close(hessian, hessian.transpose(1, 2), rtol=1e-5, atol=1e-6)
    assert float(torch.linalg.eigvalsh(hessian).min()) > 0
    near = psi.gradient(x[:100].to(dtype)).detach().double()
    away = psi.gradient(x[100:].to(dtype)).detach().double()
    move = (x[:100] - x[100:]).to(dtype).double()
    assert bool((((near - away) * move).sum(1) > 0).all())


@pytest.mark.parametrize("context", [0, 3])
def test_the_start_is_close_to_the_identity(context, generator):
    psi = ICNN(4, hidden=(64, 64), context=context, generator=generator)
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    c = torch.randn(200, context, generator=generator, dtype=torch.float64) if context else None
    # The softplus layers add w'U...V with weights of 0.02 in all and rows of V of unit length.
    assert float((psi.gradient(x, c).detach() - x).norm(dim=1).max()) < 0.1
    torch.testing.assert_close(psi.quadratic(), torch.eye(4, dtype=torch.float64))


def test_generators_are_private_and_decide_the_weights(seed):
    before = torch.get_rng_state()
    a, b = (ICNN(2, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    free = ICNN(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.V[0], free.V[0])


@pytest.mark.parametrize("bad", [{"dim": 0}, {"dim": 2, "hidden": ()}, {"dim": 2, "hidden": (0,)}])
def test_impossible_shapes_are_refused(bad):
    with pytest.raises(InvalidDataError, match="ICNN needs dim >= 1"):
        ICNN(**bad)


def test_a_missing_context_is_named():
    with pytest.raises(InvalidDataError, match="context of 2 columns"):
        ICNN(3, context=2).gradient(torch.zeros(1, 3, dtype=torch.float64))
