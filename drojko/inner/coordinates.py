"""Coordinates of the inner problem: the part of x that can move and that the loss can see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko._validation import checked
from drojko.ambiguity.ground.cost import GroundCost
from drojko.exceptions import InvalidDataError
from drojko.inner.swaps import Swaps

__all__ = ["Coordinates"]


@checked(
    constructor=False,
    x="n d any",
    q0="n r any",
    q="n r any",
    gradient="n d any",
    immutable="k index",
    first_layer="k d any",
)
@dataclass(frozen=True)
class Coordinates:
    r"""Isometric coordinates :math:`q = V^\top C^{1/2} x / \sigma` of the movable part of x.

    C = diag(weights) of the ground cost on mutable columns, V an orthonormal basis of the
    directions that the loss depends on. A displacement q - q0 costs
    :math:`\sigma^2 \|q - q_0\|^2` exactly, and no displacement outside these coordinates can
    change the loss, so nothing is lost by moving q only. Immutable columns have no coordinate.

    Parameters
    ----------
    scale : float
        sigma, the spread of the points in the cost's metric.
    encoder, lift : Tensor of shape (d, r), default=None
        q = x @ encoder, x' = x + (q' - q) @ lift.T; None for both: q = x / sigma.
    lower, upper : Tensor of shape (r,), default=None
        Bounds in coordinates; both None where there are none.
    n_features : int
        d.
    immutable : Tensor, default=None
        Indices of the columns that cannot move.
    swaps : Swaps, default=None
        Immutable columns that may take another category: no coordinate depends on those.
    least, most : Tensor of shape (d,), default=None
        The bounds of the columns, which rounding would pass.

    Examples
    --------
    >>> import numpy as np
    >>> x = torch.tensor([[0.0, 0.0, 5.0], [2.0, 1.0, 9.0]], dtype=torch.float64)
    >>> coordinates = Coordinates.build(GroundCost(np.array([1.0, 4.0, np.inf])), x)
    >>> q = coordinates.encode(x)
    >>> cost = coordinates.scale**2 * (q[0] - q[1]).square().sum()
    >>> q.shape, round(cost.item(), 9)  # 1 * 2^2 + 4 * 1^2
    (torch.Size([2, 2]), 8.0)
    """

    scale: float
    encoder: Tensor | None = None
    lift: Tensor | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None
    n_features: int = 0
    immutable: Tensor | None = None
    swaps: Swaps | None = None
    least: Tensor | None = None
    most: Tensor | None = None

    @property
    def dim(self) -> int:
        """Number of coordinates r."""
        return self.n_features if self.lift is None else self.lift.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        """Coordinates of x, shape (n, r)."""
        return x / self.scale if self.encoder is None else x @ self.encoder

    def decode(self, x: Tensor, q0: Tensor, q: Tensor) -> Tensor:
        """Feature vector reached from x when its coordinates move from q0 to q."""
        moved = self._moved(x, q - q0)
        return moved if self.least is None else moved.clamp(self.least, self.most)

    def _moved(self, x: Tensor, move: Tensor) -> Tensor:
        """`decode` of a move, for inner loops: nothing is checked."""
        if self.lift is None:
            return torch.add(x, move, alpha=self.scale)
        return torch.addmm(x, move, self.lift.T)

    def pull(self, gradient: Tensor) -> Tensor:
        """Gradient in q from the gradient in x."""
        return self._pull(gradient)

    def _pull(self, gradient: Tensor) -> Tensor:
        """`pull`, for inner loops: nothing is checked."""
        return gradient * self.scale if self.lift is None else gradient @ self.lift

    def project(self, q: Tensor) -> Tensor:
        """Nearest coordinates within the bounds."""
        return q if self.lower is None else q.clamp(self.lower, self.upper)

    @staticmethod
    def build(
        cost: GroundCost,
        x: Tensor,
        first_layer: Tensor | None = None,
        reduce: bool = True,
        mean: Callable[[Tensor], Tensor] | None = None,
    ) -> Coordinates:
        """Coordinates for a ground cost, scaled by the spread of the points ``x``.

        ``first_layer`` is a matrix W such that the loss depends on x through Wx only; its row
        space (in the metric of the cost) is used when it is smaller and there are no bounds.
        ``mean`` is that over rows, where ``x`` are not all of the points.
        """
        like = {"dtype": x.dtype, "device": x.device}
        weights = torch.as_tensor(cost.weights, **like)
        mutable = torch.isfinite(weights)
        root = torch.where(mutable, weights, torch.ones_like(weights)).sqrt()
        columns = mutable.nonzero().squeeze(1)
        mean = mean or (lambda values: values.mean(0))
        spread = mean(((x[:, columns] - mean(x[:, columns])) * root[columns]).square())
        largest = spread.max().clamp_min(0).sqrt().item() if len(columns) else 0.0
        scale = (spread.mean().sqrt().item() or largest or 1.0) if len(columns) else 1.0
        if not math.isfinite(scale):
            raise InvalidDataError(
                "Coordinates.build: x holds NaN or infinity, or numbers whose squares are none"
            )
        bounded = cost.lower is not None or cost.upper is not None
        basis = None
        if reduce and first_layer is not None and not bounded and len(columns):
            rows = (first_layer[:, columns] / root[columns]).to(**like)
            if len(rows) < len(columns):
                _, s, vh = torch.linalg.svd(rows, full_matrices=False)
                rank = max(1, int((s > 1e-12 * s[0].clamp_min(1e-300)).sum()))
                basis = vh[:rank].T
        whole = len(columns) == x.shape[1]
        if basis is None and whole and bool((weights == 1).all()):
            encoder = lift = None
        else:
            eye = torch.zeros(x.shape[1], len(columns), **like)
            eye[columns, torch.arange(len(columns), device=x.device)] = 1.0
            basis = eye if basis is None else eye @ basis
            encoder = basis * root.unsqueeze(1) / scale
            lift = basis / root.unsqueeze(1) * scale
        lower = upper = least = most = None
        if bounded:
            factor = root[columns] / scale
            inf = torch.full((x.shape[1],), torch.inf, **like)
            lo = -inf if cost.lower is None else torch.as_tensor(cost.lower, **like)
            hi = inf if cost.upper is None else torch.as_tensor(cost.upper, **like)
            lower, upper = lo[columns] * factor, hi[columns] * factor
            least, most = torch.where(mutable, lo, -inf), torch.where(mutable, hi, inf)
        immutable = (~mutable).nonzero().squeeze(1) if not whole else None
        swaps = Swaps.of(cost, like)
        return Coordinates(
            scale, encoder, lift, lower, upper, x.shape[1], immutable, swaps, least, most
        )
