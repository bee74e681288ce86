"""Importance-corrected flows: modes, log Z and cost, and worst cases of separated references."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from harness import Check, Context, clock, numbers
from torch import Tensor

from drojko.ambiguity import KL
from drojko.flows import ImportanceCorrectedScheme, JKOFlow
from drojko.flows.functionals import KLDivergence
from drojko.inner.reweighting.density_flow import DensityFlow
from drojko.inner.reweighting.importance import Importance
from drojko.measures import Gaussian, GaussianMixture

TITLE = "Importance-corrected flows"
ABOUT = """
Targets with log Z = 0 (Hertrich, Gruhlke 2025, arXiv 2407.20444), from a standard Gaussian; for
Mustache and funnel from wider laws, named in `start`, since fields learned from a narrow one do not
reach the tails of these two. `ED` is
half of 2 E|X-Y| - E|X-X'| - E|Y-Y'|, without the diagonal, of 20,000 draws over 100 directions;
`floor` is what two samples of 50,000 of one law give with the diagonal, as the published numbers
(`ED published`) do: the row is met where ED + floor is at most the published value, up to two
standard errors. `log Z` is importance sampling's estimate, `ELBO` the lower bound, with their
standard errors; neither may exceed the truth by more than two. On Mustache and funnel `evidence`
warns (silenced here): the weights have tails without variance, and `log Z` falls short by more than
its standard error. `mass` is the integral of the
density over a grid (two columns). The original's training takes 8 to 10 core-hours and its sampling
40 CPU-seconds per 10,000 draws for 8 modes, measured. The first figure stands for all targets; the
second grows with how often a draw passes through a field in the original's layout (fields of equal
width, although it takes wider ones for more columns): `limit` is a tenth of that.

KL worst cases of a linear loss on four well-separated components: `relative error` of the value to
the closed form, `weight error` the largest one of a mode's weight; `icnn` is one map
(`DensityFlow`).
"""
COLUMNS = (
    "start", "train s", "sample s", "limit", "ESS", "log Z", "log Z error", "ELBO", "ED",
    "ED error", "floor", "ED published", "mass", "draws", "relative error", "weight error",
    "target",
)  # fmt: skip
PUBLISHED_DRAWS = 50_000
TRAINING, SAMPLING = 0.1 * 8 * 3600.0, 0.1 * 40.0


def passes(flows: int, blocks: int) -> float:
    """How often the original sends a point through a field, per sample.

    ``flows`` fields come first, then blocks of one field and three rejection steps, each of which
    asks the model below it for a fifth more draws.
    """
    return flows * 1.2 ** (3 * blocks) + sum(1.2 ** (3 * (b + 1)) for b in range(blocks))


@dataclass(frozen=True)
class Problem:
    """A target with its sampler, the flow's settings, and the published energy distance, log Z."""

    target: Any
    sizes: tuple[float, ...]
    distance: float
    log_z: float
    least_ess: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    layout: tuple[int, int] = (4, 6)  # of the original: fields, blocks
    start: Any = None
    start_name: str = "N(0, I)"

    @property
    def sampling(self) -> float:
        """Seconds that 10,000 draws may take."""
        return SAMPLING * passes(*self.layout) / passes(2, 4)


def mixture(means: Tensor, variance: float) -> GaussianMixture:
    eye = variance * np.eye(means.shape[1])
    return GaussianMixture(means=means.tolist(), covariances=[eye.tolist()] * len(means))


def ring(variance: float) -> GaussianMixture:
    angle = torch.arange(8, dtype=torch.float64) * math.tau / 8
    return mixture(torch.stack([angle.cos() - 1.0, angle.sin()], 1), variance)


def two_scales(*variances: tuple[float, ...]) -> GaussianMixture:
    """A mixture of centred Gaussians, in equal parts."""
    return GaussianMixture(
        means=[[0.0] * len(v) for v in variances],
        covariances=[np.diag(v).tolist() for v in variances],
    )


def ten(dim: int) -> GaussianMixture:
    gen = torch.Generator().manual_seed(dim)
    return mixture(2.0 * torch.rand(10, dim, generator=gen, dtype=torch.float64) - 1.0, 0.01)


class Mustache:
    dim = 2

    def log_prob(self, x: Tensor) -> Tensor:
        u, w = x[:, 0], x[:, 1] - (x[:, 0] ** 2 - 1.0) ** 2
        quadratic = (u * u - 1.8 * u * w + w * w) / 0.19
        return -0.5 * quadratic - math.log(math.tau) - 0.5 * math.log(0.19)

    def sample(self, n: int, gen: torch.Generator) -> Tensor:
        z = torch.randn(n, 2, generator=gen, dtype=torch.float64)
        first = z[:, 0]
        second = 0.9 * first + math.sqrt(0.19) * z[:, 1]
        return torch.stack([first, second + (first**2 - 1.0) ** 2], 1)


class Funnel:
    dim = 10

    def log_prob(self, x: Tensor) -> Tensor:
        a, rest = x[:, 0], x[:, 1:].square().sum(1)
        constant = 0.5 * math.log(9.0 * math.tau) + 4.5 * math.log(math.tau)
        return -(a * a / 18.0 + 0.5 * torch.exp(-a) * rest + 4.5 * a + constant)

    def sample(self, n: int, gen: torch.Generator) -> Tensor:
        z = torch.randn(n, 10, generator=gen, dtype=torch.float64)
        a = 3.0 * z[:, :1]
        return torch.cat([a, torch.exp(a / 2.0) * z[:, 1:]], 1)


SMALL_STEPS = (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04)


def problems() -> dict[str, Problem]:
    two = {"width": 48, "iterations": 400, "integration_steps": 3}
    thin = {"width": 48, "iterations": 1500, "rate": 5e-3, "integration_steps": 4}
    mild = {"width": 64, "iterations": 2000, "rate": 5e-3, "integration_steps": 4}
    tails = {"most_draws": 25.0, "tol": 5e-3}
    many = {"width": 48, "iterations": 1500, "integration_steps": 3, "rate": 1e-2}
    gmm_10 = many | {"most_draws": 10.0}
    gmm_20 = many | {"most_draws": 6.0, "width": 64, "iterations": 2500}
    return {
        "8 modes": Problem(ring(0.01), (0.1, 0.4), 1.2e-5, 5.1e-6, 0.98, two, (2, 4)),
        "8 peaky modes": Problem(ring(0.005), (0.05, 0.2), 3.4e-5, 0.0021, 0.98, two, (2, 4)),
        "Mustache": Problem(
            Mustache(),
            (0.02, 0.1, 0.5, 2.5, 10.0),
            2.9e-3,
            0.0073,
            0,
            thin | tails,
            (6, 6),
            two_scales((1.0, 1.0), (9.0, 100.0)),
            "N(0, I) and N(0, (9, 100)), half each",
        ),
        "Funnel": Problem(
            Funnel(),
            (2.5, 10.0, 40.0, 160.0, 320.0),
            1.4e-2,
            0.0071,
            0,
            mild | tails,
            (4, 6),
            Gaussian([0.0] * 10, np.diag([12.0] + [60.0] * 9).tolist()),
            "N(0, (12, 60, ..., 60))",
        ),
        "GMM-10": Problem(ten(10), SMALL_STEPS, 5.3e-5, 0.0035, 0, gmm_10),
        "GMM-20": Problem(ten(20), SMALL_STEPS, 1.1e-4, 0.0064, 0, gmm_20),
    }


def cases(smoke: bool):
    for name, problem in problems().items():
        if not smoke or name == "8 modes":
            yield name, _flow(problem, smoke)
    for dim in (2,) if smoke else (2, 10):
        yield f"KL, 4 components, d={dim}", _worst(dim, smoke)


def _flow(problem: Problem, smoke: bool):
    def case(context: Context) -> Iterator[dict]:
        target, dim = problem.target, problem.target.dim
        settings = dict(problem.settings)
        if smoke:
            settings |= {"iterations": 40, "n_particles": 5000, "n_calibration": 10_000}
        start = problem.start or Gaussian(np.zeros(dim).tolist(), np.eye(dim).tolist())
        scheme = ImportanceCorrectedScheme(**settings)
        flow = JKOFlow(KLDivergence(target.log_prob), scheme, step_size=problem.sizes)
        with warnings.catch_warnings(), clock() as trained:
            warnings.simplefilter("ignore")  # the effective sample size is in the row
            result = flow.run(start, len(problem.sizes), random_state=context.seed)
        measure: Any = result.measures[-1]
        with warnings.catch_warnings(), clock() as sampled:
            warnings.simplefilter("ignore")
            found = measure.evidence(10_000, context.seed + 1)
        n = 2000 if smoke else 20_000
        gen = torch.Generator().manual_seed(context.seed + 2)
        x = measure.sample(n, gen) if n > 10_000 else found.x[:n]
        distance, error, floor = energy_distance(x, target.sample(n, gen), gen)
        high = max(found.log_z - 2.0 * found.log_z_error, found.elbo - 2.0 * found.elbo_error)
        met = {
            "ED": distance + floor <= problem.distance + 2.0 * error,
            "log Z": abs(found.log_z) <= problem.log_z + 2.0 * found.log_z_error,
            "not above": high <= 0.0,
            "ESS": found.effective_sample_size >= problem.least_ess,
            "training": trained.seconds <= TRAINING,
            "sampling": sampled.seconds <= problem.sampling,
        }
        mass = math.nan
        if dim == 2 and not isinstance(target, Mustache):
            mass = _mass(measure, 41 if smoke else 241)
            met["mass"] = smoke or abs(mass - 1.0) <= 0.005
        missed = [name for name, good in met.items() if not good]
        yield {
            "method": "importance-corrected",
            "start": problem.start_name,
            "limit": problem.sampling,
            "train s": trained.seconds,
            "wall": trained.wall,
            "sample s": sampled.seconds,
            "ESS": found.effective_sample_size,
            "log Z": found.log_z,
            "log Z error": found.log_z_error,
            "ELBO": found.elbo,
            "ELBO error": found.elbo_error,
            "ED": distance,
            "ED error": error,
            "floor": floor,
            "ED published": problem.distance,
            "mass": mass,
            "draws": measure.draws_per_sample,
            "published log Z error": problem.log_z,
            "target": "all" if not missed else "missed: " + ", ".join(missed),
            "met": not missed,
        }

    return case


def _mass(measure: Any, points: int) -> float:
    side = [
        torch.linspace(a, b, points, dtype=torch.float64) for a, b in ((-3.2, 1.2), (-2.2, 2.2))
    ]
    area = float(side[0][1] - side[0][0]) * float(side[1][1] - side[1][0])
    return float(measure.log_prob(torch.cartesian_prod(*side)).exp().sum()) * area


def energy_distance(
    x: Tensor, y: Tensor, gen: torch.Generator, directions: int = 100, parts: int = 5
) -> tuple[float, float, float]:
    """Half-convention energy distance by slices, its standard error, and the floor E|Y-Y'|/n."""
    dim = x.shape[1]
    lines = torch.randn(dim, directions, generator=gen, dtype=torch.float64)
    lines = lines / lines.norm(dim=0)
    # E|<e, z>| over directions e is |z| Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)).
    factor = math.sqrt(math.pi) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))

    def within(a: Tensor) -> Tensor:
        a, n = a.sort(0).values, len(a)
        rank = 2.0 * torch.arange(n, dtype=torch.float64) - n + 1.0
        return 2.0 * (rank @ a) / (n * (n - 1.0))

    def distance(a: Tensor, b: Tensor) -> float:
        n, m, total = len(a), len(b), 0.0
        for part in lines.split(25, 1):
            p, q = a @ part, b @ part
            alone, other, both = within(p), within(q), within(torch.cat([p, q]))
            pairs = (n + m) * (n + m - 1.0)
            cross = (both * pairs - alone * n * (n - 1.0) - other * m * (m - 1.0)) / (2.0 * n * m)
            total += float((cross - 0.5 * alone - 0.5 * other).sum())
        return factor * total / directions

    whole = distance(x, y)
    pieces = [distance(a, b) for a, b in zip(x.chunk(parts), y.chunk(parts))]
    # Near equality the distance's own noise falls like 1/n, away from it like 1/sqrt(n).
    spread = float(np.std(pieces, ddof=1))
    floor = factor * float(within(y @ lines).mean()) / PUBLISHED_DRAWS
    near = abs(whole) < 10.0 * floor * PUBLISHED_DRAWS / len(y)
    error = spread / (parts if near else math.sqrt(parts))
    return whole, error, floor


def _worst(dim: int, smoke: bool):
    def case(context: Context) -> Iterator[dict]:
        gen = torch.Generator().manual_seed(context.seed)
        means = torch.zeros(4, dim, dtype=torch.float64)
        means[:, 0] = torch.tensor([-9.0, -3.0, 3.0, 9.0], dtype=torch.float64)
        means[:, 1] = torch.tensor([0.0, 6.0, -6.0, 0.0], dtype=torch.float64)
        reference = mixture(means, 1.0)
        penalty, slope = 6.0, torch.zeros(dim, dtype=torch.float64)
        slope[0] = 1.0
        tilt = means @ slope / penalty
        value = penalty * float(tilt.logsumexp(0) - math.log(4.0)) + 0.5 / penalty
        weights = tilt.softmax(0)

        def loss(x: Tensor) -> Tensor:
            return x @ slope

        def modes(x: Tensor, mass: Tensor) -> float:
            nearest = torch.cdist(x, means + slope / penalty).argmin(1)
            found = torch.zeros(4, dtype=torch.float64).index_add_(0, nearest, mass)
            return float((found - weights).abs().max())

        size = 20_000 if smoke else 100_000
        with clock() as taken:
            found = Importance(n_calibration=size).fit_ratio(
                KL(penalty=penalty), penalty, 0.0, loss, reference, context.seed
            )
        x = found.sample(20_000, gen)
        equal = torch.full((len(x),), 1.0 / len(x), dtype=torch.float64)
        miss = max(modes(found.x, found.mass), modes(x, equal))
        relative = abs(found.value - value) / abs(value)
        yield {
            "method": "importance",
            "train s": taken.seconds,
            "ESS": found.effective_sample_size,
            "value": found.value,
            "exact": value,
            "relative error": relative,
            "weight error": miss,
            "draws": found.measure.draws_per_sample,
            "choice": found.choice,
            "target": "value 0.5 %, weights 0.02",
            "met": relative <= 0.005 and miss <= 0.02,
        }
        if smoke:
            return
        with clock() as taken:
            plain = DensityFlow().fit(KL(penalty=penalty), penalty, 0.0, loss, reference, 0)
        p = plain.particles
        yield {
            "method": "icnn",
            "train s": taken.seconds,
            "ESS": plain.effective_sample_size,
            "value": plain.value,
            "exact": value,
            "relative error": abs(plain.value - value) / abs(value),
            "weight error": modes(p.x, p.w),
        }

    return case


def summary(rows: list[dict]) -> list[Check]:
    ours = [r for r in rows if r.get("method") == "importance-corrected"]
    checks = [
        Check(
            f"{r['case']}: published energy distance, log Z and cost",
            f"ED {r['ED']:.2g} (published {r['ED published']:.2g}), log Z {r['log Z']:.4f} ± "
            f"{r['log Z error']:.1g}, ESS {r['ESS']:.3f}; {r['target']}",
            bool(r["met"]),
        )
        for r in ours
    ]
    relative = max(numbers(rows, "relative error", method="importance"), default=math.nan)
    weight = max(numbers(rows, "weight error", method="importance"), default=math.nan)
    plain = max(numbers(rows, "relative error", method="icnn"), default=math.nan)
    checks.append(
        Check(
            "KL worst case of 4 components: value 0.5 %, weights 2 points",
            f"{relative:.2g}, {weight:.2g} (one map: {plain:.2g})",
            relative <= 0.005 and weight <= 0.02,
        )
    )
    return checks
