"""Losses that are the larger of two lines: hinge, absolute error, pinball."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._numerics import Kink
from drojko.losses.base import Loss, either
from drojko.losses.jets import Jet, lines_jet
from drojko.losses.smoothing import Smoothed
from drojko.losses.tilts import Tilted, flip, gentle, kinked_tilt

__all__ = ["TwoLines"]


class TwoLines(Loss):
    """max(low x, high x) of an x that is f up to sign and offset, ``slopes`` = (low, high)."""

    curvature = math.inf
    conjugate_bend = 0.0
    convex = True
    slopes: tuple[float, float]

    def _from_kink(self, f: Any, y: Any) -> tuple[Any, Any]:
        """Return x and the sign with which f enters it, for arrays or tensors."""
        return f - y, 1.0

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        x, _ = self._from_kink(f, y)
        return torch.maximum(self.slopes[0] * x, self.slopes[1] * x) + 0.0  # never minus zero

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        low, high = self.slopes
        x, sign = self._from_kink(f, y)
        return either(x > 0, high, low, f) * (x != 0) * sign

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(f)

    def worst_jet(
        self, u: np.ndarray, y: np.ndarray, sigma: float, mu: float, dual: np.ndarray
    ) -> Jet:
        """Two lines, raised by their slopes squared."""
        return lines_jet(*self._from_kink(u, y), self.slopes, sigma, mu, dual)

    def kink_free(self, sigma: float) -> bool:
        """Never."""
        return False

    def jumps(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Where both lines reach as high."""
        total = sum(self.slopes)
        sigma = -self._from_kink(f, y)[0] / total if total else np.zeros(0)
        return sigma[sigma > 0.0]

    def smoothed(
        self, f: np.ndarray, y: np.ndarray, mu: float, dual: np.ndarray | None = None
    ) -> Smoothed:
        """A smoothed kink at x = 0."""
        low, high = self.slopes
        x, sign = self._from_kink(f, y)
        kink, gap = Kink(x, mu, dual), high - low
        slope, share = (sign * (low + gap * part) for part in (kink.slope, kink.share))
        return Smoothed(low * x + gap * kink.value, slope, gap * kink.second, share, kink)

    def least(self, slope: Any, y: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        """Minus the slope times the f of the kink, where the loss is 0."""
        offset, sign = self._from_kink(np.zeros_like(slope), y)
        return slope * offset * sign

    def domain(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        zero = np.zeros(len(y))
        _, sign = self._from_kink(zero, y)
        low, high = (zero + sign * slope for slope in self.slopes)
        return np.minimum(low, high), np.maximum(low, high)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        low, high = self.slopes
        x, sign = self._from_kink(f, y)
        # high² - low² = (high - low)(high + low); divided by high - low > 0.
        up = x + (high + low) / (4.0 * kappa) >= 0
        return sign * either(up, high, low, f) / (2.0 * kappa)

    def _tilt(self, f: np.ndarray, y: np.ndarray, s: float, eta: float) -> Tilted:
        x, sign = self._from_kink(f, y)
        steep = s * max(-self.slopes[0], self.slopes[1])
        return flip(gentle(lambda eta: kinked_tilt(x, s, eta, *self.slopes), steep, eta), sign)
