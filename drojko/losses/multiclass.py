"""Losses on K > 2 logits, with the worst cases of linear models and bounds of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from drojko._validation import shown
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.losses.base import Loss
from drojko.losses.class_bounds import class_ceilings
from drojko.losses.class_moves import Moves, SoftmaxMoves, VertexMoves
from drojko.losses.pieces import LogSumExp, Response, Smooth

__all__ = ["CrammerSinger", "Softmax", "best_class_move", "radial_supremum"]

_CELLS, _REFINED, _PARTS, _BLOCK = 128, 3, 16, 1024


class _Pairwise(Loss):
    """What losses of differences f_j - f_y have in common: their gradient is p - e_y."""

    scalar = False
    lipschitz = math.sqrt(2.0)
    convex = True
    two_classes: type[Loss] = Loss

    def binary(self) -> Loss:
        return self.two_classes()

    def pairwise_upper_bound(
        self, f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float
    ) -> Tensor:
        r"""Upper bound of :math:`\sup_{z'} \ell(Wz'+b, y) - \lambda c(z', z)`, shape (n,).

        A displacement of cost t² moves f_j - f_y by at most t ‖w_j - w_y‖: see `rate_bound`.
        `f` (n, K) logits of the unmoved points; `pair_norms_squared` (K, K), entry (j, k) the
        squared norm of w_j - w_k with each column j weighted by its inverse cost.
        """
        classes = (f.shape[-1], f.shape[-1])
        if tuple(pair_norms_squared.shape) != classes:
            got = tuple(pair_norms_squared.shape)
            raise InvalidDataError(f"pair_norms_squared has shape {got}, expected {classes}")
        if not lam > 0:
            raise UnboundedRiskError(
                f"the penalty is {lam!r}; the worst case is finite for any > 0"
            )
        return self.rate_bound(f, y, pair_norms_squared.to(f.dtype)[:, y].T.sqrt(), lam)


class Softmax(_Pairwise):
    r"""Cross-entropy :math:`\mathrm{logsumexp}(f) - f_y` on K logits, `f` of shape (n, K).

    In the logits its gradient has norm at most √2 and its Hessian diag(p) - pp' at most 1/2.

    Examples
    --------
    >>> Softmax().value(torch.zeros(1, 3), torch.tensor([2]))
    tensor([1.0986])
    """

    name = "logistic"
    curvature = 0.5
    attained = False

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.logsumexp(f, dim=-1) - _own(f, y)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return _minus_one(torch.softmax(f, dim=-1), y)

    def rate_bound(self, f: Tensor, y: Tensor, rates: Tensor, strength: float) -> Tensor:
        r"""Upper bound of the worst case where f_j - f_y moves by at most ``rates * t``.

        .. math:: \sup_{t \ge 0} \mathrm{logsumexp}_j (f_j - f_y + t \|w_j - w_y\|_{C^{-1}})
                  - \lambda t^2

        Exact for two classes, and tight where one competitor of y matters; `radial_supremum`.
        """
        return radial_supremum(_differences(f, y), rates, strength)

    @staticmethod
    def input_curvature(pair_norms_squared: Tensor) -> Tensor:
        """Bound ``max_jk ‖w_j - w_k‖² / 4`` on the second derivative along any unit direction.

        That derivative is the variance of w_J'v under the softmax law of J; a variable with range
        R has variance at most R²/4 (Popoviciu).
        """
        return pair_norms_squared.max() / 4.0

    def value_within(self, f: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        return torch.logsumexp(_differences(f, y) + reach, dim=1)

    def odds_within(self, f: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        own = one_hot(y, f.shape[1]).bool()
        return torch.sigmoid(_differences(f, y) + reach).masked_fill(own, 0.0)

    def largest(self, y: Tensor, n_classes: int, limit: float, clip: float) -> Tensor:
        # -log p_y + log(sum of the clipped probabilities), which is at most 1 + K * clip.
        top = limit + math.log1p(n_classes * clip)
        return torch.full(y.shape, top, dtype=torch.float64)

    def class_moves(
        self, f: np.ndarray, y: np.ndarray, gram: np.ndarray, half: float, near: Any, done: float
    ) -> SoftmaxMoves:
        return SoftmaxMoves(f, y, gram, half, near, done)

    def class_ceilings(
        self,
        f: np.ndarray,
        y: np.ndarray,
        gram: np.ndarray,
        moves: Moves,
        w: np.ndarray,
        nodes: Any,
    ) -> tuple[np.ndarray, str]:
        return class_ceilings(self, f, y, gram, moves, w, nodes)

    def noise_bound(
        self, away: Tensor, y: Tensor, square: Tensor, beta: float, epsilon: float
    ) -> Tensor:
        return torch.logsumexp(away + 0.25 * epsilon * max(1.0, beta) * square, 1)

    def pieces(self, y: np.ndarray, n_outputs: int, label_cost: float = math.inf) -> Response:
        eye, plain = np.eye(n_outputs), (np.ones((len(y), 1)), np.zeros((len(y), 1)))
        if math.isinf(label_cost):
            return Response.of(LogSumExp(), *plain, -eye[y], n_outputs)
        prices = -label_cost * (1.0 - eye[y])
        return Response(*plain, LogSumExp(), None, -eye, prices, np.zeros((1, n_outputs)))

    def conic(self, f: Any, y: np.ndarray) -> Any:
        import cvxpy as cp

        own = np.eye(f.shape[1])[y]
        return cp.log_sum_exp(f, axis=1) - cp.sum(cp.multiply(own, f), axis=1)


class CrammerSinger(_Pairwise):
    r"""Multi-class hinge :math:`\max_j f_j - f_y + 1[j \ne y]`, `f` of shape (n, K).

    Examples
    --------
    >>> CrammerSinger().value(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([0]))
    tensor([0.5000])
    """

    name = "hinge"
    curvature = math.inf
    kinks = (1.0,)
    calibrated = False
    margin = 1.0

    def _scores(self, f: Tensor, y: Tensor) -> Tensor:
        return _minus_one(f - _own(f, y)[:, None] + 1.0, y)

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return self._scores(f, y).amax(dim=-1)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        scores = self._scores(f, y)
        top = torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        return _minus_one(top, y)

    def rate_bound(self, f: Tensor, y: Tensor, rates: Tensor, strength: float) -> Tensor:
        r"""The worst case :math:`\max_j f_j - f_y + 1[j\ne y] + \|w_j-w_y\|^2/(4\lambda)`, exact.

        The loss is a maximum of affine functions, and suprema commute.
        """
        return (self._scores(f, y) + rates.square() / (4.0 * strength)).amax(dim=-1)

    def class_moves(
        self, f: np.ndarray, y: np.ndarray, gram: np.ndarray, half: float, near: Any, done: float
    ) -> VertexMoves:
        return VertexMoves(f, y, gram, half)

    def class_ceilings(
        self,
        f: np.ndarray,
        y: np.ndarray,
        gram: np.ndarray,
        moves: Moves,
        w: np.ndarray,
        nodes: Any,
    ) -> tuple[np.ndarray, str]:
        # A maximum of affine functions: suprema commute, and the best vertex is exact.
        return moves.values(0.0), "lipschitz"

    def noise_bound(
        self, away: Tensor, y: Tensor, square: Tensor, beta: float, epsilon: float
    ) -> Tensor:
        away = away + (1.0 - one_hot(y, away.shape[1]).to(away.dtype))
        return torch.logsumexp(beta * away + 0.25 * epsilon * beta**2 * square, 1) / beta

    def pieces(self, y: np.ndarray, n_outputs: int, label_cost: float = math.inf) -> Response:
        eye, plain = np.eye(n_outputs), (np.ones((len(y), 1)), np.zeros((len(y), 1)))
        if math.isinf(label_cost):
            prices = np.zeros((1, n_outputs))
            return Response(*plain, Smooth(), -eye[y], eye, prices, 1.0 - eye[y])
        pairs = [(j, k) for j in range(n_outputs) for k in range(n_outputs) if j != k]
        slopes = np.array([np.zeros(n_outputs)] + [eye[j] - eye[k] for j, k in pairs])
        label = np.array([k for _, k in pairs])
        prices = np.zeros((len(y), len(slopes)))
        prices[:, 1:] = -label_cost * (label[None] != y[:, None])
        levels = np.concatenate([[0.0], np.ones(len(pairs))])[None]
        return Response(*plain, Smooth(), None, slopes, prices, levels)

    def conic(self, f: Any, y: np.ndarray) -> Any:
        import cvxpy as cp

        own = np.eye(f.shape[1])[y]
        return cp.max(f + (1.0 - own), axis=1) - cp.sum(cp.multiply(own, f), axis=1)


def _own(f: Tensor, y: Tensor) -> Tensor:
    check_classes(f, y)
    return f.gather(-1, y[:, None])[:, 0]


def check_classes(f: Tensor, y: Tensor) -> None:
    """Raise unless f has a column for each class that y names."""
    if f.ndim != 2 or y.shape != f.shape[:1] or y.dtype != torch.int64:
        raise InvalidDataError(
            f"f is {shown(f)}, y {shown(y)}; expected outputs (n, K) and class indices (n,), int64"
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < f.shape[1]:
        raise InvalidDataError(f"y names classes beyond the {f.shape[1]} columns of f")


def _minus_one(a: Tensor, y: Tensor) -> Tensor:
    """`a` with one taken off the entry of each row's own class."""
    check_classes(a, y)
    return a.scatter_add(-1, y[:, None], a.new_full((a.shape[0], 1), -1.0))


def _differences(f: Tensor, y: Tensor) -> Tensor:
    return f - _own(f, y)[:, None]


def _squares(gram: Tensor) -> Tensor:
    """Squared norms of w_j - w_k, of shape (K, K)."""
    diagonal = gram.diagonal()
    return diagonal + diagonal[:, None] - 2.0 * gram


def best_class_move(
    loss: Any, f: Tensor, y: Tensor, gram: Tensor, half: float, away: bool = False
) -> Tensor:
    """The class j whose move (w_j - w_y) / 2 lambda attains most, y for none; ``away``: not y."""
    own, squares = gram[y], _squares(gram)[y]
    best, choice = loss.value(f, y), y
    if away:
        best = torch.full_like(best, -torch.inf)
    for j in range(f.shape[1]):
        value = loss.value(f + half * (gram[j] - own), y) - 0.5 * half * squares[:, j]
        better = (value > best) & ~(away & (y == j))
        best = torch.where(better, value, best)
        choice = torch.where(better, torch.full_like(choice, j), choice)
    return choice


def radial_supremum(scores: Tensor, rates: Tensor, strength: float) -> Tensor:
    r"""Upper bound of :math:`\sup_{t\ge 0}\, \log\sum_j e^{a_j + L_j t} - \lambda t^2`, shape (n,).

    If outputs move at most at the rates L_j >= 0 with the displacement t, this bounds the worst
    case of the cross-entropy with scores a_j = f_j - f_y (and L_y = 0).

    The log-sum-exp is convex in t, so on a cell it lies below its chord, and a chord minus
    lambda t^2 has its maximum in closed form: every cell gives a bound, the largest of them holds,
    and the cells that decide are divided once more. The error falls with the square of the width.

    Parameters
    ----------
    scores, rates : Tensor of shape (n, k)
    strength : float
        lambda > 0.

    Examples
    --------
    >>> zero = torch.zeros(1, 1, dtype=torch.float64)
    >>> round(float(radial_supremum(zero, zero + 2.0, 1.0)), 6)  # linear: L^2 / (4 lambda)
    1.0
    """
    blocks = zip(scores.split(_BLOCK), rates.split(_BLOCK), strict=True)
    return torch.cat([_block(a, rate, strength) for a, rate in blocks])


def _block(scores: Tensor, rates: Tensor, strength: float) -> Tensor:
    # Beyond t = max L / 2 lambda the derivative is negative.
    far = rates.amax(1) / (2.0 * strength)
    grid = torch.linspace(0.0, 1.0, _CELLS + 1, dtype=scores.dtype, device=scores.device)
    nodes = far[:, None] * grid
    bounds = _cells(nodes, _log_sum(scores, rates, nodes), strength)
    top, index = bounds.topk(_REFINED + 1, dim=1)
    rest = top[:, -1]
    parts = torch.linspace(0.0, 1.0, _PARTS + 1, dtype=scores.dtype, device=scores.device)
    for k in range(_REFINED):
        left = nodes.gather(1, index[:, k : k + 1])
        inner = left + (far[:, None] / _CELLS) * parts
        refined = _cells(inner, _log_sum(scores, rates, inner), strength).amax(1)
        rest = torch.maximum(rest, refined)
    # The sum of rounding errors is far below this relative slack.
    return rest + 1e-13 * (1.0 + rest.abs())


def _log_sum(scores: Tensor, rates: Tensor, nodes: Tensor) -> Tensor:
    return torch.logsumexp(scores[:, None, :] + rates[:, None, :] * nodes[:, :, None], dim=2)


def _cells(nodes: Tensor, values: Tensor, strength: float) -> Tensor:
    """Largest chord minus strength t^2 on each cell."""
    left, right = nodes[:, :-1], nodes[:, 1:]
    width = right - left
    slope = torch.where(
        width > 0, values.diff(dim=1) / width.clamp_min(1e-300), torch.zeros_like(width)
    )
    t = torch.minimum(torch.maximum(slope / (2.0 * strength), left), right)
    return values[:, :-1] + slope * (t - left) - strength * t.square()
