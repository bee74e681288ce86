import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from drojko.ambiguity import KL, ChiSquare, CressieRead, CVaR, TotalVariation
from drojko.exceptions import UnsupportedError
from drojko.flows import ICNNScheme
from drojko.inner.reweighting.density_flow import DensityFlow
from drojko.inner.reweighting.worst_case import ReweightedWorstCase
from drojko.measures import ClassConditional, Empirical, Gaussian, GaussianMixture

AFFINE = DensityFlow(ICNNScheme(n_particles=20_000, iterations=0))


def problem(d, rng, quadratic=True):
    """A Gaussian reference and the loss x'Ax/2 + b'x with |A| <= 1."""
    root = rng.normal(size=(d, d)) / math.sqrt(d)
    covariance, mean = root @ root.T + 0.5 * np.eye(d), 0.5 * rng.normal(size=d)
    a = rng.normal(size=(d, d))
    a = (a + a.T) / np.linalg.norm(a + a.T, 2) if quadratic else np.zeros((d, d))
    return mean, covariance, a, rng.normal(size=d) / math.sqrt(d)


def loss_of(a, b):
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    return lambda x: 0.5 * ((x @ a) * x).sum(1) + x @ b


@pytest.mark.parametrize("quadratic", [True, False])
@pytest.mark.parametrize("d", [2, 10, 30])
def test_kl_around_a_gaussian(d, quadratic, rng, seed):
    """Value, mean and covariance of the exact tilted Gaussian: no sampling error at all."""
    mean, covariance, a, b = problem(d, rng, quadratic)
    penalty = 2.0 * np.linalg.eigvalsh(covariance)[-1]
    precision = np.linalg.inv(covariance)
    tilted = np.linalg.inv(precision - a / penalty)
    slope = precision @ mean + b / penalty
    _, log_det = np.linalg.slogdet(np.eye(d) - covariance @ a / penalty)
    value = penalty * (
        -0.5 * log_det + 0.5 * slope @ tilted @ slope - 0.5 * mean @ precision @ mean
    )
    flow = DensityFlow(ICNNScheme(n_particles=2000)).fit(
        KL(penalty=penalty), penalty, value, loss_of(a, b), Gaussian(mean, covariance), seed
    )
    assert flow.value == pytest.approx(value, rel=1e-6)
    assert flow.risk - penalty * flow.divergence == pytest.approx(flow.value)
    found = flow.moments()
    np.testing.assert_allclose(found[0], tilted @ slope, atol=2e-3 * np.linalg.norm(slope))
    np.testing.assert_allclose(found[1], tilted, atol=2e-3 * np.linalg.norm(tilted))
    assert flow.effective_sample_size > 1 - 1e-6
    assert flow.normaliser == pytest.approx(1.0, abs=1e-5)  # at the shift that is the value


def chi_square_of_a_line(mu, s, penalty):
    """Value and c of the penalised dual, loss ~ N(mu, s^2); ratio (loss - c)_+ / (2 penalty)."""

    def dual(c):
        u = (mu - c) / s
        second = s**2 * ((u * u + 1) * norm.cdf(u) + u * norm.pdf(u))
        return c + penalty + second / (4 * penalty)

    bounds = (mu - 10 * s - 2 * penalty, mu + s)
    found = minimize_scalar(dual, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return found.fun, found.x


@pytest.mark.parametrize("d", [2, 10])
def test_chi_square_around_a_gaussian(d, rng, seed):
    mean, covariance, a, b = problem(d, rng, quadratic=False)
    mu, s = float(b @ mean), math.sqrt(b @ covariance @ b)
    penalty = 1.5 * s
    value, c = chi_square_of_a_line(mu, s, penalty)
    flow = AFFINE.fit(
        ChiSquare(penalty=penalty), penalty, c + 2 * penalty, loss_of(a, b),
        Gaussian(mean, covariance), seed,
    )  # fmt: skip
    grid = np.linspace(-10, 10, 40_001)
    mass = norm.pdf(grid) * np.maximum(mu + s * grid - c, 0)
    mass /= mass.sum()
    shift = float(mass @ grid)
    direction = covariance @ b / s
    exact = mean + shift * direction
    narrow = float(mass @ grid**2) - shift**2 - 1.0
    assert flow.value <= value + 0.02 * (value - mu)  # a lower bound, up to 10000 draws
    assert flow.value == pytest.approx(value, abs=0.05 * (value - mu))
    # Importance sampling takes the rest of the way.
    assert flow.corrected_value == pytest.approx(value, abs=0.02 * (value - mu))
    assert flow.effective_sample_size > 0.98
    found = flow.moments(corrected=True)
    miss = found[0].numpy() - exact
    spread = math.sqrt(np.trace(covariance) / 10_000)
    assert np.linalg.norm(miss) < 4 * spread
    exact_covariance = covariance + narrow * np.outer(direction, direction)
    error = np.linalg.norm(found[1].numpy() - exact_covariance)
    assert error < 4 * np.linalg.norm(covariance) * math.sqrt(2 * d / 10_000)


def test_cressie_read_of_order_two_is_chi_square(rng, seed):
    mean, covariance, a, b = problem(2, rng, quadratic=False)
    reference = Gaussian(mean, covariance)
    loss = loss_of(a, b)
    one = AFFINE.fit(ChiSquare(penalty=1.0), 1.0, 0.0, loss, reference, seed)
    two = AFFINE.fit(CressieRead(2.0, penalty=2.0), 2.0, 0.0, loss, reference, seed)
    assert two.value == pytest.approx(one.value, rel=1e-9)
    np.testing.assert_allclose(two.moments()[0], one.moments()[0], atol=1e-7)


@pytest.mark.slow
def test_a_mixture_takes_a_network(seed):
    """KL tilts a mixture to another one: weights and means of the components change."""
    reference = GaussianMixture(means=[[-1.5], [1.5]], covariances=[[[0.5]], [[0.5]]])
    penalty = 2.0
    flow = DensityFlow(ICNNScheme(hidden=(32, 32), n_particles=3000, iterations=600)).fit(
        KL(penalty=penalty), penalty, 0.0, lambda x: x[:, 0], reference, seed
    )
    tilt = 1.0 / penalty
    weights = np.exp(np.array([-1.5, 1.5]) * tilt)
    weights /= weights.sum()
    mean = weights @ (np.array([-1.5, 1.5]) + 0.5 * tilt)
    value = penalty * (math.log(math.cosh(1.5 * tilt)) + 0.25 * tilt**2)
    # 18 % of the mass crosses the gap between the modes: a smooth map leaves some of it there.
    assert flow.value == pytest.approx(value, rel=0.15)
    assert flow.effective_sample_size > 0.8
    assert flow.corrected_value == pytest.approx(value, rel=0.05)
    # 1500 draws of standard deviation 1.6.
    assert float(flow.moments(corrected=True)[0]) == pytest.approx(mean, abs=0.15)
    x = torch.linspace(-3, 3, 50, dtype=torch.float64).unsqueeze(1)
    image = flow.map.map(x)
    assert bool((image.diff(dim=0) > 0).all())
    torch.testing.assert_close(flow.map.inverse(image), x, rtol=0, atol=1e-7)


def test_modified_steps_approach_the_same_map(rng, seed):
    """Anchored at the last map, from the reference throughout."""
    mean, covariance, a, b = problem(2, rng)
    penalty = 3.0 * np.linalg.eigvalsh(covariance)[-1]
    reference, loss = Gaussian(mean, covariance), loss_of(a, b)
    scheme = ICNNScheme(n_particles=1000, iterations=0)
    direct = DensityFlow(scheme).fit(KL(penalty=penalty), penalty, 0.0, loss, reference, seed)
    values = []
    for steps in (1, 3, 12):
        part = DensityFlow(scheme, steps=steps, tau=1.0)
        values.append(part.fit(KL(penalty=penalty), penalty, 0.0, loss, reference, seed).value)
    assert values[0] < values[1] < values[2] <= direct.value + 1e-9
    start = 0.5 * np.trace(a @ covariance) + 0.5 * mean @ a @ mean + b @ mean
    assert direct.value - values[2] < 0.01 * (direct.value - start)


def test_tilting_and_flow_agree_and_report_their_sample_sizes(seed):
    reference = ClassConditional(
        measures=[Gaussian([0.0, 0.0], np.eye(2)), Gaussian([1.0, 0.0], np.eye(2))],
        weights=[0.4, 0.6],
    )
    penalty = 2.0
    loss = lambda x, y: x[:, 0] + 0.5 * y  # noqa: E731
    x, y, w = reference.points(100_000, torch.Generator().manual_seed(seed))
    dual = KL(penalty=penalty).dual(loss(x, y), w)
    worst = ReweightedWorstCase(
        KL(penalty=penalty), penalty, dual.shift, loss, reference, np.array(["a", "b"])
    )
    frame = worst.displacement().set_index(["class", "feature"])["mean"]
    for k, label in enumerate("ab"):
        flow = worst.flow(k)
        assert flow.effective_sample_size > 1 - 1e-6 > worst.effective_sample_size
        assert float(flow.moments()[0][0]) == pytest.approx(k + 0.5, abs=1e-4)
        assert frame[label, "x0"] == pytest.approx(0.5, abs=0.06)
        # The ratio's mean within a class is the change of its mass, by either route.
        share = worst.label_shares()[k] / (0.4, 0.6)[k]
        assert flow.normaliser == pytest.approx(share, rel=0.03)
    moved = worst.transport([[0.0, 1.0], [0.0, 1.0]], ["a", "b"])
    np.testing.assert_allclose(moved, [[0.5, 1.0]] * 2, atol=1e-3)
    assert worst.flow(0) is worst.flow(0)


def test_mistakes_are_told():
    gaussian, loss = Gaussian([0.0], [[1.0]]), lambda x: x[:, 0]
    for ambiguity in (CVaR(0.1), TotalVariation(radius=0.1)):
        with pytest.raises(UnsupportedError, match="jumps"):
            DensityFlow().fit(ambiguity, 1.0, 0.0, loss, gaussian, 0)
    for penalty in (0.0, math.inf):
        with pytest.raises(UnsupportedError, match="penalty"):
            DensityFlow().fit(KL(radius=0.1), penalty, 0.0, loss, gaussian, 0)
    with pytest.raises(UnsupportedError, match="density"):
        DensityFlow().fit(KL(radius=0.1), 1.0, 0.0, loss, Empirical([[0.0], [1.0]]), 0)
    with pytest.raises(UnsupportedError, match="gradient"):
        DensityFlow().fit(KL(radius=0.1), 1.0, 0.0, lambda x: x[:, 0].detach(), gaussian, 0)
    wide = ClassConditional(measures=[Gaussian(np.zeros(51), np.eye(51))])
    worst = ReweightedWorstCase(
        KL(penalty=1.0), 1.0, 0.5, lambda x, y: x[:, 0], wide, np.array([0])
    )
    with pytest.raises(UnsupportedError, match="51 columns"):
        worst.transport(np.zeros((1, 51)), [0])
