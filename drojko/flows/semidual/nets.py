"""The two networks of a semi-dual flow, one whole map and a critic, and how a phase trains them.

Their derivatives are written out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from drojko._numerics import cosine
from drojko.flows.functionals.base import Functional
from drojko.flows.functionals.divergence_to import Conjugate
from drojko.models import MLP, Learner
from drojko.transport.maps import TransportMap

__all__ = ["Cloud", "Critic", "Phase", "WholeMap", "affine_step", "gaussian_log_ratio"]

_OFFSET = 1e-3  # of the difference quotient in the gradient penalty, in units of the spread


class _Shaped(nn.Module):
    """A network of standardised points (x - centre) / spread, with a part of low degree beside."""

    def __init__(
        self,
        centre: Tensor,
        spread: Tensor,
        n_out: int,
        matrix: Tensor,
        shift: Tensor,
        hidden: Sequence[int],
        frequency: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.centre, self.spread = centre, spread
        matrix, shift = (part.to(torch.float32, copy=True) for part in (matrix, shift))
        self.matrix, self.shift = nn.Parameter(matrix), nn.Parameter(shift)
        like: Any = {"activation": "silu", "generator": generator, "dtype": torch.float32}
        self.net = net = MLP(len(centre), n_out, hidden=hidden, **like)
        for bias in list(net.biases)[:-1]:  # kinks all over the data, not through its mean only
            bias.data.copy_(0.5 * torch.randn(bias.shape, generator=generator))
        if len(net.weights) > 1:
            net.weights[0].data.mul_(frequency)
            net.biases[0].data.mul_(frequency)
        net.weights[-1].data.zero_()

    def in_units(self, centre: Tensor, unit: Tensor) -> Self:
        """The same for points x = centre + unit * z; not to be trained any more."""
        new = copy.deepcopy(self)
        new.centre, new.spread = centre + unit * self.centre, unit * self.spread
        return new


class WholeMap(_Shaped, TransportMap):
    r"""T(x) = c + s (b + L x' + net(x')), x' = (x - centre) / spread: all of the flow so far.

    Starts at the identity: the network's last layer is zero.
    """

    def __init__(
        self, centre: Tensor, spread: Tensor, origin: Tensor, scale: Any, *layers: Any
    ) -> None:
        identity = torch.diag(spread / scale), (centre - origin) / scale
        super().__init__(centre, spread, len(centre), *identity, *layers)
        self.origin, self.scale = origin, scale

    def inner(self, x: Tensor) -> Tensor:
        """The network's input."""
        return ((x.double() - self.centre) / self.spread).float()

    def linearise(self, inner: Tensor) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """T at network inputs (n, d), float32, and parameter gradients of sum(g * T)."""
        out, back = self.net.linearise(inner)
        out = out.view(len(inner), -1) + torch.addmm(self.shift.detach(), inner, self.matrix.mT)
        one = self.net.n_outputs == 1

        def backward(g: Tensor) -> list[Tensor]:
            g = g * self.scale
            deep = back(g.squeeze(1) if one else g, parameters=True)
            return [g.T @ inner, g.sum(0), *deep]  # a module's own parameters come first

        return (out * self.scale + self.origin.float()).detach(), backward

    @torch.no_grad()
    def map(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        parts = [self.linearise(self.inner(part))[0] for part in x.split(20_000)]
        return torch.cat(parts).double()

    def in_units(self, centre: Tensor, unit: Tensor) -> Self:
        new = super().in_units(centre, unit)
        new.origin, new.scale = centre + unit * self.origin, (unit * self.scale).float()
        return new

    @torch.no_grad()
    def compose(self, matrix: Tensor, shift: Tensor) -> None:
        """T <- matrix T + shift, exactly: the last layer is linear."""
        origin = (matrix @ self.origin + shift - self.origin) / self.scale
        matrix = matrix.float()
        for last in (self.matrix, self.net.weights[-1]):
            last.copy_(matrix @ last)
        self.net.biases[-1].copy_(matrix @ self.net.biases[-1])
        self.shift.copy_(matrix @ self.shift + origin.float())


class Critic(_Shaped):
    r"""w(y) = q0(y') + q(y') + net(y'), y' = (y - centre) / spread.

    q0 is a quadratic held fixed in a phase (the log ratio of two Gaussian fits), q a trained one.
    """

    def __init__(self, centre: Tensor, spread: Tensor, *layers: Any) -> None:
        zero = torch.zeros(len(centre), len(centre)), torch.zeros(len(centre))
        super().__init__(centre, spread, 1, *zero, *layers)
        self.fixed = (*zero, 0.0)

    def fix(self, matrix: Tensor, shift: Tensor, constant: float) -> None:
        """Set q0(y) = y'My/2 + s'y + c, given in the coordinates of the data."""
        s, c = self.spread, self.centre
        value = constant + float(shift @ c + 0.5 * c @ matrix @ c)
        slope = s * (shift + matrix @ c)
        self.fixed = ((s.unsqueeze(1) * matrix * s).float(), slope.float(), value)

    def inner(self, y: Tensor) -> Tensor:
        """The network's input."""
        return (y - self.centre.to(y)) / self.spread.to(y)

    def linearise(self, y: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        """Values w at (n, d) points, float32, and gradients of sum(g * w): in y, or parameters."""
        y = self.inner(y)
        deep, back = self.net.linearise(y)
        matrix = self.fixed[0] + 0.5 * (self.matrix + self.matrix.T).detach()
        shift = self.fixed[1] + self.shift.detach()
        product = y @ matrix
        out = deep + (y * (0.5 * product + shift)).sum(1) + self.fixed[2]

        def backward(g: Tensor, parameters: bool = False) -> Any:
            if not parameters:
                inner = back(g) + g.unsqueeze(1) * (product + shift)
                return inner / self.spread.to(y)
            return [0.5 * (y * g.unsqueeze(1)).T @ y, g @ y, *back(g, parameters=True)]

        return out, backward

    def fixed_value(self, y: Tensor) -> Tensor:
        """q0(y), shape (n,), float64."""
        y = self.inner(y)
        matrix, shift, constant = self.fixed
        return (y * (0.5 * y @ matrix.to(y) + shift.to(y))).sum(1) + constant

    @torch.no_grad()
    def value(self, y: Tensor) -> Tensor:
        """w(y), shape (n,), float64."""
        return torch.cat([self.linearise(p.float())[0] for p in y.split(20_000)]).double()


class Cloud:
    """Points x (n, d) of weights w (n,), drawn from with replacement."""

    def __init__(self, x: Tensor, w: Tensor) -> None:
        equal = bool(((w - w[0]).abs() <= 1e-12 * w[0]).all())
        self.x, self.edges = x, None if equal else torch.cumsum(w, 0)

    def rows(self, n: int, generator: torch.Generator) -> Tensor:
        """N rows with their probabilities."""
        if self.edges is None:
            return torch.randint(len(self.x), (n,), generator=generator)
        u = torch.rand(n, generator=generator, dtype=torch.float64) * self.edges[-1]
        return torch.searchsorted(self.edges, u, right=True).clamp_max_(len(self.x) - 1)


@dataclass(eq=False)
class Phase:
    r"""inf_T sup_w E|T - A|^2 / (2h) + E V(T) + c [E u(w(T)) - E_nu f*(u(w))], on two clouds.

    ``settings`` are those of `SemiDualScheme`; ``anchor`` (n, d) is where the last map put the
    same base point. Counts ``rows``: how many points went through a network.
    """

    settings: Any
    map: WholeMap
    critic: Critic
    learners: tuple[Learner, Learner]
    conjugate: Conjugate
    factor: float
    rest: Functional | None
    h: float
    base: Cloud
    anchor: Tensor
    target: Cloud
    generator: torch.Generator
    noise: float
    rows: int = 0

    def train(self, iterations: int, map_steps: int, loss: Conjugate) -> None:
        """Alternate; rates fall to a twentieth along a cosine. No map steps: the critic alone.

        ``loss`` is the critic's: the game's own, or another one with the same optimum.

        A fixed number of steps of a game, which nothing ends early; Ctrl-C ends the flow around.
        """
        s = self.settings
        out = self.map.linearise(self.base.x)[0] if map_steps == 0 else None
        for i in range(iterations):
            decay = cosine(i / iterations, 0.05)
            images = None if out is None else out[self.base.rows(s.batch_size, self.generator)]
            for _ in range(map_steps):
                images = self._map_step(s.rate * decay)
            if images is not None:
                self._critic_step(images, s.critic_rate * decay, loss)

    def _map_step(self, rate: float) -> Tensor:
        batch = self.settings.batch_size
        rows = self.base.rows(batch, self.generator)
        out, back = self.map.linearise(self.base.x[rows])
        w, slope = self.critic.linearise(out)
        gradient = slope(self.factor * self.conjugate.potential(w)[1])
        if math.isfinite(self.h):
            gradient = gradient + (out - self.anchor[rows]) / self.h
        gradient = gradient / batch
        if self.rest is not None:
            z = out.double()
            mass = torch.full((batch,), 1.0 / batch, dtype=z.dtype)
            gradient = gradient + self.rest.evaluate(z, torch.zeros_like(mass), mass).point.float()
        self.learners[0].step(back(gradient), rate)
        self.rows += 2 * batch
        return out

    def _critic_step(self, images: Tensor, rate: float, loss: Conjugate) -> None:
        larger, penalty = self.settings.target_batch, self.settings.gradient_penalty
        y = self.target.x[self.target.rows(larger, self.generator)]
        if self.noise > 0.0:
            y = y + self.noise * torch.randn(y.shape, generator=self.generator)
        points = [images, y]
        if penalty > 0.0:
            z = torch.randn(y.shape, generator=self.generator) * _OFFSET * self.critic.spread.to(y)
            points += [y + z, y - z]
        w, back = self.critic.linearise(torch.cat(points))
        on_image, on_target, *beside = w.split([len(part) for part in points])
        g = [-loss.potential(on_image)[1] / len(images), loss.conjugate(on_target)[1] / larger]
        if penalty > 0.0:  # E (z'grad w)^2 = |spread grad w|^2 for standard normal z
            change = (beside[0] - beside[1]) / (2.0 * _OFFSET)
            part = penalty * change / (2.0 * _OFFSET * larger)
            g += [part, -part]
        self.learners[1].step(back(torch.cat(g), parameters=True), rate)
        self.rows += len(w)


def affine_step(
    mean: Tensor,
    covariance: Tensor,
    target_mean: Tensor,
    target: Tensor,
    h: float,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Map of the JKO step of a Kullback-Leibler flow from N(m, S), as (P, t): T(x) = P x + t.

    It is exact, and the image is N(m', S'):

    .. math:: P = (R - \eta S'^{-1})^{-1} = R^{-1/2} (I - \eta Z^{-1})^{-1} R^{-1/2},\qquad
        Z = R^{1/2} S' R^{1/2}

    >>> one = torch.eye(1, dtype=torch.float64)
    >>> P, t = affine_step(0 * one[0], one, 2 * one[0], 4 * one, 0.5)
    >>> round(float(t), 6), round(float(P**2), 6)     # N(0.222222, 1.551714)
    (0.222222, 1.551714)
    """
    eta = h * temperature
    precision = torch.linalg.inv(target)
    r = torch.eye(len(mean), dtype=mean.dtype) + h * precision
    values, vectors = torch.linalg.eigh(r)
    inverse = (vectors * values.rsqrt()) @ vectors.T
    values, vectors = torch.linalg.eigh(inverse @ covariance @ inverse)
    g = values.clamp_min(0.0)
    z = 0.5 * (g + 2.0 * eta + (g.square() + 4.0 * eta * g).sqrt())
    matrix = inverse @ (vectors / (1.0 - eta / z)) @ vectors.T @ inverse
    matrix = 0.5 * (matrix + matrix.T)
    moved = torch.linalg.solve(r, mean + h * precision @ target_mean)
    return matrix, moved - matrix @ mean


def gaussian_log_ratio(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Log N(y; m, S) - log N(y; m', S') as y'My/2 + s'y + c; covariances are definite."""
    parts = []
    for m, s in ((mean, covariance), (other_mean, other)):
        factor = torch.linalg.cholesky(s)
        precision = torch.cholesky_inverse(factor)
        constant = -0.5 * float(m @ precision @ m) - float(factor.diagonal().log().sum())
        parts.append((-precision, precision @ m, constant))
    matrix, shift, constant = (own - of_other for own, of_other in zip(*parts))
    return matrix, shift, constant if math.isfinite(constant) else 0.0
