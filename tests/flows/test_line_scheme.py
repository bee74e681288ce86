import math

import numpy as np
import pytest
import torch

from benchmarks.exact_flows import gaussian_step
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows import JKOFlow, LineScheme
from drojko.flows.functionals import Entropy, InternalEnergy, KLDivergence, PotentialEnergy
from drojko.flows.line_scheme import MonotoneMap
from drojko.flows.tasks.filtering import Conditioned
from drojko.measures import Gaussian


def bumpy(z):
    return torch.sin(2.0 * math.pi * z[:, 0]) / math.pi + 0.25 * z[:, 0] ** 2


def test_monotone_maps_invert_and_know_their_slopes(rng):
    knots = np.sort(rng.normal(size=40))
    values = np.cumsum(rng.exponential(size=40))
    found = MonotoneMap(knots, values)
    x = torch.linspace(-6, 6, 400, dtype=torch.float64).unsqueeze(1)
    y = found.map(x)
    assert bool((torch.diff(y[:, 0]) > 0).all())
    assert float((found.map(found.inverse(y)) - y).abs().max()) < 1e-10
    step = 1e-6
    slope = (found.map(x + step) - found.map(x - step))[:, 0] / (2 * step)
    torch.testing.assert_close(
        found.log_abs_det_jacobian(x).exp(), slope, rtol=1e-4, atol=1e-5
    )  # central differences across knots, where the slope has kinks
    with pytest.raises(InvalidDataError, match="increasing"):
        MonotoneMap(np.array([0.0, 1.0]), np.array([0.0, 0.0]))


def test_the_chain_is_exact_far_into_the_tails():
    law, target = Gaussian([0.0], [[1.0]]), Gaussian([2.0], [[4.0]])
    functional = PotentialEnergy(lambda z: (z[:, 0] - 2.0) ** 2 / 8) + Entropy()
    start = Conditioned(law, n_particles=1500)
    last = JKOFlow(functional, LineScheme(1500), step_size=0.5).run(start, 4).measures[-1]
    for _ in range(4):
        law = gaussian_step(law, target, 0.5)
    # Out to six standard deviations, where a trained map knows nothing.
    x = law.mean + law.covariance.sqrt() * torch.linspace(-6, 6, 61).double().unsqueeze(1)
    # The error is of second order in the spacing; log p is -20 at the ends.
    torch.testing.assert_close(last.log_prob(x), law.log_prob(x), rtol=0, atol=1e-2)


def test_energy_falls_and_equilibrium_is_reached_in_a_bumpy_well():
    functional = PotentialEnergy(bumpy) + Entropy()
    steps = [0.05] * 4 + [1.0, 10.0, 1e3]
    flow = JKOFlow(functional, LineScheme(1500), step_size=steps)
    result = flow.run(Conditioned(Gaussian([0.0], [[1.0]]), n_particles=1500), len(steps))
    history = result.history
    assert (history["decrease"] > history["movement"] - 1e-6).all()
    grid = torch.linspace(-6, 6, 2401, dtype=torch.float64).unsqueeze(1)
    log_p = -bumpy(grid)
    log_p = log_p - torch.logsumexp(log_p, 0) - math.log(12 / 2400)
    log_q = result.measures[-1].log_prob(grid)
    gap = (log_p.exp() - log_q.exp()) * (log_p - log_q)
    assert float(gap.sum()) * 12 / 2400 < 1e-3  # h = 1000 is no longer than a few relaxations
    assert float(log_q.exp().sum()) * 12 / 2400 == pytest.approx(1.0, abs=1e-4)


def test_what_it_is_not_for():
    flow = JKOFlow(KLDivergence(lambda z: -z.square().sum(1)), LineScheme(50), step_size=0.1)
    with pytest.raises(UnsupportedError, match="one dimension"):
        flow.run(Gaussian([0.0, 0.0], np.eye(2)), 1)
    flow = JKOFlow(InternalEnergy(2.0), LineScheme(50), step_size=0.1)
    with pytest.raises(UnsupportedError, match="entropies"):
        flow.run(Gaussian([0.0], [[1.0]]), 1)
