"""Losses of regression: squared, absolute, quantile and Huber."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._validation import check_number, is_real, shown
from drojko.exceptions import InvalidDataError
from drojko.losses.base import Loss, either
from drojko.losses.jets import Jet, huber_jet, square_jet
from drojko.losses.pieces import Response, residuals
from drojko.losses.smoothing import Smoothed, smoothed_clip
from drojko.losses.tilts import Tilted, gentle, huber_tilt, squared_tilt
from drojko.losses.two_lines import TwoLines

__all__ = ["Absolute", "Huber", "Quantile", "Squared"]


class Squared(Loss):
    r"""Squared error :math:`(f - y)^2`; worst case ``κ (f-y)² / (κ-1)``, finite for κ > 1.

    Examples
    --------
    >>> Squared().robust_value(torch.tensor([3.0]), torch.tensor([1.0]), 2.0)
    tensor([8.])
    """

    name = "squared"
    task = "regression"
    lipschitz = math.inf
    curvature = 2.0
    convex = True
    quadratic = True
    conjugate_bend = 0.25

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y).square()

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return 2.0 * (f - y)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(f, 2.0)

    def worst_jet(
        self, u: np.ndarray, y: np.ndarray, sigma: float, mu: float, dual: np.ndarray
    ) -> Jet:
        return square_jet(u - y, sigma)

    def line(self, f: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r = f - y
        return r * r, 2.0 * r, np.full_like(r, 2.0)

    def least(self, slope: Any, y: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        return -(0.25 * slope + y) * slope

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        return (f - y) / (kappa - 1.0)

    def rescaled(self, unit: float) -> tuple[Squared, float]:
        return self, unit**2

    def _tilt(self, f: np.ndarray, y: np.ndarray, s: float, eta: float) -> Tilted:
        return squared_tilt(f - y, s, eta)

    def gaussian_tilt(
        self, f: np.ndarray, y: np.ndarray, s: float, eta: float
    ) -> tuple[np.ndarray, float]:
        k = 1.0 - 2.0 * eta * s * s
        return (f - y) * (2.0 * eta * s * s / k), s / math.sqrt(k)

    def conic(self, f: Any, y: np.ndarray) -> Any:
        import cvxpy as cp

        return cp.square(self._affine(f, y))


class Quantile(TwoLines):
    r"""Pinball loss :math:`\max(q (y-f), (1-q)(f-y))`, whose minimiser is the `q` quantile.

    Worst case: the larger of the two lines, each raised by slope²/(4κ).

    Parameters
    ----------
    q : float, default=0.5
        Level, strictly between 0 and 1.

    Examples
    --------
    >>> Quantile(q=0.9).value(torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]))
    tensor([0.9000, 0.1000])
    """

    name = "quantile"
    task = "regression"
    kinks = (0.0,)

    def __init__(self, q: float = 0.5) -> None:
        if not (is_real(q) and 0.0 < q < 1.0):
            raise InvalidDataError(f"quantile loss: q = {shown(q)}, expected 0 < q < 1")
        self.q = self._level = float(q)
        self.slopes = (-self.q, 1.0 - self.q)
        self.lipschitz = max(self.q, 1.0 - self.q)

    @property
    def lines(self) -> tuple[tuple[float, float], ...]:  # pyright: ignore
        low, high = self.slopes
        return (low, 0.0), (high, 0.0)

    def rescaled(self, unit: float) -> tuple[Quantile, float]:
        return self, unit


class Absolute(Quantile):
    r"""Absolute error :math:`|f - y|`; worst case ``|f-y| + 1/(4κ)``.

    Examples
    --------
    >>> Absolute().robust_value(torch.tensor([3.0]), torch.tensor([1.0]), 0.5)
    tensor([2.5000])
    """

    name = "absolute"

    def __init__(self) -> None:
        self.slopes = (-1.0, 1.0)
        self.lipschitz = 1.0


class Huber(Loss):
    r"""Huber loss: ``r²/2`` for ``|r| <= delta``, else ``delta |r| - delta²/2``, r = f - y.

    Worst case: moving outwards by r/(2κ-1) while that stays inside delta, otherwise by delta/(2κ).
    For κ ≤ 1/2 every residual is moved past delta.

    Parameters
    ----------
    delta : float, default=1.35
        Where the parabola ends, in the units of y; positive.

    Examples
    --------
    >>> Huber(delta=1.0).value(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]))
    tensor([0.1250, 2.5000])
    """

    name = "huber"
    task = "regression"
    curvature = 1.0
    conjugate_bend = 0.5
    straight = True
    convex = True

    def __init__(self, delta: float = 1.35) -> None:
        check_number("huber loss: delta", delta, above=0)
        self.delta = float(delta)
        self.lipschitz = self.delta

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        a = (f - y).abs()
        inside = a.clamp_max(self.delta)
        return inside * (a - 0.5 * inside)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y).clamp(-self.delta, self.delta)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return ((f - y).abs() <= self.delta).to(f.dtype)

    def worst_jet(
        self, u: np.ndarray, y: np.ndarray, sigma: float, mu: float, dual: np.ndarray
    ) -> Jet:
        """Two maximisers from sigma = 1/2 on."""
        return huber_jet(u - y, self.delta, sigma, mu, dual)

    def kink_free(self, sigma: float) -> bool:
        """Below 1/2."""
        return sigma < 0.49

    def smoothed(
        self, f: np.ndarray, y: np.ndarray, mu: float, dual: np.ndarray | None = None
    ) -> Smoothed:
        """The difference of two smoothed kinks: its linear parts have a little curvature."""
        value, slope, second = smoothed_clip(f - y, self.delta, mu / self.delta)
        return Smoothed(value, slope, second, slope)

    def least(self, slope: Any, y: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        return -(0.5 * slope + y) * slope

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        r = f - y
        slack = (2.0 * kappa - 1.0).clamp_min(0.0)
        inside = r.abs() < self.delta * slack / (2.0 * kappa)
        near = r / torch.where(slack > 0, slack, torch.ones_like(slack))
        far = either(r >= 0, self.delta, -self.delta, f) / (2.0 * kappa)
        return torch.where(inside, near, far)

    @property
    def asymptotes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        level = -0.5 * self.delta**2
        return (-self.delta, level), (self.delta, level)

    def rescaled(self, unit: float) -> tuple[Huber, float]:
        return Huber(self.delta / unit), unit**2

    def pieces(self, y: np.ndarray, n_outputs: int, label_cost: float = math.inf) -> Response:
        lines = ((self.delta, 0.0), (-self.delta, 0.0))
        return Response.of_lines(lines, *residuals(y), curved=True)

    def _tilt(self, f: np.ndarray, y: np.ndarray, s: float, eta: float) -> Tilted:
        steep = s * self.delta
        return gentle(lambda eta: huber_tilt(f - y, s, eta, self.delta), steep, eta)

    def conic(self, f: Any, y: np.ndarray) -> Any:
        import cvxpy as cp

        return 0.5 * cp.huber(self._affine(f, y), self.delta)  # pyright: ignore[reportArgumentType]
