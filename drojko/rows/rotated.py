r"""More columns than rows: the same problem in the space that the rows span.

With unit costs :math:`a_j` of the columns, :math:`\phi = \sqrt{a}\,\theta` and
:math:`X - 1 m^\top = \tilde X\,Q^\top \mathrm{diag}(\sqrt a)`, Q of orthonormal columns,

.. math:: X\theta + b = \tilde X \psi + (b + m^\top\theta), \qquad
          \sum_j a_j\theta_j^2 = \|\phi\|^2 \ge \|\psi\|^2, \qquad \psi = Q^\top \phi ,

with equality for phi = Q psi: what a loss of the predictions and this norm decide has its optimum
there, and values and bounds are the same in both spaces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg

from drojko._driver import Limits

__all__ = ["Rotation"]


@dataclass(frozen=True, eq=False)
class Rotation:
    """Coordinates X (n, k) of the rows, the basis (d, k) with units in, and the means (d,)."""

    X: np.ndarray
    basis: np.ndarray
    unit: np.ndarray
    mean: np.ndarray

    @classmethod
    def of(
        cls, X: np.ndarray, weight: np.ndarray | None, cost: np.ndarray, intercept: bool
    ) -> Rotation | None:
        """For positive costs (d,) of the columns; None where the rows span nothing.

        Examples
        --------
        >>> X = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> turned = Rotation.of(X, None, np.ones(3), intercept=False)
        >>> coef, intercept = turned.outward(np.array([1.0, 0.5]), 0.0)
        >>> np.allclose(X @ coef, turned.X @ [1.0, 0.5])
        True
        """
        unit = 1.0 / np.sqrt(cost)
        mean = np.zeros(X.shape[1])
        if intercept:
            mean = np.average(X, axis=0, weights=weight)
        centred = X - mean
        # Columns that are constant to rounding are so.
        size = np.abs(X).max(axis=0)
        centred[:, np.abs(centred).max(axis=0) <= 8 * np.finfo(X.dtype).eps * size] = 0.0
        centred *= unit
        qr: Any = scipy.linalg.qr
        Q, R = qr(centred.T, mode="economic", overwrite_a=True)
        V, T, order = qr(R, pivoting=True)
        sizes = np.abs(T.diagonal())
        rank = int((sizes > 1e-15 * max(X.shape) * sizes.max(initial=0.0)).sum())
        if rank == 0:
            return None
        turned = np.empty((len(X), rank))
        turned[order] = T[:rank].T
        return cls(turned, unit[:, None] * (Q @ V[:, :rank]), unit, mean)

    def inward(self, coef: np.ndarray, intercept: Any) -> tuple[np.ndarray, Any]:
        """The model of the same predictions, of one output or several."""
        coef = np.asarray(coef, dtype=np.float64)
        # The basis has units in: Q'phi = basis' (theta / unit²).
        return (coef / self.unit**2) @ self.basis, intercept + coef @ self.mean

    def outward(self, psi: np.ndarray, intercept: Any) -> tuple[np.ndarray, Any]:
        """The model in the units of the data."""
        coef = psi @ self.basis.T
        return coef, intercept - coef @ self.mean

    def limits(self, limits: Limits) -> Limits:
        """With a callback that sees models in the units of the data."""
        ask = limits.callback
        if ask is None:
            return limits

        def tell(iteration: int, info: dict[str, Any]) -> bool:
            coef, intercept = self.outward(info["coef"], info["intercept"])
            return bool(ask(iteration, {**info, "coef": coef, "intercept": intercept}))

        return replace(limits, callback=tell)

    def back(self, found: Any) -> Any:
        """A solution (`drojko.minimax.newton.LinearFit`) in the units of the data."""
        coef, intercept = self.outward(found.coef, found.intercept)
        return replace(found, coef=coef, intercept=intercept)
