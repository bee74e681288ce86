"""Closed-form starts for transport maps."""

from __future__ import annotations

import torch
from torch import Tensor

from drojko.transport.icnn import _EPSILON, ICNN

__all__ = ["bures_map", "set_affine"]


def _spd_sqrt(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and pseudo-inverse square root of a symmetric positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(0.0)
    root = values.sqrt()
    # Rounding leaves eigenvalues of eps * max where the true ones are zero.
    info = torch.finfo(root.dtype)
    keep = root > (len(root) * info.eps) ** 0.5 * root.max().clamp_min(info.tiny)
    inverse = torch.where(keep, 1.0 / torch.where(keep, root, torch.ones_like(root)), 0.0 * root)
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


def bures_map(
    source_mean: Tensor, source_cov: Tensor, target_mean: Tensor, target_cov: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Optimal affine map x -> Px + b between two Gaussians.

    .. math:: P = S^{-1/2} (S^{1/2} R S^{1/2})^{1/2} S^{-1/2}, \qquad b = m_R - P m_S.

    Parameters
    ----------
    source_mean, target_mean : Tensor of shape (d,)
        m_S and m_R.
    source_cov, target_cov : Tensor of shape (d, d)
        S and R, symmetric positive semidefinite. Where S is singular, S^{-1/2} is the
        pseudo-inverse and the map is constant along its null space.

    Returns
    -------
    (P, b) : Tensor of shape (d, d), Tensor of shape (d,)

    Notes
    -----
    Source: Gelbrich (1990), 'On a formula for the L2 Wasserstein metric between measures'.

    Examples
    --------
    >>> import torch
    >>> one = torch.eye(2, dtype=torch.float64)
    >>> P, b = bures_map(torch.zeros(2), one, torch.ones(2), 4 * one)
    >>> P.diagonal().tolist(), b.tolist()
    ([2.0, 2.0], [1.0, 1.0])
    """
    source_cov, target_cov = (0.5 * (c + c.T) for c in (source_cov, target_cov))
    root, inverse_root = _spd_sqrt(source_cov)
    middle, _ = _spd_sqrt(root @ target_cov @ root)
    matrix = inverse_root @ middle @ inverse_root
    return matrix, target_mean.to(matrix.dtype) - matrix @ source_mean.to(matrix.dtype)


@torch.no_grad()
def set_affine(potential: ICNN, matrix: Tensor, shift: Tensor) -> None:
    """Set the quadratic part of ``potential`` so that its gradient is x -> matrix x + shift.

    The softplus layers are left as they are: at initialisation they add a bounded gradient of a
    few hundredths. Eigenvalues of ``matrix`` below the potential's strong convexity are raised
    to it.

    Parameters
    ----------
    potential : ICNN
        Changed in place.
    matrix : Tensor of shape (d, d)
        Symmetric.
    shift : Tensor of shape (d,)

    Examples
    --------
    >>> import torch
    >>> psi = ICNN(2, hidden=(4,), generator=torch.Generator().manual_seed(0))
    >>> set_affine(psi, 4 * torch.eye(2, dtype=torch.float64), torch.ones(2))
    >>> x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    >>> [round(v) for v in psi.gradient(x)[0].tolist()]  # 4 x + 1
    [5, -3]
    """
    matrix = matrix.to(potential.factor)
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor, _ = _spd_sqrt(matrix - _EPSILON * eye)
    potential.factor.copy_(factor)
    potential.shift.copy_(shift)
