import math

import numpy as np
import pytest
import torch

from drojko.exceptions import InvalidDataError
from drojko.flows import ICNNScheme, JKOFlow, MapState
from drojko.flows.functionals import KLDivergence
from drojko.flows.icnn import map_problem
from drojko.flows.icnn.map_problem import MapProblem
from drojko.flows.particles import Particles
from drojko.measures import Gaussian
from drojko.transport import ICNN
from drojko.transport.jet import Probes, stochastic_jet


def draws(n, d, gen):
    return torch.randn(n, d, generator=gen, dtype=torch.float64)


def test_a_known_convex_gradient_is_learned(seed):
    """The projection of a gradient of a convex function onto such gradients is itself."""
    gen = torch.Generator().manual_seed(seed)
    slopes = draws(4, 2, gen)
    goal = lambda z: 0.5 * z + torch.softmax(z @ slopes.T, 1) @ slopes  # noqa: E731
    state = MapState.start(draws(500, 2, gen), generator=gen, hidden=(32, 32))
    steps = 500
    for k in range(steps):
        x = draws(128, 2, gen)
        rate = 1e-2 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * k / steps)))
        state.advance(x, None, lambda _, x=x: goal(x), rate)
    fresh = draws(2000, 2, gen)
    miss = (state.brenier().map(fresh) - goal(fresh)).square().sum(1).mean()
    variance = goal(fresh).var(0).sum()
    assert float(miss) < 0.02 * float(variance)  # R^2 above 0.98 on draws not trained on
    assert state.step == steps


def test_context_selects_the_map(seed):
    """One potential serves two classes that are shifted in opposite directions."""
    gen = torch.Generator().manual_seed(seed)
    state = MapState.start(draws(300, 2, gen), 2, generator=gen, hidden=(16,))
    push = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    for _ in range(150):
        x = draws(64, 2, gen)
        c = torch.eye(2, dtype=torch.float64)[torch.randint(2, (64,), generator=gen)]
        state.advance(x, c, lambda _, x=x, c=c: x + c @ push, 1e-2, fits=4)
    x = draws(200, 2, gen)
    for label in range(2):
        c = torch.eye(2, dtype=torch.float64)[label].expand(200, 2)
        moved = state.brenier().map(x, c) - x
        assert float((moved - push[label]).norm(dim=1).mean()) < 0.2


def test_the_state_is_conditioned_by_the_points(seed):
    gen = torch.Generator().manual_seed(seed)
    x = 1e6 * draws(200, 3, gen) + 1e8
    state = MapState.start(x, generator=gen, hidden=(8,))
    moved = state.brenier().map(x)
    # The start is the identity up to a few hundredths of the spread.
    assert float((moved - x).norm(dim=1).max()) < 0.2 * 1e6
    single = MapState.start(x[:1], generator=gen, hidden=(8,))
    assert single.scale == 1.0


def test_an_affine_start_carries_mean_and_covariance(seed):
    """The Bures map between the Gaussian fits, up to the softplus layers of the start."""
    gen = torch.Generator().manual_seed(seed)
    x = 3.0 * draws(2000, 2, gen) + 10.0
    stretch = torch.tensor([[1.5, 0.3], [0.3, 0.8]], dtype=torch.float64)
    images = (x - 10.0) @ stretch + torch.tensor([12.0, 7.0], dtype=torch.float64)
    state = MapState.start(x, generator=gen, hidden=(8,))
    state.make_affine(x, images)
    # A symmetric positive map is the optimal one; the layers add a few hundredths of the spread.
    assert float((state.image(x, None) - images).norm(dim=1).max()) < 0.1 * state.scale
    assert torch.equal(state.image(x, None), state.brenier().map(x))
    flat_view = state.potential.factor.data_ptr()
    assert flat_view == state.flat.data_ptr()  # still one flat vector: later steps move it


def test_a_map_taken_from_the_state_does_not_change_later(seed):
    gen = torch.Generator().manual_seed(seed)
    x = draws(50, 2, gen)
    state = MapState.start(x, generator=gen, hidden=(8,))
    taken = state.brenier()
    before = taken.map(x)
    state.advance(x, None, lambda p: p + 1.0, 1e-1, fits=4)
    after = state.brenier().map(x)
    torch.testing.assert_close(taken.map(x), before, rtol=0, atol=0)
    assert float((after - before).abs().max()) > 1e-3
    assert not any(p.requires_grad for p in taken.potential.parameters())


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_residual_is_in_the_units_of_the_points(scale, seed):
    gen = torch.Generator().manual_seed(seed)
    x = scale * draws(100, 2, gen)
    state = MapState.start(x, generator=gen, hidden=(8,))
    state.advance(x, None, lambda p: p + scale, 1e-3)
    # Every target is (1, 1) away, in units of scale.
    assert state.residual == pytest.approx(2.0 * scale**2, rel=1e-9)


def two_modes(z):
    return torch.logaddexp(2.0 * z[:, 0], -2.0 * z[:, 0]) - 0.5 * z.square().sum(1)


def test_stochastic_log_determinants_reach_what_exact_ones_do():
    start, ends = Gaussian(np.zeros(3), np.eye(3)), {}
    for how, iterations in (("exact", 0), ("exact", 160), ("stochastic", 160)):
        scheme = ICNNScheme(hidden=(16,), n_particles=2000, iterations=iterations, log_det=how)
        flow = JKOFlow(KLDivergence(two_modes), scheme, step_size=2.0)
        result = flow.run(start, 1, random_state=0)
        ends[how, iterations > 0] = float(result.history["energy"].iloc[-1])
    last = result.measures[-1]
    x, log_rho = last.sample_with_density(10, torch.Generator().manual_seed(1))
    torch.testing.assert_close(last.log_prob(x), log_rho, rtol=0, atol=1e-6)
    gain = ends["exact", False] - ends["stochastic", True]
    assert gain > 0.1  # of the 0.2 nats that the best map gains over the best affine one
    assert gain > 0.9 * (ends["exact", False] - ends["exact", True])


def test_gradients_with_random_signs_are_unbiased_in_many_columns():
    d = 40
    gen = torch.Generator().manual_seed(0)
    x = draws(30, d, gen)
    w = torch.full((30,), 1 / 30, dtype=torch.float64)
    particles = Particles(x, w, -0.5 * x.square().sum(1))
    problem = MapProblem.of(KLDivergence(two_modes), particles, 2.0)
    potential = ICNN(d, hidden=(8, 8), generator=gen).double()
    with torch.no_grad():
        potential.w.add_(2.0)
    value, exact = problem.with_gradient(potential)
    rough = [problem.with_gradient(potential, gen, Probes()) for _ in range(400)]
    assert np.mean([v for v, _ in rough]) == pytest.approx(value, abs=0.02)
    for k, theirs in enumerate(exact):
        draw = torch.stack([gradient[k] for _, gradient in rough])
        error = (draw.std(0) / 20.0).clamp_min(1e-9)  # of the mean of 400
        assert float(((draw.mean(0) - theirs) / error).square().mean()) < 2.0


def test_many_columns_take_stochastic_log_determinants(monkeypatch):
    asked = []

    def spy(*arguments):
        asked.append(arguments[1].shape[1])
        return stochastic_jet(*arguments)

    monkeypatch.setattr(map_problem, "stochastic_jet", spy)
    for d in (3, 33):
        scheme = ICNNScheme(hidden=(4,), n_particles=200, iterations=8)
        flow = JKOFlow(KLDivergence(two_modes), scheme, step_size=2.0)
        flow.run(Gaussian(np.zeros(d), np.eye(d)), 1, random_state=0)
    assert set(asked) == {33}
    with pytest.raises(InvalidDataError, match="log_det='rough'"):
        ICNNScheme(log_det="rough")
