"""JKO steps on the line: the optimal monotone map by Newton's method, without a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko.exceptions import InvalidDataError, UnsupportedError
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
        found = self._solve(train)
        parts = []
        for problem in (train, held):
            x = problem.particles.x
            parts.append(problem.evaluate(found.map(x), found.log_abs_det_jacobian(x)))
        return FittedMap(found, None, parts[0], parts[1], True)

    def _solve(self, problem: MapProblem) -> MonotoneMap:
        from scipy.linalg import solveh_banded

        p = problem.particles
        order = torch.argsort(p.x[:, 0])
        keep = p.w[order] > _LIGHT * p.w.max()
        keep[1:] &= torch.diff(p.x[order, 0]) > 0.0
        order = order[keep]
        x, w = p.x[order, 0].numpy(), (p.w[order] / p.w[order].sum()).numpy()
        if len(x) < 2:
            raise InvalidDataError("LineScheme needs two or more different particles")
        weights, log_density = torch.as_tensor(w), p.log_density[order]
        functional = problem.functional.take(order)
        offset = _OFFSET * problem.scale

        def energy(t: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
            at = functional.evaluate(torch.as_tensor(t).unsqueeze(1), log_density, weights)
            return at.value, at.point[:, 0].numpy(), at.log_density.numpy()

        theta = float(energy(x)[2].sum())
        if problem.functional.density == "absolute":
            raise UnsupportedError(
                f"LineScheme got {problem.functional!r}; it takes potentials and entropies: use "
                "ICNNScheme"
            )
        mass = theta * 0.5 * (w[1:] + w[:-1])
        inverse_h = 1.0 / problem.tau if math.isfinite(problem.tau) else 0.0

        def value(t: np.ndarray) -> float:
            gap = np.diff(t)
            if (gap <= 0.0).any():
                return math.inf
            barrier = float(mass @ np.log(gap / np.diff(x))) if theta else 0.0
            return energy(t)[0] + 0.5 * inverse_h * float(w @ (t - x) ** 2) - barrier

        t, current = x.copy(), value(x)
        for _ in range(self.max_iter):
            gap = np.diff(t)
            force = energy(t)[1] + inverse_h * w * (t - x)
            force[1:] -= mass / gap
            force[:-1] += mass / gap
            bend = (energy(t + offset)[1] - energy(t - offset)[1]) / (2.0 * offset)
            bars = mass / gap**2
            # A convex model where V bends down more than the movement holds.
            diagonal = np.maximum(bend + inverse_h * w, 1e-3 * (np.abs(bend) + inverse_h * w))
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
            change = np.diff(step)
            shrink = change < 0.0
            length = (
                min(1.0, 0.9 / max(float((-change[shrink] / gap[shrink]).max()), 1e-300))
                if (shrink.any())
                else 1.0
            )
            while length > 1e-12:
                new = value(t + length * step)
                if new <= current + 1e-4 * length * slope or abs(slope) < 1e-13:
                    break
                length *= 0.5
            else:
                break
            t, current = t + length * step, new
            if -slope < self.tol and length == 1.0:
                break
        return MonotoneMap(x, t)
