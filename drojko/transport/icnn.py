"""Input-convex neural potentials with explicit gradient, Hessian and parameter gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from drojko._random import generator as make_generator
from drojko._validation import checked, is_whole, is_widths, shown
from drojko.exceptions import InvalidDataError

__all__ = ["ICNN"]

_EPSILON = 1e-4  # strong convexity that no parameter value can remove


def softplus(a: Tensor) -> Tensor:
    """Compute log(1 + e^a) to rounding; torch's default is the identity from 20 on, 2e-9 off."""
    return functional.softplus(a, threshold=40.0)


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


@dataclass
class _Pass:
    """What one evaluation of the gradient map leaves for its backward pass."""

    x: Tensor
    context: Tensor | None
    z: list[Tensor]
    s: list[Tensor]
    pi: list[Tensor]
    t: list[Tensor]
    u: list[Tensor]

    @property
    def bends(self) -> list[Tensor]:
        """Second derivatives of the layers, q_l of shape (n, width): H = M + sum J' diag(q) J."""
        return [pi * s * (1.0 - s) for pi, s in zip(self.pi, self.s, strict=True)]


@dataclass
class _Extra:
    """What a function of the Hessian adds on the way back: the derivatives in M, V, U, pi, s."""

    quadratic: Tensor
    v: list[Tensor]
    u: list[Tensor]
    pi: list[Tensor]
    s: list[Tensor]


@checked(x="n .dim", context="n .context")
class ICNN(nn.Module):
    r"""Convex potential with a learnable quadratic and softplus layers.

    .. math::

        \psi(x; c) &= \tfrac12 x^\top (LL^\top + \epsilon I) x + (b + B c)^\top x + w(c)^\top z_L,\\
        z_l &= \mathrm{softplus}(U_l z_{l-1} + V_l x + d_l + D_l c), \qquad
        w(c) = \mathrm{softplus}(w_0 + W c).

    U and w are softplus images of free parameters, so psi is epsilon-strongly convex in x for
    every parameter value: there is nothing to clip. The context c (class indicator, immutable
    columns) enters without constraint (a partially input-convex network).

    Parameters
    ----------
    dim : int
        Dimension of x.
    hidden : sequence of int
        Widths of the softplus layers.
    context : int
        Dimension of c; 0 for none.
    generator : torch.Generator, optional
        Source of the initial weights; None: seeded from the operating system. The start is
        close to the identity map.
    dtype : torch.dtype
    device : torch.device or str

    Raises
    ------
    InvalidDataError
        For a dimension or a width below one, and where a context is missing.

    Notes
    -----
    Explicit formulas (s = sigmoid of the pre-activations, pi_L = w, pi_{l-1} = U_l'(pi_l s_l)):
    gradient ``Mx + b + sum_l V_l'(pi_l s_l)``; Hessian
    ``M + sum_l J_l' diag(pi_l s_l (1-s_l)) J_l`` with J_1 = V_1,
    J_l = U_l diag(s_{l-1}) J_{l-1} + V_l. Every term is positive semidefinite.
    After Amos, Xu, Kolter (2017, arXiv 1609.07152).

    Examples
    --------
    >>> import torch
    >>> psi = ICNN(2, hidden=(8, 8), generator=torch.Generator().manual_seed(0))
    >>> x = torch.zeros(3, 2, dtype=torch.float64)
    >>> psi.gradient(x).shape, psi.hessian(x).shape
    (torch.Size([3, 2]), torch.Size([3, 2, 2]))
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if not (is_whole(dim, 1) and is_whole(context, 0) and is_widths(hidden) and hidden):
            raise InvalidDataError(
                f"an ICNN needs dim >= 1, context >= 0 and positive widths, got {shown(dim)}, "
                f"{shown(context)} and {shown(hidden)}"
            )
        if dtype not in (torch.float64, torch.float32):
            raise InvalidDataError(f"ICNN: dtype={shown(dtype)}; expected torch.float64 or float32")
        self.dim, self.hidden, self.context = dim, tuple(hidden), context
        generator = make_generator(generator)

        def normal(*shape: int, scale: float) -> nn.Parameter:
            draw = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
            return nn.Parameter(draw.to(device, dtype))

        def full(*shape: int, value: float) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, value, dtype=dtype, device=device))

        eye = math.sqrt(1.0 - _EPSILON) * torch.eye(dim, dtype=dtype, device=device)
        self.factor = nn.Parameter(eye)
        self.shift = full(dim, value=0.0)
        self.V = nn.ParameterList([normal(h, dim, scale=dim**-0.5) for h in hidden])
        self.d = nn.ParameterList([normal(h, scale=0.5) for h in hidden])
        # Small positive weights: fan-in scaled so that the start stays near the identity.
        self.U = nn.ParameterList(
            [full(h, g, value=_inverse_softplus(0.3 / g)) for g, h in pairwise(hidden)]
        )
        self.w = full(hidden[-1], value=_inverse_softplus(0.02 / hidden[-1]))
        if context:
            self.B = full(dim, context, value=0.0)
            self.D = nn.ParameterList([normal(h, context, scale=0.5) for h in hidden])
            self.W = full(hidden[-1], context, value=0.0)

    # -- building blocks ---------------------------------------------------------------------

    @property
    def _precision(self) -> torch.dtype:
        return self.factor.dtype

    def quadratic(self) -> Tensor:
        """The matrix M = LL' + epsilon I of the quadratic part."""
        m = self.factor @ self.factor.T
        return m + _EPSILON * torch.eye(self.dim, dtype=m.dtype, device=m.device)

    def _context(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        if not self.context:
            return None
        if context is None:
            raise InvalidDataError(f"this potential needs a context of {self.context} columns")
        return context.to(x.dtype)

    def _hidden(
        self, x: Tensor, c: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        z: list[Tensor] = []
        s: list[Tensor] = []
        u = [softplus(raw) for raw in self.U]
        for layer in range(len(self.hidden)):
            a = torch.addmm(self.d[layer], x, self.V[layer].T)
            if layer:
                a = torch.addmm(a, z[-1], u[layer - 1].T)
            if c is not None:
                a = torch.addmm(a, c, self.D[layer].T)
            z.append(softplus(a))
            s.append(torch.sigmoid(a))
        return z, s, u

    def _weights(self, c: Tensor | None) -> Tensor:
        return softplus(self.w if c is None else torch.addmm(self.w, c, self.W.T))

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, _Pass]:
        c = self._context(x, context)
        z, s, u = self._hidden(x, c)
        w = self._weights(c)
        pi = [w] * len(s)
        t = [w * s[-1]] * len(s)
        out = torch.addmm(self.shift, x, self.quadratic())
        if c is not None:
            out = torch.addmm(out, c, self.B.T)
        for layer in range(len(s) - 1, -1, -1):
            if layer < len(s) - 1:
                pi[layer] = t[layer + 1] @ u[layer]
                t[layer] = pi[layer] * s[layer]
            out = torch.addmm(out, t[layer], self.V[layer])
        return out, _Pass(x, c, z, s, pi, t, u)

    # -- mathematics -------------------------------------------------------------------------

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Potential psi(x; c), shape (n,)."""
        c = self._context(x, context)
        z, _, _ = self._hidden(x, c)
        linear = self.shift if c is None else torch.addmm(self.shift, c, self.B.T)
        quadratic = 0.5 * (x * (x @ self.quadratic())).sum(1)
        return quadratic + (linear * x).sum(1) + (self._weights(c) * z[-1]).sum(1)

    def gradient(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Gradient in x, shape (n, dim): the transport map."""
        return self._forward(x, context)[0]

    def hessian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Hessian in x, shape (n, dim, dim), at least epsilon I."""
        return self._hessian(self._forward(x, context)[1])[0]

    def _hessian(self, p: _Pass) -> tuple[Tensor, list[Tensor]]:
        """Hessians (n, dim, dim), and the layers' Jacobians transposed, (n, dim, width) each."""
        eye = torch.eye(self.dim, dtype=p.x.dtype, device=p.x.device)
        tangents = [t.expand(len(p.x), -1, -1) for t in self._tangents(p, eye.unsqueeze(0))]
        total = self.quadratic().repeat(len(p.x), 1, 1)
        for tangent, q in zip(tangents, p.bends, strict=True):
            total = total.baddbmm_(tangent * q.unsqueeze(1), tangent.mT)
        return total, tangents

    def _tangents(self, p: _Pass, v: Tensor) -> list[Tensor]:
        """J_l v of every layer for vectors v (n, m, dim), (n, m, width) each."""
        found = [v @ self.V[0].T]
        for layer, (s, u) in enumerate(zip(p.s, p.u), 1):
            pushed = (found[-1] * s.unsqueeze(1)) @ u.T
            found.append(pushed.add_(v @ self.V[layer].T))
        return found

    @torch.no_grad()
    def linearise(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """Gradient map at x, and the closure ``backward(g)``.

        ``backward(g)`` returns the gradients of ``sum(g * gradient(x))`` in the parameters, in
        the order of ``self.parameters()``: what an optimiser of the map needs, from first-order
        formulas only.
        """
        out, p = self._forward(x, context)

        @torch.no_grad()
        def backward(g: Tensor) -> list[Tensor]:
            return self._parameter_gradient(p, g)

        return out, backward

    def _parameter_gradient(self, p: _Pass, g: Tensor, extra: _Extra | None = None) -> list[Tensor]:
        last = len(p.s) - 1
        moment = p.x.T @ g
        if extra is not None:
            moment = moment + extra.quadratic
        d_factor = (moment + moment.T) @ self.factor
        d_v = [t.T @ g for t in p.t]
        if extra is not None:
            d_v = [a.add_(b) for a, b in zip(d_v, extra.v, strict=True)]
        d_u_raw = [torch.empty(0)] * last
        d_s: list[Tensor] = []
        # Up through t_1, ..., t_L: the order opposite to their computation.
        tau = g @ self.V[0].T
        for layer in range(last):
            d_pi = tau * p.s[layer]
            d_s.append(tau * p.pi[layer])
            if extra is not None:
                d_pi = d_pi.add_(extra.pi[layer])
            d_u_raw[layer] = p.t[layer + 1].T @ d_pi
            if extra is not None:
                d_u_raw[layer].add_(extra.u[layer])
            tau = torch.addmm(d_pi @ p.u[layer].T, g, self.V[layer + 1].T)
        d_s.append(tau * p.pi[last])
        d_w = tau * p.s[last]
        if extra is not None:
            d_w = d_w.add_(extra.pi[last])
            d_s = [a.add_(b) for a, b in zip(d_s, extra.s, strict=True)]
        d_w_raw = d_w * -torch.expm1(-p.pi[last])  # softplus'(raw) = 1 - exp(-softplus)
        # Down through the pre-activations.
        d_d: list[Tensor] = [torch.empty(0)] * (last + 1)
        d_c: list[Tensor] = [torch.empty(0)] * (last + 1)
        d_z: Tensor | None = None
        for layer in range(last, -1, -1):
            s = p.s[layer]
            d_a = d_s[layer] * s * (1.0 - s)
            if d_z is not None:
                d_a = torch.addcmul(d_a, d_z, s)
            d_v[layer] = d_v[layer].addmm_(d_a.T, p.x)
            d_d[layer] = d_a.sum(0)
            if p.context is not None:
                d_c[layer] = d_a.T @ p.context
            if layer:
                d_u_raw[layer - 1] = d_u_raw[layer - 1].addmm_(d_a.T, p.z[layer - 1])
                d_z = d_a @ p.u[layer - 1]
        d_u = [d * -torch.expm1(-u) for d, u in zip(d_u_raw, p.u, strict=True)]
        grads = [d_factor, g.sum(0), d_w_raw.sum(0)]
        if p.context is None:
            return [*grads, *d_v, *d_d, *d_u]
        return [*grads, g.T @ p.context, d_w_raw.T @ p.context, *d_v, *d_d, *d_u, *d_c]
