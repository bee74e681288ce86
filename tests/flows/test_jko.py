import math

import numpy as np
import pytest
import torch

from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows import ICNNScheme, JKOFlow
from drojko.flows.functionals import (
    Entropy,
    InteractionEnergy,
    InternalEnergy,
    KLDivergence,
    MMDTo,
    PotentialEnergy,
    WassersteinTo,
)
from drojko.flows.icnn.affine_fit import AffineFit, AffineStart
from drojko.flows.icnn.map_problem import MapProblem
from drojko.flows.particles import Particles, draw_particles
from drojko.measures import Empirical, Gaussian, GaussianMixture
from drojko.measures.base import Measure
from drojko.transport import AffineMap


def ornstein_uhlenbeck(mean, covariance):
    mean = torch.tensor(mean, dtype=torch.float64)
    precision = torch.linalg.inv(torch.tensor(covariance, dtype=torch.float64))
    return PotentialEnergy(lambda z: 0.5 * ((z - mean) @ precision * (z - mean)).sum(1)) + Entropy()


def moments(step):
    x, w = step.particles, step.weights
    mean = w @ x
    return mean.numpy(), ((x - mean).T @ (w.unsqueeze(1) * (x - mean))).numpy()


def test_the_exact_chain_in_one_dimension(seed):
    flow = JKOFlow(ornstein_uhlenbeck([2.0], [[4.0]]), step_size=0.5)
    result = flow.run(Gaussian([0.0], [[1.0]]), 4, random_state=seed)
    chain = [(0.222222, 1.551714), (0.419753, 2.017001), (0.595336, 2.400274), (0.751410, 2.712581)]
    for step, (mean, variance) in zip(result.measures[1:], chain, strict=True):
        found = moments(step)
        # Matched moments: no sampling error; the table has six digits.
        assert found[0][0] == pytest.approx(mean, abs=2e-6)
        assert found[1][0, 0] == pytest.approx(variance, abs=2e-6)
    history = result.history
    assert (np.diff(history["energy"]) < 0).all()
    assert (history["decrease"] >= history["movement"]).all()  # energy descent of a JKO step
    assert history[["translation", "linear"]].to_numpy().max() < 1e-4
    assert history["time"].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert (result.n_steps, result.status, len(result.maps)) == (4, "converged", 4)
    assert "n_steps=4" in repr(result)


def test_the_exact_chain_of_matrices_that_do_not_commute(seed):
    flow = JKOFlow(ornstein_uhlenbeck([0.0, 0.5], [[2.0, 0.6], [0.6, 0.5]]), step_size=0.2)
    result = flow.run(Gaussian([1.0, -1.0], [[1.0, -0.4], [-0.4, 0.8]]), 2, random_state=seed)
    chain = [
        ([0.728814, -0.338983], [[1.034044, -0.055057], [-0.055057, 0.491645]]),
        ([0.557024, 0.047975], [[1.123331, 0.130568], [0.130568, 0.409056]]),
    ]
    for step, (mean, covariance) in zip(result.measures[1:], chain, strict=True):
        found = moments(step)
        np.testing.assert_allclose(found[0], mean, atol=2e-6)
        np.testing.assert_allclose(found[1], covariance, atol=2e-6)
    expected = [[1.080327, 0.185975], [0.185975, 0.854544]]
    np.testing.assert_allclose(result.maps[0].matrix.numpy(), expected, atol=2e-5)


def test_thirty_dimensions_are_exact_too(rng, seed):
    d, h = 30, 0.1
    scales = rng.uniform(0.5, 3.0, d)
    flow = JKOFlow(ornstein_uhlenbeck(np.zeros(d), np.diag(scales)), step_size=h)
    result = flow.run(Gaussian(np.ones(d), np.eye(d)), 1, random_state=seed)
    a = 1.0 / scales
    stretch = (1 + np.sqrt(1 + 4 * h * (1 + h * a))) / (2 * (1 + h * a))
    mean, covariance = moments(result.measures[1])
    np.testing.assert_allclose(mean, 1 / (1 + h * a), atol=1e-5)
    np.testing.assert_allclose(covariance, np.diag(stretch**2), atol=1e-5)


def test_step_sizes_may_grow(seed):
    flow = JKOFlow(Entropy(), step_size=[0.1, 0.2])
    result = flow.run(Gaussian([0.0], [[1.0]]), 2, random_state=seed)
    variance = 1.0
    for h in (0.1, 0.2):  # the heat flow's step: A = 0
        variance = (variance + 2 * h + math.sqrt(variance**2 + 4 * h * variance)) / 2
    assert moments(result.measures[2])[1][0, 0] == pytest.approx(variance, abs=1e-6)
    assert result.history["time"].tolist() == pytest.approx([0.1, 0.3])


class Barenblatt(Measure):
    """The self-similar profile of the porous-medium equation in one dimension, m = 2, s = 1."""

    _state = "c"
    c, kappa, dim = 0.3605624, 1 / 12, 1

    def sample(self, n, generator=None):
        edge = math.sqrt(self.c / self.kappa)
        u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        grid = torch.linspace(-edge, edge, 20001, dtype=torch.float64)
        mass = torch.cumsum(self.log_prob(grid.unsqueeze(1)).exp(), 0)
        return grid[torch.searchsorted(mass / mass[-1], u).clamp_max(20000)].unsqueeze(1)

    def log_prob(self, x):
        return (self.c - self.kappa * x[:, 0] ** 2).clamp_min(1e-300).log()


def test_the_porous_medium_keeps_its_profile(seed):
    flow = JKOFlow(InternalEnergy(2.0), ICNNScheme(iterations=0), step_size=0.05)
    result = flow.run(Barenblatt(), 10, random_state=seed)
    start = Barenblatt().sample(5000)
    for step, scale in ((1, 1.016141), (10, 1.143030)):
        x = result.measures[step].particles
        assert float(x.std() / start.std()) == pytest.approx(scale, rel=2e-3)


def test_attraction_contracts_and_keeps_the_mean(seed):
    h = 0.3
    flow = JKOFlow(
        InteractionEnergy(lambda x: 0.5 * (x**2).sum(1)), ICNNScheme(n_particles=400), step_size=h
    )
    result = flow.run(Gaussian([1.0, 2.0], [[1.0, 0.3], [0.3, 2.0]]), 1, random_state=seed)
    mean, covariance = moments(result.measures[1])
    np.testing.assert_allclose(mean, [1.0, 2.0], atol=1e-6)
    # Pairs of different particles: 1 + h n / (n - 1) in the place of 1 + h.
    exact = np.array([[1.0, 0.3], [0.3, 2.0]]) / (1 + h * 400 / 399) ** 2
    np.testing.assert_allclose(covariance, exact, atol=1e-5)


def test_distances_to_samples_are_flowed_down(seed):
    target = Gaussian([3.0], [[0.25]])
    for functional in (WassersteinTo(target), 5.0 * MMDTo(target, 2.0)):
        flow = JKOFlow(functional, ICNNScheme(n_particles=300, iterations=0), step_size=0.25)
        result = flow.run(Gaussian([0.0], [[1.0]]), 3, random_state=seed)
        energy = result.history["energy"]
        assert (np.diff(energy) < 0).all()
    # W2^2: T(x) = x - 2 h (x - y): one step goes 1 / (1 + 1/(2h)) of the way, here a third.
    flow = JKOFlow(WassersteinTo(target), ICNNScheme(n_particles=300, iterations=0), step_size=0.25)
    one = flow.run(Gaussian([0.0], [[1.0]]), 1, random_state=seed).measures[1]
    assert moments(one)[0][0] == pytest.approx(1.0, abs=0.05)


@pytest.fixture(scope="module")
def mixture_flow(seed):
    target = GaussianMixture(means=[[-1.5, 0.0], [1.5, 0.5]], covariances=[0.4 * np.eye(2)] * 2)
    flow = JKOFlow(KLDivergence(target.log_prob), ICNNScheme(n_particles=2000), step_size=0.4)
    return target, flow.run(Gaussian([0.0, 0.0], np.eye(2)), 3, random_state=seed)


def test_a_mixture_needs_the_network(mixture_flow):
    target, result = mixture_flow
    history = result.history
    assert history["refined"].iloc[0] == 1.0
    assert (np.diff(history["energy"]) < 0).all()
    assert (history["decrease"] > 0).all()
    x = result.measures[0].sample(4000, torch.Generator().manual_seed(1))
    start = float((result.measures[0].log_prob(x) - target.log_prob(x)).mean())
    assert history["energy"].iloc[-1] < 0.35 * start


def test_density_routes_agree(mixture_flow):
    """Along the flow without inversion, and by Newton's inverse at the same points."""
    _, result = mixture_flow
    step = result.measures[-1]
    found = step.log_prob(step.particles[:200])
    torch.testing.assert_close(found, step.log_density[:200], rtol=0, atol=1e-8)
    assert step.sample(7, torch.Generator().manual_seed(0)).shape == (7, 2)


def test_the_density_integrates_to_one(mixture_flow):
    _, result = mixture_flow
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    mass = float(result.measures[-1].log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2)
    assert mass == pytest.approx(1.0, abs=2e-3)  # the rule's error on a smooth density


def test_same_seed_same_flow(mixture_flow, seed):
    target, result = mixture_flow
    flow = JKOFlow(KLDivergence(target.log_prob), ICNNScheme(n_particles=2000), step_size=0.4)
    again = flow.run(Gaussian([0.0, 0.0], np.eye(2)), 1, random_state=seed)
    torch.testing.assert_close(
        again.measures[1].particles, result.measures[1].particles, rtol=0, atol=0
    )


def test_a_callback_ends_the_flow(seed):
    seen = []
    flow = JKOFlow(Entropy(), step_size=0.1)
    result = flow.run(
        Gaussian([0.0], [[1.0]]), 5, seed, lambda s: seen.append(s.step) or s.step == 2
    )
    assert (result.n_steps, result.status, seen) == (2, "callback", [1, 2])


def test_optimal_affine_maps_are_recognised(generator):
    """The share of the variance of dF/drho that is left: none at the optimum, some elsewhere."""
    functional = ornstein_uhlenbeck([1.0, 0.0], [[2.0, 0.5], [0.5, 1.0]])
    p = draw_particles(Gaussian([0.0, 0.0], np.eye(2)), 500, generator)
    problem = MapProblem.of(functional, p, 0.3)
    first = AffineStart(problem, problem)
    affine = first.fitted.map
    assert first.optimal
    assert problem.affine_gap(first.fitted.train, affine) < 1e-8
    worse = AffineMap(1.3 * affine.matrix, affine.shift - 0.3 * affine.matrix @ problem.centre)
    off = problem.evaluate(worse.map(p.x), worse.log_abs_det_jacobian(p.x))
    assert problem.affine_gap(off, worse) > 1e-2
    bent = MapProblem.of(functional + PotentialEnergy(lambda z: (3 * z[:, 0]).sin()), p, 0.3)
    first = AffineStart(bent, bent)
    assert not first.optimal
    assert bent.affine_gap(first.fitted.train, first.fitted.map) > 1e-2


def test_particles_have_the_moments_of_their_measure(generator):
    measure = GaussianMixture(means=[[-2.0, 0.0], [2.0, 1.0]], covariances=[np.eye(2)] * 2)
    p = draw_particles(measure, 300, generator)
    mean, covariance = p.mean_and_covariance()
    torch.testing.assert_close(mean, measure.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance, measure.covariance, rtol=0, atol=1e-10)
    torch.testing.assert_close(p.log_density, measure.log_prob(p.x))
    atoms = draw_particles(Empirical([[0.0], [1.0]]), 50, generator)
    assert not atoms.known
    moved = atoms.moved(atoms.x + 1.0, torch.zeros(50))
    assert isinstance(moved, Particles)
    assert not moved.known


def test_mistakes_are_told():
    start = Gaussian([0.0], [[1.0]])
    with pytest.raises(InvalidDataError, match="n_steps"):
        JKOFlow(Entropy(), step_size=0.1).run(start, 0)
    with pytest.raises(InvalidDataError, match="entries"):
        JKOFlow(Entropy(), step_size=[0.1]).run(start, 2)
    for h in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidDataError, match="step_size"):
            JKOFlow(Entropy(), step_size=h).run(start, 1)
    atoms = Empirical(np.linspace(0, 1, 20)[:, None])
    with pytest.raises(UnsupportedError, match="density"):
        JKOFlow(InternalEnergy(2.0), step_size=0.1).run(atoms, 1)
    result = JKOFlow(Entropy(), ICNNScheme(n_particles=50), step_size=0.01).run(atoms, 1, 0)
    with pytest.raises(UnsupportedError):
        result.measures[1].log_density


def test_ctrl_c_inside_a_step_ends_the_flow(monkeypatch):
    """The fit of a map is a loop of its own, whose interrupt must not be lost."""
    direction, made = AffineFit._direction, []

    def interrupted(self, gradient, pairs):
        made.append(1)
        if len(made) == 12:
            raise KeyboardInterrupt
        return direction(self, gradient, pairs)

    monkeypatch.setattr(AffineFit, "_direction", interrupted)
    flow = JKOFlow(InternalEnergy(2.0), ICNNScheme(n_particles=100, iterations=0), step_size=0.05)
    with pytest.raises(KeyboardInterrupt) as error:
        flow.run(Gaussian([0.0, 0.0], np.eye(2)), 50, random_state=0)
    assert error.value.result.status == "interrupted"
    assert 1 <= error.value.result.n_steps < 12
    assert len(made) == 12
