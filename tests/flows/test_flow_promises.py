"""What flows promise: gradients, inverses, exact chains, identities, the porous medium."""

import math
import zlib

import numpy as np
import pytest
import torch

from benchmarks.exact_flows import (
    Barenblatt,
    barenblatt_step,
    gaussian_step,
    ornstein_uhlenbeck_law,
    symmetric_kl,
)
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows import ICNNScheme, JKOFlow
from drojko.flows.envelope_scheme import EnvelopeScheme
from drojko.flows.functionals import Entropy, KLDivergence, PotentialEnergy
from drojko.flows.tasks import (
    aggregation,
    bayesian_logistic,
    filter_diffusion,
    fokker_planck,
    ornstein_uhlenbeck,
    porous_medium,
    sample_density,
)
from drojko.flows.tasks.filtering import Conditioned
from drojko.measures import Gaussian
from drojko.transport import ICNN
from drojko.transport.envelope import QuadraticEnvelope


def two_modes(z):
    centres = torch.tensor([[1.5, 0.0], [-1.5, 0.5]], dtype=z.dtype)
    return torch.logsumexp(-torch.cdist(z, centres).square(), 1) - math.log(2.0 * math.pi)


def ou_target(d, index):
    from sklearn.datasets import make_spd_matrix

    state = np.random.RandomState(zlib.crc32(f"abacaba@{d}@{index}numpy".encode()))
    covariance = make_spd_matrix(d, random_state=state)
    return Gaussian(state.randn(d), covariance)


def fitted(step):
    mean = step.weights @ step.particles
    centred = step.particles - mean
    return Gaussian(mean.numpy(), ((step.weights.unsqueeze(1) * centred).T @ centred).numpy())


# 1: gradients and Hessians ----------------------------------------------------------------------


def potentials(generator):
    d = 3
    icnn = ICNN(d, hidden=(16, 16), generator=generator)
    for p in icnn.parameters():  # away from the start
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    centres = torch.randn(6, d, generator=generator, dtype=torch.float64)
    envelope = QuadraticEnvelope(centres, torch.eye(d).double(), torch.zeros(d).double())
    for p in envelope.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return icnn, envelope


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_and_hessians_are_those_of_autograd(which, generator):
    psi = potentials(generator)[which]
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(psi(x).sum(), x, create_graph=True)
    rows = [torch.autograd.grad(slope[:, k].sum(), x, retain_graph=True)[0] for k in range(3)]
    torch.testing.assert_close(psi.gradient(x), slope, rtol=0, atol=1e-10)
    torch.testing.assert_close(psi.hessian(x), torch.stack(rows, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("which", [0, 1])
def test_hessians_are_positive_definite_far_and_near(which, generator):
    psi = potentials(generator)[which]
    x = 10.0 * torch.randn(100_000, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        least = min(
            float(torch.linalg.eigvalsh(psi.hessian(p))[:, 0].min()) for p in x.split(20_000)
        )
    assert least > 0.5e-4


# 2: inverses and densities ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["icnn", "envelope"])
def relaxation(request):
    scheme = {
        "icnn": ICNNScheme(hidden=(32,), n_particles=2000, iterations=200),
        "envelope": EnvelopeScheme(components=8, n_particles=2000, iterations=150, batch_size=256),
    }[request.param]
    flow = JKOFlow(KLDivergence(two_modes), scheme, step_size=[0.3, 0.6])
    return flow.run(Gaussian([0.0, 0.0], 2.0 * np.eye(2)), 2, random_state=0)


def test_newton_inverts_to_rounding(relaxation):
    x = relaxation.measures[0].sample(500, torch.Generator().manual_seed(0))
    for step in relaxation.maps:
        y = step.map(x)
        residual = step.map(step.inverse(y)) - y
        assert float(residual.abs().max()) < 1e-10
        x = y


def test_both_routes_to_the_density_agree(relaxation):
    last = relaxation.measures[-1]
    x, log_density = last.sample_with_density(500, torch.Generator().manual_seed(1))
    assert float((last.log_prob(x) - log_density).abs().mean()) < 1e-6
    again = last.sample(500, torch.Generator().manual_seed(1))
    torch.testing.assert_close(again, x, rtol=0, atol=1e-12)


def test_the_mass_is_one_and_the_entropy_that_of_draws(relaxation):
    last = relaxation.measures[-1]
    mass, error = last.mass(4000, torch.Generator().manual_seed(2))
    assert abs(mass - 1.0) < 4.0 * error
    assert error < 0.05
    _, log_density = last.sample_with_density(4000, torch.Generator().manual_seed(3))
    noise = float(log_density.std()) * (1 / 4000 + 1 / 2000) ** 0.5
    assert abs(last.entropy() + float(log_density.mean())) < 4.0 * noise


# 3: Gaussian steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 8])
def test_ornstein_uhlenbeck_chains_are_exact(d):
    target, start = ou_target(d, 0), Gaussian(np.zeros(d), np.eye(d))
    result = ornstein_uhlenbeck(target, start, 0.05, 18, random_state=0)
    chain = start
    for k, step in enumerate(result.measures[1:], 1):
        chain = gaussian_step(chain, target, 0.05)
        found = fitted(step)
        assert symmetric_kl(found, chain) < 1e-8  # no network: convergence of the affine fit
        law = ornstein_uhlenbeck_law(start, target, 0.05 * k)
        floor = symmetric_kl(chain, law)
        assert symmetric_kl(found, law) == pytest.approx(floor, rel=1e-2)
    if d == 8:
        assert symmetric_kl(fitted(result.measures[-1]), law) < 0.006


def test_the_first_published_target():
    target = ou_target(2, 0)
    np.testing.assert_allclose(target.mean, [-0.551623, 0.885969], atol=1e-6)
    np.testing.assert_allclose(
        target.covariance, [[2.491251, -0.236644], [-0.236644, 0.387637]], atol=1e-6
    )


# 4: identities ----------------------------------------------------------------------------------


def test_optimality_identities_hold(relaxation):
    history = relaxation.history
    assert (history["decrease"] > history["movement"]).all()  # energy falls by more than it costs
    if not isinstance(relaxation.maps[0].potential, QuadraticEnvelope):  # no exact affine part
        assert history["translation"].max() < 0.02
    assert history["linear"].max() < 0.1


@pytest.mark.slow
def test_identities_within_two_percent_after_training():
    flow = JKOFlow(
        KLDivergence(two_modes),
        ICNNScheme(hidden=(32,), n_particles=4000, iterations=600, rate=0.05),
        step_size=0.3,
    )
    history = flow.run(Gaussian([0.0, 0.0], 2.0 * np.eye(2)), 2, random_state=0).history
    assert history["translation"].max() < 0.02
    assert history["linear"].max() < 0.02
    target = ou_target(2, 0)
    history = ornstein_uhlenbeck(target, Gaussian([0.0, 0.0], np.eye(2)), 0.05, 4).history
    assert max(history["translation"].max(), history["linear"].max()) < 1e-3


# 6: the porous medium ---------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
def test_barenblatt_scale_after_ten_steps(d):
    start, scale = Barenblatt(d), 1.0
    result = porous_medium(start, 0.05, 10, random_state=0)
    for _ in range(10):
        scale = barenblatt_step(scale, d, 2.0, 0.05)
    last = result.measures[-1]
    second = float(last.weights @ last.particles.square().sum(1))
    found = math.sqrt(second / float(start.covariance.trace()))
    assert found == pytest.approx(scale, rel=2e-3)
    assert found != pytest.approx(1.5**start.rate_, rel=2e-4)  # the chain, not the flow


# Steps that choose their size -------------------------------------------------------------------


def test_adaptive_steps_grow_and_end_on_time():
    start, target = Gaussian([0.0], [[1.0]]), Gaussian([2.0], [[4.0]])
    mean = target.mean
    functional = PotentialEnergy(lambda z: (z - mean)[:, 0] ** 2 / 8) + Entropy()
    errors = []
    for tol in (4e-3, 1e-3):
        flow = JKOFlow(functional, step_size=0.01, adaptive=tol)
        result = flow.run(start, 60, random_state=0, until=1.0)
        history = result.history
        assert result.status == "converged"
        assert history["time"].iloc[-1] == pytest.approx(1.0, rel=1e-12)
        assert (history["error"] <= tol).all()
        assert history["time"].diff().max() > 0.05  # it began at 0.01
        law = ornstein_uhlenbeck_law(start, target, 1.0)
        errors.append(symmetric_kl(fitted(result.measures[-1]), law))
        x = result.measures[-1].particles[:5]
        torch.testing.assert_close(
            result.measures[-1].log_prob(x), result.measures[-1].log_density[:5], rtol=0, atol=1e-8
        )
    # Steps go like the root of the tolerance, SymKL like their square.
    assert errors[1] < 0.5 * errors[0]


def test_adaptive_settings_are_checked():
    with pytest.raises(InvalidDataError, match="adaptive"):
        JKOFlow(Entropy(), step_size=[0.1, 0.1], adaptive=0.1)
    with pytest.raises(InvalidDataError, match="until"):
        JKOFlow(Entropy(), step_size=0.1).run(Gaussian([0.0], [[1.0]]), 2, until=-1.0)


# Tasks ------------------------------------------------------------------------------------------


def test_equilibria_have_their_temperature():
    result = fokker_planck(
        lambda z: 0.5 * (z**2).sum(1), Gaussian([1.0, 0.0], np.eye(2)), [0.1, 1.0, 100.0, 1e4],
        temperature=0.5, random_state=0,
    )  # fmt: skip
    law = fitted(result.measures[-1])
    np.testing.assert_allclose(law.covariance, 0.5 * np.eye(2), atol=1e-3)
    with pytest.raises(InvalidDataError, match="n_steps"):
        fokker_planck(lambda z: z[:, 0], Gaussian([0.0], [[1.0]]), 0.1)


def test_aggregation_with_entropy_has_the_gaussian_fixed_point():
    """W = |x|^2 / 2 with entropy: variance 1, the mean stays."""
    result = aggregation(
        lambda x: 0.5 * (x**2).sum(1), Gaussian([1.0], [[4.0]]), [1.0, 100.0, 1e4], temperature=1.0,
        scheme=ICNNScheme(n_particles=300, iterations=0), random_state=0,
    )  # fmt: skip
    law = fitted(result.measures[-1])
    assert float(law.mean) == pytest.approx(1.0, abs=1e-3)
    assert float(law.covariance) == pytest.approx(1.0, abs=1e-2)


def test_sampling_estimates_the_normaliser():
    scheme = EnvelopeScheme(components=8, n_particles=2000, iterations=150, batch_size=256)
    found = sample_density(
        lambda z: two_modes(z) + 3.0, Gaussian([0.0, 0.0], 4.0 * np.eye(2)), [20.0, 200.0], 2000,
        scheme=scheme, random_state=0,
    )  # fmt: skip
    assert found.lower_bound < found.log_normaliser
    # The standard error of log Z, from the effective share.
    error = math.sqrt((1.0 / found.effective_share - 1.0) / 2000)
    assert abs(found.log_normaliser - 3.0) < 4.0 * error
    assert found.effective_share > 0.5
    assert float(found.weights.sum()) == pytest.approx(1.0)


def test_a_linear_filter_is_kalmans():
    """V = z^2 / 2, observations of the state: the exact chain between them, Bayes' rule at them."""
    start, equilibrium = Gaussian([0.0], [[2.0]]), Gaussian([0.0], [[1.0]])
    seen = [1.5, -0.5, 0.7]
    found = filter_diffusion(
        lambda z: 0.5 * (z**2).sum(1), start, [0.5, 1.0, 1.5], seen, 2.0, step_size=0.1,
        random_state=0,
    )  # fmt: skip
    law, evidence = start, 0.0
    for y in seen:
        for _ in range(5):
            law = gaussian_step(law, equilibrium, 0.1)
        m, v = float(law.mean), float(law.covariance)
        evidence += -0.5 * math.log(2 * math.pi * (v + 1)) - 0.5 * (y - m) ** 2 / (v + 1)
        law = Gaussian([m + v / (v + 1) * (y - m)], [[v / (v + 1)]])
    for _ in range(5):
        law = gaussian_step(law, equilibrium, 0.1)
    grid = torch.linspace(-3, 3, 41, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(
        found.measures[-1].log_prob(grid), law.log_prob(grid), rtol=0, atol=5e-3
    )
    assert found.log_evidence == pytest.approx(evidence, abs=1e-3)
    with pytest.raises(InvalidDataError, match="increase"):
        filter_diffusion(lambda z: z[:, 0], start, [1.0, 0.5], [0.0, 0.0])


def test_reweighting_renews_particles_where_few_carry_the_weight():
    prior = Gaussian([0.0, 0.0], np.eye(2))
    far = torch.tensor([2.5, 0.0], dtype=torch.float64)
    posterior = Conditioned(prior, lambda x: -50.0 * (x - far).square().sum(1), n_particles=4000)
    assert posterior.effective_share_ < 0.05
    x, w = posterior.points(1)
    exact = Gaussian((far * 100.0 / 101.0).numpy(), np.eye(2) / 101.0)
    np.testing.assert_allclose(w @ x, exact.mean, atol=0.02)
    torch.testing.assert_close(posterior.log_prob(x), exact.log_prob(x), rtol=0, atol=0.1)
    with pytest.raises(UnsupportedError):
        posterior.fit([[0.0]])


def test_a_logistic_posterior_is_laplaces_with_many_rows(rng):
    X = rng.normal(size=(2000, 2))
    theta = np.array([1.0, -0.5])
    y = (rng.random(2000) < 1 / (1 + np.exp(-X @ theta))).astype(int)
    posterior = bayesian_logistic(X, y, intercept=False, random_state=0)
    p = 1 / (1 + np.exp(-X @ posterior.coefficients.mean(0)))
    information = (X * (p * (1 - p))[:, None]).T @ X
    score = X.T @ (y - p)
    # The mean is within a tenth of a standard deviation of the mode (the prior is weak).
    assert np.abs(np.linalg.solve(information, score)).max() < 0.1 * 2000**-0.5 * 3
    np.testing.assert_allclose(
        np.cov(posterior.coefficients.T), np.linalg.inv(information), rtol=0.15, atol=3e-4
    )
    with pytest.raises(InvalidDataError, match="two classes"):
        bayesian_logistic(X, np.zeros(2000))
