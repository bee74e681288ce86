"""The two networks of a semi-dual flow, with derivatives by hand: one whole map and a critic."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drojko.models import MLP
from drojko.transport.maps import TransportMap

__all__ = ["Critic", "WholeMap", "affine_step", "gaussian_log_ratio"]


def _network(
    n_in: int, n_out: int, hidden: Sequence[int], frequency: float, generator: torch.Generator
) -> MLP:
    net = MLP(
        n_in, n_out, hidden=hidden, activation="silu", generator=generator, dtype=torch.float32
    )
    for bias in list(net.biases)[:-1]:  # kinks all over the data, not through its mean only
        bias.data.copy_(0.5 * torch.randn(bias.shape, generator=generator))
    if len(net.weights) > 1:
        net.weights[0].data.mul_(frequency)
        net.biases[0].data.mul_(frequency)
    net.weights[-1].data.zero_()
    return net


class WholeMap(nn.Module, TransportMap):
    r"""T(x) = c + s (b + L x' + net(x')), x' = (x - centre) / spread: all of the flow so far.

    Starts at the identity: the network's last layer is zero.
    """

    def __init__(
        self,
        centre: Tensor,
        spread: Tensor,
        origin: Tensor,
        scale: Any,
        hidden: Sequence[int],
        frequency: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        dim = len(centre)
        self.centre, self.spread, self.origin, self.scale = centre, spread, origin, scale
        self.net = _network(dim, dim, hidden, frequency, generator)
        self.matrix = nn.Parameter(torch.diag(spread / scale).float())
        self.shift = nn.Parameter(((centre - origin) / scale).float())

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

    def in_units(self, centre: Tensor, unit: Tensor) -> WholeMap:
        """The map of x = centre + unit * z, where this one maps z; not to be trained any more."""
        new = copy.deepcopy(self)
        new.centre, new.spread = centre + unit * self.centre, unit * self.spread
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


class Critic(nn.Module):
    r"""w(y) = q0(y') + q(y') + net(y'), y' = (y - centre) / spread.

    q0 is a quadratic held fixed in a phase (the log ratio of two Gaussian fits), q a trained one.
    """

    def __init__(
        self,
        centre: Tensor,
        spread: Tensor,
        hidden: Sequence[int],
        frequency: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        dim = len(centre)
        self.centre, self.spread = centre, spread
        self.net = _network(dim, 1, hidden, frequency, generator)
        self.matrix = nn.Parameter(torch.zeros(dim, dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self.fixed = (torch.zeros(dim, dim), torch.zeros(dim), 0.0)

    def in_units(self, centre: Tensor, unit: Tensor) -> Critic:
        """The same function of x = centre + unit * z."""
        new = copy.deepcopy(self)
        new.centre, new.spread = centre + unit * self.centre, unit * self.spread
        return new

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
    total = torch.zeros_like(covariance), torch.zeros_like(mean), 0.0
    for sign, m, s in ((1.0, mean, covariance), (-1.0, other_mean, other)):
        factor = torch.linalg.cholesky(s)
        precision = torch.cholesky_inverse(factor)
        constant = -0.5 * float(m @ precision @ m) - float(factor.diagonal().log().sum())
        total = (
            total[0] - sign * precision,
            total[1] + sign * precision @ m,
            total[2] + sign * constant,
        )
    return total if math.isfinite(total[2]) else (total[0], total[1], 0.0)
