"""Losses as a smooth part plus a maximum of affine pieces, also after a change of the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = [
    "LogSumExp",
    "Response",
    "Smooth",
    "SmoothLoss",
    "Softplus",
    "margins",
    "residuals",
]


_FLAT = 1e-4  # of the largest curvature: the least that Newton steps go by


class Smooth:
    """A differentiable convex function of the responses u (n, K); this one is zero."""

    exact_zero = True
    guarded = False  # whether Newton steps may go far astray: the curvature is no guide

    def value(self, u: np.ndarray) -> np.ndarray:
        """Values of shape (n,)."""
        return np.zeros(len(u))

    def derivatives(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients (n, K) and Hessians (n, K, K)."""
        n, k = u.shape
        return np.zeros((n, k)), np.zeros((n, k, k))


class Softplus(Smooth):
    """log(1 + exp(-u)) of one margin."""

    exact_zero = False

    def value(self, u: np.ndarray) -> np.ndarray:
        return np.logaddexp(0.0, -u[:, 0])

    def derivatives(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e = np.exp(-np.abs(u))
        p = np.where(u > 0, e, 1.0) / (1.0 + e)  # sigmoid(-u)
        return -p, (e / (1.0 + e) ** 2)[:, :, None]


class LogSumExp(Smooth):
    """log sum_k exp(u_k)."""

    exact_zero = False

    def value(self, u: np.ndarray) -> np.ndarray:
        top = u.max(axis=1)
        return top + np.log(np.exp(u - top[:, None]).sum(axis=1))

    def derivatives(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = np.exp(u - u.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        hessian = -p[:, :, None] * p[:, None, :]
        index = np.arange(u.shape[1])
        hessian[:, index, index] += p
        return p, hessian


class SmoothLoss(Smooth):
    """A differentiable loss of one output at its labels y (n,)."""

    exact_zero = False
    guarded = True

    def __init__(self, loss: Any, y: np.ndarray) -> None:
        self.loss, self.y = loss, torch.from_numpy(np.asarray(y))

    def value(self, u: np.ndarray) -> np.ndarray:
        return self.loss.value(torch.from_numpy(u[:, 0].copy()), self.y).numpy()

    def derivatives(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f = torch.from_numpy(u[:, 0].copy())
        slope, second = self.loss.gradient(f, self.y), self.loss.second_derivative(f, self.y)
        # Where all of the loss is flat no step would have a length.
        bent = second.clamp_min(_FLAT * float(self.loss.curvature))
        return slope.numpy()[:, None], bent.numpy()[:, None, None]


@dataclass(frozen=True)
class Response:
    r"""Loss of a sample: :math:`g(u) + \beta^\top u + \max_j \{a_j^\top u + e_j\lambda + c_j\}`.

    With ``curved`` the maximum over pieces is that over their convex combinations p of
    :math:`\pi u - \pi^2/2`, :math:`\pi = \sum_j p_j a_j`: for slopes +-delta the Huber loss.

    u = sign * f + offset are the responses, shape (n, K). Shapes: ``sign`` (n, 1), ``offset``
    (n, 1), ``linear`` (n, K), ``slopes`` (J, K), ``prices`` and ``levels`` (n, J) or (1, J);
    J = 0 where the loss is smooth. ``prices`` e holds minus the label cost where a piece belongs
    to another label, and lambda is the multiplier of the radius.
    """

    sign: np.ndarray
    offset: np.ndarray
    smooth: Smooth
    linear: np.ndarray | None
    slopes: np.ndarray
    prices: np.ndarray
    levels: np.ndarray
    curved: bool = False

    @property
    def n_pieces(self) -> int:
        """J."""
        return self.slopes.shape[0]

    def affine(self, u: np.ndarray, lam: float) -> np.ndarray:
        """Values of all pieces, (n, J)."""
        return u @ self.slopes.T + lam * self.prices + self.levels

    def value(self, u: np.ndarray, lam: float) -> np.ndarray:
        """Worst loss over labels at the multiplier lam, (n,)."""
        total = self.smooth.value(u)
        if self.linear is not None:
            total = total + (self.linear * u).sum(axis=1)
        if self.curved:
            a, delta = np.abs(u[:, 0]), self.slopes[0, 0]
            inside = np.minimum(a, delta)
            return total + inside * (a - 0.5 * inside)
        if self.n_pieces:
            total = total + self.affine(u, lam).max(axis=1)
        return total

    @staticmethod
    def of(
        smooth: Smooth,
        sign: np.ndarray,
        offset: np.ndarray,
        linear: np.ndarray | None = None,
        n_outputs: int = 1,
    ) -> Response:
        """A smooth loss, without pieces."""
        empty = np.zeros((1, 0))
        return Response(sign, offset, smooth, linear, np.zeros((0, n_outputs)), empty, empty)

    @staticmethod
    def of_lines(
        lines: Sequence[tuple[float, float]],
        sign: np.ndarray,
        offset: np.ndarray,
        *,
        smooth: Smooth | None = None,
        prices: Sequence[float] | None = None,
        curved: bool = False,
    ) -> Response:
        """A smooth part and (slope, level) of lines in u, each with its price; None: free."""
        slopes, levels = np.array(lines, dtype=float).T
        price = np.zeros(len(slopes)) if prices is None else np.array(prices, dtype=float)
        smooth = Smooth() if smooth is None else smooth
        return Response(
            sign, offset, smooth, None, slopes[:, None], price[None], levels[None], curved
        )


def margins(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sign and offset (n, 1) of the margins s f of labels 0 and 1."""
    return (2.0 * y - 1.0)[:, None], np.zeros((len(y), 1))


def residuals(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sign and offset (n, 1) of the residuals f - y."""
    return np.ones((len(y), 1)), -np.asarray(y, dtype=float)[:, None]
