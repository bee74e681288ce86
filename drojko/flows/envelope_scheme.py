"""JKO steps over gradients of smoothed maxima of quadratics: for targets with several modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from drojko._settings import check_settings
from drojko.flows.icnn.affine_fit import AffineStart
from drojko.flows.icnn.map_problem import FittedMap, MapProblem
from drojko.flows.icnn.scheme import refine
from drojko.transport.envelope import QuadraticEnvelope

__all__ = ["EnvelopeScheme"]

_LARGEST = 10.0  # norm of a gradient step


@dataclass(frozen=True)
class EnvelopeScheme:
    r"""JKO steps with maps that are affine piece by piece, `QuadraticEnvelope`.

    Each step solves for the affine map first, then trains a fresh envelope whose pieces start at
    particles, by Adam on mini-batches; the best of a few stages on particles kept apart counts,
    the affine map included.

    Parameters
    ----------
    components : int
        Pieces of a map.
    n_particles : int
        Particles that maps are trained on; half as many are kept apart to judge them.
    iterations, batch_size, rate : int, int, float
        Adam iterations per step, particles in each, and their first learning rate.
    tol : float
        An envelope is kept where it gains more than this share of what the affine map gains.

    Notes
    -----
    The cost of a step is of order iterations * batch_size * components * d^2.

    Examples
    --------
    Two large steps from a broad normal law to two modes:

    >>> from drojko.flows import JKOFlow
    >>> from drojko.flows.functionals import KLDivergence
    >>> from drojko.measures import Gaussian
    >>> def log_prob(z):
    ...     return torch.logaddexp(-((z[:, 0] - 3) ** 2), -((z[:, 0] + 3) ** 2)) - 1.2655
    >>> scheme = EnvelopeScheme(components=8, n_particles=2000, iterations=150, batch_size=256)
    >>> flow = JKOFlow(KLDivergence(log_prob), scheme, step_size=100.0)
    >>> result = flow.run(Gaussian([0.0], [[9.0]]), 2, random_state=0)
    >>> bool(result.history["energy"].iloc[-1] < 0.1)  # Kullback-Leibler divergence, in nats
    True
    """

    components: int = 32
    n_particles: int = 20000
    iterations: int = 800
    batch_size: int = 512
    rate: float = 0.02
    tol: float = 1e-3

    def __post_init__(self) -> None:
        check_settings(
            self,
            whole={"components": 1, "n_particles": 1, "batch_size": 1, "iterations": 0},
            least={"tol": 0.0},
            above={"rate": 0.0},
        )

    def fit_map(
        self, train: MapProblem, held: MapProblem, generator: torch.Generator, start: Any = None
    ) -> FittedMap:
        """The map that minimises J on ``train``, judged on ``held``."""
        first = AffineStart(train, held)
        if not self.iterations or first.optimal:
            return first.fitted
        train, held = first.train, first.held
        # The particles' density decides where pieces start; two at one place would be one.
        rows = torch.multinomial(
            train.particles.w, min(self.components, len(train.particles.x)), generator=generator
        )
        potential = QuadraticEnvelope(train.inner[rows], first.matrix, first.shift)
        refine(train, held, potential, generator, self, largest=_LARGEST)
        return first.or_better(potential, self.tol)
