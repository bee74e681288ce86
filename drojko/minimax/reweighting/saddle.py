r"""Linear models against sets whose worst case is a quadratic program: both on one path.

.. math:: \min_\theta\; \max_{p \in P}\; p^\top \ell(\theta) + \tfrac\alpha2\|\theta\|^2

The conditions of the masses and of the parameters are one system, so that a fit costs about as
much as one worst case at given losses. It proves nothing: the descent that starts from it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from drojko._driver import keeping
from drojko.ambiguity.duals.simplex_qp import KINKED, Jet
from drojko.losses import Loss
from drojko.rows import Rows

__all__ = ["LinearLosses", "Saddle", "near_saddle"]


@dataclass(frozen=True, eq=False)
class LinearLosses:
    """Losses of a linear model on rows, over ``unit``; with a ridge on the parameters."""

    rows: Rows
    loss: Loss
    ridge: np.ndarray
    unit: float
    design: np.ndarray
    seen: list[np.ndarray]  # the last parameters

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.rows.size

    def jet(self, theta: np.ndarray, p: np.ndarray, smoothing: float) -> Jet:
        """See `drojko.ambiguity.duals.simplex_qp.Trained`."""
        if np.isfinite(theta).all():
            self.seen[:] = [theta.copy()]
        found = self.loss.smoothed(self.design @ theta, self.rows.y, smoothing * self.unit)
        curved = (p * np.maximum(found.second, 0.0))[:, None] * self.design
        return Jet(
            found.value / self.unit,
            (found.slope / self.unit)[:, None] * self.design,
            (self.design.T @ curved + np.diag(self.ridge)) / self.unit,
            self.ridge * theta / self.unit,
        )


class Saddle(NamedTuple):
    """Parameters (D,) near the minimum, in standardised columns, the masses (n,) that are worst
    there, their squared discrepancy, and how much kinks are smoothed; no masses where the path was
    interrupted.
    """

    theta: np.ndarray
    mass: np.ndarray | None = None
    square: float = 0.0
    smoothing: float = 0.0


def near_saddle(
    rows: Rows, loss: Loss, bound: Any, ridge: np.ndarray, unit: float
) -> Saddle | None:
    """The end of the path; None where it broke off.

    ``bound`` has ``saddle(losses)`` as `drojko.ambiguity.mmd.BoundMMD` has, ``ridge`` (D,) are the
    penalties of the parameters, ``unit`` is the size of the losses. The ``result`` of Ctrl-C is
    where the path was.
    """
    seen: list[np.ndarray] = []
    smoothing = KINKED * unit

    def losses(index: np.ndarray) -> LinearLosses:
        some = rows.take(index)
        return LinearLosses(some, loss, ridge, unit, some.block(slice(0, len(index))), seen)

    def path() -> Saddle | None:
        with np.errstate(all="ignore"):
            found = bound.saddle(losses)
        return (
            None if found is None or not np.isfinite(found[0]).all() else Saddle(*found, smoothing)
        )

    return keeping(path, lambda: [Saddle(theta) for theta in seen])
