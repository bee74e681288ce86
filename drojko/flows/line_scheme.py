"""JKO steps on the line: the optimal monotone map by Newton's method, without a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._driver import Status
from drojko._settings import check_settings
from drojko.exceptions import InvalidDataError, NonFiniteError, UnsupportedError
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
        from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

        if len(knots) < 2 or (np.diff(knots) <= 0).any() or (np.diff(values) <= 0).any():
            raise InvalidDataError("a MonotoneMap needs two or more increasing knots and values")
        self.knots, self.values = knots, values
        slopes = np.asarray(PchipInterpolator(knots, values).derivative()(knots))
        # The slope at an end may come out as zero there: a line continues the secant instead.
        slopes[[0, -1]] = np.diff(values)[[0, -1]] / np.diff(knots)[[0, -1]]
        self.inner = CubicHermiteSpline(knots, values, slopes)
        self.slope = self.inner.derivative()

    def __getstate__(self) -> dict[str, np.ndarray]:
        """What the rest follows from."""
        return {"knots": self.knots, "values": self.values}

    def __setstate__(self, held: dict[str, np.ndarray]) -> None:
        self.__init__(**held)

    def _at(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = np.clip(x, self.knots[0], self.knots[-1])
        slope = self.slope(inside)
        return self.inner(inside) + slope * (x - inside), np.maximum(slope, 1e-300)

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

    def __post_init__(self) -> None:
        check_settings(self, whole={"n_particles": 2, "max_iter": 1}, least={"tol": 0.0})

    def fit_map(
        self, train: MapProblem, held: MapProblem, generator: torch.Generator, start: Any = None
    ) -> FittedMap:
        """The map that minimises J on ``train``; ``held`` is evaluated only."""
        if train.particles.x.shape[1] != 1:
            raise UnsupportedError("LineScheme is for one dimension: use ICNNScheme")
        newton = _LineNewton(train)
        found = MonotoneMap(newton.x, newton.solve(self.tol, self.max_iter))
        x, y = train.particles.x, held.particles.x
        on_train = train.evaluate(found.map(x), found.log_abs_det_jacobian(x))
        on_held = held.evaluate(found.map(y), found.log_abs_det_jacobian(y))
        return FittedMap(found, None, on_train, on_held, True)


class _LineNewton:
    """Newton's method on the images of a problem's particles; those of no weight only follow."""

    def __init__(self, problem: MapProblem) -> None:
        p = problem.particles
        order = torch.argsort(p.x[:, 0])
        keep = p.w[order] > _LIGHT * p.w.max()
        keep[1:] &= torch.diff(p.x[order, 0]) > 0.0
        order = order[keep]
        self.x, self.w = p.x[order, 0].numpy(), (p.w[order] / p.w[order].sum()).numpy()
        if len(self.x) < 2:
            raise InvalidDataError("LineScheme needs two or more different particles")
        self.log_density = p.log_density[order]
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

    def solve(self, tol: float, max_iter: int) -> np.ndarray:
        """The images; ends where a whole step promises less than ``tol``.

        All inside one step of the flow: what interrupts it ends that one.
        """
        t, value = self.x, self._value(self.x)
        if not math.isfinite(value):
            raise NonFiniteError(f"the particles' energy is {value}. {Status.NON_FINITE.advice}")
        for _ in range(max_iter):
            step, slope, length = self._direction(t)
            while length > 1e-12:
                new = self._value(t + length * step)
                if new <= value + 1e-4 * length * slope or abs(slope) < 1e-13:
                    break
                length *= 0.5
            else:
                break  # no step gains: rounding
            t, value = t + length * step, new
            if -slope < tol and length == 1.0:
                break
        return t

    def _direction(self, t: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Newton's step, J's slope along it, and how much of it keeps the particles' order."""
        from scipy.linalg import solveh_banded

        mass, moved = self.mass, self.inverse_h * self.w
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
        closing = float((-np.diff(step) / gap).max())
        return step, float(force @ step), min(1.0, 0.9 / max(closing, 1e-300))
