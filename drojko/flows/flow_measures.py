"""Measures along a flow: the initial one pushed through maps, with the particles it was run on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko.exceptions import ConvergenceWarning, UnsupportedError
from drojko.flows.importance.measure import ImportanceMeasure
from drojko.flows.importance.rejection import LEAST, RejectionBlock, effective_sample_size
from drojko.flows.importance.velocity import log_target
from drojko.flows.particles import ParticleMeasure
from drojko.measures.gaussian import Gaussian
from drojko.measures.kde import KDE
from drojko.transport.maps import Composition, TransportMap

__all__ = ["FlowStep"]


class FlowStep(ParticleMeasure):
    r"""rho_k, the image of the initial measure under k maps.

    .. math:: \log \rho_k(T(x)) = \log \rho_0(x) - \sum_j \log\det DT_j, \qquad T = T_k \circ
        \dots \circ T_1

    ``sample`` pushes fresh draws; ``log_prob`` at any point inverts the maps, by Newton's method
    in float64.

    Parameters
    ----------
    base : Measure
        rho_0.
    map : TransportMap
        T: one map, or the composition of all steps so far.
    held : Particles, default=None
        Those that the flow was run on: ``particles`` (n, d), ``weights`` (n,), which sum to 1, and
        ``log_density`` (n,), the exact log rho_k there, without inversion.

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

        Warns
        -----
        ConvergenceWarning
            Where the effective sample size stays below 0.9: rejections aim at 0.999.

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
        ratio = block.log_ratio(u)
        share = effective_sample_size(u - ratio, ratio.exp())
        if share < LEAST:
            warnings.warn(
                f"corrected: the effective sample size after rejections is {share:.3g}, and 0.999 "
                f"was aimed at: raise most_draws (now {most_draws:g}), take more steps of the flow "
                "before, or start it from a measure that covers the target",
                ConvergenceWarning,
                stacklevel=2,
            )
        return ImportanceMeasure(self, log_prob, (block,))

    def entropy(self) -> float:
        """-E log rho over the particles, in nats."""
        return -float(self.weights @ self.log_density)

    def mass(self, n: int = 4000, generator: torch.Generator | None = None) -> tuple[float, float]:
        """Estimate the integral of the density over R^d, which is 1, and its standard error.

        Importance sampling with the density found by inversion: half of the draws around the
        particles (their kernel estimate), half from their normal law at twice its width.
        """
        gen, m = make_generator(generator), n // 2
        mean, covariance = self._held().mean_and_covariance()
        rows = torch.multinomial(self.weights, 500, replacement=True, generator=gen)
        near = KDE("scott").fit(self.particles[rows].numpy())
        wide = Gaussian(mean.numpy(), 4.0 * covariance.numpy())
        x = torch.cat([near.sample(n - m, gen), wide.sample(m, gen)])
        share = m / n
        proposal = torch.logaddexp(
            near.log_prob(x) + math.log(1.0 - share), wide.log_prob(x) + math.log(share)
        )
        ratio = (self.log_prob(x) - proposal).exp()
        return float(ratio.mean()), float(ratio.std()) / math.sqrt(n)

    @property
    def maps(self) -> tuple[TransportMap, ...]:
        """T_1, ..., T_k."""
        return self.map.maps if isinstance(self.map, Composition) else (self.map,)
