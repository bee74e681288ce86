"""Nonlinear filtering: a diffusion observed with noise at a few times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko.exceptions import InvalidDataError
from drojko.flows.conditioned import Conditioned
from drojko.flows.envelope_scheme import EnvelopeScheme
from drojko.flows.functionals import Entropy, PotentialEnergy
from drojko.flows.jko import JKOFlow
from drojko.flows.line_scheme import LineScheme
from drojko.flows.result import FlowResult
from drojko.measures.base import Measure

__all__ = ["FilterResult", "filter_diffusion"]


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
    seen = torch.as_tensor(np.asarray(observations, dtype=float)).reshape(len(times), -1)
    edges = [0.0, *map(float, times)]
    if any(b <= a for a, b in pairwise(edges)) or len(seen) == 0:
        raise InvalidDataError(f"times={list(times)!r}; they must be positive and increase")
    if not (noise > 0.0 and step_size > 0.0):
        raise InvalidDataError(f"noise={noise!r}, step_size={step_size!r}; both must be positive")
    end = edges[-1] if final_time is None else float(final_time)
    if end < edges[-1]:
        raise InvalidDataError(f"final_time={end!r} is before the last observation")
    if scheme is None:
        line = initial.dim == 1
        scheme = LineScheme(1500) if line else EnvelopeScheme(components=24, n_particles=5000)
    functional = PotentialEnergy(potential) + temperature * Entropy()
    gen = make_generator(random_state)

    def likelihood(y: Tensor) -> Callable[[Tensor], Tensor]:
        def log_likelihood(x: Tensor) -> Tensor:
            miss = (x if observe is None else observe(x)) - y
            constant = len(y) * math.log(noise * math.sqrt(2.0 * math.pi))
            return -0.5 * (miss / noise).square().sum(1) - constant

        return log_likelihood

    def forecast(start: Measure, span: float) -> FlowResult:
        n = max(1, math.ceil(span / step_size - 1e-9))
        return JKOFlow(functional, scheme, step_size=span / n).run(start, n, gen)

    state: Measure = Conditioned(initial, n_particles=scheme.n_particles, random_state=gen)
    measures: list[Measure] = []
    predicted: list[Measure] = []
    flows: list[FlowResult] = []
    log_evidence = 0.0
    for k, y in enumerate(seen):
        flows.append(forecast(state, edges[k + 1] - edges[k]))
        predicted.append(flows[-1].measures[-1])
        state = Conditioned(predicted[-1], likelihood(y), random_state=gen)
        log_evidence += state.log_evidence_
        measures.append(state)
    if end > edges[-1]:
        flows.append(forecast(state, end - edges[-1]))
        measures.append(flows[-1].measures[-1])
    return FilterResult(measures, predicted, log_evidence, flows)
