r"""Columns that change by swaps: their categories by row, and worst cases that swap.

.. math:: \max_c\; G(u_i(c), \sigma) - \lambda\,fee_i(c), \qquad
          u_i(c) = u_i + \sum_{g\ \mathrm{swapped}} (v_{g, c_g} - v_{g, own})^\top\theta

over all choices of a category in each group; of these `drojko.inner.swaps.best_prefix` leaves few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from drojko.ambiguity.ground.cost import GroundCost
from drojko.inner.swaps import Swaps, best_prefix
from drojko.minimax.transport.risk import RidgeData, _Model, _Plan

__all__ = ["Groups"]


@dataclass(frozen=True, eq=False)
class Groups:
    """What may be swapped, and the category (n, G) that each row has in each group."""

    swaps: Swaps
    own: torch.Tensor

    @classmethod
    def of(cls, cost: GroundCost, x: np.ndarray) -> Groups | None:
        """Of rows (n, d); None where no group has a finite price and two categories."""
        swaps = Swaps.of(cost, {"dtype": torch.float64, "device": "cpu"})
        if swaps is None:
            return None
        return cls(swaps, swaps.state(torch.as_tensor(x).double()))

    @property
    def largest(self) -> float:
        """The price of the dearest group."""
        return float(self.swaps.costs.max())

    def model(self, data: RidgeData, coef: np.ndarray, intercept: float) -> _Swapped:
        """A fixed model whose worst cases swap."""
        return _Swapped(data, coef, intercept)


class _Swapped(_Model):
    """Worst cases of one model, categories included."""

    def plan(self, lam: float) -> _Plan:
        """Infinite up to the growth of the loss."""
        if self.loss.growth and lam <= self.loss.growth * self.norm:
            return _Plan(lam, math.inf, math.inf, math.inf)
        return super().plan(lam)

    def _moved(
        self, part: slice, lam: float, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if math.isinf(lam):
            return super()._moved(part, lam, y)
        groups: Any = self.data.swaps
        u, kappa = self.u[part], lam / self.norm if self.norm else math.inf
        theta, f, target = (torch.from_numpy(a) for a in (self.coef, u, y))
        found = best_prefix(groups.swaps, groups.own[part], theta, self.loss, f, target, lam, kappa)
        moved, paid = found[1].numpy(), found[2].numpy()
        shift, cost, risk = self._along(u + moved, lam, y)
        return moved + shift, cost + paid, risk
