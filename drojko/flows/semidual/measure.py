"""Measures along a semi-dual flow: they are sampled, and know their ratio to the target."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from drojko.exceptions import UnsupportedError
from drojko.flows.functionals.divergence_to import Conjugate
from drojko.flows.particles import ParticleMeasure, Particles
from drojko.flows.semidual.nets import Critic, WholeMap
from drojko.measures._arrays import queries
from drojko.measures.base import Measure

__all__ = ["SemiDualStep"]


class SemiDualStep(ParticleMeasure):
    r"""rho_k = T_k#rho_0 with one network T_k from the start, and d rho_k / d nu from the critic.

    ``sample`` pushes fresh draws of the initial measure through one network. There is no
    ``log_prob``: T_k has no inverse in closed form, and the target no density. `log_ratio` is
    what is known.

    Parameters
    ----------
    base : Measure
        rho_0.
    map : WholeMap
        T_k.
    critic : Critic
        w, of which log_ratio and potential are functions.
    conjugate : Conjugate
        Of the divergence.
    held : Particles, default=None
        ``particles`` (n, d) and ``weights`` (n,), the last ones of the step.

    Examples
    --------
    >>> import torch
    >>> from drojko.flows import JKOFlow, SemiDualScheme
    >>> from drojko.flows.functionals import DivergenceTo
    >>> from drojko.measures import Gaussian
    >>> flow = JKOFlow(DivergenceTo(Gaussian([1.0], [[1.0]])), SemiDualScheme(), step_size=1.0)
    >>> step = flow.run(Gaussian([0.0], [[1.0]]), 1, random_state=0).measures[-1]
    >>> step.sample(3, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 1])
    >>> [round(v, 1) for v in step.log_ratio([[0.0], [2.0]]).tolist()]   # N(1/2, 1) to N(1, 1)
    [0.4, -0.6]
    """

    def __init__(
        self,
        base: Measure,
        map: WholeMap,
        critic: Critic,
        conjugate: Conjugate,
        held: Particles | None = None,
    ) -> None:
        super().__init__(base, map, held)
        self.critic = critic
        self.conjugate = conjugate

    def in_units(self, base: Measure, centre: Tensor, unit: Tensor) -> SemiDualStep:
        """The same step for x = centre + unit * z, of which ``base`` is the initial measure."""
        held = self.held
        if held is not None:
            held = Particles(centre + unit * held.x, held.w, held.log_density, held.known)
        map: Any = self.map
        nets = map.in_units(centre, unit), self.critic.in_units(centre, unit)
        return SemiDualStep(base, *nets, self.conjugate, held)

    def log_ratio(self, x: Any) -> Tensor:
        """Log d rho_k / d nu at the rows of x, shape (n,), as the critic learned it."""
        return self.conjugate.ratio(self.critic.value(queries(x, self.dim).double())).log()

    def potential(self, x: Any) -> Tensor:
        """The critic u at the rows of x, shape (n,): the derivative of D_f in rho."""
        return self.conjugate.potential(self.critic.value(queries(x, self.dim).double()))[0]

    def log_prob(self, x: Any) -> Tensor:
        """Raise `UnsupportedError`: samples are all that is known, of rho_k as of its target."""
        raise UnsupportedError(
            "a semi-dual flow has no density: its target is known by samples, and its map has "
            "neither an inverse nor a Jacobian determinant in closed form. Use log_ratio(x), the "
            "log density relative to the target (add the target's own log_prob where it has one), "
            "or ICNNScheme with KLDivergence for a flow with densities"
        )
