"""Transport maps as mathematical objects, and closed-form starts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drojko._validation import Checked, check_number, checked, shown
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.transport.icnn import _EPSILON, ICNN

__all__ = [
    "AffineMap", "BrenierMap", "Composition", "IdentityMap", "TransportMap", "bures_map",
    "set_affine",
]  # fmt: skip


class TransportMap(Checked):
    """A map T of R^d; ``context`` is what a conditional map is conditioned on."""

    _shapes = {"x": "n d", "y": "n d", "context": "n c", "matrix": "d d", "shift": "d"}

    def map(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """T(x), shape (n, d)."""
        raise NotImplementedError

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """The x with T(x) = y, shape (n, d)."""
        raise UnsupportedError(f"{type(self).__name__} has no inverse")

    def log_abs_det_jacobian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log of ``|det DT(x)|``, shape (n,)."""
        raise UnsupportedError(f"{type(self).__name__} has no Jacobian determinant")

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.map(x, context)


class IdentityMap(TransportMap):
    """T(x) = x.

    Examples
    --------
    >>> import torch
    >>> IdentityMap().log_abs_det_jacobian(torch.ones(2, 3))
    tensor([0., 0.])
    """

    def map(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x.new_zeros(len(x))


class AffineMap(TransportMap):
    """T(x) = Px + b with invertible P.

    Parameters
    ----------
    matrix : Tensor of shape (d, d)
    shift : Tensor of shape (d,)

    Examples
    --------
    >>> import torch
    >>> T = AffineMap(2 * torch.eye(2), torch.ones(2))
    >>> T.inverse(T.map(torch.zeros(1, 2))).tolist()
    [[0.0, 0.0]]
    """

    _shapes = {**TransportMap._shapes, "x": "n .dim", "y": "n .dim"}

    def __init__(self, matrix: Tensor, shift: Tensor) -> None:
        if not float(torch.linalg.slogdet(matrix.detach()).logabsdet) > -torch.inf:
            raise InvalidDataError("AffineMap: matrix is singular; its map has no inverse")
        self.matrix, self.shift = matrix, shift

    @property
    def dim(self) -> int:
        """Dimension of x."""
        return len(self.shift)

    @property
    def _precision(self) -> torch.dtype:
        return self.matrix.dtype

    def map(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x @ self.matrix.T + self.shift

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.linalg.solve(self.matrix, (y - self.shift).T).T

    def log_abs_det_jacobian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.linalg.slogdet(self.matrix).logabsdet.expand(len(x))


class BrenierMap(TransportMap):
    r"""Gradient of a convex potential, :math:`T(x) = m + \sigma \nabla\psi((x - m)/\sigma)`.

    Parameters
    ----------
    potential : ICNN or QuadraticEnvelope
    centre : Tensor of shape (d,), optional
        m; one shift and one scale condition the potential's input and keep T a gradient.
    scale : float
        sigma > 0.

    Notes
    -----
    The inverse solves the strongly convex problem min psi(x) - <x, y> by Newton steps with
    backtracking, in float64, to a residual of 1e-12 in units of sigma, or of rounding where that
    is more. By Brenier (1991) T is the optimal W2 transport between a measure and its image.

    Examples
    --------
    >>> import torch
    >>> T = BrenierMap(ICNN(2, generator=torch.Generator().manual_seed(0)))
    >>> x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    >>> bool((T.inverse(T.map(x)) - x).abs().max() < 1e-9)
    True
    """

    _shapes = {**TransportMap._shapes, "centre": "d"}

    def __init__(self, potential: Any, centre: Tensor | None = None, scale: float = 1.0) -> None:
        if isinstance(potential, type) or not hasattr(potential, "hessian"):
            raise InvalidDataError(f"BrenierMap: potential is {shown(potential)}; expected an ICNN")
        check_number("BrenierMap: scale", scale, above=0)
        self.potential = potential
        self.centre = centre
        self.scale = float(scale)

    def _normalise(self, x: Tensor) -> Tensor:
        return (x if self.centre is None else x - self.centre) / self.scale

    def _restore(self, x: Tensor) -> Tensor:
        x = x * self.scale
        return x if self.centre is None else x + self.centre

    @torch.no_grad()
    def map(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._restore(self.potential.gradient(self._normalise(x), context))

    def _double(self) -> ICNN:
        # A copy: the trained network keeps its own precision.
        if self.potential.factor.dtype == torch.float64:
            return self.potential
        p = self.potential
        copy = ICNN(p.dim, hidden=p.hidden, context=p.context, device=p.factor.device)
        copy.load_state_dict({k: v.double() for k, v in p.state_dict().items()})
        return copy

    @torch.no_grad()
    def inverse(
        self,
        y: Tensor,
        context: Tensor | None = None,
        *,
        tol: float = 1e-12,
        max_iter: int = 100,
    ) -> Tensor:
        """The x with T(x) = y, shape (n, d), for every y: T is onto.

        ``tol`` bounds the residual in units of sigma, relative to ``1 + |(y - m) / sigma|``.
        """
        potential = self._double()
        target = self._normalise(y).double()
        c = None if context is None else context.double()
        x = target.clone()
        residual = potential.gradient(x, c) - target
        norm = residual.norm(dim=1)
        goal = tol * (1.0 + target.norm(dim=1))
        stalled = torch.zeros_like(norm, dtype=torch.bool)
        for _ in range(max_iter):
            active = ((norm > goal) & ~stalled).nonzero().squeeze(1)
            if len(active) == 0:
                break
            ca = None if c is None else c[active]
            hess = potential.hessian(x[active], ca)
            factor = torch.linalg.cholesky(hess)
            step = torch.cholesky_solve(residual[active].unsqueeze(2), factor).squeeze(2)
            damping = torch.ones(len(active), 1, dtype=x.dtype, device=x.device)
            trial, trial_residual = x[active], residual[active]
            worse = torch.ones(len(active), dtype=torch.bool, device=x.device)
            for _ in range(30):
                trial = x[active] - damping * step
                trial_residual = potential.gradient(trial, ca) - target[active]
                worse = trial_residual.norm(dim=1) > (1 - 0.1 * damping.squeeze(1)) * norm[active]
                if not worse.any():
                    break
                damping = torch.where(worse.unsqueeze(1), 0.5 * damping, damping)
            stalled[active] = worse  # a Newton step that helps at no length: rounding
            done = active[~worse]
            x[done], residual[done] = trial[~worse], trial_residual[~worse]
            norm[done] = residual[done].norm(dim=1)
        return self._restore(x).to(y.dtype)

    @torch.no_grad()
    def log_abs_det_jacobian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log of det DT(x), shape (n,), by Cholesky's factor in float64."""
        hess = self._double().hessian(
            self._normalise(x).double(), None if context is None else context.double()
        )
        factor = torch.linalg.cholesky(hess)
        return 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1).to(x.dtype)


class Composition(TransportMap):
    """T = T_K o ... o T_1, applied in the order given.

    Parameters
    ----------
    maps : sequence of TransportMap
        T_1 first; at least one (`InvalidDataError` otherwise).

    Examples
    --------
    >>> import torch
    >>> double = AffineMap(2 * torch.eye(1), torch.zeros(1))
    >>> Composition([double, double]).map(torch.ones(1, 1)).item()
    4.0
    """

    def __init__(self, maps: Sequence[TransportMap]) -> None:
        self.maps = tuple(maps) if isinstance(maps, list | tuple) else ()
        wrong = [m for m in self.maps if not hasattr(m, "map")]
        if wrong or not self.maps:
            got = shown(wrong[0] if wrong else maps)
            raise InvalidDataError(f"Composition: maps holds {got}; expected at least one map")

    def map(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for m in self.maps:
            x = m.map(x, context)
        return x

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        for m in reversed(self.maps):
            y = m.inverse(y, context)
        return y

    def log_abs_det_jacobian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        total = x.new_zeros(len(x))
        for m in self.maps:
            total = total + m.log_abs_det_jacobian(x, context)
            x = m.map(x, context)
        return total


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


@checked(source_mean="d", source_cov="d d", target_mean="d", target_cov="d d")
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


@checked(matrix="d d", shift="d")
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

    Raises
    ------
    InvalidDataError
        For a shift of another length than the potential has columns.

    Examples
    --------
    >>> import torch
    >>> psi = ICNN(2, hidden=(4,), generator=torch.Generator().manual_seed(0))
    >>> set_affine(psi, 4 * torch.eye(2, dtype=torch.float64), torch.ones(2))
    >>> x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    >>> [round(v) for v in psi.gradient(x)[0].tolist()]  # 4 x + 1
    [5, -3]
    """
    if len(shift) != potential.dim:
        raise InvalidDataError(f"set_affine: shift of {len(shift)} for dim={potential.dim}")
    matrix = matrix.to(potential.factor)
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor, _ = _spd_sqrt(matrix - _EPSILON * eye)
    potential.factor.copy_(factor)
    potential.shift.copy_(shift)
