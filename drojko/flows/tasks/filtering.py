"""Nonlinear filtering: a diffusion observed with noise at a few times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import keeping
from drojko._random import generator as make_generator
from drojko._validation import check_number, checked, floats, shown
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows.envelope_scheme import EnvelopeScheme
from drojko.flows.flow_measures import FlowStep
from drojko.flows.functionals import Entropy, PotentialEnergy
from drojko.flows.jko import JKOFlow
from drojko.flows.line_scheme import LineScheme
from drojko.flows.particles import Particles, draw_particles
from drojko.flows.result import FlowResult
from drojko.measures._arrays import queries
from drojko.measures.base import Measure, choose
from drojko.measures.kde import KDE

__all__ = ["Conditioned", "FilterResult", "filter_diffusion"]

_LEAST = 0.08  # effective share of the particles below which new ones are drawn
_GRID = 7.0  # standard deviations that a grid in one dimension covers on each side


class Conditioned(Measure):
    r"""Bayes' rule: the law with density :math:`\rho(x) L(x) / Z`, Z = E_rho L.

    The particles of the prior stay and are reweighted, so that their densities stay known. Where
    few of them carry the weight, new ones come from a kernel estimate (in one dimension: are a new
    grid) and are weighted by the exact density, which is found by inverting the prior's maps.

    Parameters
    ----------
    prior : Measure
        rho; a `FlowStep`, or any measure with a density.
    log_likelihood : callable, default=None
        log L: (n, d) -> (n,), by torch; None: L = 1.
    n_particles : int
        Of a prior that is no `FlowStep`; in one dimension these are a grid.

    Attributes
    ----------
    log_evidence_ : float
        log Z.
    effective_share_ : float
        Effective sample size as a share of the particles.

    Examples
    --------
    >>> from drojko.measures import Gaussian
    >>> prior = Gaussian([0.0], [[1.0]])
    >>> posterior = Conditioned(prior, lambda x: -0.5 * (x[:, 0] - 1.0) ** 2)
    >>> x, w = posterior.points(1000)
    >>> round(float(w @ x[:, 0]), 6)
    0.5
    """

    _state = "particles_"
    _remedy = "fit its prior"

    def __init__(
        self,
        prior: Measure,
        log_likelihood: Callable[[Tensor], Tensor] | None = None,
        *,
        n_particles: int = 2000,
        random_state: Any = 0,
    ):
        self.prior, self.log_likelihood = prior, log_likelihood
        self.n_particles, self.random_state = n_particles, random_state
        gen = make_generator(random_state)
        particles = _particles(prior, n_particles, gen)
        self._weigh(particles.x, particles.log_density, particles.w.log(), particles.known)
        self.effective_share_ = 1.0 / (len(particles.w) * float(self.particles_.w.square().sum()))
        if self.effective_share_ < _LEAST:
            self._refresh(gen)

    def _likelihood(self, x: Tensor) -> Tensor:
        if self.log_likelihood is None:
            return torch.zeros(len(x), dtype=x.dtype)
        with torch.no_grad():
            return self.log_likelihood(x)

    def _weigh(self, x: Tensor, log_prior: Tensor, log_mass: Tensor, known: bool = True) -> None:
        """Keep points that stand for the prior with masses exp(``log_mass``), reweighted."""
        likelihood = self._likelihood(x)
        joint = log_mass + likelihood
        self.log_evidence_ = float(torch.logsumexp(joint, 0))
        log_density = log_prior + likelihood - self.log_evidence_
        self.particles_ = Particles(x, torch.softmax(joint, 0), log_density, known)

    def _refresh(self, gen: torch.Generator) -> None:
        p = self.particles_
        if p.x.shape[1] == 1:
            mean, variance = p.mean_and_covariance()
            x, step = _grid(float(mean), float(variance) ** 0.5, len(p.x))
            log_space = math.log(step)
        else:
            near = KDE().fit(p.x.numpy(), p.w.numpy())
            x = near.sample(len(p.x), gen)
            log_space = -near.log_prob(x) - math.log(len(x))
        log_prior = self.prior.log_prob(x)
        self._weigh(x, log_prior, log_prior + log_space)

    @property
    def dim(self) -> int:
        return self.particles_.x.shape[1]

    def log_prob(self, x: Any) -> Tensor:
        rows = queries(x, self.dim)
        return self.prior.log_prob(rows) + self._likelihood(rows) - self.log_evidence_

    def points(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The particles and their weights; n is not used."""
        return self.particles_.x, self.particles_.w

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n of the particles by their weights, shape (n, d)."""
        gen = make_generator(generator)
        return self.particles_.x[choose(self.particles_.w.numpy(), n, gen)]

    def flow_particles(self, n: int, generator: torch.Generator) -> Particles:
        """About n of the particles, thinned evenly, with their densities."""
        m = len(self.particles_.x)
        return self.particles_.take(torch.arange(0, m, max(1, round(m / n))))


def _particles(prior: Measure, n: int, gen: torch.Generator) -> Particles:
    if isinstance(prior, FlowStep) and prior.held is not None:
        return prior.held
    if prior.dim > 1:
        return draw_particles(prior, n, gen)
    try:
        centre, width = float(prior.mean), float(prior.covariance) ** 0.5
    except UnsupportedError:
        return draw_particles(prior, n, gen)
    x, _ = _grid(centre, width, n)
    log_density = prior.log_prob(x)
    return Particles(x, torch.softmax(log_density, 0), log_density)


def _grid(centre: float, width: float, n: int) -> tuple[Tensor, float]:
    """Points (n, 1) around a centre, and their distance."""
    step = 2.0 * _GRID * width / n
    grid = centre - _GRID * width + step * (torch.arange(n, dtype=torch.float64) + 0.5)
    return grid.unsqueeze(1), step


@dataclass(frozen=True, eq=False)
class FilterResult:
    """Laws of the state given the observations up to a time.

    Attributes
    ----------
    measures : list of Measure
        After each observation, and at the final time (last).
    predicted : list of Measure
        Before each observation.
    log_evidence : float
        log density of all observations.
    flows : list of FlowResult
        Between observations.
    """

    measures: list[Measure]
    predicted: list[Measure]
    log_evidence: float
    flows: list[FlowResult]


@checked()
def filter_diffusion(
    potential: Callable[[Tensor], Tensor],
    initial: Measure,
    times: Sequence[float],
    observations: Any,
    final_time: float | None = None,
    *,
    noise: float = 1.0,
    observe: Callable[[Tensor], Tensor] | None = None,
    temperature: float = 1.0,
    step_size: float = 0.1,
    scheme: Any = None,
    random_state: Any = None,
) -> FilterResult:
    r"""Filter dz = -grad V dt + sqrt(2 temperature) dW, y_k = G(z_{t_k}) + N(0, noise^2).

    Between observations the law follows its Fokker-Planck equation by JKO steps; an observation
    multiplies it by the likelihood. Particles carry their exact density all the way, so both are
    exact operations on the density: no kernel estimate, no Metropolis chain.

    Parameters
    ----------
    potential : callable
        V: (n, d) -> (n,), by torch.
    initial : Measure
        Law at time 0.
    times, observations : sequence of float, array-like of shape (K,) or (K, k)
        Increasing observation times, and what was seen.
    final_time : float, default=None
        None: the last observation's.
    noise : float
        Standard deviation of the observations.
    observe : callable, default=None
        G: (n, d) -> (n, k); None: the state itself.
    step_size : float
        Largest h; each interval is cut into equal steps.
    scheme : object, default=None
        `LineScheme` in one dimension, `EnvelopeScheme` in more; it must know densities.
    random_state : None, int or generator

    Notes
    -----
    In one dimension the particles are a grid that is moved, in more they are draws, renewed by
    importance sampling where few of them carry the weight. Setting after Mokrov et al. (2021,
    arXiv 2106.00736), section 4.4.

    Examples
    --------
    The Kalman filter's case, V = z^2 / 2: one step, one observation.

    >>> from drojko.measures import Gaussian
    >>> found = filter_diffusion(lambda z: 0.5 * (z**2).sum(1), Gaussian([0.0], [[1.0]]),
    ...                          [0.5], [2.0], random_state=0)
    >>> x, w = found.measures[-1].points(1)
    >>> round(float(w @ x[:, 0]), 3)  # the law stays N(0, 1); then 2 / (1 + 1)
    1.0
    """
    seen, given = floats(observations, "observations"), floats(times, "times")
    edges = [0.0, *given.ravel().tolist()]
    if given.ndim != 1 or any(not 0.0 < b - a < math.inf for a, b in pairwise(edges)):
        raise InvalidDataError(f"times={shown(times)}; they must be positive and increase")
    if not 0 < seen.ndim < 3 or len(seen) != len(given) or not len(seen) or not seen.size:
        raise InvalidDataError(
            f"observations is {shown(observations)}; expected a row for each of {len(given)} times"
        )
    if not np.isfinite(seen).all():
        raise InvalidDataError("observations contains NaN or infinity: leave such times out")
    seen = torch.tensor(seen).reshape(len(given), -1)
    check_number("noise", noise, above=0)
    check_number("step_size", step_size, above=0)
    check_number("temperature", temperature, least=0)
    end = edges[-1] if final_time is None else float(final_time)
    if not edges[-1] <= end < math.inf:
        raise InvalidDataError(f"final_time={end!r} is before the last observation, or no time")
    if scheme is None:
        line = initial.dim == 1
        scheme = LineScheme(1500) if line else EnvelopeScheme(components=24, n_particles=5000)
    if isinstance(scheme, type) or not hasattr(scheme, "fit_map"):
        raise InvalidDataError(f"scheme={shown(scheme)}; expected one that knows densities")
    functional = PotentialEnergy(potential) + temperature * Entropy()
    gen = make_generator(random_state)

    def log_likelihood(y: Tensor, x: Tensor) -> Tensor:
        miss = (x if observe is None else observe(x)) - y
        constant = len(y) * math.log(noise * math.sqrt(2.0 * math.pi))
        return -0.5 * (miss / noise).square().sum(1) - constant

    def forecast(start: Measure, span: float) -> FlowResult:
        n = max(1, math.ceil(span / step_size - 1e-9))
        return JKOFlow(functional, scheme, step_size=span / n).run(start, n, gen)

    state: Measure = Conditioned(initial, n_particles=scheme.n_particles, random_state=gen)
    measures: list[Measure] = []
    predicted: list[Measure] = []
    flows: list[FlowResult] = []
    log_evidence = 0.0

    def so_far() -> FilterResult:
        return FilterResult(measures, predicted, log_evidence, flows)

    def all_steps() -> FilterResult:
        nonlocal state, log_evidence
        for (before, now), y in zip(pairwise(edges), seen, strict=True):
            flows.append(forecast(state, now - before))
            predicted.append(flows[-1].measures[-1])
            state = Conditioned(predicted[-1], partial(log_likelihood, y), random_state=gen)
            log_evidence += state.log_evidence_
            measures.append(state)
        if end > edges[-1]:
            flows.append(forecast(state, end - edges[-1]))
            measures.append(flows[-1].measures[-1])
        return so_far()

    return keeping(all_steps, lambda: so_far() if measures else None)
