"""One proximal problem over maps, min G(T) + 1/(2 tau) E|T - A|^2, on given particles."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drojko.flows.functionals.base import Functional
from drojko.flows.particles import Particles
from drojko.transport.icnn import ICNN
from drojko.transport.jet import Jet, Probes, jet, stochastic_jet
from drojko.transport.maps import AffineMap, TransportMap

__all__ = ["Evaluated", "FittedMap", "MapProblem"]

_ROWS = 256  # points at once: their tangents stay in the cache


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Value of the problem at a map, with derivatives in its images and log-determinants."""

    value: float
    energy: float
    move: float  # E|T - A|^2
    image: Tensor
    log_det: Tensor
    d_image: Tensor
    d_log_det: Tensor


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A proximal step's map with what it does to the particles, trained on and kept apart."""

    map: TransportMap
    potential: ICNN | None
    train: Evaluated
    held: Evaluated
    refined: bool


@dataclass(frozen=True, eq=False)
class MapProblem:
    r"""J(T) = F(T#rho) + E|T - A|^2 / (2 tau), on particles; tau may be infinite.

    ``centre`` and ``scale`` condition potentials: T(x) = centre + scale grad psi(x'),
    x' = (x - centre) / scale.
    """

    functional: Functional
    particles: Particles
    tau: float
    centre: Tensor
    scale: float

    @staticmethod
    def of(functional: Functional, particles: Particles, tau: float) -> MapProblem:
        """The problem conditioned by its own particles."""
        mean, covariance = particles.mean_and_covariance()
        scale = math.sqrt(float(covariance.diagonal().mean())) or 1.0
        return MapProblem(functional, particles, tau, mean, scale)

    def on(self, particles: Particles) -> MapProblem:
        """The same problem on other particles, in the same coordinates."""
        return replace(self, particles=particles)

    def frozen(self, z: Tensor) -> MapProblem:
        """The problem with its functional held at images z (see `Functional.at`)."""
        return replace(self, functional=self.functional.at(z, self.particles.w))

    @property
    def inner(self) -> Tensor:
        """The particles in the potential's coordinates."""
        return (self.particles.x - self.centre) / self.scale

    def take(self, rows: Tensor) -> MapProblem:
        """The problem on some of its particles."""
        return replace(
            self, functional=self.functional.take(rows), particles=self.particles.take(rows)
        )

    @property
    def dense(self) -> bool:
        """Whether the functional asks for log-determinants."""
        return self.functional.density != "none"

    def evaluate(self, image: Tensor, log_det: Tensor) -> Evaluated:
        """J from images (n, d) and log-determinants (n,)."""
        p = self.particles
        energy = self.functional.evaluate(image, p.log_density - log_det, p.w)
        miss = image - (p.x if p.anchor is None else p.anchor)
        move = float((p.w * miss.square().sum(1)).sum())
        value, d_image = energy.value, energy.point
        if math.isfinite(self.tau):
            value = value + move / (2.0 * self.tau)
            d_image = torch.addcmul(d_image, p.w.unsqueeze(1), miss, value=1.0 / self.tau)
        return Evaluated(value, energy.value, move, image, log_det, d_image, -energy.log_density)

    @torch.no_grad()
    def at_potential(self, potential: Any, probes: Probes | None = None) -> Evaluated:
        """J at the gradient of a potential; with ``probes`` estimated, always from the same ones.

        Estimates of two potentials compare: they have their probes in common.
        """
        gen = torch.Generator().manual_seed(0)
        found = [_jet(potential, part, gen, probes) for part in self.inner.split(_ROWS)]
        image, log_det = (torch.cat(p) for p in zip(*((at.image, at.log_det) for at in found)))
        return self.evaluate(image * self.scale + self.centre, log_det)

    def with_gradient(
        self, potential: Any, generator: torch.Generator | None = None, probes: Probes | None = None
    ) -> tuple[float, list]:
        """J at a potential and its gradient in the parameters.

        With ``probes`` both are unbiased estimates, from signs of the generator.
        """
        if not self.dense and isinstance(potential, ICNN):
            out, back = potential.linearise(self.inner)
            zeros = out.new_zeros(len(out))
            found = self.evaluate(out * self.scale + self.centre, zeros)
            return found.value, back(found.d_image * self.scale)
        with torch.enable_grad():
            found = _jet(potential, self.inner, generator, probes)
        result = self.evaluate(found.image * self.scale + self.centre, found.log_det)
        return result.value, found.backward(result.d_image * self.scale, result.d_log_det)

    def affine_gap(self, at: Evaluated, affine: AffineMap) -> float:
        r"""Share of the variance of dF/drho that an affine map leaves: 0 where it is optimal.

        T is optimal among all maps where dF/drho(z) + phi(z) is constant, grad phi(z) =
        (z - T^-1 z) / tau; of an affine T, phi is a quadratic. 1 where dF/drho is not known, and
        for other anchors than the particles.
        """
        p = self.particles
        change = self.functional.first_variation(at.image, p.log_density - at.log_det)
        first = self.functional.first_variation(p.x, p.log_density)
        if change is None or first is None or (math.isfinite(self.tau) and p.anchor is not None):
            return 1.0
        if math.isfinite(self.tau):
            mean = p.w @ at.image
            back = affine.inverse(mean.unsqueeze(0))
            centred = at.image - mean
            slope = centred - (p.x - back)  # z - mean - T^-1 z + T^-1 mean, linear in z
            phi = 0.5 * (centred * slope).sum(1) + centred @ (mean - back[0])
            change = change + phi / self.tau
        spread = [float((p.w * (v - p.w @ v).square()).sum()) for v in (change, first)]
        return spread[0] / max(spread[1], 1e-300) if math.isfinite(spread[0]) else 1.0

    def residual(self, at: Evaluated) -> tuple[float, float]:
        r"""Miss of the translation and of the linear identity, per step size.

        At the optimum the value does not change along T -> T + e (a T + b):
        E dJ/dT = 0 and E dJ/dT T' + (E dJ/dlogdet) I = 0. For the Kullback-Leibler flow these are
        E[T - x]/h + E grad V(T) = 0 and E[(T - x) T']/h + E[grad V(T) T'] = I.
        """
        shift = at.d_image.sum(0)
        matrix = at.d_image.T @ (at.image - self.centre)
        matrix = matrix + at.d_log_det.sum() * torch.eye(len(shift)).to(matrix)
        return float(shift.norm()), float(matrix.norm())


def _jet(
    potential: Any, x: Tensor, generator: torch.Generator | None, probes: Probes | None
) -> Jet:
    if isinstance(potential, ICNN):
        if probes is None or generator is None:
            return jet(potential, x)
        return stochastic_jet(potential, x, generator, probes)
    image, hessian = potential.jet(x)
    factor, _ = torch.linalg.cholesky_ex(hessian)
    log_det = 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def backward(g: Tensor, c: Tensor) -> list[Tensor]:
        total = (image * g).sum() + (log_det * c).sum()
        return list(torch.autograd.grad(total, list(potential.parameters())))

    return Jet(image.detach(), hessian, log_det.detach(), backward)
