"""Measures along a flow: the initial one pushed through maps, with the particles it was run on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko.exceptions import UnsupportedError
from drojko.flows.icnn.map_problem import Particles
from drojko.flows.importance.fit_velocity import log_target
from drojko.flows.importance.measure import ImportanceMeasure
from drojko.flows.importance.rejection import RejectionBlock
from drojko.measures.base import Measure
from drojko.measures.pushforward import Pushforward
from drojko.transport.maps import Composition, TransportMap

__all__ = ["FlowStep", "draw_particles", "match_moments"]


def draw_particles(measure: Measure, n: int, generator: Any = None) -> Particles:
    """About n particles of low variance, with their log density where the measure has one.

    Where it has moments in closed form, the particles are moved and stretched to have exactly
    these: maps and energies that depend on mean and covariance only are then free of sampling
    error.
    """
    gen = make_generator(generator)
    ready = getattr(measure, "flow_particles", None)
    if ready is not None:  # a measure with particles whose densities are known already
        return ready(n, gen)
    x, w = measure.points(n, gen)
    if not 0.5 * n <= len(x) <= 2 * n:  # atoms, or as many points as components
        x = measure.sample(n, gen)
        w = torch.full((n,), 1.0 / n, dtype=torch.float64)
    x = match_moments(measure, x, w)
    try:
        return Particles(x, w, measure.log_prob(x))
    except UnsupportedError:
        return Particles(x, w, torch.zeros_like(w), known=False)


def match_moments(measure: Measure, x: Tensor, w: Tensor) -> Tensor:
    """Move and stretch weighted draws to have the measure's own mean and covariance.

    A control variate for whatever depends on the first two moments: unchanged draws where the
    measure does not know them, where they determine too few draws, and where it has atoms
    (columns without noise must keep their values).
    """
    if hasattr(measure, "atoms_"):
        return x
    try:
        mean, covariance = measure.mean, measure.covariance
    except UnsupportedError:
        return x
    found_mean, found = Particles(x, w, w).mean_and_covariance()
    factor, info = torch.linalg.cholesky_ex(found)
    goal, bad = torch.linalg.cholesky_ex(covariance)
    if int(info) or int(bad) or len(x) <= 2 * x.shape[1]:
        return x
    white = torch.linalg.solve_triangular(factor, (x - found_mean).T, upper=False)
    return mean + (goal @ white).T


class FlowStep(Pushforward):
    r"""rho_k, the image of the initial measure under k maps.

    .. math:: \log \rho_k(T(x)) = \log \rho_0(x) - \sum_j \log\det DT_j, \qquad T = T_k \circ
        \dots \circ T_1

    ``sample`` pushes fresh draws; ``log_prob`` at any point inverts the maps, by Newton's method
    in float64. ``particles`` are those that the flow was run on, ``log_density`` (n,) the exact
    log rho_k there, without inversion; ``weights`` (n,) sum to 1.

    Examples
    --------
    >>> from drojko.flows import JKOFlow
    >>> from drojko.flows.functionals import Entropy
    >>> from drojko.measures import Gaussian
    >>> heat = JKOFlow(Entropy(), step_size=0.1).run(Gaussian([0.0], [[1.0]]), 1, random_state=0)
    >>> step = heat.measures[-1]
    >>> round(float(step.sample(4000, torch.Generator().manual_seed(0)).var()), 1)
    1.2
    """

    def __init__(self, base: Measure, map: TransportMap, held: Particles | None = None) -> None:
        super().__init__(base, map)
        self.held = held

    @property
    def particles(self) -> Tensor:
        """The flow's particles at this step, shape (n, d)."""
        return self._held().x

    @property
    def weights(self) -> Tensor:
        """Their weights, shape (n,)."""
        return self._held().w

    @property
    def log_density(self) -> Tensor:
        """The log density at the particles, shape (n,)."""
        if not self._held().known:
            raise UnsupportedError("the initial measure has no density, so its images have none")
        return self._held().log_density

    def sample_with_density(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw n points (n, d) with their exact log density (n,): no inversion is needed."""
        x = self.base.sample(n, generator)
        log_density = self.base.log_prob(x)
        with torch.no_grad():
            for step in self.maps:
                log_density = log_density - step.log_abs_det_jacobian(x)
                x = step.map(x)
        return x, log_density

    def corrected(
        self,
        log_prob: Callable[[Tensor], Tensor],
        *,
        most_draws: float = 30.0,
        n_calibration: int = 100_000,
        random_state: Any = None,
    ) -> ImportanceMeasure:
        """Follow the maps by rejection steps towards the law of density exp(log_prob) / Z.

        Maps cannot carry mass between separate modes; rejections do, and the density stays known
        (`RejectionBlock`).

        Parameters
        ----------
        log_prob : callable
            (n, d) -> (n,), of the flow's target; it may lack its constant.
        most_draws : float
            Cap of the draws of this measure per draw of the corrected one.
        n_calibration : int
            Draws that bounds and normalisers are computed on.
        random_state : None, int or generator

        Returns
        -------
        ImportanceMeasure
            With ``sample``, ``log_prob`` and ``evidence`` (log Z, effective sample size).

        Raises
        ------
        SolverError
            Where next to none of this measure's draws carry the target.

        Examples
        --------
        >>> import torch
        >>> from drojko.flows import FlowStep
        >>> from drojko.measures import Gaussian
        >>> from drojko.transport import IdentityMap
        >>> wide = FlowStep(Gaussian([0.0], [[4.0]]), IdentityMap())
        >>> def two_modes(z):
        ...     return torch.logaddexp(-2 * (z[:, 0] - 1) ** 2, -2 * (z[:, 0] + 2) ** 2)
        >>> found = wide.corrected(two_modes, random_state=0)
        >>> evidence = found.evidence(4000, random_state=1)
        >>> round(evidence.effective_sample_size, 2), round(evidence.log_z, 1)
        (1.0, 0.9)
        """
        gen = make_generator(random_state)
        x, log_density = self.sample_with_density(n_calibration, gen)
        u = log_target(log_prob, x) - log_density
        block = RejectionBlock.design(u, None, 0.2, most_draws=most_draws)
        return ImportanceMeasure(self, log_prob, (block,))

    def entropy(self) -> float:
        """-E log rho over the particles, in nats."""
        return -float(self.weights @ self.log_density)

    def mass(self, n: int = 4000, generator: torch.Generator | None = None) -> tuple[float, float]:
        """Estimate the integral of the density over R^d, which is 1, and its standard error.

        Importance sampling with the density found by inversion: half of the draws around the
        particles (their kernel estimate), half from their normal law at twice its width.
        """
        gen = make_generator(generator)
        mean, covariance = self._held().mean_and_covariance()
        rows = torch.multinomial(self.weights, n - n // 2, replacement=True, generator=gen)
        centres = self.particles[torch.unique(rows)][:500]
        d, m = self.dim, n - n // 2
        factor = torch.linalg.cholesky(covariance)
        width = 1.2 * len(centres) ** (-1.0 / (d + 4))
        noise = torch.randn(n, d, generator=gen, dtype=torch.float64) @ factor.T
        pick = torch.randint(len(centres), (m,), generator=gen)
        x = torch.cat([centres[pick] + width * noise[:m], mean + 2.0 * noise[m:]])
        normal = torch.distributions.MultivariateNormal(mean * 0.0, scale_tril=factor)
        near = normal.log_prob((x.unsqueeze(1) - centres) / width) - d * math.log(width)
        kernel = torch.logsumexp(near, 1) - math.log(len(centres))
        wide = normal.log_prob((x - mean) / 2.0) - d * math.log(2.0)
        proposal = torch.logaddexp(kernel + math.log(m / n), wide + math.log(1.0 - m / n))
        ratio = (self.log_prob(x) - proposal).exp()
        return float(ratio.mean()), float(ratio.std()) / math.sqrt(n)

    def _held(self) -> Particles:
        if self.held is None:
            raise UnsupportedError("this step keeps no particles; draw a sample")
        return self.held

    @property
    def maps(self) -> tuple[TransportMap, ...]:
        """T_1, ..., T_k."""
        return self.map.maps if isinstance(self.map, Composition) else (self.map,)
