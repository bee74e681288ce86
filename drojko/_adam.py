"""Adam on one flat parameter vector: explicit state, no optimiser objects; batches and rates.

Building any optimiser of torch loads its compiler stack (a second of import time per worker);
the rule itself is a few lines, and an explicit state can be checkpointed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Adam", "Batches", "cosine"]


@dataclass
class Adam:
    r"""Adam, :math:`\theta \leftarrow \theta - \eta\,\hat m / (\sqrt{\hat v} + \epsilon_t)`.

    m and v are exponential means of the gradient and its square, hats remove their start at
    zero, and epsilon_t is 1e-8 divided by the root of v's correction. Write the gradient into
    ``gradient``, then call ``step``. Source: Kingma, Ba (2015, arXiv 1412.6980), in the form at
    the end of their section 2.

    Examples
    --------
    >>> theta = torch.tensor([1.0, -2.0], dtype=torch.float64)
    >>> adam = Adam.like(theta)
    >>> _ = adam.gradient.copy_(torch.tensor([5.0, -0.1]))
    >>> adam.step(theta, rate=0.1)
    >>> [round(t, 6) for t in theta.tolist()]  # the first step has the length of the rate
    [0.9, -1.9]
    """

    gradient: Tensor
    first: Tensor
    second: Tensor
    count: int = 0
    decay: tuple[float, float] = (0.9, 0.999)

    @staticmethod
    def like(flat: Tensor) -> Adam:
        """Zero moments for a parameter vector."""
        return Adam(torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros_like(flat))

    def step(self, flat: Tensor, rate: float) -> None:
        """One step along ``self.gradient`` with learning rate ``rate``."""
        b1, b2 = self.decay
        self.count += 1
        self.first.mul_(b1).add_(self.gradient, alpha=1 - b1)
        self.second.mul_(b2).addcmul_(self.gradient, self.gradient, value=1 - b2)
        scale = math.sqrt(1 - b2**self.count) / (1 - b1**self.count)
        flat.addcdiv_(self.first, self.second.sqrt().add_(1e-8), value=-rate * scale)


class Batches:
    """Mini-batches without replacement: a new order once fewer than ``size`` of n rows are left.

    Examples
    --------
    >>> batches = Batches(5, 2, torch.Generator().manual_seed(0))
    >>> len(set(torch.cat([batches.next(), batches.next()]).tolist()))
    4
    """

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self.n, self.size, self.generator = n, size, generator
        self.order, self.place = torch.randperm(n, generator=generator), 0

    def next(self) -> Tensor:
        """Indices of the next batch, shape (size,)."""
        if self.place + self.size > self.n:
            self.order, self.place = torch.randperm(self.n, generator=self.generator), 0
        self.place += self.size
        return self.order[self.place - self.size : self.place]


def cosine(progress: float, least: float = 0.0) -> float:
    """Share of a learning rate at a progress in [0, 1]: from 1 to ``least`` along a cosine.

    >>> cosine(0.0), round(cosine(1.0, 0.05), 6)
    (1.0, 0.05)
    """
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * progress))
