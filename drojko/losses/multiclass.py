"""Losses on K > 2 logits, with bounds on the worst case of linear models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.losses.base import Loss
from drojko.losses.radial import radial_supremum

__all__ = ["CrammerSinger", "Softmax"]


class Softmax(Loss):
    r"""Cross-entropy :math:`\mathrm{logsumexp}(f) - f_y` on K logits, `f` of shape (n, K).

    In the logits its gradient has norm at most √2 and its Hessian diag(p) - pp' at most 1/2.

    Examples
    --------
    >>> Softmax().value(torch.zeros(1, 3), torch.tensor([2]))
    tensor([1.0986])
    """

    name = "logistic"
    scalar = False
    attained = False
    lipschitz = math.sqrt(2.0)
    curvature = 0.5

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.logsumexp(f, dim=-1) - _own(f, y)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return _minus_one(torch.softmax(f, dim=-1), y)

    def pairwise_upper_bound(
        self, f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float
    ) -> Tensor:
        r"""Upper bound of :math:`\sup_{z'} \ell(Wz'+b, y) - \lambda c(z', z)`, shape (n,).

        .. math:: \sup_{t \ge 0} \mathrm{logsumexp}_j (f_j - f_y + t \|w_j - w_y\|_{C^{-1}})
                  - \lambda t^2

        because a displacement of cost t² moves f_j - f_y by at most t ‖w_j - w_y‖. Exact for two
        classes, and tight where one competitor of y matters; see `radial_supremum`.

        `f` (n, K) logits of the unmoved points; `pair_norms_squared` (K, K), entry (j, k) the
        squared norm of w_j - w_k with each column j weighted by its inverse cost.
        """
        scores, squares = _pairs(f, y, pair_norms_squared, lam)
        return radial_supremum(scores, squares.sqrt(), lam)

    @staticmethod
    def input_curvature(pair_norms_squared: Tensor) -> Tensor:
        """Bound ``max_jk ‖w_j - w_k‖² / 4`` on the second derivative along any unit direction.

        That derivative is the variance of w_J'v under the softmax law of J; a variable with range
        R has variance at most R²/4 (Popoviciu).
        """
        return pair_norms_squared.max() / 4.0


class CrammerSinger(Loss):
    r"""Multi-class hinge :math:`\max_j f_j - f_y + 1[j \ne y]`, `f` of shape (n, K).

    Examples
    --------
    >>> CrammerSinger().value(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([0]))
    tensor([0.5000])
    """

    name = "hinge"
    scalar = False
    lipschitz = math.sqrt(2.0)
    curvature = math.inf
    kinks = (1.0,)

    def _scores(self, f: Tensor, y: Tensor) -> Tensor:
        return _minus_one(f - _own(f, y)[:, None] + 1.0, y)

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return self._scores(f, y).amax(dim=-1)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        scores = self._scores(f, y)
        top = torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        return _minus_one(top, y)

    def pairwise_upper_bound(
        self, f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float
    ) -> Tensor:
        r"""The worst case :math:`\max_j f_j - f_y + 1[j\ne y] + \|w_j-w_y\|^2/(4\lambda)`, exact.

        The loss is a maximum of affine functions, and suprema commute. Shapes as in `Softmax`.
        """
        scores, squares = _pairs(f, y, pair_norms_squared, lam)
        return _minus_one(scores + squares / (4.0 * lam) + 1.0, y).amax(dim=-1)


def _own(f: Tensor, y: Tensor) -> Tensor:
    return f.gather(-1, y[:, None])[:, 0]


def _minus_one(a: Tensor, y: Tensor) -> Tensor:
    """`a` with one taken off the entry of each row's own class."""
    return a.scatter_add(-1, y[:, None], a.new_full((a.shape[0], 1), -1.0))


def _pairs(f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Differences f_j - f_y and squared norms of w_j - w_y, both of shape (n, K)."""
    classes = (f.shape[-1], f.shape[-1])
    if tuple(pair_norms_squared.shape) != classes:
        raise InvalidDataError(
            f"pair_norms_squared has shape {tuple(pair_norms_squared.shape)}, expected {classes}"
        )
    if not lam > 0:
        raise UnboundedRiskError(f"the penalty is {lam!r}; the worst case is finite for any > 0")
    return f - _own(f, y)[:, None], pair_norms_squared.to(f.dtype)[:, y].T
