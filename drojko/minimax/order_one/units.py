"""Standardised columns and targets for order-1 training, undone exactly afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drojko.losses import Loss

__all__ = ["Units"]


@dataclass(frozen=True)
class Units:
    """Standardised columns and targets; only the scale of the loss and of lambda changes.

    ``loss`` is the loss in these units: the given one is ``loss_unit`` times it.
    """

    X: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    inverse_scale: np.ndarray
    decay: np.ndarray
    middle: float
    target_unit: float
    loss_unit: float
    loss: Loss

    @staticmethod
    def of(
        X: np.ndarray,
        y: np.ndarray,
        loss: Loss,
        weight: np.ndarray | None,
        centred: bool,
        alpha: float,
    ) -> Units:
        """Units of data; ``centred``: the model has an intercept."""
        n, d = X.shape
        w = np.full(n, 1.0 / n) if weight is None else np.asarray(weight, dtype=float)
        w = w / w.sum()
        kept = w > 0
        mean = w @ X if centred else np.zeros(d)
        low, high = X[kept].min(axis=0), X[kept].max(axis=0)
        size = np.maximum(np.abs(low), np.abs(high))
        spread = high - low if centred else size
        dead = spread <= 8 * np.finfo(X.dtype).eps * size
        spread = np.where(dead, 1.0, spread)
        Z = (X - mean) / spread
        root = np.sqrt(w @ (Z * Z))
        inverse = np.where(dead, 0.0, 1.0 / np.where(dead, 1.0, spread * root))
        Z *= inverse * spread
        middle, unit, loss_unit = 0.0, 1.0, 1.0
        if loss.rescaled(1.0) is not None:
            order = np.argsort(y[kept])
            if centred:
                at = np.searchsorted(np.cumsum(w[kept][order]), 0.5).clip(0, len(order) - 1)
                middle = float(y[kept][order][at])
            unit = float(w @ np.abs(y - middle)) or 1.0
            loss, loss_unit = loss.rescaled(unit) or (loss, 1.0)
        decay = np.where(dead, 1.0, alpha * inverse**2 * unit**2 / loss_unit)
        return Units(Z, w, mean, inverse, decay, middle, unit, loss_unit, loss)

    def inward(self, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients in these units from those in the units of the data."""
        alive = self.inverse_scale > 0
        W = np.divide(coef, self.inverse_scale, out=np.zeros_like(coef), where=alive[None])
        b = (intercept + coef @ self.mean - self.middle) / self.target_unit
        return W / self.target_unit, b

    def outward(self, W: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of `inward`."""
        coef = W * self.inverse_scale * self.target_unit
        return coef, b * self.target_unit + self.middle - coef @ self.mean
