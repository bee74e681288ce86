r"""Sinkhorn minimax by sampling: for the models that have no one-dimensional tilt.

The outer solvers ask a problem for moved samples, their risk and cost, and for the gradient of the
parameters there. Here a sample moves to all of its tilted particles at once, its risk is the mean
loss under gamma_x and its cost epsilon KL(gamma_x \|\| Q_x), so quasi-Newton and subgradient
methods apply as they are: by Danskin's theorem the gradient is

.. math:: \nabla_\theta = E_x \sum_k \hat w_k \nabla_\theta \ell(\theta; z_k), \qquad
          \partial_\lambda = \rho - \varepsilon E_x \mathrm{KL}(\gamma_x \| Q_x)

at self-normalised weights. Both are exact gradients of the sampled objective, whose mean lies below
the true one by about lambda epsilon Var(w) / (2 m E(w)^2) per sample (J. Wang, R. Gao, Y. Xie,
2021, arXiv 2109.11926, section 4, who remove that bias by multilevel sampling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective
from drojko.inner.sinkhorn.particles import Particles, blocks, draw_particles
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.ascent import Ascent
from drojko.minimax.problem import RobustProblem

__all__ = ["SinkhornProblem", "TiltedMoved"]

_MOST = 1 << 22  # numbers in the particles of one evaluation


@dataclass(frozen=True, repr=False)
class TiltedMoved(Moved):
    """A batch and the particles of its tilted laws; ``q`` are the modes they were drawn around."""

    particles: Particles | None = None

    def better(self, other: Moved) -> TiltedMoved:
        """Itself: a law is not improved by a point."""
        return self


@dataclass(frozen=True)
class SinkhornProblem(RobustProblem):
    r"""Minimise :math:`\sup\{E_P\ell : P \in \mathrm{Sinkhorn}_\varepsilon(r^2)\}` by sampling.

    As `RobustProblem`, where ``radius`` is the root of the set's radius, so that its square is the
    budget as for other sets. ``epsilon`` is in the units of the data. ``seed``: common random
    numbers at every evaluation; None: fresh ones from ``stream``. Draws follow the modes of the
    model at hand: around fixed ones, training finds models whose losses explode between them.
    """

    epsilon: float = 0.1
    m: int = 32
    seed: int | None = None
    stream: torch.Generator | None = None
    single: ClassVar[bool] = False

    @property
    def inner_epsilon(self) -> float:
        """Epsilon in the units that the problem is solved in."""
        return self.epsilon / self.scale**2

    def move(self, adversary: Adversary, batch: Batch, start: Tensor, corrections: int) -> Moved:
        """Particles around the samples and around the modes that the ascent finds."""
        objective = adversary.objective
        penalty = objective.penalty
        if math.isinf(penalty):
            modes = batch.q0
        else:
            with torch.no_grad():
                worth = objective.value(batch, start) > objective.value(batch, batch.q0)
                start = torch.where(worth.unsqueeze(1), start, batch.q0)
                modes = super().move(adversary, batch, start, corrections).q
        n, r = batch.q0.shape
        m = max(8, 4 * min(self.m // 4, _MOST // (4 * max(1, n * r))))
        if self.seed is None:
            generator = self.stream or torch.Generator().manual_seed(0)
        else:
            generator = torch.Generator().manual_seed(self.seed)
        found = draw_particles(objective, batch, modes, self.inner_epsilon, m, generator)
        risk, value = found.risk(penalty), found.value(penalty)
        cost = found.divergence(penalty)
        ascent = Ascent(modes, value, torch.zeros_like(modes))
        return TiltedMoved(batch, batch, ascent, value, cost, risk, found)

    def parameter_gradient(self, objective: Objective, moved: Moved, weights: Tensor):
        """Danskin: gradients at all particles with their weights."""
        particles = getattr(moved, "particles", None)
        if particles is None:
            return super().parameter_gradient(objective, moved, weights)
        share = particles.weights(objective.penalty) * weights.to(particles.losses.dtype)
        total: list[Tensor] = []
        masses = share.flatten()
        for rows, q in blocks(moved.batch, particles.q):
            mass, masses = masses[: len(q)], masses[len(q) :]
            at = Moved(rows, rows, replace(moved.found, q=q), mass, mass, mass)
            part = super().parameter_gradient(objective, at, mass)
            total = [a + b for a, b in zip(total, part)] if total else list(part)
        return total
