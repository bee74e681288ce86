"""Functionals that compare particles with each other or with samples of a target."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko._validation import check_number, is_whole, shown
from drojko.exceptions import InvalidDataError, NonFiniteError
from drojko.flows.functionals.base import Energy, Functional, checked_values

__all__ = ["InteractionEnergy", "MMDTo", "WassersteinTo"]

_NUMBERS = 2**20  # coordinates of pairs held at once


class InteractionEnergy(Functional):
    r"""F(rho) = 1/2 E W(z - z') over independent pairs, W even.

    The mean is over all pairs of different particles, or over as many shifts of their order as
    2^20 coordinates allow.

    Parameters
    ----------
    kernel : callable
        W: differences (m, d) -> (m,), by torch.

    Examples
    --------
    >>> z = torch.tensor([[0.0], [1.0], [3.0]])
    >>> round(InteractionEnergy(lambda x: (x**2).sum(1)).value(z, torch.zeros(3)), 4)  # 14 / 6
    2.3333
    """

    def __init__(self, kernel: Callable[[Tensor], Tensor]) -> None:
        self.kernel = kernel

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        n, dim = z.shape
        shifts = min(n // 2, max(1, _NUMBERS // (n * dim)))
        if n < 2:
            raise InvalidDataError("an interaction energy needs at least 2 particles")
        first = torch.arange(n, device=z.device).repeat(shifts)
        steps = torch.arange(1, shifts + 1, device=z.device).repeat_interleave(n)
        second = (first + steps) % n
        mass = weights[first] * weights[second]
        if 2 * shifts == n:  # half-way round, each pair comes up twice
            mass[-n:] *= 0.5
        if not 0.0 < float(mass.sum()) < float("inf"):
            raise InvalidDataError("weights are no shares: the products of pairs sum to nothing")
        mass = mass / mass.sum()
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            apart = leaf[first] - leaf[second]
            value = 0.5 * (mass * checked_values(self.kernel(apart), apart, "the kernel")).sum()
            gradient = torch.zeros_like(z)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, leaf)
        return Energy(float(value.detach()), gradient, torch.zeros_like(weights))

    def __repr__(self) -> str:
        return "InteractionEnergy(...)"


class _ToSamples(Functional):
    """A functional that knows its target by draws, taken once and kept."""

    def __init__(self, measure: Any, n_samples: int, random_state: Any) -> None:
        kind = type(self).__name__
        if isinstance(measure, type) or not callable(getattr(measure, "points", None)):
            raise InvalidDataError(
                f"{kind}: measure={shown(measure)}; expected a measure such as Empirical(X)"
            )
        if not is_whole(n_samples, 1):
            raise InvalidDataError(f"{kind}: n_samples={shown(n_samples)}; expected 1 or more")
        make_generator(random_state)
        self.measure, self.n_samples, self.random_state = measure, n_samples, random_state

    @cached_property
    def _draws(self) -> tuple[Tensor, Tensor]:
        return self.measure.points(self.n_samples, make_generator(self.random_state))

    def _target(self, like: Tensor) -> tuple[Tensor, Tensor]:
        y, v = self._draws
        if y.shape[1:] != like.shape[1:]:
            raise InvalidDataError(
                f"{type(self).__name__}: particles in {like.shape[1]} dimensions, and a measure in "
                f"{y.shape[1]}"
            )
        return y.to(like), v.to(like)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.measure!r})"


class MMDTo(_ToSamples):
    r"""F(rho) = E k(z, z') - 2 E k(z, y) + E k(y, y'), y ~ nu: the squared MMD.

    With the Gaussian kernel ``k(x, y) = exp(-|x - y|^2 / (2 s^2))`` and both means over all pairs.

    Parameters
    ----------
    measure : Measure
        nu; represented by ``n_samples`` of its points, fixed by ``random_state``.
    bandwidth : float
        s, in the units of x.
    n_samples : int, default=500
    random_state : None, int or generator, default=0

    Examples
    --------
    >>> from drojko.measures import Empirical
    >>> mmd = MMDTo(Empirical([[0.0]]), bandwidth=1.0)
    >>> mmd.value(torch.zeros(1, 1).double(), torch.zeros(1))
    0.0
    """

    def __init__(
        self, measure: Any, bandwidth: float, *, n_samples: int = 500, random_state: Any = 0
    ) -> None:
        super().__init__(measure, n_samples, random_state)
        self.bandwidth = check_number("MMDTo: bandwidth", bandwidth, above=0)
        if not 1e-150 < self.bandwidth < 1e150:
            raise InvalidDataError(f"MMDTo: bandwidth={bandwidth:g} squared is no number")

    @cached_property
    def _constant(self) -> float:
        y, v = self._draws
        return float(v @ self._kernel(y, y) @ v)

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y).square_().mul_(-0.5 / self.bandwidth**2).exp_()

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        y, v = self._target(z)
        inner = self._kernel(z, z) * weights
        cross = self._kernel(z, y) * v
        both, apart = inner.sum(1), cross.sum(1)
        value = float(weights @ both) - 2.0 * float(weights @ apart) + self._constant
        # grad k(z, a) = -(z - a) k / s^2
        pull = (both - apart).unsqueeze(1) * z - (inner @ z - cross @ y)
        slope = pull * (-2.0 / self.bandwidth**2)
        return Energy(value, weights.unsqueeze(1) * slope, torch.zeros_like(weights))


class WassersteinTo(_ToSamples):
    r"""F(rho) = W_2^2(rho, nu), by the optimal matching of particles with draws of nu.

    The matching is exact for the particles and draws at hand (and so biased upwards, by what two
    samples of one measure are apart); it is held while a map is fitted, an upper bound of F that
    touches it, and found anew between fits.

    Parameters
    ----------
    measure : Measure
        nu; represented by ``n_samples`` of its points, fixed by ``random_state``.
    n_samples : int, default=500
    random_state : None, int or generator, default=0

    Notes
    -----
    More particles than draws share them: each of m draws is matched with about n/m particles.
    scipy's assignment is cubic in their number; in one dimension sorting does it.

    Examples
    --------
    >>> from drojko.measures import Empirical
    >>> far = WassersteinTo(Empirical([[2.0], [4.0]]), n_samples=2)
    >>> far.value(torch.tensor([[3.0], [1.0]]).double(), torch.zeros(2))
    1.0
    """

    majorised = True

    def __init__(self, measure: Any, *, n_samples: int = 400, random_state: Any = 0) -> None:
        super().__init__(measure, n_samples, random_state)

    def at(self, z: Tensor, weights: Tensor) -> Functional:
        from scipy.optimize import linear_sum_assignment

        y, v = self._target(z)
        goal, n = torch.empty_like(z), len(z)
        line = z.shape[1] == 1
        if line:
            order_y, order = torch.argsort(y[:, 0]), torch.argsort(z[:, 0])
            y, v = y[order_y], v[order_y]
            middle = torch.cumsum(weights[order], 0) - 0.5 * weights[order]
        else:  # as many targets as particles: target j takes its share of the ranks
            middle = (torch.arange(n, dtype=z.dtype, device=z.device) + 0.5) / n
        picked = y[torch.searchsorted(torch.cumsum(v, 0) / v.sum(), middle).clamp_max_(len(y) - 1)]
        if line:
            goal[order] = picked
        else:
            cost = torch.cdist(z, picked).square_()
            if not bool(torch.isfinite(cost).all()):
                raise NonFiniteError("WassersteinTo: particles so far from the draws overflow")
            first, second = map(torch.as_tensor, linear_sum_assignment(cost.cpu().numpy()))
            goal[first] = picked[second]
        return _Matched(goal)

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        return self.at(z, weights).evaluate(z, log_density, weights)


class _Matched(Functional):
    """E |z - goal|^2 at a fixed matching."""

    def __init__(self, goal: Tensor) -> None:
        self.goal = goal

    def evaluate(self, z: Tensor, log_density: Tensor, weights: Tensor) -> Energy:
        miss = z - self.goal
        value = float((weights * miss.square().sum(1)).sum())
        return Energy(value, 2.0 * weights.unsqueeze(1) * miss, torch.zeros_like(weights))

    def take(self, rows: Tensor) -> Functional:
        return _Matched(self.goal[rows])
