"""Velocity fields of neural JKO steps: exact divergence, the flow of the field, and its fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drojko._numerics import Adam, batches, cosine
from drojko.exceptions import NonFiniteError
from drojko.flows.functionals.base import checked_values

__all__ = ["VelocityFlow", "fit_velocity", "log_target"]

_BLOCK = 4096  # points integrated at once: their hidden layers stay in the cache
#: Largest norm of a gradient, as a multiple of the median of those before it.
_CLIP = 3.0
_LOWEST_RATE = 0.02
#: Nats below the batch's median from which on log g counts by its logarithm.
_FAR = 200.0
#: Particles whose Jacobians are computed to check the integrator, and its largest number of steps.
_PROBED, _MOST_STEPS = 512, 64


class _Field(torch.autograd.Function):
    """Value and divergence of the field at one time, with their derivatives written out.

    M holds the second layer times what joins it to input and output, B the gate's (`VelocityFlow`).
    """

    @staticmethod
    def forward(ctx: Any, z, W1, e1, W2, e2, W3, M, G, B, A, c):
        a1 = torch.addmm(e1, z, W1.T)
        s1 = torch.sigmoid(a1)
        r1 = 1.0 - s1
        h1 = a1 * s1
        g1 = s1 + h1 * r1
        a2 = torch.addmm(e2, h1, W2.T)
        s2 = torch.sigmoid(a2)
        r2 = 1.0 - s2
        h2 = a2 * s2
        g2 = s2 + h2 * r2
        q = g2 @ M
        p = z @ B
        k1 = s1 * r1
        gate = s1 @ G.T
        value = torch.addmm(c, z, A.T).addmm_(h2, W3.T).addcmul_(z, gate)
        divergence = (q * g1).addcmul_(p, k1).sum(1).add_(gate.sum(1)).add_(A.diagonal().sum())
        saved = z, W1, W2, W3, M, G, B, A, a1, s1, h1, g1, k1, a2, s2, h2, g2, q, p, gate
        ctx.save_for_backward(*saved)
        return value, divergence

    @staticmethod
    def backward(ctx: Any, dv, dd):  # type: ignore[override]
        z, W1, W2, W3, M, G, B, A, a1, s1, h1, g1, k1, a2, s2, h2, g2, q, p, gate = (
            ctx.saved_tensors
        )
        dd = dd.unsqueeze(1)
        dgate = torch.addcmul(dd, dv, z)
        # Second derivative of the activation a s(a): s r (2 + a (1 - 2 s)), r = 1 - s.
        bend1 = k1 * (2.0 + a1 - 2.0 * h1)
        bend2 = (s2 * (1.0 - s2)).mul_(2.0 + a2 - 2.0 * h2)
        da2 = (dv @ W3).mul_(g2).addcmul_(bend2.mul_(dd), g1 @ M.T)
        da1 = (da2 @ W2).mul_(g1).addcmul_(bend1.mul_(dd), q)
        da1.addcmul_(k1, torch.addcmul(dgate @ G, dd * (1.0 - 2.0 * s1), p))
        weighted, slope = g2 * dd, k1 * dd
        dA = dv.T @ z
        dA.diagonal().add_(dd.sum())
        return (
            torch.addmm(dv @ A, da1, W1).addmm_(slope, B.T).addcmul_(dv, gate),
            da1.T @ z,
            da1.sum(0),
            da2.T @ h1,
            da2.sum(0),
            dv.T @ h2,
            weighted.T @ g1,
            dgate.T @ s1,
            z.T @ slope,
            dA,
            dv.sum(0),
        )


@dataclass(eq=False)
class VelocityFlow:
    r"""T(x) = z(1) where dz/dt = v(z, t), z(0) = x: a diffeomorphism with known log det DT.

    .. math:: \log\det DT(x) = \int_0^1 \operatorname{div} v(z(t), t)\, dt

    The field has two hidden layers, and its divergence costs one more product in any dimension:

    .. math:: v(z, t) = W_3\,\phi(W_2\,\phi(W_1 z + t k_1 + b_1) + t k_2 + b_2)
        + z \circ G\,s(a_1) + A z + c
    .. math:: \operatorname{div} v = \phi'(a_2)^\top [W_2 \circ (W_1 W_3)^\top]\, \phi'(a_1)
        + z^\top [G \circ W_1^\top]\, s'(a_1) + 1^\top G\, s(a_1) + \operatorname{tr} A

    (a_1, a_2: what the layers are applied to) in coordinates z = (x - centre) / scale, with
    phi(a) = a s(a), s(a) = 1 / (1 + exp(-a)). The trace of the product of the three layers is a
    bilinear form of the slopes: no tangent vector is carried and no probe drawn. The gate G
    stretches columns by functions of others, as a funnel needs; all grows linearly, so that no
    path explodes. Derivatives in the parameters are written out; `identity` gives the field zero.

    Integrated by ``steps`` Runge-Kutta steps of order 4, forwards and, for the inverse,
    backwards; both integrate the same equation, so that they agree up to the integration error.

    Parameters
    ----------
    flat : Tensor
        All parameters, one after the other.
    width : int
    centre, scale : Tensor of shape (d,)
    steps : int

    Examples
    --------
    The field v = -z contracts by exp(-1):

    >>> zero = torch.zeros(1).double()
    >>> flow = VelocityFlow.identity(zero, zero + 1, 4, 16, torch.Generator().manual_seed(0))
    >>> _ = flow.parts()["A"].fill_(-1.0)
    >>> z, log_det = flow.push(torch.ones(1, 1).double())
    >>> round(float(z), 6), round(float(log_det), 6)
    (0.367879, -1.0)
    """

    flat: Tensor
    width: int
    centre: Tensor
    scale: Tensor
    steps: int

    @staticmethod
    def identity(
        centre: Tensor, scale: Tensor, width: int, steps: int, generator: torch.Generator
    ) -> VelocityFlow:
        """A field that is zero: random hidden layers, no output."""
        d = len(centre)
        size = sum(map(math.prod, _shapes(d, width).values()))
        flat = torch.zeros(size, dtype=centre.dtype)
        new = VelocityFlow(flat, width, centre, scale, steps)
        first, second = 1.5 / d**0.5, 1.5 / width**0.5
        for name, deviation in (("W1", first), ("b1", 1.0), ("W2", second), ("k1", 0.5)):
            part = new.parts()[name]
            noise = torch.randn(part.shape, generator=generator, dtype=torch.float64)
            part.copy_(deviation * noise)
        return new

    def parts(self) -> dict[str, Tensor]:
        """The parameters by name, as views of the flat vector."""
        shapes = _shapes(len(self.centre), self.width)
        pieces = self.flat.split([math.prod(shape) for shape in shapes.values()])
        return {k: p.view(s) for (k, s), p in zip(shapes.items(), pieces, strict=True)}

    def to(self, dtype: torch.dtype) -> VelocityFlow:
        """A copy in another precision."""
        flat = self.flat.detach().to(dtype, copy=True)
        return replace(self, flat=flat, centre=self.centre.to(dtype), scale=self.scale.to(dtype))

    def prepare(self) -> Any:
        """The field in scaled coordinates, (z, t) -> (value, divergence)."""
        p = self.parts()
        joined, gated = p["W2"] * (p["W1"] @ p["W3"]).T, p["G"] * p["W1"].T

        def field(z: Tensor, t: float) -> tuple[Tensor, Tensor]:
            first = p["W1"], p["b1"] + t * p["k1"]
            second = p["W2"], p["b2"] + t * p["k2"]
            out = p["W3"], joined, p["G"], gated, p["A"], p["c"]
            return _Field.apply(z, *first, *second, *out)

        return field

    def integrate(self, z: Tensor, backward: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        r"""Runge-Kutta steps of order 4 in scaled coordinates, differentiable in `flat`.

        Returns the image (n, d), the integral of the divergence (n,) and that of |v|^2 in the
        units of x (n,); ``backward`` runs time from 1 to 0, and the divergence is still that of
        the forward flow.
        """
        field = self.prepare()
        h = (-1.0 if backward else 1.0) / self.steps
        t = 1.0 if backward else 0.0
        grown = torch.zeros(len(z), dtype=z.dtype)
        length = torch.zeros(len(z), dtype=z.dtype)
        metric = self.scale.square()
        for _ in range(self.steps):
            v1, d1 = field(z, t)
            v2, d2 = field(torch.add(z, v1, alpha=0.5 * h), t + 0.5 * h)
            v3, d3 = field(torch.add(z, v2, alpha=0.5 * h), t + 0.5 * h)
            v4, d4 = field(torch.add(z, v3, alpha=h), t + h)
            middle = v2 + v3
            z = z + (h / 6.0) * (v1 + v4 + 2.0 * middle)
            grown = grown + (abs(h) / 6.0) * (d1 + 2.0 * (d2 + d3) + d4)
            energy = v1.square() + v2.square() * 2.0 + v3.square() * 2.0 + v4.square()
            length = length + (abs(h) / 6.0) * (energy @ metric)
            t += h
        return z, grown, length

    @torch.no_grad()
    def push(self, x: Tensor, backward: bool = False) -> tuple[Tensor, Tensor]:
        """Images (n, d) and the integral of the divergence along each path (n,)."""
        inner = ((x.to(self.flat.dtype) - self.centre) / self.scale).split(_BLOCK)
        found = [self.integrate(z, backward) for z in inner]
        image, grown, _ = (torch.cat(part) for part in zip(*found))
        return (image * self.scale + self.centre).to(x.dtype), grown.to(x.dtype)

    def log_det_error(self, x: Tensor) -> float:
        """Root mean square of int div v dt - log |det DT| at the rows of x, T the computed map.

        This is what the integrator adds to log densities. Refining the steps until the integral
        stops changing would not show it: of v = -5 z the integral is right with a single step.
        """
        z = ((x.to(self.flat.dtype) - self.centre) / self.scale).requires_grad_(True)
        with torch.enable_grad():
            image, grown, _ = self.integrate(z)
            rows = [
                torch.autograd.grad(column.sum(), z, retain_graph=True)[0]
                for column in image.unbind(1)
            ]
        log_det = torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet
        return float((grown.detach() - log_det).square().mean().sqrt())


def _shapes(d: int, width: int) -> dict[str, tuple[int, ...]]:
    layers = {"W1": (width, d), "k1": (width,), "b1": (width,)}
    layers |= {"W2": (width, width), "k2": (width,), "b2": (width,)}
    return layers | {"W3": (d, width), "G": (d, width), "A": (d, d), "c": (d,)}


def log_target(log_prob: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Log g at z (n,), -inf where g vanishes.

    Raises NonFiniteError for NaN and +inf: a target that overflows has no flow towards it;
    InvalidDataError where it does not return a tensor of one value per point.
    """
    most = torch.finfo(z.dtype).max
    return checked_values(log_prob(z), z, "the log density of the target", most=most)


def fit_velocity(
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    h: float,
    generator: torch.Generator,
    settings: Any,
    rate: float,
) -> tuple[VelocityFlow, float, float]:
    r"""Minimise E[-log g(z(1)) - int div v dt + (1 / 2h) int |v|^2 dt] over fields v.

    Trained in single precision on batches of the particles ``x`` (n, d); the integrator's steps
    are doubled afterwards until log densities are right up to ``tol`` (`log_det_error`).
    ``settings`` are those of `ImportanceCorrectedScheme`. Returns the flow, E int |v|^2 dt, and
    the error of log densities.
    """
    iterations, steps = settings.iterations, settings.integration_steps
    # Quantiles rather than moments: a few far particles must not set the scale.
    low, high = torch.quantile(x[:20_000], torch.tensor([0.05, 0.95], dtype=x.dtype), dim=0)
    centre, scale = (low + high) / 2, ((high - low) / 3.3).clamp_min(1e-12)
    flow = VelocityFlow.identity(centre.float(), scale.float(), settings.width, steps, generator)
    flat = flow.flat.requires_grad_(True)
    adam = Adam.like(flat.detach())
    scaled = ((x - centre) / scale).float()
    norms: list[float] = []
    rows_of = batches(len(x), min(settings.batch_size, len(x)), generator)
    energy = math.nan
    for k in range(iterations):  # all of them, inside one step of the flow: nothing ends them early
        z = scaled[next(rows_of)]
        image, grown, length = flow.integrate(z)
        log_g = log_target(log_prob, (image * flow.scale + flow.centre).double())
        kept = torch.isfinite(log_g)  # where g vanishes no gradient points anywhere
        fit = _tamed(torch.where(kept, log_g, torch.zeros_like(log_g))).float()
        loss = (length / (2.0 * h) - grown - fit).mean()
        (gradient,) = torch.autograd.grad(loss, flat)
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"the gradient of a JKO step is {norm} at iteration {k + 1} of its fit: the "
                "target's gradient is undefined or too large where the particles are. Compute its "
                "logarithm directly (log of a density that underflows has no gradient), take other "
                "first steps (step_size), or start from a measure closer to the target"
            )
        limit = _CLIP * sorted(norms[-50:])[len(norms[-50:]) // 2] if norms else norm
        norms.append(norm)
        adam.gradient.copy_(gradient).mul_(min(1.0, limit / max(norm, 1e-30)))
        with torch.no_grad():
            adam.step(flat, rate * cosine(k / max(iterations - 1, 1), _LOWEST_RATE))
        energy = float(length.detach().mean())
    flow = flow.to(torch.float64)
    while (error := flow.log_det_error(x[:_PROBED])) > settings.tol and flow.steps < _MOST_STEPS:
        flow = replace(flow, steps=2 * flow.steps)
    return flow, energy, error


def _tamed(log_g: Tensor) -> Tensor:
    """Log g, with values far below the batch's median replaced by a slower decrease.

    One particle far out, where log g falls like a high power, would else decide all directions.
    """
    with torch.no_grad():
        limit = log_g.median() - _FAR
    deep = (limit - log_g).clamp_min(0.0)
    return torch.where(log_g < limit, limit - _FAR * torch.log1p(deep / _FAR), log_g)
