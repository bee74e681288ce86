"""Log-determinants of Hessians from products with random vectors: for many dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drojko.transport.icnn import ICNN, _Pass
from drojko.transport.jet import Jet, curvatures, parameter_gradient

__all__ = ["Probes", "lanczos", "stochastic_jet"]


@dataclass(frozen=True)
class Probes:
    """How `stochastic_jet` estimates log-determinants.

    Parameters
    ----------
    count : int
        Random vectors per point: the variance falls like 1 / count.
    steps : int
        Lanczos steps along each: exact from d on.

    Examples
    --------
    >>> Probes(count=4)
    Probes(count=4, steps=20)
    """

    count: int = 1
    steps: int = 20


class _Curvature:
    """Products of the Hessians at n points with vectors (n, m, d), by two passes of the layers."""

    def __init__(self, potential: ICNN, p: _Pass):
        self.potential, self.p = potential, p
        self.quadratic, self.q = potential.quadratic(), curvatures(p)

    def tangents(self, v: Tensor) -> list[Tensor]:
        """J_l v of every layer, (n, m, width)."""
        found = [v @ self.potential.V[0].T]
        for layer in range(1, len(self.p.s)):
            pushed = (found[-1] * self.p.s[layer - 1].unsqueeze(1)) @ self.p.u[layer - 1].T
            found.append(pushed.add_(v @ self.potential.V[layer].T))
        return found

    def __call__(self, v: Tensor) -> Tensor:
        ys = self.tangents(v)
        out = v @ self.quadratic
        back: Tensor | None = None
        for layer in range(len(ys) - 1, -1, -1):
            pull = ys[layer] * self.q[layer].unsqueeze(1)
            if back is not None:
                pull = pull.add_((back @ self.p.u[layer]) * self.p.s[layer].unsqueeze(1))
            out = out.add_(pull @ self.potential.V[layer])
            back = pull
        return out


def lanczos(product, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Orthonormal bases (n, m, k, d) of Krylov spaces and the tridiagonal matrices (n, m, k, k).

    Every vector of ``v`` (n, m, d) is the first of its basis, normalised; k = min(steps, d). Bases
    are orthogonalised twice; where a space is exhausted, zeros follow, with ones on the diagonal.
    """
    k = min(steps, v.shape[-1])
    basis = v.new_zeros(*v.shape[:-1], k, v.shape[-1])
    matrix = v.new_zeros(*v.shape[:-1], k, k)
    current = v / v.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    for j in range(k):
        basis[..., j, :] = current
        image = product(current)
        alpha = (current * image).sum(-1)
        alive = current.square().sum(-1) > 0.5
        matrix[..., j, j] = torch.where(alive, alpha, torch.ones_like(alpha))
        known = basis[..., : j + 1, :]
        for _ in range(2):
            image = image - ((known @ image.unsqueeze(-1)).mT @ known).squeeze(-2)
        beta = image.norm(dim=-1)
        going = beta > 1e-10 * alpha.abs()
        if j + 1 < k:
            beta = torch.where(going, beta, torch.zeros_like(beta))
            matrix[..., j, j + 1] = matrix[..., j + 1, j] = beta
        scale = torch.where(going, 1.0 / beta.clamp_min(1e-300), torch.zeros_like(beta))
        current = image * scale.unsqueeze(-1)
    return basis, matrix


@torch.no_grad()
def stochastic_jet(
    potential: ICNN, x: Tensor, generator: torch.Generator, probes: Probes | None = None
) -> Jet:
    r"""Images at x (n, d), and unbiased estimates of log-determinants and of their gradient.

    With signs v, independent and even, and a Lanczos basis Q of v with tridiagonal T,

    .. math:: \log\det H = E\,v^\top \log(H)\,v \approx |v|^2\,(\log T)_{11}, \qquad
              w = H^{-1/2} v \approx |v|\,Q\,T^{-1/2} e_1, \qquad E\,w w^\top = H^{-1}

    so that the gradient is that of `jet`, with the vectors w in the place of the d columns of
    H^{-1/2}. Exact up to the choice of v once steps reaches d; otherwise the error falls
    geometrically with the steps, at the rate of the square root of the condition number. Cost:
    O(steps * width * (width + d)) per point and probe, beside O(width^2 d + d^3) of `jet`.

    S. Ubaru, J. Chen, Y. Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature; C.-W. Huang, R. Chen, C. Tsirigotis, A. Courville (2021), arXiv 2012.05942.

    Examples
    --------
    >>> gen = torch.Generator().manual_seed(0)
    >>> psi = ICNN(40, hidden=(8, 8), generator=gen).double()
    >>> x = torch.randn(5, 40, generator=gen, dtype=torch.float64)
    >>> rough = stochastic_jet(psi, x, gen, Probes(count=400)).log_det
    >>> bool((rough - torch.logdet(psi.hessian(x))).abs().max() < 0.5)
    True
    """
    probes = probes or Probes()
    out, p = potential._forward(x, None)
    curvature = _Curvature(potential, p)
    shape = (len(x), probes.count, x.shape[1])
    signs = torch.randint(2, shape, generator=generator).to(x) * 2.0 - 1.0
    basis, matrix = lanczos(curvature, signs, probes.steps)
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(1e-12)
    first = vectors[..., 0, :]
    d = x.shape[1]
    log_det = (d * (first.square() * values.log()).sum(-1)).mean(1)
    weights = (vectors @ (first * values.rsqrt()).unsqueeze(-1)).mT  # T^-1/2 e_1 as a row
    rows = (weights @ basis).squeeze(-2) * (d / probes.count) ** 0.5
    ys = curvature.tangents(rows)

    @torch.no_grad()
    def backward(g: Tensor, c: Tensor) -> list[Tensor]:
        return parameter_gradient(potential, p, ys, rows, g, c)

    return Jet(out, None, log_det, backward)
