"""Convex potentials that are smoothed maxima of quadratics: maps that are affine piece by piece."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from drojko._validation import checked
from drojko.exceptions import InvalidDataError, NonFiniteError

__all__ = ["QuadraticEnvelope"]

_EPSILON = 1e-3  # strong convexity that no parameter value can remove


@checked(centres="J d", matrix="d d", shift="d", x="n .dim")
class QuadraticEnvelope(nn.Module):
    r"""Smoothed maximum of J convex quadratics.

    .. math:: \psi(x) = \tfrac\epsilon2 |x|^2 + s \log \sum_j \exp\big(q_j(x) / s\big), \qquad
        q_j(x) = \tfrac12 |L_j^\top x|^2 + a_j^\top x + b_j

    The gradient :math:`\epsilon x + \sum_j p_j(x) g_j(x)`, :math:`g_j = L_j L_j^\top x + a_j`, goes
    from one affine map to another where the maximum changes hands; the Hessian is
    :math:`\epsilon I + \sum_j p_j L_j L_j^\top + \mathrm{Cov}_p(g) / s`. A few pieces split one
    mode into several, which layers of softplus do with difficulty.

    Parameters
    ----------
    centres : Tensor of shape (J, d)
        Points at which the pieces touch the quadratic that they start from.
    matrix, shift : Tensor of shape (d, d) and (d,)
        That quadratic's Hessian M and slope b: the first map is close to Mx + b, but flatter
        beyond the centres.
    share : float, default=0.5
        Of M that comes from changing pieces, the rest is theirs.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1)
    >>> eye, zero = torch.eye(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    >>> psi = QuadraticEnvelope(x, eye, zero)
    >>> [round(float(v), 2) for v in psi.gradient(x).detach()]  # the identity, flatter at the ends
    [-0.73, -0.37, 0.0, 0.37, 0.73]
    """

    def __init__(
        self, centres: Tensor, matrix: Tensor, shift: Tensor, *, share: float = 0.5
    ) -> None:
        super().__init__()
        if len(centres) < 1 or not 0.0 < share < 1.0:
            raise InvalidDataError(
                "a QuadraticEnvelope needs centres of shape (J, d), J >= 1, and a share in (0, 1)"
            )
        count, d = centres.shape
        near = torch.cdist(centres, centres).square()
        near.fill_diagonal_(math.inf)
        spacing = near.topk(min(3, count - 1), 1, largest=False).values.mean() if count > 1 else d
        pull = share * centres @ matrix
        factor, failed = torch.linalg.cholesky_ex((1.0 - share) * matrix)
        if int(failed) or not torch.allclose(matrix, matrix.T):
            raise InvalidDataError("QuadraticEnvelope: matrix must be symmetric, positive definite")
        self.factor = nn.Parameter(factor.expand(count, d, d).clone())
        self.slope = nn.Parameter(shift + pull)
        self.level = nn.Parameter(-0.5 * (pull * centres).sum(1))
        stretch = float(matrix.diagonal().mean())
        smooth = max(share * stretch * float(spacing) / d, 1e-300)  # centres may coincide
        self.log_smoothing = nn.Parameter(centres.new_tensor(math.log(smooth)))

    @property
    def _precision(self) -> torch.dtype:
        return self.slope.dtype

    @property
    def dim(self) -> int:
        """Dimension of x."""
        return self.slope.shape[1]

    def _pieces(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (n, J), gradients (n, J, d) of the pieces, and their matrices (J, d, d)."""
        matrices = self.factor @ self.factor.transpose(1, 2)
        count, d, _ = matrices.shape
        gradient = (x @ matrices.reshape(count * d, d).T).view(len(x), count, d) + self.slope
        value = 0.5 * ((gradient + self.slope) * x.unsqueeze(1)).sum(2) + self.level
        return value, gradient, matrices

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Potential psi(x), shape (n,)."""
        smooth = self.log_smoothing.exp()
        value = self._pieces(x)[0]
        return 0.5 * _EPSILON * x.square().sum(1) + smooth * torch.logsumexp(value / smooth, 1)

    def gradient(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Gradient in x, shape (n, d): the transport map."""
        value, slopes, _ = self._pieces(x)
        return self._mean(torch.softmax(value / self.log_smoothing.exp(), 1), slopes) + _EPSILON * x

    @staticmethod
    def _mean(p: Tensor, slopes: Tensor) -> Tensor:
        image = torch.einsum("nj,njd->nd", p, slopes)
        if not bool(torch.isfinite(image).all()):
            raise NonFiniteError("QuadraticEnvelope: points so far out that its values overflow")
        return image

    def hessian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Hessian in x, shape (n, d, d), at least epsilon I."""
        return self.jet(x)[1]

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (n, d) and Hessians (n, d, d) at once, differentiable in the parameters."""
        smooth = self.log_smoothing.exp()
        value, slopes, matrices = self._pieces(x)
        p = torch.softmax(value / smooth, 1)
        image = self._mean(p, slopes)
        spread = (slopes - image.unsqueeze(1)) * (p / smooth).sqrt().unsqueeze(2)
        hessian = (p @ matrices.flatten(1)).view(-1, self.dim, self.dim)
        hessian = hessian + spread.transpose(1, 2) @ spread
        eye = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        return image + _EPSILON * x, hessian + _EPSILON * eye
