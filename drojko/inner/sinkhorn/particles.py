r"""Draws of the tilted laws gamma_x of any model, with weights: log-mean-exp by sampling.

For each sample x with worst-case position z* (the mode of gamma_x, found by proximal ascent) draws
come in antithetic pairs, half of them around x and half around z*, and are weighted against Q_x,

.. math:: \log w = \frac{\ell(z)}{\lambda\varepsilon}
          - \log \tfrac12\left(1 + e^{(c(z, x) - c(z, z^*)) / \varepsilon}\right), \qquad
          \hat G = \lambda\varepsilon \log \tfrac1m \sum_k w_k .

The mixture keeps the weights below twice those of plain sampling, whatever z* is. By Jensen's
inequality E G_hat <= G: the estimate is low by about lambda epsilon Var(w) / (2 m E(w)^2), so that
it is a lower bound in the mean; `Particles.debiased` takes that term off (the jackknife).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.inner.objective import Batch, Objective

__all__ = ["Particles", "blocks", "draw_particles"]

_ROWS = 1 << 14


@dataclass(frozen=True)
class Particles:
    """Draws q (m, n, r), their losses (m, n) and log proposal ratios (m, n), at any penalty.

    ``epsilon`` is in units of X squared. The first half of the draws is centred at the samples
    themselves, an unweighted sample of Q_x.
    """

    q: Tensor
    losses: Tensor
    ratio: Tensor
    epsilon: float

    def log_weights(self, penalty: float) -> Tensor:
        """Unnormalised log weights log w, shape (m, n)."""
        if math.isinf(penalty):
            return self.ratio
        return self.losses / (penalty * self.epsilon) + self.ratio

    def weights(self, penalty: float) -> Tensor:
        """Self-normalised weights, shape (m, n): they sum to 1 over the draws."""
        return torch.softmax(self.log_weights(penalty), 0)

    def value(self, penalty: float) -> Tensor:
        """G_hat, shape (n,); at an infinite penalty the mean loss under Q_x."""
        if math.isinf(penalty):
            return (self.weights(penalty) * self.losses).sum(0)
        # Normalised by the mean proposal ratio, whose expectation is 1: exact at constant losses.
        log_mean = torch.logsumexp(self.log_weights(penalty), 0) - math.log(len(self.losses))
        return penalty * self.epsilon * log_mean

    def debiased(self, penalty: float) -> Tensor:
        """G_hat plus the leading term of its bias, shape (n,)."""
        if math.isinf(penalty):
            return self.value(penalty)
        return self.value(penalty) + 0.5 * penalty * self.epsilon * self._dispersion(penalty)

    def variance(self, penalty: float) -> Tensor:
        """Sampling variance of G_hat, shape (n,)."""
        if math.isinf(penalty):
            return self.plain.var(0) / len(self.plain)
        return (penalty * self.epsilon) ** 2 * self._dispersion(penalty)

    def _dispersion(self, penalty: float) -> Tensor:
        """Var(w) / (m E(w)^2) of pairs' means: antithetic draws are not independent."""
        w = self.weights(penalty) * len(self.losses)
        pairs = 0.5 * (w[0::2] + w[1::2])
        return pairs.var(0, unbiased=len(pairs) > 1) / len(pairs)

    def risk(self, penalty: float) -> Tensor:
        """Mean loss under the tilted laws, shape (n,)."""
        return (self.weights(penalty) * self.losses).sum(0)

    def divergence(self, penalty: float) -> Tensor:
        """Cost epsilon * KL(gamma_x || Q_x), shape (n,)."""
        if math.isinf(penalty):
            return torch.zeros_like(self.losses[0])
        return (self.risk(penalty) - self.value(penalty)) / penalty

    @property
    def plain(self) -> Tensor:
        """Losses of the draws of Q_x itself, shape (m/2, n)."""
        return self.losses[: len(self.losses) // 2]


def draw_particles(
    objective: Objective,
    batch: Batch,
    modes: Tensor,
    epsilon: float,
    m: int,
    generator: torch.Generator,
) -> Particles:
    """Draw ``m`` particles (a multiple of 4) for each sample of a batch.

    ``modes`` (n, r) are the positions that half of them are centred at; only the objective's
    model, loss and coordinates are used, not its penalty.
    """
    n, r = batch.q0.shape
    quarter = max(1, m // 4)
    scale = objective.coordinates.scale
    deviation = math.sqrt(0.5 * epsilon) / scale
    like = {"dtype": batch.q0.dtype, "device": batch.q0.device}
    noise = torch.randn(2 * quarter, n, r, generator=generator, dtype=torch.float64).to(**like)
    noise = torch.stack([noise, -noise], 1).flatten(0, 1) * deviation
    centre = torch.stack([batch.q0, modes])
    q = noise + centre.repeat_interleave(2 * quarter, 0)
    near = (q - batch.q0).square().sum(2)
    far = (q - modes).square().sum(2)
    exponent = (near - far) * (scale**2 / epsilon)
    ratio = math.log(2.0) - torch.logaddexp(torch.zeros_like(exponent), exponent)
    losses = [objective.risk(rows, part).view(-1, n) for rows, part in blocks(batch, q)]
    return Particles(q, torch.cat(losses), ratio, epsilon)


def blocks(batch: Batch, q: Tensor) -> Iterator[tuple[Batch, Tensor]]:
    """Particles q (m, n, r) as rows (k n, r) with the samples that they belong to, in order."""
    n = len(batch)
    for part in q.split(max(1, _ROWS // max(1, n))):
        yield batch.repeat(len(part)) if len(part) > 1 else batch, part.flatten(0, 1)
