"""Losses on K > 2 logits, with bounds on the worst case of linear models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.losses.base import Loss
from drojko.losses.moves import best_class_move, fixed_points, radial_supremum
from drojko.losses.pieces import LogSumExp, Response, Smooth

__all__ = ["CrammerSinger", "Softmax"]


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
        squares = _squares(f, y, pair_norms_squared, lam)
        return self.rate_bound(f, y, squares.sqrt(), lam)


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

    def worst_probabilities(self, f: Tensor, y: Tensor, gram: Tensor, half: float) -> Tensor:
        (p, value), (other, at_other) = fixed_points(self, f, y, gram, half)
        return torch.where((at_other > value).unsqueeze(1), other, p)

    def smoothed_worst(
        self, f: Tensor, y: Tensor, w: Tensor, gram: Tensor, half: float, mu: float, rough: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = fixed_points(self, f, y, gram, half, rough)
        stacked = torch.stack([value for _, value in found], 1)
        share = torch.softmax(stacked / mu, 1)
        values = mu * torch.logsumexp(stacked / mu, 1)
        own = one_hot(y, f.shape[1]).to(f.dtype)
        pull, second = torch.zeros_like(f), torch.zeros_like(gram)
        for (probabilities, _), weight in zip(found, share.T, strict=True):
            c = probabilities - own
            mass = (weight * w).unsqueeze(1)
            pull += mass * c
            second += c.T @ (mass * c)
        return values, pull, second

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

    def worst_probabilities(self, f: Tensor, y: Tensor, gram: Tensor, half: float) -> Tensor:
        choice = best_class_move(self, f, y, gram, half)
        return one_hot(choice, f.shape[1]).to(f.dtype)

    def smoothed_worst(
        self, f: Tensor, y: Tensor, w: Tensor, gram: Tensor, half: float, mu: float, rough: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The maximisers are vertices p = e_j.
        diagonal = gram.diagonal()
        squares = diagonal + diagonal[:, None] - 2.0 * gram
        own = one_hot(y, f.shape[1]).to(f.dtype)
        scores = f - f.gather(1, y[:, None]) + 1.0 - own + 0.5 * half * squares[y]
        share = torch.softmax(scores / mu, 1)
        values = mu * torch.logsumexp(scores / mu, 1)
        mass = w[:, None] * share
        pairs = mass.T @ own  # (j, y): mass that moves from class y towards j
        second = torch.diag(pairs.sum(0) + pairs.sum(1)) - pairs - pairs.T
        return values, mass - w[:, None] * own, second

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
    return f.gather(-1, y[:, None])[:, 0]


def _minus_one(a: Tensor, y: Tensor) -> Tensor:
    """`a` with one taken off the entry of each row's own class."""
    return a.scatter_add(-1, y[:, None], a.new_full((a.shape[0], 1), -1.0))


def _differences(f: Tensor, y: Tensor) -> Tensor:
    return f - _own(f, y)[:, None]


def _squares(f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float) -> Tensor:
    """Squared norms of w_j - w_y, of shape (n, K)."""
    classes = (f.shape[-1], f.shape[-1])
    if tuple(pair_norms_squared.shape) != classes:
        raise InvalidDataError(
            f"pair_norms_squared has shape {tuple(pair_norms_squared.shape)}, expected {classes}"
        )
    if not lam > 0:
        raise UnboundedRiskError(f"the penalty is {lam!r}; the worst case is finite for any > 0")
    return pair_norms_squared.to(f.dtype)[:, y].T
