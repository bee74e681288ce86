"""One phase of a semi-dual flow: the map and the critic trained against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.flows.functionals.base import Functional
from drojko.flows.functionals.conjugates import Conjugate
from drojko.flows.particles import Particles
from drojko.flows.semidual.nets import Critic, WholeMap, gaussian_log_ratio
from drojko.models import Learner

__all__ = ["Cloud", "Phase"]

_OFFSET = 1e-3  # of the difference quotient in the gradient penalty, in units of the spread


@dataclass(frozen=True, eq=False)
class Cloud:
    """Weighted points, drawn from with replacement."""

    x: Tensor
    edges: Tensor | None  # cumulated weights; None where they are equal

    @staticmethod
    def of(x: Tensor, w: Tensor) -> Cloud:
        """Points x (n, d) of weights w (n,)."""
        equal = bool(((w - w[0]).abs() <= 1e-12 * w[0]).all())
        return Cloud(x, None if equal else torch.cumsum(w, 0))

    def rows(self, n: int, generator: torch.Generator) -> Tensor:
        """N rows with their probabilities."""
        if self.edges is None:
            return torch.randint(len(self.x), (n,), generator=generator)
        u = torch.rand(n, generator=generator, dtype=torch.float64) * self.edges[-1]
        return torch.searchsorted(self.edges, u, right=True).clamp_max_(len(self.x) - 1)


@dataclass(eq=False)
class Phase:
    r"""inf_T sup_w E|T - A|^2 / (2h) + E V(T) + c [E u(w(T)) - E_nu f*(u(w))], on two clouds.

    ``anchor`` (n, d) is where the last map put the same base point. Counts ``rows``: how many
    points went through a network.
    """

    map: WholeMap
    critic: Critic
    learners: tuple[Learner, Learner]
    conjugate: Conjugate
    factor: float
    rest: Functional | None
    h: float
    base: Cloud
    inner: Tensor
    anchor: Tensor
    target: Cloud
    generator: torch.Generator
    penalty: float
    noise: float
    loss: Conjugate
    rows: int = 0

    def train(
        self, iterations: int, batch: int, larger: int, map_steps: int, rates: tuple[float, float]
    ) -> None:
        """Alternate; rates fall to a twentieth along a cosine. No map steps: the critic alone.

        A fixed number of steps of a game, which nothing ends early; Ctrl-C ends the flow around.
        """
        out = self.map.linearise(self.inner)[0] if map_steps == 0 else None
        for i in range(iterations):
            decay = 0.525 + 0.475 * math.cos(math.pi * i / iterations)
            images = None if out is None else out[self.base.rows(batch, self.generator)]
            for _ in range(map_steps):
                images = self._map_step(batch, rates[0] * decay)
            if images is not None:
                self._critic_step(images, larger, rates[1] * decay)

    def _map_step(self, batch: int, rate: float) -> Tensor:
        rows = self.base.rows(batch, self.generator)
        out, back = self.map.linearise(self.inner[rows])
        w, slope = self.critic.linearise(out)
        gradient = slope(self.factor * self.conjugate.potential(w)[1])
        if math.isfinite(self.h):
            gradient = gradient + (out - self.anchor[rows]) / self.h
        gradient = gradient / batch
        if self.rest is not None:
            z = out.double()
            mass = torch.full((batch,), 1.0 / batch, dtype=z.dtype)
            gradient = gradient + self.rest.evaluate(z, torch.zeros_like(mass), mass).point.float()
        self.learners[0].step(back(gradient), rate)
        self.rows += 2 * batch
        return out

    def _critic_step(self, images: Tensor, larger: int, rate: float) -> None:
        y = self.target.x[self.target.rows(larger, self.generator)]
        if self.noise > 0.0:
            y = y + self.noise * torch.randn(y.shape, generator=self.generator)
        n, points = len(images), [images, y]
        if self.penalty > 0.0:
            z = torch.randn(y.shape, generator=self.generator) * _OFFSET * self.critic.spread.to(y)
            points += [y + z, y - z]
        w, back = self.critic.linearise(torch.cat(points))
        g = torch.zeros_like(w)
        loss = self.loss
        g[:n] = -loss.potential(w[:n])[1] / n
        g[n : n + larger] = loss.conjugate(w[n : n + larger])[1] / larger
        if self.penalty > 0.0:  # E (z'grad w)^2 = |spread grad w|^2 for standard normal z
            change = (w[n + larger : n + 2 * larger] - w[n + 2 * larger :]) / (2.0 * _OFFSET)
            part = self.penalty * change / (2.0 * _OFFSET * larger)
            g[n + larger : n + 2 * larger], g[n + 2 * larger :] = part, -part
        self.learners[1].step(back(g, parameters=True), rate)
        self.rows += len(w)

    def fix_ratio(self, x: Particles, y: Particles) -> None:
        """Let the critic start from the log ratio of Gaussian fits to images and the target."""
        fits = *x.mean_and_covariance(), *y.mean_and_covariance()
        self.critic.fix(*gaussian_log_ratio(*fits))
