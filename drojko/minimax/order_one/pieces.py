"""Losses as a smooth part plus a maximum of affine pieces, also after a change of the label."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drojko.exceptions import UnsupportedError
from drojko.losses import CrammerSinger, Hinge, Huber, Logistic, Loss, Quantile, Softmax

__all__ = ["Response", "Smooth", "response"]


class Smooth:
    """A differentiable convex function of the responses u (n, K); this one is zero."""

    exact_zero = True

    def value(self, u: np.ndarray) -> np.ndarray:
        """Values of shape (n,)."""
        return np.zeros(len(u))

    def derivatives(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients (n, K) and Hessians (n, K, K)."""
        n, k = u.shape
        return np.zeros((n, k)), np.zeros((n, k, k))


class _Softplus(Smooth):
    """log(1 + exp(-u)) of one margin."""

    exact_zero = False

    def value(self, u: np.ndarray) -> np.ndarray:
        return np.logaddexp(0.0, -u[:, 0])

    def derivatives(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e = np.exp(-np.abs(u))
        p = np.where(u > 0, e, 1.0) / (1.0 + e)  # sigmoid(-u)
        return -p, (e / (1.0 + e) ** 2)[:, :, None]


class _LogSumExp(Smooth):
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


def response(loss: Loss, y: np.ndarray, n_outputs: int, label_cost: float = math.inf) -> Response:
    """The loss of labels y (n,) as pieces; with a finite ``label_cost`` labels may change."""
    n, flips = len(y), math.isfinite(label_cost) and loss.task == "classification"
    one, zero = np.ones((n, 1)), np.zeros((n, 1))
    if n_outputs == 1:
        regression = loss.task == "regression"
        sign = one if regression else (2.0 * y - 1.0)[:, None]
        offset = -np.asarray(y, dtype=float)[:, None] if regression else zero
        smooth, slopes, levels, prices = _scalar(loss, flips)
        return Response(
            sign,
            offset,
            smooth,
            None,
            np.array(slopes, dtype=float).reshape(-1, 1),
            -np.where(prices, label_cost, 0.0)[None] if flips else np.zeros((1, len(slopes))),
            np.array(levels, dtype=float)[None],
            isinstance(loss, Huber),
        )
    eye = np.eye(n_outputs)
    own = eye[y]
    if isinstance(loss, Softmax):
        if not flips:
            none = np.zeros((0, n_outputs))
            empty = np.zeros((1, 0))
            return Response(one, zero, _LogSumExp(), -own, none, empty, empty)
        prices = -label_cost * (1.0 - own)
        return Response(one, zero, _LogSumExp(), None, -eye, prices, np.zeros((1, n_outputs)))
    if isinstance(loss, CrammerSinger):
        if not flips:
            return Response(one, zero, Smooth(), -own, eye, np.zeros((1, n_outputs)), 1.0 - own)
        pairs = [(j, k) for j in range(n_outputs) for k in range(n_outputs) if j != k]
        slopes = np.array([np.zeros(n_outputs)] + [eye[j] - eye[k] for j, k in pairs])
        label = np.array([k for _, k in pairs])
        prices = np.zeros((n, len(slopes)))
        prices[:, 1:] = -label_cost * (label[None] != y[:, None])
        levels = np.concatenate([[0.0], np.ones(len(pairs))])[None]
        return Response(one, zero, Smooth(), None, slopes, prices, levels)
    raise UnsupportedError(_UNKNOWN.format(loss))


_UNKNOWN = (
    "order=1 knows the losses logistic, hinge, absolute, huber and quantile, not {!r}: use order=2"
)


def _scalar(loss: Loss, flips: bool):
    """Smooth part, slopes, levels of the pieces, and which of them belong to the other label."""
    if isinstance(loss, Logistic):
        # log(1 + e^u) - log(1 + e^-u) = u
        return (_Softplus(), [0, 1], [0, 0], [0, 1]) if flips else (_Softplus(), [], [], [])
    if isinstance(loss, Hinge):
        if flips:
            return Smooth(), [0, -1, 1], [0, 1, 1], [0, 0, 1]
        return Smooth(), [0, -1], [0, 1], [0, 0]
    if isinstance(loss, Huber):
        return Smooth(), [loss.delta, -loss.delta], [0, 0], [0, 0]
    if isinstance(loss, Quantile):
        return Smooth(), list(loss.slopes), [0, 0], [0, 0]
    raise UnsupportedError(_UNKNOWN.format(loss))
