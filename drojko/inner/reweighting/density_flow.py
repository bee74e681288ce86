"""The worst case of a density-ratio set as a flow: maps that carry the reference to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko.ambiguity.duals.density_ratio import DensityRatioSet
from drojko.exceptions import UnsupportedError
from drojko.flows.functionals import FDivergence, Functional, KLDivergence, PotentialEnergy
from drojko.flows.functionals.energies import scale_and_order
from drojko.flows.icnn.map_problem import MapProblem
from drojko.flows.icnn.scheme import ICNNScheme
from drojko.flows.particles import Particles, draw_particles
from drojko.measures.base import Measure
from drojko.transport.maps import TransportMap

__all__ = ["ClassFlow", "DensityFlow"]


@dataclass(frozen=True, eq=False)
class ClassFlow:
    r"""A map that carries one reference measure to its worst case, with what it attains.

    Attributes
    ----------
    map : TransportMap
        T: increasing, with inverse and exact Jacobian determinant.
    particles : Particles
        Images of draws that T was not trained on, weights, and log density of T#P0 there.
    value : float
        E loss - penalty * D under T#P0, on those: a lower bound of the worst case, up to their
        sampling error.
    risk, divergence : float
        Its two parts.
    normaliser : float
        E0 of the ratio that belongs to the dual point, by importance sampling from T#P0.
    effective_sample_size : float
        Of that importance sampling, as a share: 1 where T#P0 is the worst case exactly.
    mass : Tensor of shape (n,)
        The particles' masses under the worst case itself: what importance sampling corrects.
    corrected_value : float
        E loss - penalty * D of the worst case itself, estimated with those masses.
    """

    map: TransportMap
    particles: Particles
    value: float
    risk: float
    divergence: float
    normaliser: float
    effective_sample_size: float
    mass: Tensor
    corrected_value: float

    def moments(self, corrected: bool = False) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of T#P0, or of the worst case, by importance sampling."""
        p = self.particles
        if corrected:
            p = Particles(p.x, self.mass, p.log_density)
        return p.mean_and_covariance()


@dataclass(frozen=True)
class DensityFlow:
    r"""Maximise E loss - penalty * D over images T#P0 of the reference, T the gradient of an ICNN.

    .. math:: T_{k+1} = \arg\max_T\; E_{P_0}\, \ell(T(x)) - \lambda D(T_\# P_0, P_0)
              - \tfrac{1}{2\tau} E\|T - T_k\|^2

    For KL this is KL to p0 exp(loss / penalty), up to a constant; for chi-square and Cressie-Read
    the divergence is that of r(T(x)) = p0(x) / (det DT(x) p0(T(x))).

    Parameters
    ----------
    scheme : ICNNScheme
        How a map is fitted.
    steps : int
        Modified JKO steps, all from the reference itself; the maps replace each other.
    tau : float
        Their step size in units of the reference's variance over the penalty; infinity: none.

    Notes
    -----
    For a log-concave reference and a penalty above the loss's curvature over that of -log p0 the
    problem is concave along maps. The value is exact in the affine part for references whose
    moments are known (`draw_particles`). Source: the modified JKO scheme of Zhu and Xie (2024,
    arXiv 2412.20556).

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> from drojko.measures import Gaussian
    >>> flow = DensityFlow().fit(KL(penalty=2.0), 2.0, 0.25, lambda x: x[:, 0],
    ...                          Gaussian([0.0], [[1.0]]), 0)
    >>> round(float(flow.moments()[0]), 4), round(flow.value, 4)  # N(1/2, 1), 1/4
    (0.5, 0.25)
    """

    scheme: ICNNScheme = field(default_factory=lambda: ICNNScheme(n_particles=8000, iterations=600))
    steps: int = 1
    tau: float = math.inf

    @staticmethod
    def functional(
        ambiguity: DensityRatioSet,
        penalty: float,
        loss: Callable[[Tensor], Tensor],
        log_prob: Callable[[Tensor], Tensor],
        log_share: float = 0.0,
    ) -> Functional:
        """Minus the inner objective, up to a constant, as a functional of T#P0.

        ``log_share`` is the logarithm of the change of the class's mass.
        """
        known = ambiguity.divergence
        if known is None:
            raise UnsupportedError(
                f"{type(ambiguity).__name__}: its worst case has a density with jumps, which no "
                "smooth map gives, or one that no flow has formulas for; sample from the "
                "reweighted reference instead"
            )
        if known.kind == "kl":
            return penalty * KLDivergence(lambda z: log_prob(z) + loss(z) / penalty)
        gain = PotentialEnergy(lambda z: -loss(z))

        def reference(z: Tensor) -> Tensor:
            return log_prob(z) - log_share

        return gain + penalty * FDivergence(reference, known.kind, known.order)

    def fit(
        self,
        ambiguity: DensityRatioSet,
        penalty: float,
        shift: float,
        loss: Callable[[Tensor], Tensor],
        reference: Measure,
        random_state: object = None,
        log_share: float = 0.0,
    ) -> ClassFlow:
        """Learn the map of one reference measure at a dual point.

        Parameters
        ----------
        ambiguity : KL, ChiSquare or CressieRead
        penalty, shift : float
            The dual point; ``shift`` is for the normaliser alone.
        loss : callable
            Points (n, d) -> (n,), by differentiable torch functions.
        reference : Measure
            P0, with a density.
        random_state : None, int or generator

        Raises
        ------
        UnsupportedError
            For other sets, a reference without density, a loss without gradient, and a penalty
            that is zero or infinite.
        """
        gen = make_generator(random_state)
        check_penalty("a flow", penalty)
        train = draw_particles(reference, self.scheme.n_particles, spawn(gen))
        held = draw_particles(reference, self.scheme.n_particles // 2, spawn(gen))
        if not train.known:
            raise UnsupportedError(
                f"a flow needs a reference with a density; {type(reference).__name__} has none"
            )
        _check_gradient(loss, train.x[:2])
        functional = self.functional(ambiguity, penalty, loss, reference.log_prob, log_share)
        variance = float(train.mean_and_covariance()[1].diagonal().mean())
        tau = self.tau * variance / penalty
        problem = MapProblem.of(functional, train, tau)
        apart = problem.on(held)
        found = self.scheme.fit_map(problem, apart, gen)
        for _ in range(self.steps - 1):
            problem = problem.on(replace(train, anchor=found.train.image))
            apart = problem.on(replace(held, anchor=found.held.image))
            found = self.scheme.fit_map(problem, apart, gen, found.potential)
        p = held.moved(found.held.image, found.held.log_det)
        known: Any = ambiguity.divergence
        kind, k = known.kind, known.order
        with torch.no_grad():
            losses = loss(p.x).detach().double().cpu()
            base = reference.log_prob(p.x)
            measured = FDivergence(lambda z: base - log_share, kind, k)
            risk = float((p.w * losses).sum())
            divergence = measured.value(p.x, p.log_density, p.w)
            log_ratio = torch.from_numpy(ambiguity.log_ratio_at(losses, penalty, shift))
            log_mass = p.w.log() + base + log_ratio - p.log_density
            normaliser = float(torch.logsumexp(log_mass, 0).exp())
            mass = torch.softmax(log_mass, 0)
            own = log_ratio - math.log(normaliser) + log_share
            exact, _ = own_divergence(kind, k, own, mass)
        return ClassFlow(
            found.map,
            p,
            risk - penalty * divergence,
            risk,
            divergence,
            normaliser,
            float(1.0 / (mass.square() / p.w).sum()),
            mass,
            float((mass * losses).sum()) - penalty * exact,
        )


def check_penalty(what: str, penalty: float) -> None:
    """Raise `UnsupportedError` for dual points at which nothing, or everything, moves."""
    if not 0.0 < penalty < math.inf:
        raise UnsupportedError(
            f"{what} needs a positive, finite penalty; this dual point has {penalty:g}: "
            + ("nothing moves" if penalty else "all mass is on the largest loss")
        )


def _check_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.enable_grad():
        if not loss(x.detach().requires_grad_(True)).requires_grad:
            raise UnsupportedError(
                "a flow follows the gradient of the loss in x, and this loss has none (it does "
                "not depend on x, or was detached)"
            )


def own_divergence(kind: str, k: float, u: Tensor, mass: Tensor) -> tuple[float, Tensor]:
    """E0 f(r) from u = log r at points of mass under r P0, and its terms f(r)/r, up to a constant.

    In E0 r^k - 1 and E0 r log r the points without ratio count nothing, so nothing is missed.
    """
    terms, (scale, k) = torch.where(mass > 0, u, torch.zeros_like(u)), scale_and_order(kind, k)
    if k != 1.0:
        terms = scale / (k * (k - 1.0)) * (((k - 1.0) * terms).exp() - 1.0)
    return float(mass @ terms), terms
