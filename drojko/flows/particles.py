"""Weighted particles with their log densities: how they are drawn, and measures that keep them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko.exceptions import UnsupportedError
from drojko.measures.base import Measure
from drojko.measures.pushforward import Pushforward

__all__ = ["ParticleMeasure", "Particles", "draw_particles", "match_moments"]


@dataclass(frozen=True, eq=False)
class Particles:
    """Points x (n, d), weights w (n,) with sum 1, log rho(x) (n,), and where T is held to be near.

    ``anchor`` (n, d) is x itself in a gradient flow, the last map's image in the modified scheme.
    ``known`` says whether log rho is; zeros stand for it where it is not.
    """

    x: Tensor
    w: Tensor
    log_density: Tensor
    known: bool = True
    anchor: Tensor | None = None

    def moved(self, z: Tensor, log_det: Tensor) -> Particles:
        """The particles pushed by a map."""
        return Particles(z, self.w, self.log_density - log_det, self.known)

    def take(self, rows: Tensor) -> Particles:
        """Some of the particles, with weights that sum to 1."""
        w = self.w[rows]
        anchor = None if self.anchor is None else self.anchor[rows]
        return Particles(self.x[rows], w / w.sum(), self.log_density[rows], self.known, anchor)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Weighted moments, shapes (d,) and (d, d)."""
        mean = self.w @ self.x
        centred = self.x - mean
        return mean, (self.w.unsqueeze(1) * centred).T @ centred


class ParticleMeasure(Pushforward):
    """The image of a measure under a map, with the particles that a flow moved there."""

    def __init__(self, base: Measure, map: Any, held: Particles | None = None) -> None:
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

    def _held(self) -> Particles:
        if self.held is None:
            raise UnsupportedError("this step keeps no particles; draw a sample")
        return self.held


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
    x, w = getattr(measure, "mirrored_points", measure.points)(n, gen)
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
