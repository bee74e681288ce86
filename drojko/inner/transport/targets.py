"""The worst case of a linear regression whose targets move, too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko.exceptions import UnsupportedError
from drojko.inner.objective import Batch
from drojko.inner.transport.transported import TransportedWorstCase
from drojko.inner.worst_case import quantiles

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TargetsMove"]


@dataclass(frozen=True, repr=False)
class TargetsMove(TransportedWorstCase):
    r"""Rows and targets on the line along which the residual grows at least cost.

    .. math:: x' = x + \frac{t}{n^2}\, C^{-1}\theta, \qquad y' = y - \frac{t}{c\,n^2}, \qquad
        n^2 = \theta^\top C^{-1} \theta + \frac1c

    t is the loss's worst shift at price lambda / n^2 (`Loss.shift`), C the costs of the columns
    and c the ``label_cost``. `displacement` has a last row, "target".

    Attributes
    ----------
    line : (ndarray of shape (d,), float, ndarray of shape (d,), float)
        theta, the intercept, the diagonal of C^{-1}, and c.
    """

    line: tuple[np.ndarray, float, np.ndarray, float] | None = None

    def _images(self, low: bool, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.line is not None
        coef, intercept, inverse, label_cost = self.line
        x, y = batch.x.double(), batch.y.double()
        penalty = self.low_penalty if low else self.high_penalty
        norm = float(inverse @ coef**2) + 1.0 / label_cost
        score = x @ torch.as_tensor(coef).to(x) + intercept
        if math.isinf(penalty):
            t = torch.zeros_like(score)
        else:
            t = self.adversary.objective.loss.shift(score, y, penalty / norm)
        along = torch.as_tensor(inverse * coef / norm).to(x)
        return x + t[:, None] * along, y - t / (label_cost * norm)

    def log_prob(self, X: object, y: object) -> np.ndarray:
        """UnsupportedError: targets move."""
        raise UnsupportedError("log_prob: targets move under this label_cost; use sample")

    @cached_property
    def _moved(self) -> tuple[np.ndarray, ...]:
        """Rows, their images, targets, their images, masses."""
        x, y, w = self.reference.points(2000, make_generator(0))
        batch = self._reference_batch(x, y)
        sides = [(1.0 - self.share, False), (self.share, True)]
        parts = []
        for share, low in sides if self.share > 0.0 else sides[:1]:
            image, target = self._images(low, batch)
            parts.append((batch.x, image, batch.y, target, w.to(image) * share))
        joined = (torch.cat([part.double() for part in side]) for side in zip(*parts, strict=True))
        return tuple(side.cpu().numpy() for side in joined)

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        x, image, y, _, w = self._moved
        return x, image, y, w

    def displacement(self) -> pd.DataFrame:
        """What moves: a row per feature, and one for the target; see `WorstCase.displacement`."""
        import pandas as pd

        assert self.line is not None
        frame = super().displacement()
        x, image, y, target, w = self._moved
        move, mass = target - y, w / w.sum()
        own = self.line[3] * float(mass @ move**2)
        others = float((mass @ self._costs(x, image)).sum())
        total = own + others or 1.0
        frame["share"] *= others / total
        low, middle, high = quantiles(move, mass)
        row = {
            "feature": "target", "mean": float(mass @ move), "q05": low, "median": middle,
            "q95": high, "rms": float(np.sqrt(mass @ move**2)), "share": own / total,
        }  # fmt: skip
        return pd.concat([frame, pd.DataFrame([row])], ignore_index=True)
