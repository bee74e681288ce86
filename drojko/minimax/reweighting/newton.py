r"""Newton's method for linear models against a set of reweightings.

.. math:: F(\theta, b) = V(\ell(\theta^\top x_i + b, y_i)) + \tfrac\alpha2\|\theta\|^2

With the ratio q = dP*/dP0 of the worst case, by Danskin's theorem the gradient is
E q l' (x, 1), and the second derivative

.. math:: E\,q\,\ell''\,(x, 1)(x, 1)^\top + J^\top\,\nabla^2 V\, J,\qquad J = \ell'\,(x, 1),

is one weighted Gram matrix and a few rank-one terms (`drojko.ambiguity.Curve`). Kinks of the loss
and jumps of the ratio are smoothed by mu, lowered while a few steps per stage keep up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
import torch
from scipy.special import expit

from drojko._driver import Status
from drojko.ambiguity import Curve, Reweighting
from drojko.losses import Hinge, Logistic, Loss, Quantile

__all__ = ["Newton", "Points", "State"]

_BLOCK = 4096  # rows of a block of the Gram matrix: a copy that stays in cache
_FACTOR, _GENTLE = 0.1, 0.5  # of mu from one stage to the next; behind a barrier
_STAGE = 100  # steps after which a stage ends whether or not they have settled
_SMOOTH = 1e-13  # relative gap at which nothing is smoothed: rounding


@dataclass(frozen=True)
class LossJet:
    """Smoothed loss, its derivatives in f, and an affine minorant of the loss there, at f."""

    value: np.ndarray
    slope: np.ndarray
    second: np.ndarray
    low: np.ndarray


def loss_jet(loss: Loss, f: np.ndarray, y: np.ndarray, mu: float) -> LossJet:
    """Derivatives with the kinks of hinge and pinball losses replaced by softplus of width mu.

    The smoothed loss is above the loss by at most mu log 2 times the change of slope; ``low`` is
    the value at f of the line with the smoothed slope that supports the loss from below.
    """
    if isinstance(loss, Hinge):
        sign = 2.0 * y - 1.0
        u = 1.0 - sign * f
        share = expit(u / mu)
        value = mu * np.logaddexp(0.0, u / mu)
        return LossJet(value, -sign * share, share * (1.0 - share) / mu, share * u)
    if isinstance(loss, Quantile):
        low, high = loss.slopes
        r = f - y
        share = expit(r / mu)
        value = low * r + (high - low) * mu * np.logaddexp(0.0, r / mu)
        slope = low + (high - low) * share
        return LossJet(value, slope, (high - low) * share * (1.0 - share) / mu, slope * r)
    g, target = torch.from_numpy(f), torch.from_numpy(y)
    value = loss.value(g, target).numpy()
    second = loss.second_derivative(g, target).numpy()
    return LossJet(value, loss.gradient(g, target).numpy(), second, value)


class Points:
    """Weighted draws with standardised columns and a column of ones for the intercept."""

    def __init__(self, x: np.ndarray, y: np.ndarray, w: np.ndarray, intercept: bool):
        self.y, self.w, self.intercept = y, w, intercept
        mean = w @ x if intercept else np.zeros(x.shape[1])
        self.matrix = np.empty((x.shape[0], x.shape[1] + int(intercept)))
        columns = self.matrix[:, : x.shape[1]]
        np.subtract(x, mean, out=columns)
        spread = np.sqrt(w @ columns**2)
        # Columns that are constant up to rounding say nothing.
        dead = spread <= 1e-13 * np.maximum(np.abs(mean), np.abs(x).max(0, initial=0.0))
        self.scale = np.where(dead, 1.0, spread)
        columns /= self.scale
        columns[:, dead] = 0.0
        self.mean = mean
        if intercept:
            self.matrix[:, -1] = 1.0

    def inward(self, coef: np.ndarray, intercept: float) -> np.ndarray:
        """Parameters of the standardised columns."""
        z = coef * self.scale
        return np.append(z, intercept + coef @ self.mean) if self.intercept else z

    def outward(self, point: np.ndarray) -> tuple[np.ndarray, float]:
        """Coefficients and intercept in the units of the data."""
        if not self.intercept:
            return point / self.scale, 0.0
        coef = point[:-1] / self.scale
        return coef, float(point[-1] - coef @ self.mean)

    def gram(self, weights: np.ndarray) -> np.ndarray:
        """Sum of weights_i (x_i, 1)(x_i, 1)', weights >= 0."""
        size = self.matrix.shape[1]
        total = np.zeros((size, size))
        roots = np.sqrt(np.maximum(weights, 0.0))
        for start in range(0, len(roots), _BLOCK):
            rows = slice(start, start + _BLOCK)
            part = self.matrix[rows] * roots[rows, None]
            total += part.T @ part
        return total


@dataclass(frozen=True, eq=False)
class State:
    """An iterate; ``objective`` is exact, ``value`` smoothed, ``gap`` what smoothing may cost.

    At a stationary point of the smoothed objective ``objective - gap`` is a proven lower bound of
    the minimum: the ratio is one of the set's, and its weighted risk is smallest there.
    """

    point: np.ndarray
    f: np.ndarray
    mu: float
    jet: LossJet
    curve: Curve
    value: float
    objective: float
    gap: float
    penalty: float
    decrement: float = math.inf
    slope: float = math.inf
    ridge: float = 1e-13
    stage: int = 0
    full: bool = False
    stuck: int = 0
    separated: bool = False
    lowered: bool = False

    @property
    def size(self) -> float:
        """What tolerances are relative to."""
        return abs(self.objective)


class Newton:
    """The solver of the driver; ``goal`` is the relative accuracy of the objective aimed at."""

    def __init__(self, points: Points, loss: Loss, bound: Reweighting, alpha: float, goal: float):
        self.points, self.loss, self.bound, self.goal = points, loss, bound, goal
        decay = alpha / points.scale**2
        self.decay = np.append(decay, 0.0) if points.intercept else decay
        self.price = bound.ambiguity.penalty or 0.0
        self.barred = getattr(bound.ambiguity, "jumps", False)  # a largest loss is smoothed
        self.divergent = alpha == 0.0 and isinstance(loss, Logistic)
        self.floor = 0.0

    def init(self, problem: tuple[np.ndarray, float]) -> State:
        """First state at a point, smoothed by a share of the risk there."""
        point, share = problem
        f = self.points.matrix @ point
        losses = self._losses(f)
        unit = max(float(self.points.w @ np.abs(losses)), 1e-300)
        self.floor = 1e-10 * unit
        return self._at(point, f, max(share * unit, 1e-290))

    def _losses(self, f: np.ndarray) -> np.ndarray:
        return self.loss.value(torch.from_numpy(f), torch.from_numpy(self.points.y)).numpy()

    def _smooth(self, f: np.ndarray, point: np.ndarray, mu: float) -> tuple[LossJet, Any, float]:
        jet = loss_jet(self.loss, f, self.points.y, mu)
        if not np.isfinite(jet.value).all():
            return jet, None, math.inf
        curve = self.bound.curve(jet.value, mu)
        return jet, curve, curve.value + 0.5 * float(self.decay @ point**2)

    def _at(self, point: np.ndarray, f: np.ndarray, mu: float, found: Any = None) -> State:
        jet, curve, value = self._smooth(f, point, mu) if found is None else found
        kinked = jet.low is not jet.value
        exact, penalty = curve.exact, curve.penalty
        if kinked or math.isnan(exact):
            dual = self.bound.dual(self._losses(f) if kinked else jet.value)
            exact, penalty = dual.value, dual.penalty
        lower = float((self.points.w * curve.ratio) @ jet.low) - self.price * curve.radius
        ridge = 0.5 * float(self.decay @ point**2)
        gap = max(exact - lower, 0.0)
        separated = self.divergent and bool((f * (2.0 * self.points.y - 1.0) > 0).all())
        return State(
            point, f, mu, jet, curve, value, exact + ridge, gap, penalty, separated=separated
        )

    def _system(self, s: State) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and second derivative of the smoothed objective."""
        matrix, jet, curve = self.points.matrix, s.jet, s.curve
        mass = self.points.w * curve.ratio
        gradient = matrix.T @ (mass * jet.slope) + self.decay * s.point
        hessian = self.points.gram(mass * jet.second + curve.diagonal * jet.slope**2)
        rank = matrix.T @ (jet.slope[:, None] * curve.columns)
        hessian += rank @ curve.core @ rank.T
        hessian[np.diag_indices_from(hessian)] += self.decay
        return gradient, hessian

    def slope(self, s: State) -> float:
        """Norm of the gradient of the smoothed objective, relative to 1 + its value."""
        return float(np.linalg.norm(self._system(s)[0])) / (1.0 + abs(s.value))

    def step(self, state: State) -> State:
        """One damped Newton step, and a smaller mu once the steps have settled."""
        s = state
        gradient, hessian = self._system(s)
        unit = max(float(np.trace(hessian)) / max(len(gradient), 1), 1e-300)
        ridge = s.ridge
        while True:
            shifted = hessian + ridge * unit * np.eye(len(gradient))
            try:
                factor = scipy.linalg.cho_factor(shifted, check_finite=False)
                break
            except np.linalg.LinAlgError:
                ridge = max(100.0 * ridge, 1e-14)
        move = -scipy.linalg.cho_solve(factor, gradient, check_finite=False)
        decrement = -float(gradient @ move)
        slope = float(np.linalg.norm(gradient)) / (1.0 + abs(s.value))
        change = self.points.matrix @ move
        t, accepted = 1.0, None
        rounding = 1e-15 * abs(s.value)
        for _ in range(40):
            f, point = s.f + t * change, s.point + t * move
            found = self._smooth(f, point, s.mu)
            if found[2] <= s.value - 1e-4 * t * decrement + rounding:
                accepted = (point, f, s.mu, found)
                break
            t *= 0.5 if t > 0.1 else 0.25
        if accepted is None:
            stuck = replace(s, stuck=s.stuck + 1, decrement=decrement, slope=slope, lowered=False)
            return stuck if self.terminate(stuck) is not None else self._advance(stuck)
        new = replace(
            self._at(*accepted),
            decrement=decrement,
            slope=slope,
            ridge=max(0.1 * ridge, 1e-13),
            stage=s.stage + 1,
            full=t == 1.0,
            stuck=s.stuck + 1 if found[2] >= s.value else 0,
        )
        return new if self.terminate(new) is not None else self._advance(new)

    def _advance(self, s: State) -> State:
        """Lower mu once what is left to gain at this one is small against what it costs."""
        settled = (s.full and s.decrement <= 0.2 * s.gap) or s.stage >= _STAGE or s.stuck >= 2
        if not settled or self._exact(s) or s.mu <= 1e-13 * max(s.size, self.floor):
            return s
        lowered = self._at(s.point, s.f, (_GENTLE if self.barred else _FACTOR) * s.mu)
        return replace(lowered, decrement=s.decrement, slope=s.slope, ridge=s.ridge, lowered=True)

    def _exact(self, s: State) -> bool:
        return s.gap <= _SMOOTH * max(s.size, self.floor)

    def terminate(self, state: State) -> Status | None:
        """Converged where gap and decrement are small; smooth problems to rounding."""
        s, size = state, max(state.size, self.floor)
        if s.separated or s.size <= self.floor:
            return Status.CONVERGED
        if s.lowered:  # the decrement is that of the mu before: no step has been made at this one
            return None
        if self._exact(s):
            return Status.CONVERGED if s.decrement <= 1e-15 * size or s.stuck >= 3 else None
        if s.gap <= 0.5 * self.goal * size and s.decrement <= 0.5 * self.goal * size:
            return Status.CONVERGED
        spent = s.mu <= 1e-13 * size
        return Status.CONVERGED if spent and (s.stuck >= 3 or s.stage >= _STAGE) else None

    def finite(self, state: State) -> bool:
        """Whether the iterate is."""
        return bool(np.isfinite(state.point).all()) and math.isfinite(state.value)

    def record(self, state: State) -> dict[str, float]:
        """A row of the history."""
        return {
            "robust_risk": state.objective,
            "penalty": state.penalty,
            "transport_cost": state.curve.radius,
            "stationarity": state.slope,
        }
