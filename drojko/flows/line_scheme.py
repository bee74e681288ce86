"""JKO steps on the line: the optimal monotone map by Newton's method, without a network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Status, nested
from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.flows.functionals.base import Energy
from drojko.flows.icnn.map_problem import FittedMap, MapProblem
from drojko.transport.maps import TransportMap

__all__ = ["LineScheme", "MonotoneMap"]

_LIGHT = 1e-40  # weight, relative to the largest, below which a particle only follows
_OFFSET = 1e-4  # of a standard deviation, for second derivatives


class MonotoneMap(TransportMap):
    """Increasing map of the line through given values, cubic between them, linear beyond.

    Parameters
    ----------
    knots, values : ndarray of shape (n,)
        Both strictly increasing, n >= 2; slopes after Fritsch and Butland (1984).

    Examples
    --------
    >>> T = MonotoneMap(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 4.0]))
    >>> y = T.map(torch.tensor([[0.5], [3.0]], dtype=torch.float64))
    >>> torch.allclose(T.inverse(y), torch.tensor([[0.5], [3.0]], dtype=torch.float64))
    True
    """

    def __init__(self, knots: np.ndarray, values: np.ndarray) -> None:
        from scipy.interpolate import PchipInterpolator

        if len(knots) < 2 or (np.diff(knots) <= 0).any() or (np.diff(values) <= 0).any():
            raise InvalidDataError("a MonotoneMap needs two or more increasing knots and values")
        self.knots, self.values = knots, values
        inner = PchipInterpolator(knots, values, extrapolate=False)
        ends = np.diff(values)[[0, -1]] / np.diff(knots)[[0, -1]]
        # The slope at an end may come out as zero there: a line continues the secant instead.
        slopes = np.asarray(inner.derivative()(knots))
        slopes[[0, -1]] = ends
        self.slopes = slopes

    def _at(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and slopes."""
        k, y, m = self.knots, self.values, self.slopes
        i = np.clip(np.searchsorted(k, x) - 1, 0, len(k) - 2)
        width, rise = k[i + 1] - k[i], y[i + 1] - y[i]
        t = np.clip((x - k[i]) / width, 0.0, 1.0)
        a, b = m[i] * width, m[i + 1] * width
        value = y[i] + t * (a + t * ((3 * rise - 2 * a - b) + t * (a + b - 2 * rise)))
        slope = (a + t * (2 * (3 * rise - 2 * a - b) + 3 * t * (a + b - 2 * rise))) / width
        beyond = np.where(x < k[0], x - k[0], np.where(x > k[-1], x - k[-1], 0.0))
        return value + slope * beyond, np.maximum(slope, 1e-300)

    def map(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.as_tensor(self._at(x[:, 0].numpy())[0]).unsqueeze(1)

    def log_abs_det_jacobian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.as_tensor(np.log(self._at(x[:, 0].numpy())[1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """The x with T(x) = y: Newton's method, kept between the neighbouring knots."""
        goal, k, v = y[:, 0].numpy(), self.knots, self.values
        i = np.clip(np.searchsorted(v, goal) - 1, 0, len(k) - 2)
        low = np.where(goal < v[0], -np.inf, k[i])
        high = np.where(goal > v[-1], np.inf, k[i + 1])
        x = k[i] + (goal - v[i]) * (k[i + 1] - k[i]) / (v[i + 1] - v[i])
        for _ in range(60):
            value, slope = self._at(x)
            miss = value - goal
            low, high = np.where(miss < 0, x, low), np.where(miss > 0, x, high)
            step = x - miss / slope
            middle = np.where(np.isfinite(low + high), 0.5 * (low + high), step)
            new = np.where((step >= low) & (step <= high), step, middle)
            done = np.abs(new - x) <= 1e-15 * (1.0 + np.abs(x))
            x = new
            if done.all():
                break
        return torch.as_tensor(x).unsqueeze(1)


@dataclass(frozen=True)
class LineScheme:
    r"""JKO steps in one dimension, solved for the images of all particles at once.

    .. math:: \min_{T_1 < \dots < T_n} \sum_i w_i\Big(V(T_i) + \frac{(T_i - x_i)^2}{2h}\Big)
        - \theta \sum_i m_i \log\frac{T_{i+1} - T_i}{x_{i+1} - x_i}

    m_i is the mass between two neighbours. Newton's method on a tridiagonal system: the error is
    that of the particles' spacing, tails included; a step costs milliseconds. For functionals that
    are a potential and a multiple of the entropy.

    Parameters
    ----------
    n_particles : int
    tol : float
        Newton's decrement, in nats, at which a step ends.
    max_iter : int

    Notes
    -----
    Lagrangian schemes: Kinderlehrer, Walkington (1999); Blanchet, Calvez, Carrillo (2008).

    Examples
    --------
    >>> from drojko.flows import JKOFlow
    >>> from drojko.flows.functionals import Entropy, PotentialEnergy
    >>> from drojko.measures import Gaussian
    >>> F = PotentialEnergy(lambda z: (z[:, 0] - 2.0) ** 2 / 8) + Entropy()
    >>> flow = JKOFlow(F, LineScheme(), step_size=0.5)
    >>> step = flow.run(Gaussian([0.0], [[1.0]]), 1, random_state=0).measures[1]
    >>> round(float(step.weights @ step.particles[:, 0]), 3)  # exactly 2 / 9
    0.222
    """

    n_particles: int = 2000
    tol: float = 1e-12
    max_iter: int = 100

    def fit_map(
        self, train: MapProblem, held: MapProblem, generator: torch.Generator, start: Any = None
    ) -> FittedMap:
        """The map that minimises J on ``train``; ``held`` is evaluated only."""
        if train.particles.x.shape[1] != 1:
            raise UnsupportedError("LineScheme is for one dimension: use ICNNScheme")
        newton = _LineNewton(train, self.tol)
        state = nested(newton, newton.init(None), max_iter=self.max_iter).state
        found = MonotoneMap(newton.x, state.t)
        parts = []
        for problem in (train, held):
            x = problem.particles.x
            parts.append(problem.evaluate(found.map(x), found.log_abs_det_jacobian(x)))
        return FittedMap(found, None, parts[0], parts[1], True)


@dataclass(frozen=True, eq=False)
class _LineState:
    """Images of the particles in their order, J there, and how the last step went."""

    t: np.ndarray
    value: float
    decrement: float = math.inf
    length: float = 1.0


class _LineNewton:
    """Newton's method on the images of a problem's particles; those of no weight only follow."""

    def __init__(self, problem: MapProblem, tol: float) -> None:
        p = problem.particles
        order = torch.argsort(p.x[:, 0])
        keep = p.w[order] > _LIGHT * p.w.max()
        keep[1:] &= torch.diff(p.x[order, 0]) > 0.0
        order = order[keep]
        self.x, self.w = p.x[order, 0].numpy(), (p.w[order] / p.w[order].sum()).numpy()
        if len(self.x) < 2:
            raise InvalidDataError("LineScheme needs two or more different particles")
        self.log_density, self.tol = p.log_density[order], tol
        self.functional = problem.functional.take(order)
        self.offset = _OFFSET * problem.scale
        theta = float(self._energy(self.x).log_density.sum())
        if problem.functional.density == "absolute":
            raise UnsupportedError(
                f"LineScheme got {problem.functional!r}; it takes potentials and entropies: use "
                "ICNNScheme"
            )
        self.mass = theta * 0.5 * (self.w[1:] + self.w[:-1])
        self.inverse_h = 1.0 / problem.tau if math.isfinite(problem.tau) else 0.0

    def _energy(self, t: np.ndarray) -> Energy:
        z = torch.as_tensor(t).unsqueeze(1)
        return self.functional.evaluate(z, self.log_density, torch.as_tensor(self.w))

    def _force(self, t: np.ndarray) -> np.ndarray:
        return self._energy(t).point[:, 0].numpy()

    def _value(self, t: np.ndarray) -> float:
        gap, x = np.diff(t), self.x
        if (gap <= 0.0).any():
            return math.inf
        barrier = float(self.mass @ np.log(gap / np.diff(x))) if self.mass.any() else 0.0
        return self._energy(t).value + 0.5 * self.inverse_h * float(self.w @ (t - x) ** 2) - barrier

    def init(self, problem: None) -> _LineState:
        """The identity."""
        return _LineState(self.x.copy(), self._value(self.x))

    def step(self, state: _LineState) -> _LineState:
        """One Newton step, as long as the particles keep their order and J falls enough."""
        from scipy.linalg import solveh_banded

        t, mass, moved = state.t, self.mass, self.inverse_h * self.w
        gap = np.diff(t)
        force = self._force(t) + moved * (t - self.x)
        force[1:] -= mass / gap
        force[:-1] += mass / gap
        ends = self._force(t + self.offset), self._force(t - self.offset)
        bend = (ends[0] - ends[1]) / (2.0 * self.offset)
        bars = mass / gap**2
        # A convex model where V bends down more than the movement holds.
        diagonal = np.maximum(bend + moved, 1e-3 * (np.abs(bend) + moved))
        diagonal[1:] += bars
        diagonal[:-1] += bars
        # Scaled to a unit diagonal: weights span many orders of magnitude.
        unit = np.sqrt(np.maximum(diagonal, 1e-300))
        bands = np.ones((2, len(t)))
        bands[0, 0] = 0.0
        bands[0, 1:] = -bars / (unit[1:] * unit[:-1])
        bands[1] *= 1.0 + 1e-14
        step = -solveh_banded(bands, force / unit) / unit
        slope = float(force @ step)
        closing = (-np.diff(step) / gap).max()
        length = min(1.0, 0.9 / max(float(closing), 1e-300))
        while length > 1e-12:
            value = self._value(t + length * step)
            if value <= state.value + 1e-4 * length * slope or abs(slope) < 1e-13:
                return _LineState(t + length * step, value, -slope, length)
            length *= 0.5
        return replace(state, decrement=0.0, length=1.0)  # no step gains: rounding

    def finite(self, state: _LineState) -> bool:
        """Whether the value is a number."""
        return math.isfinite(state.value)

    def terminate(self, state: _LineState) -> Status | None:
        """Stop on the decrement of a whole step."""
        return Status.CONVERGED if state.decrement < self.tol and state.length == 1.0 else None
