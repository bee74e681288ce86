import math

import pytest
import torch

from drojko.exceptions import InvalidDataError
from drojko.flows.functionals import (
    Entropy,
    FDivergence,
    InteractionEnergy,
    InternalEnergy,
    KLDivergence,
    MMDTo,
    PotentialEnergy,
    WassersteinTo,
)
from drojko.measures import Empirical, Gaussian


def quartic(z):
    return (z**4).sum(1) + z[:, 0]


def log_normal(z):
    return -0.5 * (z**2).sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)


TARGET = Gaussian([0.5, 0.0], [[1.0, 0.2], [0.2, 0.7]])
CASES = {
    "potential": PotentialEnergy(quartic),
    "potential with gradient": PotentialEnergy(lambda z: (z**2).sum(1), gradient=lambda z: 2.0 * z),
    "entropy": Entropy(),
    "kl": KLDivergence(log_normal),
    "chi-square": FDivergence(log_normal),
    "cressie-read": FDivergence(log_normal, "cressie-read", 1.5),
    "f-kl": FDivergence(log_normal, "kl"),
    "internal": InternalEnergy(2.5),
    "interaction": InteractionEnergy(lambda x: (1.0 + (x**2).sum(1)).log()),
    "mmd": MMDTo(TARGET, 0.8, n_samples=40),
    "sum": PotentialEnergy(quartic) + 0.3 * (Entropy() + 2.0 * InternalEnergy(2.0)),
}


def particles(n, gen, d=2):
    z = torch.randn(n, d, generator=gen, dtype=torch.float64)
    weights = torch.rand(n, generator=gen, dtype=torch.float64) + 0.5
    return z, log_normal(z) + 0.3 * z[:, 0], weights / weights.sum()


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name, generator):
    functional = CASES[name]
    z, log_density, w = particles(12, generator)
    at = functional.evaluate(z, log_density, w)
    step = 1e-5
    for _ in range(3):
        dz = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        dl = torch.randn(len(z), generator=generator, dtype=z.dtype)
        ends = [
            functional.evaluate(z + s * dz, log_density + s * dl, w).value for s in (step, -step)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        predicted = float((at.point * dz).sum() + (at.log_density * dl).sum())
        # Central differences: truncation 1e-10 of third derivatives, rounding 1e-11.
        assert predicted == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("interaction", "mmd")])
def test_first_variation_is_the_derivative_in_the_masses(name, generator):
    """dF/drho by moving mass on a grid: F(rho + e s) with s of mass zero."""
    functional = CASES[name]
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(1)
    width = 16 / 4000
    rho = log_normal(grid).exp() * (1 + 0.3 * torch.sin(grid[:, 0]))
    change = log_normal(grid).exp() * torch.tanh(grid[:, 0] - 0.2)
    change = change - log_normal(grid).exp() * (change.sum() / log_normal(grid).exp().sum())

    def value(e):
        density = rho + e * change
        return functional.evaluate(grid, density.log(), density * width).value

    step = 1e-4
    slope = (value(step) - value(-step)) / (2 * step)
    variation = functional.first_variation(grid, rho.log())
    assert float((variation * change).sum() * width) == pytest.approx(slope, rel=1e-5)


def test_divergences_of_gaussians_have_closed_forms(generator):
    """N(m, 1) from N(0, 1): KL m^2/2, chi-square e^(m^2) - 1."""
    shift = 0.5
    x, w = Gaussian([0.0], [[1.0]]).points(200_000, generator)
    z, log_density = x + shift, log_normal(x)
    assert KLDivergence(log_normal).value(z, log_density, w) == pytest.approx(
        shift**2 / 2, rel=1e-9
    )
    chi = FDivergence(log_normal).value(z, log_density, w)
    assert chi == pytest.approx(math.expm1(shift**2), rel=0.02)  # 200000 draws
    half = FDivergence(log_normal, "cressie-read", 2.0).value(z, log_density, w)
    assert half == pytest.approx(chi / 2, rel=1e-12)
    near = FDivergence(log_normal, "cressie-read", 1.0 + 1e-6).value(z, log_density, w)
    assert near == pytest.approx(shift**2 / 2, rel=0.02)


def test_internal_energy_of_a_gaussian(generator):
    x, w = Gaussian([0.0], [[1.0]]).points(100_000, generator)
    exact = 1 / (2 * math.sqrt(math.pi))
    assert InternalEnergy(2.0).value(x, log_normal(x), w) == pytest.approx(exact, rel=0.01)


def test_interaction_of_a_square_is_the_variance(generator):
    z, log_density, _ = particles(500, generator)
    value = InteractionEnergy(lambda x: 0.5 * (x**2).sum(1)).value(z, log_density)
    assert value == pytest.approx(0.5 * float(z.var(0).sum()), rel=1e-9)


@pytest.mark.parametrize("d", [1, 2])
def test_wasserstein_of_a_shift_is_its_square(d, generator):
    y = torch.randn(50, d, generator=generator, dtype=torch.float64)
    to = WassersteinTo(Empirical(y.numpy()), n_samples=50)
    order = torch.randperm(50, generator=generator)
    z = y[order] + 0.7
    assert to.value(z, torch.zeros(50)) == pytest.approx(0.49 * d, rel=1e-9)
    w = torch.full((50,), 0.02, dtype=torch.float64)
    held = to.at(z, w)
    torch.testing.assert_close(held.evaluate(z, z[:, 0], w).point, 2 * 0.02 * (z - y[order]))
    # Held at a matching, it bounds the distance from above wherever the particles go.
    moved = z + torch.randn(z.shape, generator=generator, dtype=z.dtype)
    assert held.evaluate(moved, z[:, 0], w).value >= to.value(moved, z[:, 0]) - 1e-9
    part = held.take(torch.arange(10))
    assert part.evaluate(z[:10], z[:10, 0], w[:10] * 5).value == pytest.approx(0.49 * d, rel=1e-9)


def test_mmd_to_itself_vanishes(generator):
    y = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    mmd = MMDTo(Empirical(y.numpy()), 1.0)
    assert abs(mmd.value(y, torch.zeros(30))) < 1e-12
    assert mmd.value(y + 1.0, torch.zeros(30)) > 0.1


def test_composition_and_its_words():
    free = PotentialEnergy(quartic) + 0.5 * Entropy()
    assert repr(2.0 * free) == "2 * PotentialEnergy(...) + Entropy()"
    assert free.density == "relative"
    assert (free + InternalEnergy(2.0)).density == "absolute"
    assert PotentialEnergy(quartic).density == "none"
    assert (0.5 * WassersteinTo(TARGET) + Entropy()).majorised
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(InvalidDataError):
            wrong * Entropy()
    for wrong in ("text", True):
        with pytest.raises(TypeError):
            wrong * Entropy()
    with pytest.raises(TypeError):
        Entropy() + 1.0


def test_mistakes_are_told(generator):
    z, log_density, w = particles(5, generator)
    with pytest.raises(InvalidDataError, match="shape"):
        PotentialEnergy(lambda z: z).evaluate(z, log_density, w)
    with pytest.raises(InvalidDataError, match="kind"):
        FDivergence(log_normal, "hellinger")
    with pytest.raises(InvalidDataError, match="order"):
        FDivergence(log_normal, "cressie-read", 1.0)
    for m in (1.0, 0.5, math.nan):
        with pytest.raises(InvalidDataError):
            InternalEnergy(m)
    with pytest.raises(InvalidDataError):
        MMDTo(TARGET, 0.0)
    with pytest.raises(InvalidDataError, match="2 particles"):
        InteractionEnergy(quartic).value(z[:1], log_density[:1])
