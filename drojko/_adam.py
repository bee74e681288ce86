"""Adam on one flat parameter vector: explicit state, no optimiser objects.

Building any optimiser of torch loads its compiler stack (a second of import time per worker);
the rule itself is a few lines, and an explicit state can be checkpointed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Adam"]


@dataclass
class Adam:
    """Moments of Adam (Kingma, Ba, 2015, arXiv 1412.6980); ``step`` updates ``flat`` in place."""

    gradient: Tensor
    first: Tensor
    second: Tensor
    count: int = 0
    decay: tuple[float, float] = (0.9, 0.999)

    @staticmethod
    def like(flat: Tensor) -> Adam:
        return Adam(torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros_like(flat))

    def step(self, flat: Tensor, rate: float) -> None:
        """One step along ``self.gradient`` with learning rate ``rate``."""
        b1, b2 = self.decay
        self.count += 1
        self.first.mul_(b1).add_(self.gradient, alpha=1 - b1)
        self.second.mul_(b2).addcmul_(self.gradient, self.gradient, value=1 - b2)
        scale = math.sqrt(1 - b2**self.count) / (1 - b1**self.count)
        flat.addcdiv_(self.first, self.second.sqrt().add_(1e-8), value=-rate * scale)
