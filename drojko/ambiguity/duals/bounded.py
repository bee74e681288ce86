"""What a worst case is made of on a reference without atoms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drojko._numerics import standard_error

__all__ = ["BoundedRatio"]


@dataclass(frozen=True)
class BoundedRatio:
    """The ratio of a worst case on a reference without atoms: a bounded function of the loss.

    That of the dual point below the loss ``top``, but at most ``level``, and ``level`` from there
    on; ``kept`` where the loss equals ``step``. All that for ``share`` of the mass: the rest is
    the reference.
    """

    top: float = np.inf
    level: float = np.inf
    step: float = -np.inf
    kept: float = 1.0
    share: float = 1.0

    def at(self, ambiguity: Any, losses: Any, penalty: float, shift: float) -> np.ndarray:
        """Return the ratio of that share at losses (n,), up to its mean under the reference."""
        with np.errstate(over="ignore"):
            ratio = np.exp(ambiguity.log_ratio_at(losses, penalty, shift))
        ratio = np.where(losses < self.top, np.minimum(ratio, self.level), self.level)
        return np.where(losses == self.step, self.kept, ratio)

    def mixed(self, ratio: Any) -> Any:
        """Return the ratio of the whole, from that of the share with mean one."""
        return 1.0 + self.share * (ratio - 1.0)

    def attained(
        self, ambiguity: Any, losses: np.ndarray, weights: np.ndarray, penalty: float, shift: float
    ) -> tuple[BoundedRatio, float, float, float]:
        """Return the part of it that is worth its price and in the set, as draws measure it.

        With it come its mean loss, its discrepancy, and the standard error of the mean loss.
        """
        nominal = float(weights @ losses)
        ratio = self.at(ambiguity, losses, penalty, shift)
        total = float(weights @ ratio)
        found, spent, radius = self, 0.0, ambiguity.budget
        if total > 0.0:
            ratio = ratio / total
            spent = ambiguity.discrepancy(ratio, weights)
            if radius is not None and spent > radius:
                # D is convex and zero at 1: a mixture with the reference is back in the set.
                low, high = radius / spent, 1.0
                for _ in range(40):
                    middle = 0.5 * (low + high)
                    spent = ambiguity.discrepancy(1.0 + middle * (ratio - 1.0), weights)
                    low, high = (middle, high) if spent <= radius else (low, middle)
                found = replace(self, share=low)
                spent = min(float(radius), ambiguity.discrepancy(found.mixed(ratio), weights))
            mean = float(weights @ (ratio * losses))
            attained = nominal + found.share * (mean - nominal)
            if attained - (ambiguity.penalty or 0.0) * spent > nominal:
                parts = found.share * ratio * (losses - mean)
                parts += (1.0 - found.share) * (losses - nominal)
                return found, attained, spent, standard_error(parts, weights)
        return replace(self, share=0.0), nominal, 0.0, standard_error(losses, weights)
