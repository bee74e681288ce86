"""Gradient, Hessian and log-determinant of a potential, with the parameter gradient of both.

For many dimensions log-determinants come from products of Hessians with random vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drojko._settings import check_settings
from drojko._validation import checked
from drojko.transport.icnn import ICNN, _Extra, _Pass

__all__ = [
    "Jet", "Probes", "forward", "jet", "lanczos", "log_det", "parameter_gradient",
    "stochastic_jet",
]  # fmt: skip

_ROWS = 256  # points at once: their tangents stay in the cache


def log_det(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Log-determinants (n,) of positive definite matrices (n, d, d), and L^-1 of their factors."""
    if hessian.shape[-1] == 1:
        return hessian[:, 0, 0].log(), hessian.rsqrt()
    if hessian.shape[-1] == 2:  # by hand: a batched factorisation costs more than its arithmetic
        a, b, c = hessian[:, 0, 0], hessian[:, 1, 0], hessian[:, 1, 1]
        first = a.sqrt()
        below = b / first
        second = (c - below * below).sqrt()
        inverse = torch.zeros_like(hessian)
        inverse[:, 0, 0] = 1.0 / first
        inverse[:, 1, 1] = 1.0 / second
        inverse[:, 1, 0] = -below / (first * second)
        return 2.0 * (first * second).log(), inverse
    factor = torch.linalg.cholesky(hessian)
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(hessian), upper=False)
    return 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1), inverse


@dataclass(frozen=True)
class Jet:
    """The map at n points: images (n, d), Hessians (n, d, d) where known, log-determinants (n,).

    ``backward(g, c)`` returns the gradients of sum(g * image) + sum(c * log det), with g of shape
    (n, d) and c of shape (n,), in the order of ``potential.parameters()``.
    """

    image: Tensor
    hessian: Tensor | None
    log_det: Tensor
    backward: Callable[[Tensor, Tensor], list[Tensor]]


@torch.no_grad()
def jet(potential: ICNN, x: Tensor) -> Jet:
    r"""Evaluate the gradient map and its Jacobian at x, shape (n, d); exact, first order only.

    With tangents :math:`Y_l = J_l C`, :math:`CC^\top = H^{-1}`, the derivative of
    :math:`\log\det H` is that of :math:`\sum_l q_l \cdot Y_l^2`, q_l = pi_l s_l (1 - s_l): one
    more pass through the layers with d columns instead of one. Cost: O(width^2 d) per point and
    layer. Potentials with a context are not supported.

    Examples
    --------
    >>> psi = ICNN(2, hidden=(8, 8), generator=torch.Generator().manual_seed(0))
    >>> x = torch.zeros(3, 2, dtype=torch.float64)
    >>> found = jet(psi, x)
    >>> torch.allclose(found.log_det, torch.logdet(psi.hessian(x)))
    True
    >>> [g.shape == p.shape for g, p in zip(found.backward(x, x[:, 0]), psi.parameters())][:3]
    [True, True, True]
    """
    out, p = potential._forward(x, None)
    hessian, tangents = potential._hessian(p)
    value, inverse = log_det(hessian)

    @torch.no_grad()
    def backward(g: Tensor, c: Tensor) -> list[Tensor]:
        return parameter_gradient(potential, p, [inverse @ t for t in tangents], inverse, g, c)

    return Jet(out, hessian, value, backward)


@torch.no_grad()
def forward(potential: ICNN, x: Tensor) -> tuple[Tensor, Tensor]:
    """Images (n, d) and Hessians (n, d, d) at many points, a few of them at a time."""
    parts: list[Any] = [jet(potential, part) for part in x.split(_ROWS)]
    return torch.cat([p.image for p in parts]), torch.cat([p.hessian for p in parts])


def parameter_gradient(
    potential: ICNN, p: _Pass, ys: list[Tensor], inverse: Tensor, g: Tensor, c: Tensor
) -> list[Tensor]:
    """Gradients of sum(g * image) + sum(c * log det) in the potential's parameters.

    ``inverse`` (n, m, d) holds rows w with sum w w' = H^-1, at least on average, and ``ys`` the
    tangents J_l w of the layers along them, (n, m, width) each.
    """
    last = len(p.s) - 1
    m, d = inverse.shape[1:]
    rows = (inverse * c.view(-1, 1, 1)).reshape(-1, d)
    flat_inverse = inverse.reshape(-1, d)
    quadratic = rows.T @ flat_inverse  # sum of c H^-1
    slopes = [s * (1.0 - s) for s in p.s]
    extra_pi, extra_s = [], []
    for y, s, pi, slope in zip(ys, p.s, p.pi, slopes, strict=True):
        energy = y.square().sum(1).mul_(c.unsqueeze(1))  # of q = pi s (1 - s)
        extra_pi.append(energy * slope)
        extra_s.append(energy * pi * (1.0 - 2.0 * s))
    extra_v: list[Tensor] = [torch.empty(0)] * (last + 1)
    extra_u: list[Tensor] = [torch.empty(0)] * last
    upper: Tensor | None = None
    for layer in range(last, -1, -1):
        d_y = ys[layer] * (2.0 * p.pi[layer] * slopes[layer] * c.unsqueeze(1)).unsqueeze(1)
        if upper is not None:
            d_y = d_y.add_(upper)
        flat = d_y.reshape(-1, d_y.shape[2])
        extra_v[layer] = flat.T @ flat_inverse  # Y' = C'V' + ...
        if layer:
            pushed = ys[layer - 1] * p.s[layer - 1].unsqueeze(1)
            extra_u[layer - 1] = flat.T @ pushed.reshape(-1, pushed.shape[2])
            back = (flat @ p.u[layer - 1]).view(len(g), m, -1)
            extra_s[layer - 1] = extra_s[layer - 1] + (back * ys[layer - 1]).sum(1)
            upper = back * p.s[layer - 1].unsqueeze(1)
    extra = _Extra(quadratic, extra_v, extra_u, extra_pi, extra_s)
    return potential._parameter_gradient(p, g, extra)


@checked()
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

    def __post_init__(self) -> None:
        check_settings(self, whole={"count": 1, "steps": 1})


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
    quadratic, bends = potential.quadratic(), p.bends

    def product(v: Tensor) -> Tensor:
        """Hessians times vectors (n, m, d), by two passes of the layers."""
        ys = potential._tangents(p, v)
        out, back = v @ quadratic, torch.zeros(())
        for layer in range(len(ys) - 1, -1, -1):
            pull = ys[layer] * bends[layer].unsqueeze(1)
            if layer + 1 < len(ys):
                pull = pull.add_((back @ p.u[layer]) * p.s[layer].unsqueeze(1))
            out = out.add_(pull @ potential.V[layer])
            back = pull
        return out

    shape = (len(x), probes.count, x.shape[1])
    signs = torch.randint(2, shape, generator=generator).to(x) * 2.0 - 1.0
    basis, matrix = lanczos(product, signs, probes.steps)
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(1e-12)
    first = vectors[..., 0, :]
    d = x.shape[1]
    log_det = (d * (first.square() * values.log()).sum(-1)).mean(1)
    weights = (vectors @ (first * values.rsqrt()).unsqueeze(-1)).mT  # T^-1/2 e_1 as a row
    rows = (weights @ basis).squeeze(-2) * (d / probes.count) ** 0.5
    ys = potential._tangents(p, rows)

    @torch.no_grad()
    def backward(g: Tensor, c: Tensor) -> list[Tensor]:
        return parameter_gradient(potential, p, ys, rows, g, c)

    return Jet(out, None, log_det, backward)
