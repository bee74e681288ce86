"""An order-1 training problem in standardised columns, and the iterates of its solver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drojko._driver import Status
from drojko.losses.pieces import Response
from drojko.minimax.order_one.cones import Cones

__all__ = ["State", "System"]


@dataclass(frozen=True)
class System:
    """Data of a problem in standardised columns.

    ``X`` (n, d), ``weight`` (n,), ``loss`` the pieces, ``scale`` (m,) the factors and ``mutable``
    (m,) the indices of the columns whose coefficients enter the norms, ``decay`` (d,) the L2
    penalties, ``radius`` the price of lambda; ``fixed_lam`` in penalty form.
    """

    X: np.ndarray
    weight: np.ndarray
    loss: Response
    n_outputs: int
    scale: np.ndarray
    mutable: np.ndarray
    q: float
    decay: np.ndarray
    intercept: bool
    radius: float
    floor: float
    fixed_lam: float | None
    slope: float
    cones: bool
    lam_free: bool

    def pairs(self) -> list[tuple[int, int | None]]:
        """Rows of coefficients whose differences are bounded by lambda."""
        if self.n_outputs == 1:
            return [(0, None)]
        return [(j, k) for j in range(self.n_outputs) for k in range(j)]

    def vectors(self, W: np.ndarray) -> np.ndarray:
        """The bounded vectors v_e, shape (E, m)."""
        part = W[:, self.mutable] * (self.scale * self.slope)
        rows = [part[j] if k is None else part[j] - part[k] for j, k in self.pairs()]
        return np.array(rows).reshape(len(rows), len(self.mutable))

    def responses(self, W: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Responses u = sign * (W x + b) + offset, shape (n, K)."""
        u = self.X @ W.T
        u += b
        u *= self.loss.sign
        u += self.loss.offset
        return u


@dataclass(frozen=True)
class State:
    """An iterate: coefficients W (K, d), intercepts b (K,), lambda, and the dual variables."""

    W: np.ndarray
    b: np.ndarray
    lam: float
    u: np.ndarray
    p: np.ndarray
    top: np.ndarray
    cones: Cones | None
    gap: float
    residual: float
    objective: float
    status: Status | None = None
    worse: int = 0
