"""The ICNN scheme: JKO steps over gradients of input-convex networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from drojko.exceptions import InvalidDataError
from drojko.flows.icnn.affine_fit import AffineStart
from drojko.flows.icnn.map_problem import FittedMap, MapProblem
from drojko.flows.icnn.refinement import DENSE, Refinement, fresh, polish, warm
from drojko.transport.icnn import ICNN
from drojko.transport.jet import Probes

__all__ = ["ICNNScheme"]


@dataclass(frozen=True)
class ICNNScheme:
    r"""JKO steps :math:`\min_T F(T_\#\rho) + E|T - x|^2 / 2h` over gradients of ICNNs.

    Densities are known through log det DT. The affine map comes first (its own L-BFGS, exact); a
    network starts from it, or from the last step's layers with a new affine part, and is kept
    where it gains. The quadratic part of its potential is solved for exactly before, and again
    after, the layers are trained.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the potential.
    n_particles : int
        Particles that maps are trained on; half as many are kept apart to judge them.
    iterations, batch_size, rate : int, int, float
        Most Adam iterations per step, particles in each, and their first learning rate.
        0 iterations: affine maps only.
    tol : float
        A network is kept where it gains more than this share of what the affine map gains.
    log_det : {"auto", "exact", "stochastic"}
        How the Hessians' log-determinants enter the training of a map. "stochastic": by products
        with random signs and Lanczos steps (`stochastic_jet`). "auto": that above 32 columns.
        What counts in the end, whether a network is kept, the energy and the densities of the
        particles, is exact.
    probes : Probes
        Of the stochastic form.

    Notes
    -----
    Source: Mokrov, Korotin, Li, Genevay, Solomon, Burnaev (2021, arXiv 2106.00736), without the
    affine part.

    Examples
    --------
    >>> from drojko.flows import JKOFlow
    >>> from drojko.flows.functionals import Entropy
    >>> from drojko.measures import Gaussian
    >>> flow = JKOFlow(Entropy(), ICNNScheme(n_particles=500), step_size=0.1)
    >>> step = flow.run(Gaussian([0.0], [[1.0]]), 1, random_state=0).measures[-1]
    >>> round(float(step.particles.var(correction=0)), 3)  # (1 + 2h + sqrt(1 + 4h)) / 2
    1.192
    """

    hidden: Sequence[int] = (64, 64)
    n_particles: int = 5000
    iterations: int = 150
    batch_size: int = 128
    rate: float = 0.1
    tol: float = 1e-3
    log_det: str = "auto"
    probes: Probes = field(default_factory=Probes)

    def fit_map(
        self,
        train: MapProblem,
        held: MapProblem,
        generator: torch.Generator,
        start: ICNN | None = None,
    ) -> FittedMap:
        """The map that minimises J on ``train``; ``start`` is the potential of the step before.

        A network is kept if it lowers J on the particles kept apart by more than ``tol`` times
        what the affine map does, and by a tenth of what it gains on its own particles: otherwise
        what it learned was those particles.
        """
        if self.log_det not in ("auto", "exact", "stochastic"):
            raise InvalidDataError(
                f"ICNNScheme got log_det={self.log_det!r}; expected auto, exact or stochastic"
            )
        first = AffineStart.of(train, held, start)
        d = train.particles.x.shape[1]
        if self.iterations == 0 or d == 0 or first.optimal:
            return first.fitted
        rough = self.log_det == "stochastic" or (self.log_det == "auto" and d > DENSE)
        probes = self.probes if rough and train.dense else None
        train, held, least = first.train, first.held, self.tol * first.gain
        potential = fresh(train, tuple(self.hidden), first.matrix, first.shift, generator)
        other = None if start is None else warm(train, start, first.matrix, first.shift)
        if other is not None and (
            held.at_potential(other, probes).value < held.at_potential(potential, probes).value
        ):
            potential = other
        refinement = Refinement(
            train, held, generator, self.iterations, self.batch_size, self.rate, 0.1 * least, probes
        )
        potential = refinement.result(potential)
        polish(train, potential)
        found, final = held.at_potential(potential), train.at_potential(potential)
        affine = first.fitted
        gain, own = affine.held.value - found.value, affine.train.value - final.value
        if found.finite and gain > least and gain > 0.1 * own:
            return first.refined(potential, final, found)
        return affine
