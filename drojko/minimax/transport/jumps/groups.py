r"""Columns that change by swaps, columns within bounds, and worst cases of a fixed model there.

.. math:: \max_c\; V_i(u_i(c)) - \lambda\,fee_i(c), \qquad
          u_i(c) = u_i + \sum_{g\ \mathrm{swapped}} (v_{g, c_g} - v_{g, own})^\top\theta

over all choices of a category in each group; of these `drojko.inner.swaps.best_prefix` leaves few.
V is the worst case over the numbers, within bounds by `drojko.inner.reach`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from drojko.ambiguity.ground.cost import GroundCost
from drojko.inner.reach import Reach, worst_slope
from drojko.inner.swaps import Swaps, best_prefix
from drojko.minimax.transport.risk import RidgeData, _Model, _Plan

__all__ = ["Box", "Groups", "Jumping"]

_LEAST = 1e-290  # a price of 0


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

    def model(self, data: RidgeData, coef: np.ndarray, intercept: float) -> Jumping:
        """A fixed model whose worst cases swap."""
        return Jumping(data, coef, intercept)

    @property
    def largest(self) -> float:
        """The price of the dearest group."""
        return float(self.swaps.costs.max())

    def take(self, index: np.ndarray) -> Groups:
        """Of some rows."""
        return Groups(self.swaps, self.own[index])


@dataclass(frozen=True, eq=False)
class Box:
    """Least and largest values of columns, shape (d,) each; infinite without a bound."""

    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def of(cls, cost: GroundCost) -> Box | None:
        """Of a ground cost; None where it has no bounds."""
        if cost.lower is None or cost.upper is None:
            return None
        return cls(np.asarray(cost.lower, float), np.asarray(cost.upper, float))

    def model(self, data: RidgeData, coef: np.ndarray, intercept: float) -> Jumping:
        """A fixed model whose worst cases keep to the bounds."""
        return Jumping(data, coef, intercept)

    @property
    def closed(self) -> np.ndarray:
        """Which columns are bounded on both sides, shape (d,)."""
        return np.isfinite(self.lower) & np.isfinite(self.upper)

    def most(self, data: RidgeData) -> float:
        """No less than the mean cost of anything that rows may do; infinite without bounds."""
        low, high = self.around(data.X, data.inverse_cost)
        far = np.maximum(high, -low)
        jumps = data.label_cost if data.flips else 0.0
        if data.swaps is not None:
            jumps += float(data.swaps.swaps.costs.sum())
        with np.errstate(over="ignore"):
            return 1.01 * (float(data.weight @ (far * far).sum(axis=1)) + jumps)

    def around(self, x: np.ndarray, inverse_cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Room of the columns that move below and above rows x, in units of the cost's root."""
        moves = inverse_cost > 0.0
        root, x = np.sqrt(inverse_cost[moves]), np.asarray(x[:, moves], float)
        low, high = (self.lower[moves] - x) / root, (self.upper[moves] - x) / root
        return np.minimum(low, 0.0), np.maximum(high, 0.0)


class Jumping(_Model):
    """Worst cases of one model, with categories that are swapped and bounds."""

    def __init__(self, data: RidgeData, coef: np.ndarray, intercept: float) -> None:
        super().__init__(data, coef, intercept)
        if data.box is not None:
            moves = data.inverse_cost > 0.0
            self.slope = (np.sqrt(data.inverse_cost) * self.coef)[moves]
            self.room = data.box.around(data.X, data.inverse_cost)

    @property
    def floor(self) -> float:
        """Of columns that no bound holds."""
        open_ = 1.0 if self.data.box is None else ~self.data.box.closed
        return self.loss.growth * float((self.data.inverse_cost * open_) @ self.coef**2)

    def plan(self, lam: float) -> _Plan:
        """Infinite up to the growth of the loss."""
        if self.floor and lam <= self.floor:
            return _Plan(lam, math.inf, math.inf, math.inf)
        return super().plan(lam)

    def _reach(self, part: slice, lam: float) -> Reach:
        low, high = self.room
        return Reach(self.slope, max(lam, _LEAST), low[part], high[part])

    def _moved(
        self, part: slice, lam: float, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if math.isinf(lam):
            return super()._moved(part, lam, y)
        boxed = self.data.box is not None and self.norm > 0.0
        u, reach = self.u[part], self._reach(part, lam) if boxed else None
        moved = paid = np.zeros_like(u)
        groups: Any = self.data.swaps
        if groups is not None:
            kappa = lam / self.norm if self.norm else math.inf
            theta, f, target = (torch.from_numpy(a) for a in (self.coef, u, y))

            def worth(index: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
                if reach is None:
                    return self.loss.robust_value(at, target[index], kappa)
                rows = index.numpy()
                best = worst_slope(self.loss, at.numpy(), y[rows], reach.take(rows))[1]
                return torch.from_numpy(best)

            swaps, own = groups.swaps, groups.own[part]
            found = best_prefix(swaps, own, theta, self.loss, f, target, lam, kappa, worth)
            moved, paid = found[1].numpy(), found[2].numpy()
        if reach is None:
            shift, cost, risk = self._along(u + moved, lam, y)
            return moved + shift, cost + paid, risk
        p, _ = worst_slope(self.loss, u + moved, y, reach)
        shift, _, cost = reach.at(p)
        at = torch.from_numpy(u + moved + shift)
        return moved + shift, cost + paid, self.loss.value(at, torch.from_numpy(y)).numpy()

    def jumps(self, lam: float) -> np.ndarray:
        """Known where nothing is bounded."""
        return np.zeros(0) if self.data.box is not None else super().jumps(lam)
