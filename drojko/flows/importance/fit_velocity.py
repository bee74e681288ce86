"""One JKO step over velocity fields: Adam on the objective, on particles of the current law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko._numerics import Adam, Batches, cosine
from drojko.exceptions import InvalidDataError, NonFiniteError
from drojko.flows.importance.velocity import Velocity, VelocityFlow

__all__ = ["Fitted", "fit_velocity", "log_target"]

#: Largest norm of a gradient, as a multiple of the median of those before it.
_CLIP = 3.0
_LOWEST_RATE = 0.02
#: Nats below the batch's median from which on log g counts by its logarithm.
_FAR = 200.0
#: Particles whose Jacobians are computed to check the integrator, and its largest number of steps.
_PROBED, _MOST_STEPS = 512, 64


@dataclass(frozen=True)
class Fitted:
    """A fitted flow, the movement E |T - x|^2-like path energy, and the integration error."""

    flow: VelocityFlow
    path_energy: float
    integration_error: float


def log_target(log_prob: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Log g at z (n,), -inf where g vanishes.

    Raises NonFiniteError for NaN and +inf: a target that overflows has no flow towards it;
    InvalidDataError where it does not return a tensor of one value per point.
    """
    values = log_prob(z)
    if not isinstance(values, Tensor) or values.shape != z.shape[:1]:
        known = isinstance(values, Tensor)
        got = f"shape {tuple(values.shape)}" if known else type(values).__name__
        raise InvalidDataError(
            f"the log density of the target returned {got} for points of shape {tuple(z.shape)}; "
            f"expected a tensor of shape ({len(z)},), one value per point"
        )
    bad = torch.isnan(values) | (values == math.inf)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise NonFiniteError(
            f"the log density of the target is {float(values[row])} at "
            f"{[round(v, 4) for v in z[row].tolist()[:5]]}: the unnormalised target overflows or "
            "is not defined there. Compute its logarithm directly (logsumexp instead of "
            "log(sum(exp))), or return -inf outside of its support"
        )
    return values


def fit_velocity(
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    h: float,
    generator: torch.Generator,
    *,
    width: int,
    iterations: int,
    batch_size: int,
    rate: float,
    steps: int,
    tol: float,
) -> Fitted:
    r"""Minimise E[-log g(z(1)) - int div v dt + (1 / 2h) int |v|^2 dt] over fields v.

    Trained in single precision on batches of the particles ``x`` (n, d); the integrator's steps
    are doubled afterwards until log densities are right up to ``tol`` (`log_det_error`).
    """
    # Quantiles rather than moments: a few far particles must not set the scale.
    low, high = torch.quantile(x[:20_000], torch.tensor([0.05, 0.95], dtype=x.dtype), dim=0)
    centre, scale = (low + high) / 2, ((high - low) / 3.3).clamp_min(1e-12)
    velocity = Velocity.identity(centre.float(), scale.float(), width, generator)
    flat = velocity.flat.requires_grad_(True)
    adam = Adam.like(velocity.flat.detach())
    scaled = ((x - centre) / scale).float()
    norms: list[float] = []
    batches, energy = Batches(len(x), batch_size, generator), math.nan
    for k in range(iterations):  # all of them, inside one step of the flow: nothing ends them early
        z = scaled[batches.next()]
        image, grown, length = velocity.integrate(flat, z, steps)
        log_g = log_target(log_prob, (image * velocity.scale + velocity.centre).double())
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
    velocity.flat = flat.detach()
    flow, error = _accurate(velocity.to(torch.float64), x[:2000], steps, tol)
    return Fitted(flow, energy, error)


def _tamed(log_g: Tensor) -> Tensor:
    """Log g, with values far below the batch's median replaced by a slower decrease.

    One particle far out, where log g falls like a high power, would else decide all directions.
    """
    with torch.no_grad():
        limit = log_g.median() - _FAR
    deep = (limit - log_g).clamp_min(0.0)
    return torch.where(log_g < limit, limit - _FAR * torch.log1p(deep / _FAR), log_g)


def _accurate(velocity: Velocity, x: Tensor, steps: int, tol: float) -> tuple[VelocityFlow, float]:
    """The flow with as many steps as ``tol`` asks for, at most 64, and its error."""
    flow = VelocityFlow(velocity, steps)
    while True:
        error = flow.log_det_error(x[:_PROBED])
        if error <= tol or flow.steps >= _MOST_STEPS:
            return flow, error
        flow = VelocityFlow(velocity, 2 * flow.steps)
