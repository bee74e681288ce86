"""Importance-corrected flows: divergence, integrator, rejection steps, evidence, bad input."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from drojko.exceptions import InvalidDataError, NonFiniteError, SolverError, UnsupportedError
from drojko.flows import FlowStep, ImportanceCorrectedScheme, ImportanceMeasure, JKOFlow
from drojko.flows.functionals import Entropy, FDivergence, KLDivergence, PotentialEnergy
from drojko.flows.importance.rejection import RejectionBlock, effective_sample_size, tail_index
from drojko.flows.importance.scheme import target_of
from drojko.flows.importance.velocity import VelocityFlow
from drojko.measures import Empirical, Gaussian, GaussianMixture
from drojko.transport import AffineMap, IdentityMap


def random_field(dim, width, generator, size=0.3):
    scale = 0.5 + torch.rand(dim, generator=generator, dtype=torch.float64)
    v = VelocityFlow.identity(torch.zeros(dim).double(), scale, width, 32, generator)
    v.flat.copy_(size * torch.randn(v.flat.shape, generator=generator, dtype=torch.float64))
    return v


def linear_flow(matrix, shift, steps):
    """The flow of v = A z + c."""
    dim = len(matrix)
    zero = torch.zeros(dim, dtype=torch.float64)
    v = VelocityFlow.identity(zero, zero + 1, 4, steps, torch.Generator().manual_seed(0))
    v.parts()["A"].copy_(matrix)
    v.parts()["c"].copy_(shift)
    return v


def field(v, x, t):
    value, divergence = v.prepare()((x - v.centre) / v.scale, t)
    return value * v.scale, divergence


# -- the field ---------------------------------------------------------------------------------


def test_a_flow_starts_as_the_identity():
    v = VelocityFlow.identity(torch.zeros(2), torch.ones(2), 8, 4, torch.Generator().manual_seed(0))
    value, divergence = field(v, torch.ones(3, 2), 0.5)
    assert not value.any()
    assert not divergence.any()


@given(dim=st.integers(1, 6), seed=st.integers(0, 1000), time=st.floats(0, 1))
def test_divergence_is_the_trace_of_the_jacobian(dim, seed, time):
    gen = torch.Generator().manual_seed(seed)
    v = random_field(dim, 7, gen)
    x = torch.randn(3, dim, generator=gen, dtype=torch.float64)
    divergence = field(v, x, time)[1]
    for row, found in zip(x, divergence):
        jacobian = torch.autograd.functional.jacobian(lambda z: field(v, z[None], time)[0][0], row)
        assert float(found - jacobian.trace()) == pytest.approx(0.0, abs=1e-12)


def test_divergence_in_fifty_columns(generator):
    v = random_field(50, 16, generator, 0.1)
    x = torch.randn(1, 50, generator=generator, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: field(v, z[None], 0.3)[0][0], x[0])
    assert float(field(v, x, 0.3)[1][0]) == pytest.approx(float(jacobian.trace()), abs=1e-11)


def test_written_derivatives_are_the_derivatives(generator):
    v = random_field(3, 5, generator)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_(True)
    flat = v.flat.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda f, z: replace(v, flat=f).prepare()(z, 0.4), (flat, x))


def test_integrator_against_the_matrix_exponential_and_its_order():
    matrix = torch.tensor([[-1.0, 0.7], [-0.4, 0.5]], dtype=torch.float64)
    shift = torch.tensor([0.3, -0.2], dtype=torch.float64)
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    flow = torch.matrix_exp(matrix)
    exact = x @ flow.T + torch.linalg.solve(matrix, (flow - torch.eye(2)) @ shift)
    errors = []
    for steps in (4, 8):
        image, log_det = linear_flow(matrix, shift, steps).push(x)
        errors.append(float((image - exact).abs().max()))
        assert torch.allclose(log_det, matrix.trace().expand(2), atol=1e-14)
    assert errors[1] < 2e-5
    assert errors[0] / errors[1] == pytest.approx(16.0, rel=0.2)  # order 4


def test_inverse_and_log_det_of_a_nonlinear_flow(generator):
    flow = random_field(2, 8, generator)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    image, log_det = flow.push(x)
    assert float((flow.push(image, backward=True)[0] - x).abs().max()) < 1e-6
    for row, found in zip(x, log_det):
        jacobian = torch.autograd.functional.jacobian(lambda z: flow_of(flow, z), row)
        assert float(found) == pytest.approx(float(jacobian.det().log()), abs=1e-5)


def test_the_integrators_error_is_that_of_the_computed_map():
    """Of v = -5 z the integral of the divergence is exact however few steps: the map is not."""
    matrix = -5.0 * torch.eye(2, dtype=torch.float64)
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (2, 4, 16):
        z = -5.0 / steps
        factor = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
        expected = abs(-10.0 - 2 * steps * math.log(factor))
        found = linear_flow(matrix, torch.zeros(2, dtype=torch.float64), steps).log_det_error(x)
        assert found == pytest.approx(expected, rel=1e-6)


def test_stiff_fields_get_as_many_steps_as_their_density_needs():
    narrow = Gaussian([0.0, 0.0], [[1e-4, 0.0], [0.0, 1e-4]])
    scheme = ImportanceCorrectedScheme(
        width=16, iterations=150, n_particles=4000, n_calibration=16_384, integration_steps=2
    )
    flow = JKOFlow(KLDivergence(narrow.log_prob), scheme, step_size=[10.0])
    start = Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    result = flow.run(start, 1, random_state=0)
    assert float(result.history["integration_error"].iloc[-1]) <= scheme.tol
    found = result.measures[-1].evidence(4000, random_state=1)
    assert abs(found.log_z) <= 5 * found.log_z_error + 1e-3


def flow_of(v, x):
    z = ((x - v.centre) / v.scale)[None]
    return v.integrate(z)[0][0] * v.scale + v.centre


def test_path_energy_of_a_constant_field():
    v = linear_flow(torch.zeros(2, 2), torch.tensor([3.0, 4.0]), 2)
    length = v.integrate(torch.zeros(1, 2, dtype=torch.float64))[2]
    assert float(length) == pytest.approx(25.0)


# -- rejection steps ---------------------------------------------------------------------------

TWO_ATOMS = [0.6, 0.72, 0.784, 0.7968, 0.79936]
DIVERGENCES = [0.1046, 0.01835, 7.85e-4, 3.19e-5, 1.28e-6]


def test_two_atoms():
    """Exact acceptances: (.5, .5) towards (.8, .2) with r = .2; c = 2/3, 1, 5/4, 5/4."""
    p, g = torch.full((2,), 0.5, dtype=torch.float64), torch.tensor([0.8, 0.2], dtype=torch.float64)
    u = (g / p).log()
    for k, mass in enumerate(TWO_ATOMS, 1):
        q = p * RejectionBlock.design(u, k, 0.2, most_draws=1e9).log_ratio(u).exp()
        assert float(q[0]) == pytest.approx(mass, abs=1e-6)
    block = RejectionBlock.design(u, 5, 0.2, most_draws=1e9)
    bounds = [math.exp(step.log_bound) for step in block.steps]
    assert bounds == pytest.approx([2 / 3, 1.0, 1.25, 1.25, 1.25], abs=1e-6)
    for k, kl in enumerate(DIVERGENCES, 1):
        q = p * RejectionBlock.design(u, k, 0.2, most_draws=1e9).log_ratio(u).exp()
        assert float((q * (q / g).log()).sum()) == pytest.approx(kl, rel=5e-3)  # four digits


def one_dimensional_block(steps=6):
    """A block from N(0, 1) towards a mixture, calibrated on a fine quadrature of quantiles."""
    base = Gaussian([0.0], [[1.0]])
    target = GaussianMixture(means=[[-1.5], [1.0]], covariances=[[[0.09]], [[0.16]]])
    q = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    x = torch.special.ndtri(q)[:, None]
    u = target.log_prob(x) - base.log_prob(x)
    block = RejectionBlock.design(u, steps, 0.2, most_draws=1e9)
    return base, target, block


def test_the_updated_density_is_exact_in_one_dimension(generator):
    base, target, block = one_dimensional_block()
    measure = ImportanceMeasure(base, target.log_prob, (block,))
    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64)[:, None]
    density = measure.log_prob(grid).exp()
    width = float(grid[1] - grid[0])
    assert float(density.sum() * width) == pytest.approx(1.0, abs=1e-4)
    # Draws have that law: Kolmogorov's distance, 1.95 / sqrt(n) at the level 0.001.
    n = 20_000
    x, log_density = measure.sample_with_log_prob(n, generator)
    assert torch.allclose(log_density, measure.log_prob(x), atol=1e-10)
    cumulated = torch.cumsum(density, 0) * width
    order = x[:, 0].sort().values
    at = torch.from_numpy(np.interp(order.numpy(), grid[:, 0].numpy(), cumulated.numpy()))
    ranks = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert float((at - ranks).abs().max()) < 1.95 / math.sqrt(n)


def test_a_block_is_its_steps_one_after_the_other():
    """Step by step on the line: keep with probability alpha, else draw again from the same law."""
    base, target, block = one_dimensional_block(3)
    grid = torch.linspace(-6, 6, 20_001, dtype=torch.float64)[:, None]
    width = float(grid[1] - grid[0])
    p, g = base.log_prob(grid).exp(), target.log_prob(grid).exp()
    before = math.inf
    for step in block.steps:
        alpha = (g / (math.exp(step.log_bound) * p)).clamp_max(1.0)
        accepted = float((alpha * p).sum()) * width
        assert accepted == pytest.approx(0.8, abs=1e-3)
        p = p * alpha + (1 - accepted) * p
        divergence = float((p * (p / g).log()).sum()) * width
        assert divergence < before
        before = divergence
    measure = ImportanceMeasure(base, target.log_prob, (block,))
    assert torch.allclose(measure.log_prob(grid).exp(), p, atol=2e-3)


def test_bounds_rise_to_the_mixture_and_the_cost_is_capped():
    _, _, block = one_dimensional_block(30)
    bounds = [step.log_bound for step in block.steps]
    assert all(b > a - 1e-9 for a, b in itertools.pairwise(bounds))
    assert bounds[-1] == pytest.approx(-math.log(0.8), abs=0.005)
    u = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    capped = RejectionBlock.design(u, None, 0.2, most_draws=3.0)
    assert math.exp(capped.log_cost) <= 3.0 + 1e-9
    assert len(capped.steps) >= 6  # 1.2^6 < 3


def test_ratios_are_monotone_and_bounded_by_the_recursion():
    _, _, block = one_dimensional_block(8)
    ratio = block.log_ratio(torch.linspace(-40, 10, 500, dtype=torch.float64))
    assert bool((ratio.diff() >= -1e-12).all())
    assert block.log_cost <= 8 * math.log(1.2) + 1e-6


# -- evidence ----------------------------------------------------------------------------------


def test_effective_sample_size_of_gaussians():
    """E w = 1, E w^2 = exp(m^2) for w = N(m, 1) / N(0, 1)."""
    q = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    x = torch.special.ndtri(q)
    m = 0.7
    assert effective_sample_size(m * x - m * m / 2) == pytest.approx(math.exp(-m * m), rel=2e-3)


def test_evidence_of_a_gaussian_with_known_constant():
    """g = exp(3) N(m, 1) from N(0, 1): log Z = 3, ELBO = 3 - m^2 / 2, ESS = exp(-m^2)."""
    base, m = Gaussian([0.0], [[1.0]]), 0.5
    target = Gaussian([m], [[1.0]])
    measure = ImportanceMeasure(base, lambda x: 3.0 + target.log_prob(x))
    found = measure.evidence(40_000, 0)
    assert abs(found.log_z - 3.0) < 4 * found.log_z_error
    assert abs(found.elbo - (3.0 - m * m / 2)) < 4 * found.elbo_error
    assert found.elbo <= found.log_z
    assert found.effective_sample_size == pytest.approx(math.exp(-m * m), rel=0.05)
    # The error that it claims is the spread of the estimate: sqrt((exp(m^2) - 1) / n).
    assert found.log_z_error == pytest.approx(math.sqrt(math.expm1(m * m) / 40_000), rel=0.1)
    mean, error = found.mean(found.x[:, 0])
    assert abs(mean - m) < 4 * error


# -- the scheme --------------------------------------------------------------------------------

SMALL = ImportanceCorrectedScheme(
    width=16,
    iterations=120,
    batch_size=128,
    integration_steps=3,
    n_particles=4000,
    n_calibration=16_000,
    tol=5e-3,
)


def test_one_step_between_gaussians_is_the_exact_one():
    """h = tau / 2: from N(0, 1) to N(2, 4) with h = .5 the step is N(.2222, 1.5517)."""
    target = PotentialEnergy(lambda z: (z[:, 0] - 2.0) ** 2 / 8) + Entropy()
    scheme = ImportanceCorrectedScheme(
        width=8, iterations=150, batch_size=512, n_particles=20_000, rejections=0
    )
    last = JKOFlow(target, scheme, step_size=0.5).run(Gaussian([0.0], [[1.0]]), 1, 0).measures[-1]
    x = last.sample(20_000, torch.Generator().manual_seed(1))
    assert float(x.mean()) == pytest.approx(0.222222, abs=0.03)
    assert float(x.var()) == pytest.approx(1.551714, rel=0.03)


@pytest.fixture(scope="module")
def modes():
    target = GaussianMixture(
        means=[[-2.0, 0.0], [1.5, 0.5]], covariances=[np.eye(2) * 0.05] * 2, weights=[0.5, 0.5]
    )
    start = Gaussian([0.0, 0.0], np.eye(2))
    flow = JKOFlow(KLDivergence(target.log_prob), SMALL, step_size=[0.05, 0.4])
    return target, flow.run(start, 2, random_state=0)


def test_modes_get_their_weights(modes):
    _, result = modes
    last = result.measures[-1]
    found = last.evidence(8000, 1)
    assert found.effective_sample_size > 0.98
    assert found.elbo <= found.log_z
    assert abs(found.log_z) < 3 * found.log_z_error + 1e-3
    assert found.elbo < 2 * found.elbo_error
    left = float((found.x[:, 0] < -0.25).double().mean())
    assert left == pytest.approx(0.5, abs=0.025)
    assert result.status == "converged"
    history = result.history
    assert history["energy"].iloc[1] < history["energy"].iloc[0]
    assert history["draws_per_sample"].iloc[-1] <= 30.0
    assert len(result.measures) == 3


def test_two_ways_to_the_density_agree_and_it_integrates_to_one(modes):
    _, result = modes
    last = result.measures[-1]
    x, along = last.sample_with_log_prob(500, torch.Generator().manual_seed(2))
    assert float((last.log_prob(x) - along).abs().mean()) < 1e-2  # twice the scheme's tol
    side = torch.linspace(-5.0, 4.5, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    mass = float(last.log_prob(grid).exp().sum()) * float(side[1] - side[0]) ** 2
    assert mass == pytest.approx(1.0, abs=0.005 + 2 * last.log_mass_error)


def test_the_same_seed_gives_the_same_flow(modes):
    last = modes[1].measures[-1]
    a, b = (last.sample(50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)


def test_targets_of_functionals():
    log_prob, kappa = target_of(2.0 * PotentialEnergy(lambda z: z[:, 0] ** 2) + 0.5 * Entropy())
    assert kappa == 0.5
    assert float(log_prob(torch.tensor([[3.0]]))[0]) == pytest.approx(-36.0)
    with pytest.raises(UnsupportedError, match="ICNNScheme"):
        target_of(FDivergence(lambda z: z[:, 0]))
    with pytest.raises(UnsupportedError):
        target_of(PotentialEnergy(lambda z: z[:, 0]))


# -- bad input ---------------------------------------------------------------------------------


def flow_to(log_prob, scheme=SMALL, start=None, steps=1):
    start = Gaussian([0.0], [[1.0]]) if start is None else start
    return JKOFlow(KLDivergence(log_prob), scheme, step_size=0.1).run(start, steps, 0)


def test_a_target_that_overflows_says_so():
    with pytest.raises(NonFiniteError, match="logsumexp"):
        flow_to(lambda z: torch.exp(200.0 * z[:, 0] ** 2).log())
    with pytest.raises(NonFiniteError, match="overflows"):
        flow_to(lambda z: z[:, 0] * math.nan)


def test_a_reference_without_density_says_so():
    atoms = Empirical().fit(np.arange(5.0)[:, None])
    with pytest.raises(UnsupportedError, match="density to start from"):
        flow_to(lambda z: -(z[:, 0] ** 2), start=atoms)


def test_rejection_without_overlap_says_so():
    u = torch.full((1000,), -50.0, dtype=torch.float64)
    u[0] = 50.0
    with pytest.raises(SolverError, match=r"only 1\.0 carry the target"):
        RejectionBlock.design(u, 3, 0.2)


def test_few_effective_draws_warn():
    base, far = Gaussian([0.0], [[1.0]]), Gaussian([3.0], [[1.0]])
    with pytest.warns(ConvergenceWarning, match="effective sample size"):
        ImportanceMeasure(base, far.log_prob).evidence(2000, 0)
    weak = ImportanceCorrectedScheme(
        width=4, iterations=1, n_particles=1000, n_calibration=20_000, most_draws=1.5
    )
    with pytest.warns(ConvergenceWarning, match="most_draws"):
        flow_to(Gaussian([2.0], [[1.0]]).log_prob, weak)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"resampled": 1.0},
        {"most_draws": 1.0},
        {"rejections": [0]},
        {"rate": 0.0},
        {"n_particles": 2.5},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(InvalidDataError, match=next(iter(wrong))):
        flow_to(lambda z: -(z[:, 0] ** 2), ImportanceCorrectedScheme(**wrong), steps=2)


def test_rejections_carry_mass_between_modes_that_maps_cannot(seed):
    """A mixture whose maps put the wrong share into each mode; the chain is exact by design."""
    lopsided = GaussianMixture(
        means=[[-4.0, 0.0], [4.0, 0.0]], covariances=[np.eye(2).tolist()] * 2, weights=[0.8, 0.2]
    )
    bend = AffineMap(
        torch.tensor([[1.05, 0.05], [0.05, 1.0]], dtype=torch.float64),
        torch.zeros(2, dtype=torch.float64),
    )
    flow = FlowStep(lopsided, bend)
    even = GaussianMixture(
        means=[[-4.0, 0.0], [4.0, 0.0]], covariances=[(0.7 * np.eye(2)).tolist()] * 2
    )
    measure = flow.corrected(even.log_prob, random_state=seed)
    gen = torch.Generator().manual_seed(seed + 1)
    x, log_rho = measure.sample_with_log_prob(20_000, gen)
    assert float((x[:, 0] > 0).double().mean()) == pytest.approx(0.5, abs=0.015)
    torch.testing.assert_close(measure.log_prob(x[:200]), log_rho[:200], rtol=0, atol=1e-6)
    y = even.sample(20_000, gen)
    forward = float((log_rho - even.log_prob(x)).mean())
    backward = float((even.log_prob(y) - measure.log_prob(y)).mean())
    assert abs(forward) < 0.01
    assert abs(backward) < 0.01
    found = measure.evidence(20_000, seed + 2)
    assert found.effective_sample_size > 0.99
    assert abs(found.log_z) < 4 * found.log_z_error
    assert 1.0 < measure.draws_per_sample < 30.0
    with pytest.warns(ConvergenceWarning, match=r"corrected: .*most_draws \(now 1.5\)"):
        capped = flow.corrected(even.log_prob, most_draws=1.5, random_state=seed)
    assert capped.draws_per_sample <= 1.5 + 1e-9


def test_rejections_need_draws_that_carry_the_target():
    far = FlowStep(Gaussian([0.0], [[1.0]]), IdentityMap())
    with pytest.raises(SolverError, match="carry the target"):
        far.corrected(lambda z: -0.5 * (z[:, 0] - 40.0).square(), random_state=0)


def cauchy(z):
    return -torch.log1p(z[:, 0] ** 2)


def test_tails_heavier_than_the_flows_are_told():
    flow = JKOFlow(KLDivergence(cauchy), SMALL, step_size=[0.1, 0.4])
    result = flow.run(Gaussian([0.0], [[1.0]]), 2, random_state=1)
    with pytest.warns(ConvergenceWarning, match="tail index"):
        found = result.measures[-1].evidence(10_000, random_state=2)
    assert found.tail_index > 0.5
    assert found.log_z < math.log(math.pi) - 3 * found.log_z_error  # what the warning is about


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_tail_index_of_pareto_weights(k):
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert tail_index(-k * u.log()) == pytest.approx(k, abs=0.05)
    assert math.isnan(tail_index(torch.zeros(1000)))


@pytest.mark.parametrize(
    ("log_prob", "got"),
    [
        (lambda z: -0.5 * z**2, r"shape \(\d+, 1\)"),
        (lambda z: -0.5 * (z**2).sum(), r"shape \(\)"),
        (lambda z: -0.5 * z.numpy()[:, 0] ** 2, "an array"),
    ],
)
def test_log_densities_of_another_shape_say_so(log_prob, got):
    with pytest.raises(InvalidDataError, match=got):
        flow_to(log_prob)
    with pytest.raises(InvalidDataError, match=r"\(n, d\)"):
        KLDivergence(3.0)


def test_an_interrupted_flow_gives_its_steps():
    def interrupt(state):
        if state.step == 1:
            raise KeyboardInterrupt

    flow = JKOFlow(KLDivergence(cauchy), SMALL, step_size=[0.1, 0.4])
    with pytest.raises(KeyboardInterrupt) as caught:
        flow.run(Gaussian([0.0], [[1.0]]), 2, random_state=0, callback=interrupt)
    assert caught.value.result.n_steps == 1
    assert caught.value.result.measures[-1].sample(3).shape == (3, 1)


@pytest.mark.parametrize(
    "wrong",
    [{"initial": np.zeros((3, 1))}, {"n_steps": 2.5}, {"scheme": "importance"},
     {"scheme": ImportanceCorrectedScheme}, {"step_size": None}, {"step_size": "a"}],
    ids=repr,
)  # fmt: skip
def test_arguments_of_a_flow_that_mean_nothing(wrong):
    given = {"initial": Gaussian([0.0], [[1.0]]), "n_steps": 1, "scheme": SMALL, "step_size": 0.1}
    given |= wrong
    with pytest.raises(InvalidDataError):
        JKOFlow(KLDivergence(cauchy), given["scheme"], step_size=given["step_size"]).run(
            given["initial"], given["n_steps"]
        )


def test_corrections_that_end_far_below_their_aim_are_told():
    """Five unequal modes, and no draws to spend on rejections."""
    shares = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
    means = np.c_[np.linspace(-6, 6, 5), np.zeros((5, 2))]
    five = GaussianMixture(means=means, covariances=[0.2 * np.eye(3)] * 5, weights=shares)
    scheme = ImportanceCorrectedScheme(
        width=8, iterations=10, n_particles=2000, n_calibration=8000, most_draws=1.3
    )
    flow = JKOFlow(KLDivergence(five.log_prob), scheme, step_size=0.1)
    start = Gaussian(np.zeros(3), np.diag([16.0, 1.0, 1.0]))
    with pytest.warns(ConvergenceWarning, match=r"0\.999 was aimed at"):
        result = flow.run(start, 1, random_state=0)
    assert result.status == "stalled"
    assert "raise most_draws" in result.message
    with pytest.warns(ConvergenceWarning, match="effective sample size|tail index"):
        result.measures[-1].evidence(2000, random_state=0)
