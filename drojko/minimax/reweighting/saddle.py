r"""Linear models against sets whose worst case is a quadratic program: both on one path.

.. math:: \min_\theta\; \max_{p \in P}\; p^\top \ell(\theta) + \tfrac\alpha2\|\theta\|^2

The conditions of the masses and of the parameters are one system, so that a fit costs about as
much as one worst case at given losses. It proves nothing: the descent that starts from it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from drojko.ambiguity.duals.simplex_qp import Jet
from drojko.losses import Loss
from drojko.rows import Rows

__all__ = ["LinearLosses", "near_saddle"]


@dataclass(frozen=True, eq=False)
class LinearLosses:
    """Losses of a linear model on rows, over ``unit``; with a ridge on the parameters."""

    rows: Rows
    loss: Loss
    ridge: np.ndarray
    unit: float
    design: np.ndarray

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.rows.size

    def jet(self, theta: np.ndarray, p: np.ndarray, smoothing: float) -> Jet:
        """See `drojko.ambiguity.duals.simplex_qp.Trained`."""
        found = self.loss.smoothed(self.design @ theta, self.rows.y, smoothing * self.unit)
        curved = (p * np.maximum(found.second, 0.0))[:, None] * self.design
        return Jet(
            found.value / self.unit,
            (found.slope / self.unit)[:, None] * self.design,
            (self.design.T @ curved + np.diag(self.ridge)) / self.unit,
            self.ridge * theta / self.unit,
        )


def near_saddle(
    rows: Rows, loss: Loss, bound: Any, ridge: np.ndarray, unit: float
) -> np.ndarray | None:
    """Parameters (D,) near the minimum, in standardised columns; None where the path broke off.

    ``bound`` has ``saddle(losses)`` as `drojko.ambiguity.mmd.BoundMMD` has, ``ridge`` (D,) are the
    penalties of the parameters, ``unit`` is the size of the losses.
    """

    def losses(index: np.ndarray) -> LinearLosses:
        some = rows.take(index)
        return LinearLosses(some, loss, ridge, unit, some.block(slice(0, len(index))))

    with np.errstate(all="ignore"):
        theta = bound.saddle(losses)
    return theta if theta is not None and np.isfinite(theta).all() else None
