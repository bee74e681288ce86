"""Multipliers of a dual that run along with the batches, so that no batch solves for its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drojko.exceptions import UnsupportedError

__all__ = ["Multipliers", "check_running"]

#: Mean ratio of a batch from which on its multipliers are those of other losses altogether.
_FAR = 20.0


def check_running(ambiguity: Any) -> None:
    """Raise for sets whose bound at given multipliers says nothing of other batches."""
    name = type(ambiguity).__name__
    if not (hasattr(ambiguity, "bounds_at") and hasattr(ambiguity, "log_ratio_at")):
        raise UnsupportedError(
            f"running=True: {name} is no set of density ratios, whose dual is the mean of a bound "
            "of each row. Use running=False with large batches, of groups with every group in each "
            "batch; or a set such as KL, ChiSquare or CVaR"
        )
    if ambiguity.budget != 0 and ambiguity.needs_largest(1.0):
        raise UnsupportedError(
            f"running=True: the bound of {name} rests on the largest of all losses, which no batch "
            "knows. Use running=False, or a set such as KL, ChiSquare or CVaR"
        )


@dataclass(frozen=True)
class Multipliers:
    r"""A dual point, and how far the losses spread around it.

    .. math:: B(\ell) = \eta + \lambda r + \lambda f^*\left(\frac{\ell - \eta}{\lambda}\right)

    without lambda r in penalty form; ``count`` batches have moved it.
    """

    penalty: float
    shift: float
    spread: float
    count: int

    @classmethod
    def of(cls, ambiguity: Any, dual: Any, losses: np.ndarray, w: np.ndarray, count: int):
        """Those of a batch, None where its losses are all equal and have none."""
        spread = math.sqrt(max(float(w @ (losses - w @ losses) ** 2), 0.0))
        if spread <= 1e-12 * max(1.0, float(np.abs(losses).max())):
            return None
        penalty = float(dual.penalty)
        if not 0.0 < penalty < math.inf:  # the batch is too small for its radius
            radius, bend = ambiguity.radius or 1.0, ambiguity.curvature or 1.0
            penalty = spread / math.sqrt(2.0 * radius * bend)
        return cls(penalty, float(dual.shift), spread, count)

    def at(self, ambiguity: Any, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bound of each row and its slope, the ratio."""
        bounds = ambiguity.bounds_at(losses, self.penalty, self.shift)
        with np.errstate(over="ignore"):
            ratio = np.exp(ambiguity.log_ratio_at(losses, self.penalty, self.shift))
        return bounds, ratio

    def far(self, ambiguity: Any, mean_ratio: float) -> bool:
        """Whether a batch's losses are beyond all that these multipliers have seen."""
        return not mean_ratio <= _FAR and math.isinf(ambiguity.ratio_bound)

    def stepped(
        self, ambiguity: Any, losses: np.ndarray, w: np.ndarray, momentum: float | None
    ) -> Multipliers:
        """After a scaled stochastic step down the mean bound of a batch."""
        bounds, ratio = self.at(ambiguity, losses)
        count, rate = self.count + 1, 1.0 / (self.count + 1)
        if momentum is not None:
            rate = max(rate, momentum)
        excess = w @ ratio - 1.0  # minus the slope of the mean bound in the shift
        bend = ambiguity.curvature
        unit = self.spread if bend is None else bend * self.penalty  # of its inverse curvature
        shift = self.shift + unit * min(max(rate * excess, -1.0), 1.0)
        penalty = self.penalty
        if ambiguity.radius is not None:  # CVaR has no radius, the penalty form no multiplier
            radius, moved = float(ambiguity.radius), losses - self.shift
            priced = float(w @ bounds) - self.shift - penalty * radius
            spent = (float(w @ (ratio * moved)) - priced) / penalty  # E f(ratio)
            step = rate * (spent - radius) / (2.0 * radius)
            penalty *= math.exp(min(max(step, -0.5), 0.5))
            penalty = max(penalty, 1e-8 * self.spread)
        mean = w @ losses
        square = self.spread**2 + rate * (float(w @ (losses - mean) ** 2) - self.spread**2)
        return replace(self, penalty=penalty, shift=shift, spread=math.sqrt(square), count=count)
