import math

import numpy as np
import pytest
import torch

from drojko.exceptions import InvalidDataError
from drojko.flows import ICNNScheme, JKOFlow
from drojko.flows.functionals import KLDivergence
from drojko.measures import Gaussian


def draws(n, d, gen):
    return torch.randn(n, d, generator=gen, dtype=torch.float64)


def test_a_known_convex_gradient_is_learned(seed):
    """The projection of a gradient of a convex function onto such gradients is itself."""
    gen = torch.Generator().manual_seed(seed)
    slopes = draws(4, 2, gen)
    goal = lambda z: 0.5 * z + torch.softmax(z @ slopes.T, 1) @ slopes  # noqa: E731
    scheme = ICNNScheme(hidden=(32, 32), fits=1)
    state = scheme.init(draws(500, 2, gen), 0, gen)
    steps = 500
    for k in range(steps):
        x = draws(128, 2, gen)
        rate = 1e-2 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * k / steps)))
        state = scheme.step(state, x, None, lambda _, x=x: goal(x), rate)
    fresh = draws(2000, 2, gen)
    miss = (state.brenier().map(fresh) - goal(fresh)).square().sum(1).mean()
    variance = goal(fresh).var(0).sum()
    assert float(miss) < 0.02 * float(variance)  # R^2 above 0.98 on draws not trained on
    assert state.step == steps


def test_context_selects_the_map(seed):
    """One potential serves two classes that are shifted in opposite directions."""
    gen = torch.Generator().manual_seed(seed)
    scheme = ICNNScheme(hidden=(16,), fits=4)
    state = scheme.init(draws(300, 2, gen), 2, gen)
    push = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    for _ in range(150):
        x = draws(64, 2, gen)
        c = torch.eye(2, dtype=torch.float64)[torch.randint(2, (64,), generator=gen)]
        state = scheme.step(state, x, c, lambda _, x=x, c=c: x + c @ push, 1e-2)
    x = draws(200, 2, gen)
    for label in range(2):
        c = torch.eye(2, dtype=torch.float64)[label].expand(200, 2)
        moved = state.brenier().map(x, c) - x
        assert float((moved - push[label]).norm(dim=1).mean()) < 0.2


def test_the_state_is_conditioned_by_the_points(seed):
    gen = torch.Generator().manual_seed(seed)
    x = 1e6 * draws(200, 3, gen) + 1e8
    state = ICNNScheme(hidden=(8,)).init(x, 0, gen)
    moved = state.brenier().map(x)
    # The start is the identity up to a few hundredths of the spread.
    assert float((moved - x).norm(dim=1).max()) < 0.2 * 1e6
    single = ICNNScheme(hidden=(8,)).init(x[:1], 0, gen)
    assert single.scale == 1.0


def test_an_affine_start_carries_mean_and_covariance(seed):
    """The Bures map between the Gaussian fits, up to the softplus layers of the start."""
    gen = torch.Generator().manual_seed(seed)
    x = 3.0 * draws(2000, 2, gen) + 10.0
    stretch = torch.tensor([[1.5, 0.3], [0.3, 0.8]], dtype=torch.float64)
    images = (x - 10.0) @ stretch + torch.tensor([12.0, 7.0], dtype=torch.float64)
    scheme = ICNNScheme(hidden=(8,))
    state = scheme.init(x, 0, gen)
    scheme.start_affine(state, x, images)
    # A symmetric positive map is the optimal one; the layers add a few hundredths of the spread.
    assert float((state.image(x, None) - images).norm(dim=1).max()) < 0.1 * state.scale
    assert torch.equal(state.image(x, None), state.brenier().map(x))
    flat_view = state.potential.factor.data_ptr()
    assert flat_view == state.flat.data_ptr()  # still one flat vector: later steps move it


def test_a_map_taken_from_the_state_does_not_change_later(seed):
    gen = torch.Generator().manual_seed(seed)
    scheme = ICNNScheme(hidden=(8,))
    x = draws(50, 2, gen)
    state = scheme.init(x, 0, gen)
    taken = state.brenier()
    before = taken.map(x)
    after = scheme.step(state, x, None, lambda p: p + 1.0, 1e-1).brenier().map(x)
    torch.testing.assert_close(taken.map(x), before, rtol=0, atol=0)
    assert float((after - before).abs().max()) > 1e-3
    assert not any(p.requires_grad for p in taken.potential.parameters())


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_residual_is_in_the_units_of_the_points(scale, seed):
    gen = torch.Generator().manual_seed(seed)
    x = scale * draws(100, 2, gen)
    scheme = ICNNScheme(hidden=(8,), fits=1)
    state = scheme.init(x, 0, gen)
    state = scheme.step(state, x, None, lambda p: p + scale, 1e-3)
    # Every target is (1, 1) away, in units of scale.
    assert state.residual == pytest.approx(2.0 * scale**2, rel=1e-9)


@pytest.mark.parametrize("d", [3, 34])
def test_stochastic_log_determinants_reach_the_energy_of_exact_ones(d):
    def log_prob(z):  # flat in the middle and steep outside, in every column
        return -z.square().square().sum(1)

    ends = {}
    for how in ("exact", "stochastic"):
        scheme = ICNNScheme(hidden=(16, 16), n_particles=1500, iterations=80, log_det=how)
        flow = JKOFlow(KLDivergence(log_prob), scheme, step_size=0.5)
        result = flow.run(Gaussian(np.zeros(d), np.eye(d)), 2, random_state=0)
        ends[how] = result.history["energy"].to_numpy()
        last = result.measures[-1]
        x, log_rho = last.sample_with_density(10, torch.Generator().manual_seed(1))
        torch.testing.assert_close(last.log_prob(x), log_rho, rtol=0, atol=1e-6)
    plain = JKOFlow(
        KLDivergence(log_prob), ICNNScheme(iterations=0, n_particles=1500), step_size=0.5
    )
    affine = plain.run(Gaussian(np.zeros(d), np.eye(d)), 2, random_state=0).history["energy"]
    gain = float(affine.iloc[-1]) - ends["exact"][-1]
    assert gain > 0.02 * d
    assert float(affine.iloc[-1]) - ends["stochastic"][-1] > 0.8 * gain
    with pytest.raises(InvalidDataError, match="log_det='rough'"):
        JKOFlow(KLDivergence(log_prob), ICNNScheme(log_det="rough"), step_size=0.5).run(
            Gaussian(np.zeros(d), np.eye(d)), 1
        )
