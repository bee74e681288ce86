import subprocess
import sys

import numpy as np
import pytest
import torch

from drojko.exceptions import InvalidDataError, NonFiniteError, UnsupportedError
from drojko.measures import FlowMeasure, Gaussian, Joint
from drojko.measures.flow import adam


@pytest.fixture(scope="module")
def bent():
    """Rows along a parabola: no Gaussian."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=600)
    return np.column_stack([u, u**2 + 0.3 * rng.normal(size=600)])


def test_flow_beats_the_gaussian_on_new_rows(bent):
    train, new = bent[:400], bent[400:]
    flow = FlowMeasure(max_iter=200).fit(train)
    gain = flow.log_prob(new).mean() - Gaussian().fit(train).log_prob(new).mean()
    assert gain > 0.3  # nats per row; the parabola is worth about 1


def test_sample_and_density_are_of_the_same_law(bent, generator):
    flow = FlowMeasure(max_iter=100).fit(bent)
    x = flow.sample(20_000, generator)
    grid = torch.cartesian_prod(
        torch.linspace(-5, 5, 301, dtype=torch.float64),
        torch.linspace(-6, 20, 401, dtype=torch.float64),
    )
    density = flow.log_prob(grid).exp() * (10 / 300) * (26 / 400)
    for g in (lambda z: z[:, 0], lambda z: z[:, 1], lambda z: (z[:, 1] > 1.0).double()):
        expected, values = (density * g(grid)).sum(), g(x)
        # Six standard errors, and the quadrature's error at the spline's knots.
        assert (values.mean() - expected).abs() < 6 * values.std() / 20_000**0.5 + 0.02


def test_adam_finds_a_minimum():
    target = torch.tensor([3.0, -1.0], dtype=torch.float64)
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    losses = adam(lambda: ((p - target) ** 2).sum(), [p], 400, 0.1)
    assert len(losses) == 400
    torch.testing.assert_close(p.detach(), target, rtol=0, atol=1e-3)


def test_adam_names_the_step_of_a_bad_loss():
    p = torch.zeros(1, requires_grad=True)
    with pytest.raises(NonFiniteError, match="step 1"):
        adam(lambda: p.sum() * torch.nan, [p], 5, 0.1)


def test_torch_keeps_its_argument_checks():
    code = (
        "import torch, sys; from torch.distributions import Distribution;"
        "from drojko.measures import FlowMeasure; assert 'zuko' not in sys.modules;"
        "FlowMeasure(max_iter=1).fit([[0.], [1.]]); assert 'zuko' in sys.modules;"
        "assert Distribution._validate_args;"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_zuko_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(UnsupportedError, match=r"drojko\[flows\]"):
        FlowMeasure().fit([[0.0], [1.0]])


def test_no_closed_forms(bent):
    flow = FlowMeasure(max_iter=2).fit(bent)
    for use in (lambda: flow.mean, lambda: flow.covariance, lambda: flow.marginal([0])):
        with pytest.raises(UnsupportedError, match="closed-form"):
            use()
    joint = Joint(flow)
    with pytest.raises(UnsupportedError, match=r"log p\(x \| y\)"):
        joint.log_prob(bent[:, :1], bent[:, 1])


def test_random_state_decides(bent):
    a, b = (FlowMeasure(max_iter=2, random_state=s).fit(bent) for s in (0, 1))
    assert not torch.equal(a.log_prob(bent), b.log_prob(bent))


@pytest.mark.parametrize("noise", ["much", -1.0, float("nan")])
def test_wrong_noise_is_named(noise):
    with pytest.raises(InvalidDataError, match="noise"):
        FlowMeasure(noise=noise).fit([[0.0], [1.0]])
